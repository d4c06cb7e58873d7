"""Two system calls that Python 3.11 does not wrap: openat2(2) and syncfs(2)."""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from pathlib import Path

# The number is the same on every architecture (system calls were unified from 424 on).
_OPENAT2 = 437
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def open_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` below `root_fd`; the kernel refuses whatever leads out of it.

    Symbolic links are followed as long as they stay inside; absolute ones and mount points are
    refused with EXDEV.

    Raises:
        OSError: as open(2).
    """
    # struct open_how: flags, mode, resolve.
    how = struct.pack(
        "=QQQ",
        flags | os.O_CLOEXEC,
        0,
        _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV,
    )
    fd: int = _libc().syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(root_fd),
        ctypes.c_char_p(path),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def sync_filesystem(directory: Path) -> None:
    """Write everything of the file system that holds `directory` to the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(ctypes.c_int(fd)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(fd)

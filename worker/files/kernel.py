"""System calls on files that Python's library lacks: openat2(2), renameat2(2) and syncfs(2).

Nothing here decides. Each function raises `OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# The number is the same on every architecture: system calls were unified from 424 on.
_SYS_OPENAT2 = 437
_RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (  # type: ignore[mutable-override]  # ctypes declares a list where any sequence does
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(directory: int, path: str | bytes, flags: int, mode: int, resolve: int) -> int:
    """Open a path below a directory, resolved as the `RESOLVE_` flags say."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(name),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _checked(result, path)


def rename_without_replacing(directory: int, source: str, target: str) -> None:
    """Rename within one directory; `FileExistsError` where the new name is taken.

    Raises:
        OSError: EINVAL where the filesystem cannot promise that.
    """
    result = _libc.renameat2(
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_RENAME_NOREPLACE),
    )
    _checked(result, target)


def sync_filesystem(descriptor: int) -> None:
    """Write everything of the filesystem that holds an open directory to the disk."""
    _checked(_libc.syncfs(ctypes.c_int(descriptor)), "")


def _checked(result: int, path: str | bytes) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result

"""The kernel calls that Python's library lacks, by ctypes.

Nothing here decides. Each function raises `OSError` with the kernel's errno; glibc's functions
are called without the GIL, so a slow mount holds only its own thread.
"""

from __future__ import annotations

import ctypes
import os

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

RESOLVE_IN_ROOT = 0x10

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100

# openat2 came after the numbers of system calls were made equal on all architectures.
_SYS_OPENAT2 = 437

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (  # type: ignore[mutable-override]  # ctypes declares a list where any sequence does
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def mount(source: str, target: str, filesystem: str, flags: int, options: str) -> None:
    """Mount a filesystem, as in the manual's section 2."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), filesystem.encode(), flags, options.encode()
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """Call umount2(2), never through a symbolic link."""
    _check(_libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), target)


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Call openat2(2) with RESOLVE_IN_ROOT: `..`, links and absolute paths stay below `root_fd`."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT)
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(root_fd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _check(result, path)


def inotify_open() -> int:
    """Return a non-blocking inotify descriptor that watches nothing yet."""
    return _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")


def inotify_add(descriptor: int, directory: str, mask: int) -> int:
    """Watch a directory; return the watch's number, the same for the same directory."""
    return _check(_libc.inotify_add_watch(descriptor, os.fsencode(directory), mask), directory)


def inotify_remove(descriptor: int, watch: int) -> None:
    """Watch it no longer."""
    _check(_libc.inotify_rm_watch(descriptor, watch), "inotify")

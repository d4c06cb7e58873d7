"""The kernel calls that Python's library lacks, by ctypes.

Nothing here decides. Each function raises `OSError` with the kernel's errno; glibc's functions
are called without the GIL, so a slow mount holds only its own thread.
"""

from __future__ import annotations

import ctypes
import errno
import os

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

MS_BIND = 0x1000
MS_REC = 0x4000

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100

_UNMOUNTS_MAX = 16

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


def unmount_all(target: str) -> None:
    """Unmount what is mounted at a path, however often; nothing if nothing is.

    Raises:
        OSError: it stays mounted.
    """
    for _ in range(_UNMOUNTS_MAX):
        try:
            unmount(target, MNT_DETACH)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:
                return
            raise
    raise OSError(errno.EBUSY, "it is mounted too often", target)


def inotify_open() -> int:
    """Return a non-blocking inotify descriptor that watches nothing yet."""
    return _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")


def inotify_add(descriptor: int, directory: str, mask: int) -> int:
    """Watch a directory; return the watch's number, the same for the same directory."""
    return _check(_libc.inotify_add_watch(descriptor, os.fsencode(directory), mask), directory)


def inotify_remove(descriptor: int, watch: int) -> None:
    """Watch it no longer."""
    _check(_libc.inotify_rm_watch(descriptor, watch), "inotify")

"""Opens paths below a directory which strangers write to, without ever leaving it.

Two readings of a path are of use. A container's own files mean what they mean inside it: an
absolute link starts at its root, and `..` stops there (`open_in_root`). A path into a volume comes
from outside it: whatever would leave the volume is refused (`open_beneath`). Both are resolved by
the kernel in one step, so nobody can exchange a part of the path between a check and its use.

Source: openat2(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

from worker.files import kernel

# Source: path_resolution(7); the kernel follows as many.
_LINKS_MAX = 40
_MADE_MODE = 0o755


def open_in_root(root: int, path: str | bytes, flags: int) -> int:
    """Open a path as a process would whose root directory is `root`."""
    resolve = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
    return kernel.openat2(root, path, flags, 0, resolve)


def open_beneath(root: int, path: str | bytes, flags: int) -> int:
    """Open a path below `root`; EXDEV if it, or a link on its way, leads out."""
    resolve = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_MAGICLINKS
    return kernel.openat2(root, path, flags, 0, resolve)


def open_regular(root: int, path: str | bytes) -> int | None:
    """Open a regular file for reading, as `open_in_root` finds it; None if it is anything else.

    A device or FIFO is looked at and never opened.
    """
    place = open_in_root(root, path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return None
        return reopen(place, os.O_RDONLY)
    finally:
        os.close(place)


def reopen(descriptor: int, flags: int) -> int:
    """Open once more, with other flags, the very file that a descriptor stands for."""
    return os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC)


def make_directories(
    root: int,
    parts: Sequence[bytes],
    make: Callable[[int, bytes], None],
    make_way: Callable[[int, bytes, os.stat_result], None],
    flags: int = os.O_PATH,
) -> int:
    """Open a directory below `root`, made with those above it where they are missing.

    Links are followed as in `open_in_root`, also those to what is not there yet.

    Args:
        root: the directory that is never left.
        parts: the names on the way; `.` and `..` are allowed.
        make: makes a missing directory of a name in an open one.
        make_way: is told of something else that has the name of a directory; replaces it by one
            or raises.
        flags: for the descriptor that is returned.

    Raises:
        OSError: as open(2); ELOOP after too many links.
    """
    left, found, links = list(reversed(parts)), list[bytes](), 0
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        while left:
            name = left.pop()
            if name in {b"", b"."}:
                continue
            if name == b"..":
                del found[-1:]
                here = _replaced(here, _open_again(root, found))
                continue
            status = _lstat(name, here)
            if status is None:
                make(here, name)
            elif stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                target = os.readlink(name, dir_fd=here)
                if target.startswith(b"/"):
                    found.clear()
                    here = _replaced(here, _open_again(root, found))
                left.extend(reversed(target.split(b"/")))
                continue
            elif not stat.S_ISDIR(status.st_mode):
                make_way(here, name, status)
            flags_here = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            here = _replaced(here, os.open(name, flags_here, dir_fd=here))
            found.append(name)
        return os.open(".", flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def make_directory(parent: int, name: bytes) -> None:
    """Make a directory as Docker makes what is missing: root's, and readable for all."""
    os.mkdir(name, _MADE_MODE, dir_fd=parent)
    # Whatever this process's mask is.
    os.chmod(name, _MADE_MODE, dir_fd=parent)


def stop_at(_parent: int, name: bytes, _status: os.stat_result) -> None:
    """Refuse to go on through something that is no directory."""
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)


def _open_again(root: int, found: Sequence[bytes]) -> int:
    """Open a directory that was reached before; nothing on its way may be a link by now."""
    resolve = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
    return kernel.openat2(root, b"/".join(found) or b".", os.O_PATH | os.O_DIRECTORY, 0, resolve)


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new


def _lstat(name: bytes, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None

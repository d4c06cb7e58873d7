"""Removes and measures trees of any depth that strangers made, and may be changing.

No function here recurses or puts a path together: a `Cursor` has one directory open and steps from
it into an entry, or back out of it. No link is ever followed. Everything blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from worker.files import kernel

T = TypeVar("T")

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# So often is a tree looked through again that somebody puts new entries into while it is removed.
_ATTEMPTS_MAX = 5
# So many directories of one listing are remembered; a removal then lists what is left.
_NAMES_MAX = 10_000
_BLOCK_BYTES = 512
# What was a directory when it was listed is gone, a file or a link by now.
_REPLACED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


# Somebody is changing the tree: another attempt may find it at rest.
_CHANGING = frozenset({errno.ENOTEMPTY, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})


class MovedError(OSError):
    """A directory was moved to another place while it was open; the way back is lost."""


class Cursor:
    """A directory of a tree, with the way back to its top; holds one descriptor at any depth."""

    def __init__(self, top: int, *, crosses_mounts: bool = True) -> None:
        """Begin at an open directory, which stays the caller's."""
        self._crosses_mounts = crosses_mounts
        self._above: list[tuple[int, int]] = []
        self._inode = (0, 0)
        self.fd = -1
        self._stand(os.open(".", DIRECTORY_FLAGS, dir_fd=top))

    def __enter__(self) -> Self:
        """Nothing to do: the directory is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the directory."""
        os.close(self.fd)

    def _stand(self, descriptor: int) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = descriptor
        status = os.fstat(descriptor)
        self._inode = (status.st_dev, status.st_ino)

    def enter(self, name: str) -> None:
        """Step into a directory of this one.

        Raises:
            OSError: it is gone or no directory; EXDEV if something is mounted there and that is
                not to be entered.
        """
        resolve = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
        if not self._crosses_mounts:
            resolve |= kernel.RESOLVE_NO_XDEV
        descriptor = kernel.openat2(self.fd, name, DIRECTORY_FLAGS, 0, resolve)
        self._above.append(self._inode)
        self._stand(descriptor)

    def leave(self) -> None:
        """Step back into the directory from which this one was entered.

        Raises:
            MovedError: this directory is in another one by now.
        """
        expected = self._above.pop()
        self._stand(os.open("..", DIRECTORY_FLAGS, dir_fd=self.fd))
        if self._inode != expected:
            raise MovedError(errno.ESTALE, "a directory was moved while it was looked through")


class _Level(msgspec.Struct):
    """What is left to do in a directory on the way: its own name, and directories in it."""

    name: str
    directories: list[str]
    is_complete: bool
    removed: int = 0


def remove(path: str | bytes | Path, *, dir_fd: int | None = None) -> None:
    """Remove a file or a directory with all that is in it; nothing if there is none.

    Whatever is mounted inside is neither entered nor removed.

    Raises:
        OSError: something cannot be removed; it may be called again.
    """
    for attempt in range(_ATTEMPTS_MAX):
        try:
            if _is_unlinked(path, dir_fd):
                return
            _empty(path, dir_fd)
            os.rmdir(path, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _CHANGING or attempt == _ATTEMPTS_MAX - 1:
                raise
        else:
            return


def _is_unlinked(path: str | bytes | Path, dir_fd: int | None) -> bool:
    """Remove what is no directory; False if it is one."""
    try:
        os.unlink(path, dir_fd=dir_fd)
    except IsADirectoryError:
        return False
    return True


def _empty(path: str | bytes | Path, dir_fd: int | None) -> None:
    top = os.open(path, DIRECTORY_FLAGS, dir_fd=dir_fd)
    try:
        with Cursor(top, crosses_mounts=False) as cursor:
            _empty_below(cursor)
    finally:
        os.close(top)


def _empty_below(cursor: Cursor, *, keeps_files: bool = False) -> None:
    levels = [_listed("", cursor.fd, keeps_files=keeps_files)]
    while levels:
        level = levels[-1]
        if level.directories:
            name = level.directories.pop()
            if _is_removed(name, cursor.fd):
                level.removed += 1
                continue
            try:
                cursor.enter(name)
            except OSError as error:
                if error.errno not in _REPLACED:
                    raise
                continue
            levels.append(_listed(name, cursor.fd, keeps_files=keeps_files))
            continue
        if not level.is_complete and level.removed:
            levels[-1] = _listed(level.name, cursor.fd, keeps_files=keeps_files)
            continue
        levels.pop()
        if levels:
            cursor.leave()
            levels[-1].removed += _is_removed(level.name, cursor.fd)


def _listed(name: str, directory: int, *, keeps_files: bool) -> _Level:
    """List the directories in an open one; unlink what is none, unless that is to be kept."""
    level = _Level(name, [], is_complete=True)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if len(level.directories) == _NAMES_MAX:
                    level.is_complete = False
                    break
                level.directories.append(entry.name)
                continue
            if not keeps_files:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=directory)
    return level


def _is_removed(name: str, directory: int) -> bool:
    """Remove a directory if it is empty; False if it is not."""
    try:
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.ENOTDIR}:
            return False
        raise
    return True


def remove_directories(path: str | Path) -> None:
    """Remove a directory and those below it; files cannot be removed on their own (cgroups).

    Raises:
        OSError: one of them is in use, or was made meanwhile.
    """
    try:
        top = os.open(path, DIRECTORY_FLAGS)
        try:
            with Cursor(top, crosses_mounts=False) as cursor:
                _empty_below(cursor, keeps_files=True)
        finally:
            os.close(top)
        Path(path).rmdir()
    except FileNotFoundError:
        return


def walked(top: int, look: Callable[[int, list[str]], Iterable[T]]) -> Iterator[T]:
    """Look at an open directory and each one below it, and yield what is seen.

    What goes while it is looked for is left out, and so is the rest of a tree whose directories
    are moved meanwhile: it serves for sizes, not for proofs.

    Args:
        top: where to begin.
        look: gets an open directory and a list, to which it adds the names of the directories in
            it that are to be looked at too.
    """
    with Cursor(top) as cursor, contextlib.suppress(MovedError):
        levels: list[list[str]] = [[]]
        yield from look(cursor.fd, levels[0])
        while levels:
            if not levels[-1]:
                levels.pop()
                if levels:
                    cursor.leave()
                continue
            try:
                cursor.enter(levels[-1].pop())
            except OSError:
                continue
            levels.append([])
            yield from look(cursor.fd, levels[-1])


def _files(directory: int, directories: list[str]) -> Iterator[os.stat_result]:
    """Yield what is known of everything in a directory that is none itself."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                else:
                    yield entry.stat(follow_symlinks=False)


def size_bytes(path: str) -> int:
    """Add up the blocks of all files below a directory; 0 if there is none."""
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    try:
        return sum(status.st_blocks * _BLOCK_BYTES for status in walked(top, _files))
    finally:
        os.close(top)

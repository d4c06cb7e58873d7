"""Gives a volume its first content: what the image has at the place where it is mounted.

A volume may be mounted already while it is filled: its container may have emptied it. So the
directory itself stays, and each entry is made under a name of ours, finished, and renamed to its
own name only if that is free. Nothing that a container wrote is replaced, and nobody sees half a
file.

A mark beside the volume stands from before the first entry until all are on the disk. Who finds
one after a crash completes the content in the same way. The caller lets those who want to fill one
volume wait for each other; a lock of the kernel refuses whoever comes while a copy that was given
up, because it takes too long, still goes on. Everything blocks.

Source: Docker's "Populate a volume using a container": an empty volume gets the content, and the
owner and mode of the image's directory even if that is empty.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from worker.files import beneath, kernel
from worker.files.tree import Cursor, remove

MARK = "filling"
# The name of an entry while it is made, in the directory where it will be.
UNFINISHED = ".swarm-filling"
_COPY_BYTES = 1 << 22
# Labels of the machine that made them mean nothing on another file.
_FOREIGN_ATTRIBUTES = frozenset({"security.selinux", "security.ima", "security.evm"})
# Calls that a filesystem may not have, and what a smaller copy does as well.
_NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EPERM})


def is_begun(record: Path) -> bool:
    """Whether a volume's first content was begun and not finished; `record` holds the mark."""
    return (record / MARK).exists()


def fill(content: int | None, volume: int, record: Path, after_step: Callable[[str], None]) -> None:
    """Fill a volume that is empty, or go on where a crash interrupted.

    Args:
        content: the image's directory, or None if it has none there.
        volume: the volume's directory.
        record: the directory that keeps the mark; containers do not see it.
        after_step: called with the name of each step; tests crash there.

    Raises:
        OSError: of the disk, and the mark stays; or EBUSY, somebody else is filling it.
    """
    if content is None or not (is_begun(record) or _is_empty(volume)):
        return
    with _alone(record):
        _fill(content, volume, record, after_step)


@contextlib.contextmanager
def _alone(record: Path) -> Iterator[None]:
    """Keep others from filling the volume, also a thread that was given up and still copies.

    Raises:
        OSError: EBUSY, somebody fills it.
    """
    descriptor = os.open(record, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EBUSY, "a former attempt is still copying it") from error
        yield
    finally:
        os.close(descriptor)


def _fill(content: int, volume: int, record: Path, after_step: Callable[[str], None]) -> None:
    is_again = is_begun(record)
    status = os.fstat(content)
    if not is_again and _is_empty(content):
        _copy_attributes(content, volume, status)
        return
    if not is_again:
        (record / MARK).touch()
        _sync_directory(record)
    after_step("volume marked")
    _copy_attributes(content, volume, status)
    _Copy(content, volume, after_step, is_again=is_again).run()
    _set_times(volume, status)
    kernel.sync_filesystem(volume)
    after_step("volume filled")
    (record / MARK).unlink()
    _sync_directory(record)
    after_step("volume unmarked")


def _is_empty(directory: int) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Level(msgspec.Struct):
    """A directory on the way: those in it that are still to be copied, and its times."""

    directories: list[str]
    status: os.stat_result
    is_ours: bool


class _Copy:
    """One walk through the content, with one open directory on either side."""

    def __init__(
        self, content: int, volume: int, after_step: Callable[[str], None], *, is_again: bool
    ) -> None:
        self._content = content
        self._volume = volume
        self._after_step = after_step
        self._is_again = is_again
        # Names of one file, which are names of one file in the volume too: by its inode the path
        # of the first.
        self._links: dict[tuple[int, int], str] = {}
        self._path: list[str] = []

    def run(self) -> None:
        """Copy everything that the volume does not have."""
        with Cursor(self._content) as source, Cursor(self._volume) as target:
            levels = [self._level(source, target, is_ours=False)]
            while levels:
                level = levels[-1]
                if not level.directories:
                    levels.pop()
                    if level.is_ours:
                        _set_times(target.fd, level.status)
                    if levels:
                        source.leave()
                        target.leave()
                        self._path.pop()
                    continue
                name = level.directories.pop()
                is_ours = self._directory(source.fd, target.fd, name)
                try:
                    target.enter(name)
                except OSError as error:
                    # A container has put something else there, or has taken it away again.
                    if error.errno in {errno.ENOTDIR, errno.ELOOP, errno.ENOENT}:
                        continue
                    raise
                source.enter(name)
                self._path.append(name)
                levels.append(self._level(source, target, is_ours=is_ours))

    def _level(self, source: Cursor, target: Cursor, *, is_ours: bool) -> _Level:
        """Copy what is no directory; list the directories."""
        if self._is_again:
            remove(UNFINISHED, dir_fd=target.fd)
        level = _Level([], os.fstat(source.fd), is_ours)
        with os.scandir(source.fd) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    level.directories.append(entry.name)
                elif not _exists(entry.name, target.fd):
                    self._entry(source.fd, target.fd, entry.name, status)
                    self._after_step("volume entry")
        return level

    def _entry(self, source: int, target: int, name: str, status: os.stat_result) -> None:
        if status.st_nlink > 1 and self._is_linked(target, name, status):
            return
        if stat.S_ISREG(status.st_mode):
            _make_file(source, target, name)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), UNFINISHED, dir_fd=target)
            os.chown(UNFINISHED, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(UNFINISHED, ns=times, dir_fd=target, follow_symlinks=False)
        else:
            _make_special(target, status)
        _put_in_place(target, name)

    def _is_linked(self, target: int, name: str, status: os.stat_result) -> bool:
        """Give a further name to a file that was copied before."""
        inode = (status.st_dev, status.st_ino)
        first = self._links.setdefault(inode, "/".join([*self._path, name]))
        directory, _, first_name = first.rpartition("/")
        try:
            place = beneath.open_beneath(self._volume, directory or ".", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            os.link(first_name, name, src_dir_fd=place, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            return True
        except OSError:
            # It is the first, or a container took it away: the content is copied once more.
            return False
        finally:
            os.close(place)
        return True

    @staticmethod
    def _directory(source: int, target: int, name: str) -> bool:
        """Make a directory with its owner and mode; False if the volume has that name."""
        if _exists(name, target):
            return False
        os.mkdir(UNFINISHED, 0o700, dir_fd=target)
        descriptor = beneath.open_beneath(source, name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            made = os.open(
                UNFINISHED,
                os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                dir_fd=target,
            )
            try:
                _copy_attributes(descriptor, made, os.fstat(descriptor))
            finally:
                os.close(made)
        finally:
            os.close(descriptor)
        return _put_in_place(target, name)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _make_file(source: int, target: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    original = os.open(name, flags, dir_fd=source)
    try:
        status = os.fstat(original)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        copy = os.open(UNFINISHED, flags, 0o600, dir_fd=target)
        try:
            _copy_data(original, copy, status.st_size)
            _copy_attributes(original, copy, status)
            _set_times(copy, status)
        finally:
            os.close(copy)
    finally:
        os.close(original)


def _make_special(target: int, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    os.mknod(UNFINISHED, kind | 0o600, status.st_rdev, dir_fd=target)
    # Only the descriptor of what was made is sure not to be something else by now.
    made = os.open(UNFINISHED, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
    try:
        if stat.S_IFMT(os.fstat(made).st_mode) != kind:
            raise OSError(errno.ESTALE, "an entry was exchanged while it was made", UNFINISHED)
        path = f"/proc/self/fd/{made}"
        os.chown(path, status.st_uid, status.st_gid)
        os.chmod(path, stat.S_IMODE(status.st_mode))  # noqa: PTH101 -- of a descriptor
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(made)


def _put_in_place(directory: int, name: str) -> bool:
    """Give the finished entry its name; False, and it is dropped, if the name is taken."""
    try:
        try:
            kernel.rename_without_replacing(directory, UNFINISHED, name)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            _put_in_place_by_hand(directory, name)
    except FileExistsError:
        remove(UNFINISHED, dir_fd=directory)
        return False
    return True


def _put_in_place_by_hand(directory: int, name: str) -> None:
    """Do it where no rename can promise to replace nothing (NFS): a link never replaces."""
    try:
        os.link(UNFINISHED, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except PermissionError:
        # A directory has one name. An empty one made here is replaced by the finished one.
        os.mkdir(name, 0o700, dir_fd=directory)
        os.rename(UNFINISHED, name, src_dir_fd=directory, dst_dir_fd=directory)
    else:
        os.unlink(UNFINISHED, dir_fd=directory)


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's data; its holes stay holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, end)
    os.ftruncate(target, size)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    is_shared = True
    while start < end:
        count = min(end - start, _COPY_BYTES)
        if is_shared:
            try:
                done = os.copy_file_range(source, target, count, start)
            except OSError as error:
                if error.errno not in _NOT_OFFERED:
                    raise
                is_shared = False
                continue
        else:
            done = os.sendfile(target, source, start, count)
        if not done:
            return
        start += done


def _copy_attributes(source: int, target: int, status: os.stat_result) -> None:
    """Copy owner, extended attributes and mode between open files."""
    # Changing the owner clears set-user-ID and capabilities, so they come after it.
    os.fchown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        if name.startswith("trusted.") or name in _FOREIGN_ATTRIBUTES:
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            # Not every filesystem has every kind.
            if error.errno not in {errno.ENOTSUP, errno.EPERM, errno.ENODATA}:
                raise
    os.fchmod(target, stat.S_IMODE(status.st_mode))


def _set_times(target: int, status: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

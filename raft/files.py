"""The file operations that the log, the snapshots and the key ring use, and nothing else of a disk.

Everything durable goes through `Files`, so that a test or the simulator can put a disk of its own
below (`raft.simdisk`) that loses what was not synced, fills up or stops at a chosen operation.
A file's content is durable after `File.sync`; its name after `Files.sync_directory`. Nothing here
decides anything; errors are the operating system's `OSError`s, which `disk_error` puts into words.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from typing_extensions import override

from proto.errors import InUseError, ResourceExhaustedError, SwarmError, UnavailableError

# What a full or failing disk answers: no space, over quota, over the size limit, broken.
_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_LOCK_TEXT_BYTES_MAX = 32


class File(Protocol):
    """An open file."""

    def write(self, data: bytes) -> int:
        """Append, return how many bytes were taken; fewer than given is not an error."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Overwrite a few bytes within one sector."""

    def truncate(self, size: int) -> None:
        """Cut the file; later writes append at the cut."""

    def sync(self) -> None:
        """Return when content and size are on the disk."""

    def close(self) -> None:
        """Give the file back; does not sync."""


class Lock(Protocol):
    """A held lock; the system releases it when the process ends, however it ends."""

    def close(self) -> None:
        """Release it."""


class Files(Protocol):
    """A file system, as far as needed."""

    def make_directory(self, path: Path) -> None:
        """Create it (0700) with its parents, durably; an existing one is fine."""

    def names(self, directory: Path) -> list[str]:
        """Return the names in it, sorted; none if the directory is missing."""

    def exists(self, path: Path) -> bool:
        """Tell whether there is such a file."""

    def create(self, path: Path) -> File:
        """Make a new file (0600) for writing; it must not exist."""

    def open(self, path: Path) -> File:
        """Open an existing file for writing at its end."""

    def read(self, path: Path) -> BinaryIO:
        """Open an existing file for reading, buffered."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing the target in one step; durable after `sync_directory`."""

    def remove(self, path: Path) -> None:
        """Remove a file; durable after `sync_directory`."""

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""

    def lock(self, path: Path) -> Lock:
        """Take an exclusive lock.

        Raises:
            InUseError: another process (or this one) holds it.
        """


class _RealFile:
    """A file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        return os.write(self._descriptor, data)

    def write_at(self, offset: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        assert written == len(data)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)

    def sync(self) -> None:
        # fdatasync also flushes the size, only not the times; nothing here reads the times.
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class RealFiles(Files):
    """The machine's file system."""

    @override
    def make_directory(self, path: Path) -> None:
        if path.is_dir():
            return
        self.make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        self.sync_directory(path.parent)

    @override
    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []

    @override
    def exists(self, path: Path) -> bool:
        return path.exists()

    @override
    def create(self, path: Path) -> File:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        return _RealFile(os.open(path, flags, 0o600))

    @override
    def open(self, path: Path) -> File:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.lseek(descriptor, 0, os.SEEK_END)
        return _RealFile(descriptor)

    @override
    def read(self, path: Path) -> BinaryIO:
        return path.open("rb", buffering=1 << 18)

    @override
    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    @override
    def remove(self, path: Path) -> None:
        path.unlink()

    @override
    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @override
    def lock(self, path: Path) -> Lock:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, _LOCK_TEXT_BYTES_MAX).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise in_use(path.parent, holder) from error
        except OSError:
            os.close(descriptor)
            raise
        try:
            # Only a help for people; the lock itself is the kernel's, so a full disk is no reason
            # to refuse the start.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            if error.errno not in _DISK_FULL_ERRNOS:
                os.close(descriptor)
                raise
        return _RealFile(descriptor)


def in_use(directory: Path, holder: str) -> InUseError:
    """Put into words that a directory is taken."""
    who = f"by process {holder}" if holder else "by another process"
    return InUseError(f"{directory} is in use {who}; stop that daemon before starting another")


def disk_error(directory: Path, error: OSError) -> SwarmError:
    """Translate an error of the disk into one for the user.

    Returns:
        `ResourceExhaustedError` for a full or failing disk, else `UnavailableError`.
    """
    reason = error.strerror or str(error)
    if error.errno in _DISK_FULL_ERRNOS:
        return ResourceExhaustedError(
            f"cannot write to {directory}: {reason}; nothing was stored, "
            "make room on that file system and repeat"
        )
    return UnavailableError(f"cannot write to {directory}: {reason}")


def write_all(file: File, parts: Iterable[bytes]) -> None:
    """Append all of it; a disk that takes only a part is asked again and then says why."""
    for part in parts:
        view = part
        while view:
            taken = file.write(view)
            assert 0 < taken <= len(view)
            view = view[taken:] if taken < len(view) else b""


def replace_file(files: Files, path: Path, data: bytes) -> None:
    """Replace a small file so that a crash leaves the old or the new content, never a mixture.

    On an error of the disk the target holds the old content (or, if only the last directory sync
    failed, either); the temporary file is removed or will be overwritten by the next attempt.
    """
    temporary = path.with_name(path.name + ".tmp")
    if files.exists(temporary):
        files.remove(temporary)
    file = files.create(temporary)
    try:
        write_all(file, [data])
        file.sync()
    except OSError:
        file.close()
        files.remove(temporary)
        raise
    file.close()
    files.rename(temporary, path)
    files.sync_directory(path.parent)

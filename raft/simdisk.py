"""A disk in memory that can lose power, fill up or fail: for tests and the simulator.

The model is the pessimistic one that the log is built for. Content reaches the platter at
`sync`, names at `sync_directory`. On `lose_power` each sector that was not synced is kept or lost
by a coin, the size of a grown file lands anywhere between the synced and the written one, a hole
reads as zeros, and of each directory's changes a prefix survives, with no order between
directories. A single sector is never torn.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import structlog.testing
from typing_extensions import override

from proto.errors import SwarmError
from raft.files import Files, Lock, in_use

SECTOR_BYTES = 512
# Where the simulator's members have their logs.
HOME = Path("/member")


class SimulatedCrashError(OSError):
    """The machine stopped at a chosen operation; every later one fails too."""


def expected_trouble() -> AbstractContextManager[object]:
    """Surround what would warn of the trouble that a simulation makes on purpose."""
    return structlog.testing.capture_logs()


class _Node:
    """A file's content: as programs see it, and as it is on the platter."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.synced = b""
        # After a failed sync the kernel thinks these pages clean: a later sync never writes them.
        self.doomed_from: int | None = None


class SimFiles(Files):
    """A file system in memory.

    Attributes:
        operations: how many changing operations were done so far.
        crash_at: the operation (counted from 0) at which the machine stops; -1 for never.
        room_bytes: how many bytes still fit; None without a limit. Cutting gives nothing back.
        fail_sync: syncs of files fail with EIO while it is set.
        fail_directory_sync: syncs of directories fail with EIO while it is set.
        fail_read: nothing can be read while it is set.
    """

    def __init__(self, rng: random.Random) -> None:
        """Start empty."""
        self._rng = rng
        self._names: dict[Path, _Node] = {}
        # By directory: what is on the platter, and the listing after each change since.
        self._durable: dict[Path, dict[Path, _Node]] = {}
        self._changes: dict[Path, list[dict[Path, _Node]]] = {}
        # Ordered, unlike a set: the same seed must lose the same things.
        self._directories: dict[Path, None] = {}
        self._locks: set[Path] = set()
        self._generation = 0
        self.operations = 0
        self.crash_at = -1
        self.room_bytes: int | None = None
        self.fail_sync = False
        self.fail_directory_sync = False
        self.fail_read = False

    def step(self, generation: int | None = None) -> None:
        """Count an operation; stop if it is the one."""
        if generation is not None and generation != self._generation:
            raise SimulatedCrashError(errno.EIO, "the file was opened before the power loss")
        if 0 <= self.crash_at <= self.operations:
            raise SimulatedCrashError(errno.EIO, "simulated crash")
        self.operations += 1

    @contextlib.contextmanager
    def stopping_at(self, operation: int) -> Iterator[None]:
        """Stop the machine at an operation counted from here; errors that this causes end it.

        Afterwards `is_stopped` tells whether it came to that.
        """
        self.operations, self.crash_at = 0, operation
        try:
            yield
        except (OSError, SwarmError):
            if not self.is_stopped:
                raise

    @property
    def is_stopped(self) -> bool:
        """Whether the chosen operation was reached."""
        return 0 <= self.crash_at <= self.operations

    def is_locked(self, path: Path) -> bool:
        """Whether somebody holds a lock."""
        return path in self._locks

    def kill_process(self) -> None:
        """Take locks and handles away; the kernel keeps what it was given, synced or not."""
        self._locks.clear()
        self._generation += 1
        self._reset()

    def lose_power(self) -> None:
        """Forget what was not synced, as far as the coin says."""
        survivors: dict[Path, _Node] = {}
        for directory in self._directories:
            changes = self._changes.get(directory, [])
            kept = self._rng.randint(0, len(changes))
            survivors |= changes[kept - 1] if kept else self._durable.get(directory, {})
        self._names = survivors
        for node in {id(node): node for node in survivors.values()}.values():
            node.seen = bytearray(self._surviving_content(node))
            node.synced = bytes(node.seen)
            node.doomed_from = None
        self._changes.clear()
        self._durable = {place: self._listing(place) for place in self._directories}
        self.kill_process()

    def _reset(self) -> None:
        self.crash_at = -1
        self.operations = 0
        self.room_bytes = None
        self.fail_sync = False
        self.fail_directory_sync = False
        self.fail_read = False

    def _listing(self, directory: Path) -> dict[Path, _Node]:
        return {path: node for path, node in self._names.items() if path.parent == directory}

    def _surviving_content(self, node: _Node) -> bytes:
        low, high = sorted((len(node.synced), len(node.seen)))
        size = self._rng.choice((low, high, self._rng.randint(low, high)))
        content = bytearray(size)
        for start in range(0, size, SECTOR_BYTES):
            source = node.seen if self._rng.random() < 0.5 else node.synced  # noqa: PLR2004 -- a coin
            piece = bytes(source[start : min(start + SECTOR_BYTES, size)])
            content[start : start + len(piece)] = piece
        return bytes(content)

    def content(self, path: Path) -> bytes:
        """Return what programs see of a file."""
        return bytes(self._names[path].seen)

    def put(self, path: Path, content: bytes) -> None:
        """Replace a file's content behind everybody's back: rot, or a hand that cut it."""
        node = self._names.setdefault(path, _Node())
        node.seen = bytearray(content)
        node.synced = content
        self._durable.setdefault(path.parent, {})[path] = node

    def paths(self) -> list[Path]:
        """Return all files, sorted."""
        return sorted(self._names)

    def take_room(self, wanted: int) -> int:
        """Return how many of the wanted bytes fit; none raises ENOSPC."""
        if self.room_bytes is None:
            return wanted
        taken = min(wanted, self.room_bytes)
        self.room_bytes -= taken
        if taken == 0 and wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    @property
    def generation(self) -> int:
        """How often the power was lost; handles of an earlier one are dead."""
        return self._generation

    def _changed(self, directory: Path) -> None:
        self._changes.setdefault(directory, []).append(self._listing(directory))

    @override
    def make_directory(self, path: Path) -> None:
        self.step()
        self._directories[path] = None

    @override
    def names(self, directory: Path) -> list[str]:
        self._check_readable()
        return sorted(path.name for path in self._names if path.parent == directory)

    @override
    def exists(self, path: Path) -> bool:
        return path in self._names

    @override
    def create(self, path: Path) -> _SimFile:
        self.step()
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if path.parent not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._names[path] = _Node()
        self._changed(path.parent)
        return _SimFile(self, self._names[path])

    @override
    def open(self, path: Path) -> _SimFile:
        return _SimFile(self, self._node(path))

    @override
    def read(self, path: Path) -> BinaryIO:
        self._check_readable()
        return io.BytesIO(self._node(path).seen)

    def _check_readable(self) -> None:
        if self.fail_read:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _node(self, path: Path) -> _Node:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._names[path]

    @override
    def rename(self, source: Path, target: Path) -> None:
        self.step()
        self._names[target] = self._node(source)
        del self._names[source]
        self._changed(target.parent)

    @override
    def remove(self, path: Path) -> None:
        self.step()
        del self._names[path]
        self._changed(path.parent)

    @override
    def sync_directory(self, path: Path) -> None:
        self.step()
        if self.fail_directory_sync:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._durable[path] = self._listing(path)
        self._changes.pop(path, None)

    @override
    def lock(self, path: Path) -> Lock:
        if path in self._locks:
            raise in_use(path.parent, "")
        self._locks.add(path)
        return _SimLock(self._locks, path)


class _SimLock:
    """A lock until power is lost."""

    def __init__(self, locks: set[Path], path: Path) -> None:
        self._locks = locks
        self._path = path

    def close(self) -> None:
        """Release it."""
        self._locks.discard(self._path)


class _SimFile:
    """A handle on a file."""

    def __init__(self, disk: SimFiles, node: _Node) -> None:
        self._disk = disk
        self._node = node
        self._generation = disk.generation

    def write(self, data: bytes) -> int:
        """Append; may take only a part when the disk is nearly full."""
        self._disk.step(self._generation)
        taken = self._disk.take_room(len(data))
        self._node.seen += data[:taken]
        return taken

    def write_at(self, offset: int, data: bytes) -> None:
        """Overwrite in place."""
        self._disk.step(self._generation)
        self._node.seen[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        """Cut."""
        self._disk.step(self._generation)
        del self._node.seen[size:]
        if self._node.doomed_from is not None and size <= self._node.doomed_from:
            self._node.doomed_from = None

    def sync(self) -> None:
        """Make the content durable."""
        self._disk.step(self._generation)
        node = self._node
        if self._disk.fail_sync:
            node.doomed_from = len(node.synced)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        good = len(node.seen) if node.doomed_from is None else node.doomed_from
        node.synced = bytes(node.seen[:good]).ljust(len(node.seen), b"\0")

    def close(self) -> None:
        """Forget the handle."""

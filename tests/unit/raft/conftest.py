"""A disk in memory, a ring on it, and how to write and read a log."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from raft.keys import KeyRing
from raft.simdisk import SimFiles
from raft.single import SingleLog

KEYS = Path("/node/keys")
LOG = Path("/node/log")


class Node:
    """A manager's log on a simulated disk, opened and closed at will."""

    def __init__(self, files: SimFiles, rng: random.Random) -> None:
        self.files = files
        self.rng = rng
        self.keys = KeyRing.create(KEYS, rng.randbytes, files=files)
        self.wal = LOG / "wal"
        self.snapshots = LOG / "snapshots"
        self.log_directory = LOG
        self.key_directory = KEYS
        self.segment_bytes = 64 << 20

    def open(self, **limits: int) -> SingleLog:
        """Open the log with the ring at hand."""
        limits = {"segment_bytes": self.segment_bytes, **limits}
        return SingleLog.open(
            LOG, self.keys, files=self.files, rng_bytes=self.rng.randbytes, **limits
        )

    def reopen_after_power_loss(self) -> SingleLog:
        """Lose what was not synced, and start again."""
        self.files.lose_power()
        return self.reopen()

    def reopen_after_kill(self) -> SingleLog:
        """Start again with what the kernel still has, synced or not."""
        self.files.kill_process()
        return self.reopen()

    def reopen(self) -> SingleLog:
        """Open ring and log."""
        self.keys = KeyRing.open(KEYS, rng_bytes=self.rng.randbytes, files=self.files)
        return self.open()

    def segments(self) -> list[Path]:
        """Return the segment files, oldest first."""
        return [self.wal / name for name in self.files.names(self.wal) if name.endswith(".wal")]

    async def written(self, entries: Iterable[bytes]) -> None:
        """Write entries, one record each, and close the log cleanly."""
        log = self.open()
        for data in entries:
            await log.propose(data)
        await log.close()

    async def restored(self) -> tuple[list[bytes], list[bytes]]:
        """Open, read everything, check the numbering, close."""
        log = self.open()
        state = contents(log)
        await log.close()
        return state


def contents(log: SingleLog) -> tuple[list[bytes], list[bytes]]:
    """Return the chunks and the entries, having checked that the numbering has no gap."""
    chunks, entries = log.restore()
    first = list(chunks)
    rest = list(entries)
    numbers = [entry.index for entry in rest]
    assert numbers == list(range(log.snapshot_index + 1, log.last_index + 1))
    return first, [entry.data for entry in rest]


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    """Yield chunks as the store would."""
    for chunk in chunks:
        yield chunk


@pytest.fixture
def files() -> SimFiles:
    """A disk in memory."""
    return SimFiles(random.Random(1))


@pytest.fixture
def node(files: SimFiles) -> Node:
    """A manager with a ring and no log yet."""
    return Node(files, random.Random(2))


@pytest.fixture
def read() -> Callable[[SingleLog], tuple[list[bytes], list[bytes]]]:
    """How to read a log: the chunks, the entries."""
    return contents


@pytest.fixture
def chunks() -> Callable[..., AsyncIterator[bytes]]:
    """How to make a snapshot's content."""
    return chunked


@pytest.fixture
def real_keys(tmp_path: Path) -> Iterable[KeyRing]:
    """A ring on the real disk."""
    keys = KeyRing.create(tmp_path / "keys")
    yield keys
    keys.close()

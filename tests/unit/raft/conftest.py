"""A disk in memory, a ring on it, and how to write and read a log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raft import format as layout
from raft.core import Entries, HardState, RaftID, Snapshot
from raft.entry import Entry
from raft.files import Files
from raft.keys import KeyRing
from raft.listener import Deaf
from raft.node import RaftNode, Settings
from raft.simdisk import SimFiles
from raft.storage import Storage, Write

KEYS = Path("/node/keys")
LOG = Path("/node/log")
ME = RaftID(7)


class LoopClock:
    """The loop's time."""

    def wall(self) -> float:
        """Return a date."""
        return 1_700_000_000.0

    def monotonic(self) -> float:
        """Return the loop's time."""
        return asyncio.get_running_loop().time()


class Direct:
    """A member's storage, written as its shell does it, but each entry is a record of its own."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.snapshot_index = storage.snapshot_index
        self.hard_state = storage.stored.hard_state
        self.entries = storage.stored.entries
        storage.member_id = ME

    def write(self, data: bytes) -> int:
        """Store an entry; return its index."""
        self.storage.write([self.step(self.storage.last_index + 1, data)])
        return self.storage.last_index

    @staticmethod
    def step(index: int, data: bytes) -> Write:
        """Return what stores an entry."""
        return Write(HardState(1, ME, index - 1), Entries(index, [data], ((index, 1),)))

    def save_snapshot(self, index: int, *chunks: bytes, is_installed: bool = False) -> None:
        """Store a snapshot and drop what it makes needless."""
        self.storage.roll()
        self.add_snapshot(index, *chunks, is_installed=is_installed)
        self.storage.remove_older(self.storage.take_droppable(0))
        self.storage.drop_keys()

    def add_snapshot(self, index: int, *chunks: bytes, is_installed: bool = False) -> None:
        """Store a snapshot, and keep all of the log."""
        writer = self.storage.snapshot_writer(Snapshot(index, 1), is_installed=is_installed)
        writer.start()
        writer.write(chunks)
        writer.finish()
        self.storage.snapshot = writer.snapshot

    def read(self) -> tuple[list[bytes], list[bytes]]:
        """Return the chunks and the entries after them as they were found at the start."""
        stored = self.entries
        if stored is None:
            return list(self.storage.read_snapshot()), []
        assert stored.first <= self.snapshot_index + 1
        assert stored.last >= self.snapshot_index
        entries = stored.data[self.snapshot_index + 1 - stored.first :]
        return list(self.storage.read_snapshot()), entries

    def close(self) -> None:
        """Close it."""
        self.storage.close()


class Member(Deaf):
    """A lone member with what its start handed out, and what it was told afterwards.

    Attributes:
        raft: it.
        chunks: of the snapshot at the start.
        restored: the entries after it that hold something.
        told: what came by itself afterwards.
    """

    def __init__(self, raft: RaftNode) -> None:
        self.raft = raft
        chunks, entries = raft.restore()
        self.chunks = list(chunks)
        everything = list(entries)
        numbers = [entry.index for entry in everything]
        assert numbers == list(range(raft.snapshot_index + 1, raft.applied_index + 1))
        self.restored = [entry for entry in everything if entry.data]
        self.told: list[Entry] = []
        self.leads = asyncio.Event()
        raft.attach(self)

    @property
    def entries(self) -> list[bytes]:
        """The data of the restored entries."""
        return [entry.data for entry in self.restored]

    @property
    def state(self) -> list[bytes]:
        """All of it, if the chunks are entries."""
        return self.chunks + self.entries

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Note what comes."""
        self.told += [Entry(index, data) for index, data in enumerate(entries, first) if data]

    def lead(self, _term: int) -> None:
        """Note it."""
        self.leads.set()

    def follow(self) -> None:
        """Note it."""
        self.leads.clear()

    async def until_it_leads(self) -> None:
        """Wait until the disk is written again."""
        async with asyncio.timeout(10):
            await self.leads.wait()

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Propose."""
        return self.raft.propose(data)

    async def save(self, index: int, *chunks: bytes) -> None:
        """Save a snapshot."""
        await self.raft.save_snapshot(index, chunked(*chunks))

    async def close(self) -> None:
        """Close it."""
        await self.raft.close()


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

    def direct(self) -> Direct:
        """Open the storage with the ring at hand."""
        return direct(LOG, self.keys, self.files, self.segment_bytes, self.rng)

    async def start(self, *, is_new: bool | None = None, **settings: int) -> Member:
        """Start the member, the first time in an empty directory, with the ring at hand."""
        if is_new is None:
            is_new = not self.segments()
        return await start(
            LOG, self.keys, self.files, self.segment_bytes, self.rng, is_new=is_new, **settings
        )

    def reopen_keys(self) -> None:
        """Open the ring anew."""
        self.keys = KeyRing.open(KEYS, rng_bytes=self.rng.randbytes, files=self.files)

    def lose_power(self) -> None:
        """Lose what was not synced."""
        self.files.lose_power()
        self.reopen_keys()

    def kill(self) -> None:
        """End the process; the kernel still has what it was given, synced or not."""
        self.files.kill_process()
        self.reopen_keys()

    def segments(self) -> list[Path]:
        """Return the segment files, oldest first."""
        return [self.wal / name for name in self.files.names(self.wal) if name.endswith(".wal")]

    def written(self, entries: Iterable[bytes]) -> None:
        """Write entries, one record each, and close the log cleanly."""
        log = self.direct()
        for data in entries:
            log.write(data)
        log.close()

    def restored(self) -> tuple[list[bytes], list[bytes]]:
        """Open, read everything, close."""
        log = self.direct()
        state = log.read()
        log.close()
        return state

    @staticmethod
    def record_bytes(index: int, data: bytes) -> int:
        """Return how long the record of an entry is in its file."""
        step = Direct.step(index, data)
        assert step.hard_state is not None
        states = layout.States(ME, [layout.State(step.hard_state, step.entries)])
        return layout.RECORD_OVERHEAD_BYTES + len(layout.pack_states(states))


def direct(
    directory: Path,
    keys: KeyRing,
    files: Files | None = None,
    segment_bytes: int = 64 << 20,
    rng: random.Random | None = None,
) -> Direct:
    """Open a storage."""
    rng_bytes = (rng or random.Random(4)).randbytes
    return Direct(
        Storage.open(directory, keys, files=files, rng_bytes=rng_bytes, segment_bytes=segment_bytes)
    )


async def start(
    directory: Path,
    keys: KeyRing,
    files: Files | None = None,
    segment_bytes: int = 64 << 20,
    rng: random.Random | None = None,
    *,
    is_new: bool,
    **settings: Any,
) -> Member:
    """Start a lone member."""
    opener = RaftNode.create if is_new else RaftNode.open
    raft = await opener(
        directory,
        keys,
        node_id="n1",
        address="n1:1",
        clock=LoopClock(),
        rng=rng or random.Random(5),
        settings=Settings(**{"entries_kept": 0, **settings}),
        files=files,
        segment_bytes=segment_bytes,
    )
    return Member(raft)


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    """Yield chunks as the store would."""
    for chunk in chunks:
        yield chunk


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a disk that failed be tried again at once."""
    monkeypatch.setattr("raft.shell.RECOVERY_SECONDS_FIRST", 0.001)
    monkeypatch.setattr("raft.shell.RECOVERY_SECONDS_MAX", 0.001)


@pytest.fixture
def files() -> SimFiles:
    """A disk in memory."""
    return SimFiles(random.Random(1))


@pytest.fixture
def node(files: SimFiles) -> Node:
    """A manager with a ring and no log yet."""
    return Node(files, random.Random(2))


@pytest.fixture
def open_direct() -> Callable[..., Direct]:
    """How to open a storage anywhere."""
    return direct


@pytest.fixture
def start_member() -> Callable[..., Any]:
    """How to start a lone member anywhere."""
    return start


@pytest.fixture
def real_keys(tmp_path: Path) -> Iterable[KeyRing]:
    """A ring on the real disk."""
    keys = KeyRing.create(tmp_path / "keys")
    yield keys
    keys.close()

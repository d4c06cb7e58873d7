"""Logs in memory for the store's tests, and objects to put into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from manager.store import Entry, Store
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import Service, ServiceSpec, Task


class ManualClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def wall(self) -> float:
        """Read the time."""
        return self.now

    def monotonic(self) -> float:
        """Read the time."""
        return self.now


class MemoryLog:
    """A log that keeps entries in a list; `is_automatic` commits each one in the next turn.

    With `is_automatic` off, the test commits or refuses what is waiting.
    """

    def __init__(self, *, is_automatic: bool = True) -> None:
        self.is_automatic = is_automatic
        self.entries: list[Entry] = []
        self.snapshot: list[bytes] = []
        self.waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self.snapshot_count = 0
        self._snapshot_index = 0
        self.proposal_error: Exception | None = None
        self.snapshot_error: Exception | None = None

    @property
    def last_index(self) -> int:
        """Tell the newest durable index."""
        return self.entries[-1].index if self.entries else self._snapshot_index

    @property
    def snapshot_index(self) -> int:
        """Tell where the snapshot stands."""
        return self._snapshot_index

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Queue an entry."""
        if self.proposal_error is not None:
            raise self.proposal_error
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self.waiting.append((data, future))
        if self.is_automatic:
            loop.call_soon(self.commit)
        return future

    def commit(self, count: int = 1) -> None:
        """Make the first waiting entries durable."""
        for _ in range(count):
            data, future = self.waiting.pop(0)
            index = self.last_index + 1
            self.entries.append(Entry(index, data))
            future.set_result(index)

    def refuse(self, error: Exception) -> None:
        """Let the first waiting entry fail, surely not in the log."""
        _, future = self.waiting.pop(0)
        future.set_exception(error)

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Give what is durable."""
        return iter(list(self.snapshot)), iter(list(self.entries))

    def attach(self, listener) -> None:
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep the chunks, drop the entries in them."""
        saved = [chunk async for chunk in chunks]
        if self.snapshot_error is not None:
            raise self.snapshot_error
        self.snapshot = saved
        self.snapshot_count += 1
        self._snapshot_index = index
        self.entries = [entry for entry in self.entries if entry.index > index]

    async def close(self) -> None:
        """Nothing to close."""


def _service(service_id: str, name: str = "") -> Service:
    return Service(id=ServiceID(service_id), spec=ServiceSpec(name=name or service_id))


def _task(task_id: str, service_id: str = "s1", slot: int = 1, node_id: str = "") -> Task:
    return Task(
        id=TaskID(task_id), service_id=ServiceID(service_id), slot=slot, node_id=NodeID(node_id)
    )


@pytest.fixture
def clock() -> ManualClock:
    """Give a clock that stands."""
    return ManualClock()


@pytest.fixture
def log() -> MemoryLog:
    """Give a log that commits by itself."""
    return MemoryLog()


@pytest.fixture
def manual_log() -> MemoryLog:
    """Give a log that commits when told."""
    return MemoryLog(is_automatic=False)


@pytest.fixture
def store(log: MemoryLog, clock: ManualClock) -> Store:
    """Give an empty store."""
    return Store.open(log, clock)


@pytest.fixture
def make_service() -> Callable[..., Service]:
    """Make services."""
    return _service


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Make tasks."""
    return _task

"""The store against plain dictionaries, with commits, refusals, restarts and snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.store import Created, Deleted, Entry, Store, Transaction, Updated, View
from manager.store.snapshot import snapshot_chunks
from proto.errors import NameConflictError, NotLeaderError, ResourceExhaustedError
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import Service, ServiceSpec, Task, TaskStatus
from proto.states import TaskState

replace = msgspec.structs.replace

_State = dict[tuple[type, str], Any]

# A step of one transaction: which object, and a number that decides its new content (None: gone).
_writes = st.lists(
    st.tuples(
        st.sampled_from(["s0", "s1", "s2", "t0", "t1", "t2", "t3"]), st.none() | st.integers(0, 5)
    ),
    min_size=1,
    max_size=5,
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _writes),
        st.tuples(st.just("fail"), _writes),
        st.tuples(st.just("commit"), st.integers(1, 3)),
        st.tuples(st.just("refuse"), st.booleans()),
        st.tuples(st.just("restart"), st.booleans()),
    ),
    max_size=25,
)


class _Log:
    """A log in memory; entries wait until committed, or refused with those that follow kept."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.chunks: list[bytes] = []
        self.snapshot_index = 0
        self.waiting: list[tuple[bytes, asyncio.Future[int]]] = []

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.snapshot_index

    def propose(self, data: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((data, future))
        return future

    def commit(self) -> None:
        data, future = self.waiting.pop(0)
        self.entries.append(Entry(self.last_index + 1, data))
        future.set_result(self.last_index)

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        return iter(self.chunks), iter(self.entries)

    def attach(self, listener) -> None:
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        self.chunks = [chunk async for chunk in chunks]
        self.snapshot_index = index
        self.entries = [entry for entry in self.entries if entry.index > index]

    async def close(self) -> None:
        pass


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def wall(self) -> float:
        self.now += 1.0
        return self.now

    monotonic = wall


def _write(tx: Transaction, writes: list[tuple[str, int | None]]) -> None:
    """Make the changes of one transaction; one that would take a name is left out."""
    for row_id, value in writes:
        kind: Any = Service if row_id[0] == "s" else Task
        table: Any = tx.services if kind is Service else tx.tasks
        old = table.get(row_id)
        if value is None:
            if old is not None:
                tx.delete(kind, row_id)
            continue
        if kind is Service:
            content = {"spec": ServiceSpec(name=f"name{value}", labels={"v": str(value)})}
        else:
            content = {
                "service_id": ServiceID(f"s{value % 3}"),
                "slot": value,
                "node_id": NodeID(f"n{value % 2}" if value else ""),
                "status": TaskStatus(state=TaskState.RUNNING, message="x" * value),
            }
        try:
            if old is None:
                tx.create(kind(id=row_id, **content))
            else:
                tx.update(replace(old, **content))
        except NameConflictError:
            continue


def _state_of(view: View) -> _State:
    return {(type(row), row.id): row for table in view.tables for row in table}


def _model_write(
    state: _State, writes: list[tuple[str, int | None]], version: int, now: float
) -> _State:
    """Do the same to a dictionary, by the rules as the documentation states them."""
    after = dict(state)
    for row_id, value in writes:
        kind: Any = Service if row_id[0] == "s" else Task
        old = after.get((kind, row_id))
        if value is None:
            after.pop((kind, row_id), None)
            continue
        if kind is Service:
            name = f"name{value}"
            taken = any(
                key[0] is Service and key[1] != row_id and row.spec.name == name
                for key, row in after.items()
            )
            if taken:
                continue
            row = Service(
                id=ServiceID(row_id), spec=ServiceSpec(name=name, labels={"v": str(value)})
            )
        else:
            row = Task(
                id=TaskID(row_id),
                service_id=ServiceID(f"s{value % 3}"),
                slot=value,
                node_id=NodeID(f"n{value % 2}" if value else ""),
                status=TaskStatus(state=TaskState.RUNNING, message="x" * value),
            )
        if old is not None:
            same = replace(
                row, version=old.version, created_at=old.created_at, updated_at=old.updated_at
            )
            if same == old:
                continue
        created_at = now if old is None else old.created_at
        after[kind, row_id] = replace(row, version=version, created_at=created_at, updated_at=now)
    return after


def _replayed(state: _State, events: tuple[Any, ...]) -> _State:
    """Apply watch events to a state, checking that each fits."""
    state = dict(state)
    for event in events:
        match event:
            case Created(new=new):
                assert (type(new), new.id) not in state
                state[type(new), new.id] = new
            case Updated(old=old, new=new):
                assert state[type(old), old.id] == old
                state[type(new), new.id] = new
            case Deleted(old=old):
                assert state.pop((type(old), old.id)) == old
            case _:
                raise AssertionError("no resync was due")
    return state


class _Scenario:
    """A store, its log, and what both must equal."""

    def __init__(self) -> None:
        self.log = _Log()
        self.clock = _Clock()
        self.store = Store.open(self.log, self.clock)
        self.committed: _State = {}
        self.line: list[_State] = []
        self.watch: Any = None
        self.seen: _State = {}

    @property
    def head(self) -> _State:
        return self.line[-1] if self.line else self.committed

    async def start_watch(self) -> None:
        self.watch = self.store.watch()
        await self.watch.__aenter__()
        self.seen = _state_of(self.watch.view)

    async def write(self, writes: Any) -> None:
        head = self.head
        before = self.store.head()
        after = _model_write(head, writes, before.version + 1, self.clock.now + 1)
        future = self.store.update(lambda tx: _write(tx, writes))
        future.add_done_callback(lambda done: done.exception())
        if self.store.head() is before:
            assert after == head
        else:
            self.line.append(after)

    async def fail(self, writes: Any) -> None:
        def write_and_raise(tx: Transaction) -> None:
            _write(tx, writes)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.store.update(write_and_raise)

    async def commit(self, count: int) -> None:
        for _ in range(min(count, len(self.log.waiting))):
            self.log.commit()
            self.committed = self.line.pop(0)

    async def refuse(self, is_first_only: bool) -> None:  # noqa: FBT001 -- drawn by hypothesis
        """Refuse the first waiting entry; the later ones are refused too or become durable.

        Those must be void all the same, now and after a restart.
        """
        error = ResourceExhaustedError("full") if is_first_only else NotLeaderError()
        if self.log.waiting:
            self.log.waiting.pop(0)[1].set_exception(error)
        while self.log.waiting:
            if is_first_only:
                self.log.commit()
            else:
                self.log.waiting.pop(0)[1].set_exception(error)
        self.line.clear()

    async def restart(self, has_snapshot: bool) -> None:  # noqa: FBT001 -- drawn by hypothesis
        if self.log.waiting:
            return
        if has_snapshot:
            await self.log.save_snapshot(
                self.store.applied_index, snapshot_chunks(self.store.view())
            )
        self.store = Store.open(self.log, self.clock)
        await self.start_watch()

    async def check(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.store.check()
        assert _state_of(self.store.view()) == self.committed
        assert _state_of(self.store.head()) == self.head
        self.seen = _replayed(self.seen, self.watch.drain())
        assert self.seen == self.committed

    async def check_restart(self) -> None:
        restored = Store.open(self.log, self.clock)
        restored.check()
        assert _state_of(restored.view()) == self.committed
        assert restored.view().version == self.store.view().version


async def _run(steps: list[tuple[str, Any]]) -> None:
    scenario = _Scenario()
    await scenario.start_watch()
    for step, argument in steps:
        await getattr(scenario, step)(argument)
        await scenario.check()
    await scenario.check_restart()


@settings(max_examples=150, deadline=None)
@given(_steps)
def test_the_store_behaves_like_dictionaries(steps: list[tuple[str, Any]]):
    """Head, committed state, watch events and what a restart gives equal a model's, always."""
    asyncio.run(_run(steps))

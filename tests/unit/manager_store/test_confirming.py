"""Answers of transactions that changed nothing: none leaves before it is true for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from manager.store import Entry, Store, Transaction
from proto.errors import (
    ConflictError,
    NotFoundError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from proto.objects import Node, NodeAvailability

replace = msgspec.structs.replace


class Log:
    """A log whose commits, barriers and roles the test plays."""

    def __init__(self) -> None:
        self.last_index = self.snapshot_index = 0
        self.listener: Any = None
        self.proposals: list[asyncio.Future[int]] = []
        self.barriers: list[asyncio.Future[int]] = []

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Keep it in line."""
        assert data
        self.proposals.append(asyncio.get_running_loop().create_future())
        return self.proposals[-1]

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Give nothing."""
        return iter(()), iter(())

    def attach(self, listener: Any) -> None:
        """Lead at once."""
        self.listener = listener
        listener.lead(2)

    def refusal(self) -> SwarmError:
        """Name the other."""
        return NotLeaderError("b:1")

    async def read_barrier(self) -> int:
        """Wait for the test."""
        self.barriers.append(asyncio.get_running_loop().create_future())
        return await self.barriers[-1]

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Forget it."""

    async def close(self) -> None:
        """Nothing to close."""

    def commit(self) -> None:
        """Make everything in line durable."""
        for proposal in self.proposals:
            if not proposal.done():
                self.last_index += 1
                proposal.set_result(self.last_index)

    def pass_barriers(self) -> None:
        """Let every read go on."""
        for barrier in self.barriers:
            if not barrier.done():
                barrier.set_result(self.last_index)

    def depose(self) -> None:
        """Lose leadership; what is in line may be kept or not."""
        for proposal in self.proposals:
            if not proposal.done():
                proposal.set_exception(UnavailableError("leadership was lost meanwhile"))
        self.listener.follow()


@pytest.fixture
def log() -> Log:
    """Give a log that does nothing by itself."""
    return Log()


@pytest.fixture
async def store(log: Log, clock: Any) -> Store:
    """Give a store with one committed node."""
    store = Store.open(log, clock)
    first = store.update(lambda tx: tx.create(Node(id="n1")))
    log.commit()
    await first
    return store


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def drain(tx: Transaction) -> Node:
    """Set the node's availability."""
    node = tx.nodes.get("n1")
    assert node is not None
    return tx.update(replace(node, spec=replace(node.spec, availability=NodeAvailability.DRAIN)))


def remove(tx: Transaction) -> None:
    """Delete the node."""
    tx.delete(Node, "n1")


def create(tx: Transaction) -> Node:
    """Add a node that may be there."""
    return tx.create(Node(id="n1"))


def look(tx: Transaction) -> int:
    """Read only."""
    return len(tx.nodes)


CASES: list[tuple[Callable[..., Any], Callable[..., Any], Any]] = [
    (drain, drain, Node),
    (remove, remove, NotFoundError),
    (remove, look, int),
]


@pytest.mark.parametrize(("first", "second", "expected"), CASES)
async def test_an_answer_from_a_line_waits_for_the_line(
    store: Store, log: Log, first: Any, second: Any, expected: Any
):
    """Whether it is a result or an error, it rests on what may never be."""
    changed = store.update(first)
    answer = store.update(second)
    await turns()
    log.pass_barriers()
    await turns()
    assert not answer.done(), "what it saw is not committed"
    log.commit()
    await turns()
    assert changed.done()
    assert isinstance(answer.exception() or answer.result(), expected)


@pytest.mark.parametrize(("first", "second", "expected"), CASES)
async def test_an_answer_from_a_line_waits_for_the_barrier_too(
    store: Store, log: Log, first: Any, second: Any, expected: Any
):
    """The last acknowledgement may reach a leader that was replaced long ago."""
    del expected
    changed = store.update(first)
    answer = store.update(second)
    await turns()
    log.commit()
    await turns()
    assert changed.done()
    assert not answer.done(), "another may have led when it was asked"
    log.pass_barriers()
    await turns()
    assert answer.done()
    answer.exception()


@pytest.mark.parametrize(("fn", "error"), [(create, ConflictError), (look, None)])
async def test_an_answer_without_a_line_waits_for_a_barrier_that_began_later(
    store: Store, log: Log, fn: Any, error: Any
):
    """It says what was so at some moment since the call."""
    answer = store.update(fn)
    assert not answer.done()
    await turns()
    assert (len(log.barriers), answer.done()) == (1, False)
    log.pass_barriers()
    await turns()
    assert type(answer.exception()) is (error or type(None))


@pytest.mark.parametrize("second", [drain, look, create])
async def test_an_answer_fails_when_leadership_is_lost(store: Store, log: Log, second: Any):
    """It wrote nothing, so nothing is in doubt: the next leader may be asked."""
    changed = store.update(drain)
    answer = store.update(second)
    await turns()
    log.pass_barriers()
    log.depose()
    await turns()
    assert type(changed.exception()) is UnavailableError
    error = answer.exception()
    assert isinstance(error, NotLeaderError)
    assert error.leader_address == "b:1"
    assert store.view().nodes.get("n1") == Node(id="n1", version=1, created_at=1e6, updated_at=1e6)


async def test_a_barrier_that_another_leader_answered_proves_nothing(store: Store, log: Log):
    """Leadership that was lost and won again meanwhile is another one."""
    answer = store.update(look)
    await turns()
    log.depose()
    log.listener.lead(4)
    log.pass_barriers()
    await turns()
    assert isinstance(answer.exception(), NotLeaderError)


async def test_an_answer_fails_as_the_line_does(store: Store, log: Log):
    """What it saw will never be, though this manager goes on to lead."""
    changed = store.update(remove)
    answer = store.update(remove)
    await turns()
    log.pass_barriers()
    log.proposals[-1].set_exception(ResourceExhaustedError("the disk is full"))
    await turns()
    for future in (changed, answer):
        with pytest.raises(ResourceExhaustedError, match="the disk is full"):
            await future
    assert changed.exception() is not answer.exception()
    again = store.update(remove)
    log.commit()
    await again
    assert "n1" not in store.view().nodes


async def test_an_answer_fails_as_the_barrier_does(store: Store, log: Log):
    """Without a majority nothing is known."""
    answer = store.update(look)
    await turns()
    log.barriers[0].set_exception(UnavailableError("no majority of the managers answers"))
    with pytest.raises(UnavailableError, match="no majority"):
        await answer


async def test_refusals_come_by_the_future(store: Store, log: Log):
    """Nothing is raised from the call but a bug."""
    log.depose()
    answer = store.update(look)
    with pytest.raises(NotLeaderError, match="b:1"):
        await answer
    assert isinstance(store.refusal(), NotLeaderError)
    log.listener.lead(4)
    assert store.refusal() is None
    with pytest.raises(ZeroDivisionError):
        store.update(lambda _: 1 // 0)


async def test_loops_wait_for_nothing(store: Store, log: Log):
    """Their empty transactions are answered from the head, at once, with errors raised here."""
    changed = store.update_without_barrier(drain)
    same = store.update_without_barrier(drain)
    assert (changed.done(), same.done()) == (False, True)
    with pytest.raises(ConflictError):
        store.update_without_barrier(create)
    assert log.barriers == []
    log.commit()
    await changed
    log.depose()
    with pytest.raises(NotLeaderError):
        store.update_without_barrier(look)


async def test_the_newest_state_is_committed(store: Store, log: Log):
    """It has what was in line, and what it has is durable."""
    _ = store.update(drain)
    reading = asyncio.ensure_future(store.newest())
    await turns()
    log.pass_barriers()
    await turns()
    assert not reading.done()
    log.commit()
    node = (await reading).nodes.get("n1")
    assert node is not None
    assert node.spec.availability is NodeAvailability.DRAIN
    log.depose()
    with pytest.raises(NotLeaderError):
        await store.newest()


async def test_a_batch_that_changes_nothing_waits_as_well(store: Store, log: Log):
    """What its items saw is committed when it returns."""
    changed = store.update(drain)
    work = asyncio.ensure_future(store.batch([1, 2], lambda tx, _: drain(tx)))
    await turns()
    log.pass_barriers()
    await turns()
    assert not work.done()
    log.commit()
    assert await work == 0
    await changed


async def test_a_cancelled_caller_is_forgotten(store: Store, log: Log):
    """Whoever gave up is told nothing, and nobody minds."""
    answer = store.update(look)
    await turns()
    answer.cancel()
    log.pass_barriers()
    await turns()
    await store.close()


async def test_closing_refuses_who_still_waits(store: Store):
    """Nobody waits for ever."""
    answer = store.update(look)
    await turns()
    await store.close()
    with pytest.raises(UnavailableError, match="the store is closed"):
        await answer


async def test_a_bug_of_the_barrier_reaches_the_caller(store: Store, log: Log):
    """It is not swallowed, and nobody waits for ever."""
    answer = store.update(look)
    await turns()
    log.barriers[0].set_exception(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        await answer

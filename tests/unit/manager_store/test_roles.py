"""The store on a manager that leads, follows, and changes from one to the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from manager.store import Created, Entry, Resync, Store, Updated
from manager.store.snapshot import snapshot_chunks
from proto.errors import NotLeaderError, SwarmError, UnavailableError
from proto.objects import Service, Task

replace = msgspec.structs.replace


class Log:
    """A log whose roles the test plays; entries are what was proposed."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.entries: list[bytes] = []
        self.waiting: list[asyncio.Future[int]] = []
        self.snapshot_index = 0
        self.last_index = 0

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Keep it."""
        self.entries.append(data)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        return future

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Give nothing."""
        return iter(()), iter((Entry(1, b""), Entry(2, b"")))

    def attach(self, listener: Any) -> None:
        """Keep it."""
        self.listener = listener

    def refusal(self) -> SwarmError:
        """Name the leader."""
        return NotLeaderError("leader:1")

    async def read_barrier(self) -> int:
        """Nothing is to be waited for."""
        return 0

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Forget it."""

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def led(clock: Any) -> tuple[Store, Log]:
    """A store that leads term 1."""
    log = Log()
    store = Store.open(log, clock)
    store.lead(1)
    return store, log


def same(one: Store, other: Store) -> bool:
    """Compare all rows."""
    rows = [{r.id: r for t in s.view().tables for r in t} for s in (one, other)]
    return rows[0] == rows[1] and one.view().version == other.view().version


async def test_a_follower_refuses_with_the_leaders_address(clock: Any, make_service: Any):
    """The function is not even run, and nothing is proposed."""
    log = Log()
    store = Store.open(log, clock)
    assert store.applied_index == 2
    with pytest.raises(NotLeaderError, match="leader:1"):
        await store.update(lambda tx: tx.create(make_service("s1")))
    assert (log.entries, store.term) == ([], 0)


async def test_a_follower_has_what_the_leader_has(
    led: tuple[Store, Log], clock: Any, make_service: Any, make_task: Any
):
    """Entries of another store lead to the same state, indexes and events."""
    leader, log = led
    follower = Store.open(Log(), clock)
    async with follower.watch() as watch:
        leader.update(lambda tx: tx.create(make_service("s1")))
        task = leader.update(lambda tx: tx.create(make_task("t1")))
        for index, future in enumerate(log.waiting, 3):
            future.set_result(index)
        await task
        clock.now += 5
        leader.update(lambda tx: tx.update(replace(tx.tasks.get("t1"), slot=9)))
        leader.update(lambda tx: tx.delete(Service, "s1"))
        for index, future in enumerate(log.waiting[2:], 5):
            future.set_result(index)
        await asyncio.sleep(0)
        follower.apply(3, [log.entries[0], log.entries[1], b""])
        follower.apply(6, log.entries[2:])
        assert same(leader, follower)
        follower.check()
        assert follower.applied_index == 7
        kinds = [type(event) for event in watch.drain()]
        assert kinds[:3] == [Created, Created, Updated]


async def test_an_entry_on_a_state_that_never_was_is_void(
    led: tuple[Store, Log], clock: Any, make_service: Any
):
    """What another leader's refused line left in the log changes nothing."""
    leader, log = led
    leader.update(lambda tx: tx.create(make_service("s1"))).add_done_callback(_seen)
    leader.update(lambda tx: tx.create(make_service("s2"))).add_done_callback(_seen)
    follower = Store.open(Log(), clock)
    follower.apply(3, [log.entries[1], log.entries[0]])
    assert {s.id for s in follower.view().services} == {"s1"}


def _seen(future: asyncio.Future[Any]) -> None:
    future.exception()


async def test_lost_leadership_ends_the_line_as_the_log_says(
    led: tuple[Store, Log], make_service: Any
):
    """Acknowledged, unknown and refused are told apart; the head falls back to committed."""
    store, log = led
    futures = [store.update(lambda tx, n=n: tx.create(make_service(f"s{n}"))) for n in range(3)]
    log.waiting[0].set_result(3)
    log.waiting[1].set_exception(UnavailableError("unknown"))
    log.waiting[2].set_exception(NotLeaderError("other:1"))
    store.follow()
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Service, UnavailableError, NotLeaderError]
    assert {s.id for s in store.head().services} == {"s0"}
    assert not store.broken.is_set()
    await asyncio.sleep(0)
    with pytest.raises(NotLeaderError):
        await store.update(lambda tx: tx.create(make_service("s9")))


async def test_leadership_regained_builds_on_what_was_applied_meanwhile(
    led: tuple[Store, Log], clock: Any, make_service: Any
):
    """The unknown one was kept by the next leader: it is there, and the next one follows it."""
    store, log = led
    lost = store.update(lambda tx: tx.create(make_service("s1")))
    log.waiting[0].set_exception(UnavailableError("unknown"))
    store.follow()
    with pytest.raises(UnavailableError):
        await lost
    store.apply(3, [log.entries[0], b"", b""])
    store.lead(4)
    again = store.update(lambda tx: tx.create(make_service("s2")))
    log.waiting[1].set_result(6)
    await again
    assert {s.id for s in store.view().services} == {"s1", "s2"}
    other = Store.open(Log(), clock)
    other.apply(3, [log.entries[0], b"", b"", log.entries[1]])
    assert same(store, other)


async def test_own_commits_come_before_what_follows_them(
    led: tuple[Store, Log], clock: Any, make_service: Any
):
    """A future that is done counts, though its callbacks have not run yet."""
    store, log = led
    own = store.update(lambda tx: tx.create(make_service("s1")))
    log.waiting[0].set_result(3)
    store.follow()
    other = Store.open(Log(), clock)
    other.apply(3, [log.entries[0]])
    other.lead(2)
    other.update(lambda tx: tx.create(make_service("s2"))).add_done_callback(_seen)
    store.apply(4, [other._log.entries[0]])
    assert {s.id for s in store.view().services} == {"s1", "s2"}
    await own
    assert store.applied_index == 4


async def test_an_installed_snapshot_replaces_all_and_watchers_start_again(
    led: tuple[Store, Log], clock: Any, make_service: Any
):
    """The state is the leader's; queued events are gone and a `Resync` is there."""
    leader, log = led
    made = leader.update(lambda tx: tx.create(make_service("s1")))
    log.waiting[0].set_result(3)
    await made
    chunks = [chunk async for chunk in snapshot_chunks(leader.view())]
    follower = Store.open(Log(), clock)
    async with follower.watch(Task) as watch:
        await follower.install(50, iter(chunks))
        (event,) = watch.drain()
        assert isinstance(event, Resync)
        assert "s1" in event.view.services
    assert same(leader, follower)
    assert follower.applied_index == 50


async def test_roles_can_be_waited_for(led: tuple[Store, Log]):
    """Whoever knows an older role is told the present one, each time."""
    store, _ = led
    assert await store.role_changed(0) == 1
    waiter = asyncio.ensure_future(store.role_changed(1))
    await asyncio.sleep(0)
    store.follow()
    assert await waiter == 0
    waiter = asyncio.ensure_future(store.role_changed(0))
    await asyncio.sleep(0)
    store.lead(3)
    assert await waiter == 3


async def test_a_broken_log_stops_the_store(led: tuple[Store, Log], make_service: Any):
    """The reason is told to all, and the owner is asked to open the log anew."""
    store, log = led
    lost = store.update(lambda tx: tx.create(make_service("s1")))
    log.waiting[0].set_exception(UnavailableError("a bug"))
    store.fail(UnavailableError("a bug"))
    with pytest.raises(UnavailableError, match="a bug"):
        await lost
    assert store.broken.is_set()
    with pytest.raises(UnavailableError, match="a bug"):
        await store.update(lambda tx: tx.create(make_service("s2")))

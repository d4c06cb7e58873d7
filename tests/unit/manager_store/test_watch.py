"""Watches: no gap, one tuple per transaction, a slow watcher starts again."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from manager.store import Created, Deleted, Resync, Store, Transaction, Updated
from manager.store import watch as watch_module
from proto.errors import InvariantViolationError
from proto.objects import Task

replace = msgspec.structs.replace


async def test_a_snapshot_then_every_later_change(store: Store, make_service: Any):
    """What is in the view is not told again, and what comes after is told once."""
    old = await store.update(lambda tx: tx.create(make_service("s1")))
    async with store.watch() as watch:
        assert watch.view.services.get("s1") == old
        new = await store.update(lambda tx: tx.create(make_service("s2")))
        assert await anext(watch) == (Created(new=new),)
        assert watch.drain() == ()


async def test_only_the_kinds_asked_for(store: Store, make_service: Any, make_task: Any):
    """Changes of other kinds are left out, and a transaction of only those wakes nobody."""
    async with store.watch(Task) as by_type, store.watch("tasks") as by_name:
        await store.update(lambda tx: tx.create(make_service("s1")))

        def both(tx: Transaction) -> Any:
            tx.create(make_service("s2"))
            return tx.create(make_task("t1"))

        task = await store.update(both)
        assert await anext(by_type) == (Created(new=task),)
        assert await anext(by_name) == (Created(new=task),)
    with pytest.raises(InvariantViolationError, match="no table of 'pods'"):
        store.watch("pods")


async def test_changes_of_one_object_in_one_transaction_are_one_event(store: Store, make_task: Any):
    """Only the states before and after the transaction are told."""
    first = await store.update(lambda tx: tx.create(make_task("t1")))
    await store.update(lambda tx: tx.create(make_task("t2")))

    def change(tx: Transaction) -> Any:
        tx.update(replace(tx.update(replace(first, slot=7)), slot=8))
        fresh = tx.create(make_task("t3"))
        tx.update(replace(fresh, slot=9))
        tx.create(make_task("t4"))
        tx.delete(Task, "t4")
        gone = tx.tasks.get("t2")
        tx.delete(Task, "t2")
        return gone

    async with store.watch() as watch:
        gone = await store.update(change)
        tasks = store.view().tasks
        assert await anext(watch) == (
            Updated(old=first, new=tasks.get("t1")),
            Created(new=tasks.get("t3")),
            Deleted(old=gone),
        )
    assert (tasks.get("t1").slot, tasks.get("t3").slot) == (8, 9)


async def test_deleted_and_created_again_is_an_update(store: Store, make_task: Any):
    """An object that left and came back within a transaction is told as changed."""
    old = await store.update(lambda tx: tx.create(make_task("t1")))

    def again(tx: Transaction) -> Any:
        tx.delete(Task, "t1")
        return tx.create(make_task("t1", slot=5))

    async with store.watch() as watch:
        new = await store.update(again)
        assert await anext(watch) == (Updated(old=old, new=new),)


async def test_nothing_is_told_before_it_is_committed(manual_log: Any, clock: Any, make_task: Any):
    """A proposal that waits is not seen; one that is refused is never seen."""
    store = Store.open(manual_log, clock)
    async with store.watch() as watch:
        store.update(lambda tx: tx.create(make_task("t1")))
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        assert not waiting.done()
        manual_log.commit()
        assert [event.new.id for event in await waiting] == ["t1"]


async def test_a_slow_watcher_starts_again(
    store: Store, make_task: Any, monkeypatch: pytest.MonkeyPatch
):
    """More events than the limit become one Resync with the present view; then it goes on."""
    monkeypatch.setattr(watch_module, "WATCH_EVENTS_MAX", 3)
    async with store.watch() as watch:
        for i in range(4):
            await store.update(lambda tx, i=i: tx.create(make_task(f"t{i}")))
        await store.update(lambda tx: tx.create(make_task("t4")))
        assert await anext(watch) == (Resync(store.view()),)
        assert len(watch.view.tasks) == 5
        new = await store.update(lambda tx: tx.create(make_task("t5")))
        assert await anext(watch) == (Created(new=new),)


async def test_drain_takes_all_that_waits(
    store: Store, make_task: Any, monkeypatch: pytest.MonkeyPatch
):
    """Draining joins the waiting transactions, in order, or gives the Resync."""
    async with store.watch() as watch:
        made = [await store.update(lambda tx, i=i: tx.create(make_task(f"t{i}"))) for i in range(3)]
        assert watch.drain() == tuple(Created(new=task) for task in made)
        monkeypatch.setattr(watch_module, "WATCH_EVENTS_MAX", 0)
        await store.update(lambda tx: tx.delete(Task, "t0"))
        assert watch.drain() == (Resync(store.view()),)


async def test_leaving_ends_the_subscription(store: Store, make_task: Any):
    """After the context nothing is kept for the watcher, and its iteration ends."""
    async with store.watch() as watch:
        pass
    await store.update(lambda tx: tx.create(make_task("t1")))
    assert [events async for events in watch] == []
    assert watch.drain() == ()


async def test_a_watch_of_a_closed_store_ends_at_once(store: Store):
    """Nobody waits for ever for a store that stopped."""
    await store.close()
    async with store.watch() as watch:
        assert [events async for events in watch] == []


async def test_waiting_can_be_cancelled(store: Store, make_task: Any):
    """A watcher that gave up waiting can wait again and misses nothing."""
    async with store.watch() as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await store.update(lambda tx: tx.create(make_task("t1")))
        assert [event.new.id for event in await anext(watch)] == ["t1"]

"""The store's shell: pipelining, failures, restart, snapshots."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import msgspec
import pytest

from manager.store import TRANSACTION_BYTES_MAX, Store, Transaction, saving
from manager.store.snapshot import snapshot_chunks
from proto.errors import (
    ConflictError,
    CorruptError,
    InvalidError,
    NameConflictError,
    NotFoundError,
    NotLeaderError,
    ResourceExhaustedError,
    SequenceConflictError,
    UnavailableError,
)
from proto.ids import ClusterID
from proto.objects import Cluster, ClusterSpec, Service, ServiceSpec, Task, TaskStatus
from proto.states import TaskState

replace = msgspec.structs.replace


async def test_create_stamps_version_and_times(store: Store, clock: Any, make_service: Any):
    """A new object carries the transaction's number and time."""
    created = await store.update(lambda tx: tx.create(make_service("s1", "web")))
    assert created.version == 1
    assert created.created_at == created.updated_at == clock.now
    assert store.view().services.get("s1") == created
    assert store.view().version == 1
    store.check()


async def test_update_stamps_and_needs_the_version_that_was_read(
    store: Store, clock: Any, make_service: Any
):
    """An update against an older version is refused with both versions; nothing changes."""
    first = await store.update(lambda tx: tx.create(make_service("s1", "web")))
    clock.now += 5
    change = replace(first, spec=ServiceSpec(name="web", labels={"a": "b"}))
    second = await store.update(lambda tx: tx.update(change))
    assert (second.version, second.created_at) == (2, first.created_at)
    assert second.updated_at == first.created_at + 5
    with pytest.raises(SequenceConflictError, match="update out of sequence") as caught:
        await store.update(lambda tx: tx.update(change))
    assert (caught.value.given, caught.value.stored) == (1, 2)
    assert store.head() is store.view()


async def test_ids_and_names_are_unique(store: Store, make_service: Any):
    """A second object with the ID, or a service with the name in any case, is refused."""
    await store.update(lambda tx: tx.create(make_service("s1", "web")))
    with pytest.raises(ConflictError, match="service s1 already exists"):
        await store.update(lambda tx: tx.create(make_service("s1", "other")))
    with pytest.raises(NameConflictError, match="name conflicts with an existing object"):
        await store.update(lambda tx: tx.create(make_service("s2", "Web")))
    with pytest.raises(NotFoundError, match="service s9 not found"):
        await store.update(lambda tx: tx.delete(Service, "s9"))
    assert len(store.head().services) == 1


async def test_an_error_in_the_function_leaves_no_trace(store: Store, make_service: Any):
    """If the function raises after writing, neither head nor log have anything of it."""

    def fail(tx: Transaction) -> None:
        tx.create(make_service("s1"))
        raise NotFoundError("node", "n1")

    with pytest.raises(NotFoundError):
        await store.update(fail)
    assert store.head().version == 0
    assert "s1" not in store.head().services


async def test_a_transaction_without_a_change_writes_no_entry(
    store: Store, log: Any, make_service: Any
):
    """Reading, writing what is there already, and create-then-delete cost no entry."""
    service = await store.update(lambda tx: tx.create(make_service("s1")))

    def idle(tx: Transaction) -> int:
        assert tx.update(service) is service
        tx.create(make_service("s2"))
        tx.delete("services", "s2")
        return len(tx.services)

    assert await store.update(idle) == 1
    assert len(log.entries) == 1
    assert store.view().services.get("s1").version == 1


async def test_head_is_ahead_of_committed_until_the_log_says_so(
    manual_log: Any, clock: Any, make_service: Any
):
    """Transactions pipeline on the head; readers see only what is committed, in order."""
    store = Store.open(manual_log, clock)
    futures = [store.update(lambda tx, i=i: tx.create(make_service(f"s{i}"))) for i in range(3)]
    assert (len(store.head().services), len(store.view().services)) == (3, 0)
    store.check()
    manual_log.commit(2)
    assert (await futures[0]).id == "s0"
    await futures[1]
    assert not futures[2].done()
    assert (store.view().version, store.head().version) == (2, 3)
    manual_log.commit()
    await futures[2]
    assert store.view() is store.head()


@pytest.mark.parametrize(
    "error", [NotLeaderError("m2:2377"), ResourceExhaustedError("the disk is full")]
)
async def test_a_refused_transaction_takes_all_later_ones_with_it(
    manual_log: Any, clock: Any, make_service: Any, error: Any
):
    """The head falls back, nothing of the refused ones is seen, and the next one works.

    One of them is committed by the log all the same: it is void there too, now and on restart.
    """
    store = Store.open(manual_log, clock)
    first, second, third = (
        store.update(lambda tx, i=i: tx.create(make_service(f"s{i}"))) for i in range(3)
    )
    manual_log.commit()
    await first
    manual_log.refuse(error)
    for future in (second, third):
        with pytest.raises(type(error), match=error.message[:20].replace("(", r"\(")):
            await future
    assert store.head() is store.view()
    assert [service.id for service in store.view().services] == ["s0"]
    manual_log.commit()  # the third: on its way when the second was refused
    fourth = store.update(lambda tx: tx.create(make_service("s4")))
    manual_log.commit()
    await fourth
    store.check()
    restarted = Store.open(manual_log, clock)
    assert restarted.view().version == store.view().version == 2
    assert {service.id for service in restarted.view().services} == {"s0", "s4"}
    assert_equal(restarted, store)


async def test_an_unknown_outcome_stops_the_store(manual_log: Any, clock: Any, make_service: Any):
    """When an entry may or may not be in the log, no more are taken, or a number is used twice."""
    store = Store.open(manual_log, clock)
    future = store.update(lambda tx: tx.create(make_service("s1")))
    manual_log.refuse(UnavailableError("the disk failed"))
    with pytest.raises(UnavailableError, match="the disk failed"):
        await future
    assert len(store.head().services) == 0
    with pytest.raises(UnavailableError, match="until it is restarted"):
        await store.update(lambda tx: tx.create(make_service("s2")))
    assert len(store.view().services) == 0


async def test_a_log_that_takes_no_more_changes_nothing(store: Store, log: Any, make_service: Any):
    """An error of `propose` is raised from the call, and the head stays."""
    log.proposal_error = ResourceExhaustedError("too many bytes are in flight")
    with pytest.raises(ResourceExhaustedError):
        await store.update(lambda tx: tx.create(make_service("s1")))
    log.proposal_error = None
    assert store.head().version == 0
    await store.update(lambda tx: tx.create(make_service("s1")))
    assert store.view().version == 1


async def test_a_cancelled_caller_does_not_undo(manual_log: Any, clock: Any, make_service: Any):
    """The transaction of a caller that went away is committed."""
    store = Store.open(manual_log, clock)
    store.update(lambda tx: tx.create(make_service("s1"))).cancel()
    await store_flushed(manual_log)
    assert "s1" in store.view().services


async def store_flushed(log: Any) -> None:
    """Commit everything that waits, and let the callbacks run."""
    log.commit(len(log.waiting))
    await asyncio.sleep(0)


async def test_nested_transactions_are_a_bug(store: Store):
    """A transaction that starts another one is stopped at once."""
    with pytest.raises(AssertionError, match="may not start another"):
        store.update(lambda _: store.update(lambda _: None))


async def test_an_oversized_transaction_is_refused(store: Store, make_service: Any):
    """More than 1.5 MiB in one entry is the caller's error, with the figures."""
    labels = {"a": "x" * TRANSACTION_BYTES_MAX}
    big = replace(make_service("s1"), spec=ServiceSpec(name="s1", labels=labels))
    with pytest.raises(InvalidError, match="the limit is 1572864"):
        await store.update(lambda tx: tx.create(big))
    assert store.head().version == 0


async def test_what_could_not_be_read_back_is_not_written(store: Store, make_task: Any):
    """A field of the wrong type or a number beyond 64 bits is refused before the log."""
    for wrong in ({"slot": "one"}, {"slot": 2**70}, {"node_id": "\ud800"}):
        with pytest.raises(InvalidError, match="task t1 cannot be stored"):
            await store.update(lambda tx, wrong=wrong: tx.create(replace(make_task("t1"), **wrong)))
    spec = ServiceSpec(name="s", labels={"a": "b"})
    wrong_spec = replace(spec, task=replace(spec.task, networks=[]))
    with pytest.raises(InvalidError, match="read back changed"):
        await store.update(lambda tx: tx.create(Service(id="s1", spec=wrong_spec)))


async def test_restart_restores_snapshot_and_entries(
    store: Store, log: Any, clock: Any, make_service: Any, make_task: Any
):
    """A restarted store equals the old one, whatever part of it was in a snapshot."""
    await store.update(lambda tx: tx.create(make_service("s1", "web")))
    tasks = [await store.update(lambda tx, i=i: tx.create(make_task(f"t{i}"))) for i in range(9)]
    assert_equal(Store.open(log, clock), store)
    await log.save_snapshot(store.applied_index, snapshot_of(store))
    assert log.entries == []
    assert_equal(Store.open(log, clock), store)
    running = TaskStatus(state=TaskState.RUNNING, timestamp=3.5, container_id="c")
    clock.now += 1
    await store.update(lambda tx: tx.update(replace(tasks[3], status=running)))
    await store.update(lambda tx: tx.delete(Task, "t4"))
    again = Store.open(log, clock)
    assert_equal(again, store)
    assert again.applied_index == store.applied_index
    again.check()


def snapshot_of(store: Store):
    """Encode the committed state."""
    return snapshot_chunks(store.view())


def assert_equal(one: Store, other: Store) -> None:
    """Compare two stores row by row."""
    assert one.view().version == other.view().version
    for mine, theirs in zip(one.view().tables, other.view().tables, strict=True):
        assert {row.id: row for row in mine} == {row.id: row for row in theirs}


async def test_a_gap_in_the_log_is_refused(store: Store, log: Any, clock: Any, make_service: Any):
    """A missing entry is damage, not something to skip."""
    for i in range(3):
        await store.update(lambda tx, i=i: tx.create(make_service(f"s{i}")))
    del log.entries[1]
    with pytest.raises(CorruptError, match="entry 3 follows entry 1"):
        Store.open(log, clock)


async def test_snapshots_are_made_after_the_cluster_rows_interval(
    store: Store, log: Any, make_service: Any
):
    """The interval is the cluster's setting, and the log is cut behind the snapshot."""
    spec = ClusterSpec(raft_snapshot_interval=10)
    await store.update(lambda tx: tx.create(Cluster(id=ClusterID("c"), spec=spec)))
    for i in range(24):
        await store.update(lambda tx, i=i: tx.create(make_service(f"s{i}")))
        for _ in range(50):
            await asyncio.sleep(0)
    assert log.snapshot_count == 2
    assert log.snapshot_index == 20
    assert len(log.entries) == 5


async def test_a_large_log_makes_a_snapshot_too(
    store: Store, log: Any, make_service: Any, monkeypatch: pytest.MonkeyPatch
):
    """Bytes since the last snapshot count as well as entries."""
    monkeypatch.setattr(saving, "SNAPSHOT_LOG_BYTES", 500)
    for i in range(20):
        await store.update(lambda tx, i=i: tx.create(make_service(f"s{i}")))
        for _ in range(50):
            await asyncio.sleep(0)
    assert 1 <= log.snapshot_count < 10


async def test_a_failed_snapshot_is_tried_again_later(
    store: Store, log: Any, clock: Any, make_service: Any
):
    """A full disk does not stop the store, and is not hammered."""
    spec = ClusterSpec(raft_snapshot_interval=2)
    log.snapshot_error = OSError(28, "No space left on device")

    async def add(name: str) -> None:
        await store.update(lambda tx: tx.create(make_service(name)))
        for _ in range(50):
            await asyncio.sleep(0)

    await store.update(lambda tx: tx.create(Cluster(id=ClusterID("c"), spec=spec)))
    await add("s1")
    log.snapshot_error = None
    await add("s2")
    assert log.snapshot_count == 0
    clock.now += saving.SNAPSHOT_RETRY_SECONDS + 1
    await add("s3")
    assert log.snapshot_count == 1


async def test_batch_splits_by_number(store: Store, log: Any, make_task: Any):
    """Changes are split into transactions of at most 200."""
    count = await store.batch(range(450), lambda tx, i: tx.create(make_task(f"t{i:03}")))
    assert count == len(log.entries) == 3
    assert len(store.view().tasks) == 450
    store.check()


async def test_batch_splits_by_bytes_and_keeps_an_items_changes_together(
    store: Store, log: Any, make_service: Any
):
    """Three 700 KiB items take two entries, and none is split."""

    def add(tx: Transaction, i: int) -> None:
        for half in ("a", "b"):
            labels = {"a": "x" * 350 * 1024}
            spec = ServiceSpec(name=f"s{i}{half}", labels=labels)
            tx.create(replace(make_service(f"s{i}{half}"), spec=spec))

    assert await store.batch(range(3), add) == 2
    assert max(len(entry.data) for entry in log.entries) <= TRANSACTION_BYTES_MAX
    versions: dict[int, set[str]] = {}
    for service in store.view().services:
        versions.setdefault(service.version, set()).add(service.id[:2])
    assert sorted(len(ids) for ids in versions.values()) == [1, 2]


async def test_batch_without_changes_or_items_writes_nothing(store: Store, log: Any):
    """An empty batch, and one that only reads, leave the log alone."""
    assert await store.batch([], lambda tx, i: tx.create(i)) == 0
    assert await store.batch(range(500), lambda tx, i: tx.tasks.get(f"{i}")) == 0
    assert log.entries == []


async def test_batch_raises_what_the_function_raises(store: Store, make_task: Any):
    """An error names the item's trouble; whole transactions before it stay."""

    def add(tx: Transaction, i: int) -> None:
        if i == 250:
            raise NotFoundError("node", "n1")
        tx.create(make_task(f"t{i:03}"))

    with pytest.raises(NotFoundError):
        await store.batch(range(300), add)
    assert len(store.view().tasks) == 200


async def test_close_waits_for_what_was_proposed(manual_log: Any, clock: Any, make_service: Any):
    """What is in line is finished, later updates are refused, watches end."""
    store = Store.open(manual_log, clock)
    future = store.update(lambda tx: tx.create(make_service("s1")))
    async with store.watch() as watch:
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        assert not closing.done()
        manual_log.commit()
        await closing
        assert future.done()
        assert [events async for events in watch] == []
    with pytest.raises(UnavailableError, match="closed"):
        await store.update(lambda tx: tx.create(make_service("s2")))


async def test_a_fault_of_the_log_is_told_as_unavailable(
    manual_log: Any, clock: Any, make_service: Any
):
    """Whatever the log raises, the caller gets an error of ours with the reason in it."""
    store = Store.open(manual_log, clock)
    future = store.update(lambda tx: tx.create(make_service("s1")))
    manual_log.refuse(RuntimeError("a bug in the log"))
    with pytest.raises(UnavailableError, match="could not be stored: a bug in the log"):
        await future


async def test_a_proposal_that_was_given_up_fails(manual_log: Any, clock: Any, make_service: Any):
    """A cancelled proposal is one whose outcome is unknown."""
    store = Store.open(manual_log, clock)
    future = store.update(lambda tx: tx.create(make_service("s1")))
    manual_log.waiting.pop()[1].cancel()
    with pytest.raises(UnavailableError, match="the log gave up the proposal"):
        await asyncio.wait_for(future, 5)
    assert store.head() is store.view()


async def test_proposals_that_fail_later_leave_no_noise(
    manual_log: Any, clock: Any, make_service: Any
):
    """Errors of proposals that left the line already are not reported as never looked at."""
    noise: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    store = Store.open(manual_log, clock)
    futures = [store.update(lambda tx, i=i: tx.create(make_service(f"s{i}"))) for i in range(3)]
    manual_log.refuse(NotLeaderError())
    await asyncio.wait(futures)
    manual_log.refuse(NotLeaderError())
    manual_log.refuse(NotLeaderError())
    await asyncio.sleep(0)
    assert all(isinstance(future.exception(), NotLeaderError) for future in futures)
    gc.collect()
    await asyncio.sleep(0)
    assert noise == []

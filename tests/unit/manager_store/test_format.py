"""The bytes: their size, and what is refused when they are damaged or of another version."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from manager.store import Store
from manager.store import snapshot as snapshot_module
from manager.store.codec import decode_entry, encode_entry
from manager.store.snapshot import Restorer, snapshot_chunks
from manager.store.tables import View
from proto.errors import CorruptError
from proto.ids import NodeID, ServiceID, TaskID, container_id_of, new_id
from proto.objects import Task, TaskStatus
from proto.states import TaskState

replace = msgspec.structs.replace


async def test_a_tasks_whole_life_takes_less_than_a_kibibyte(store: Store, log: Any):
    """Created, allocated, assigned and reported four times, each in an entry of its own."""
    rng = random.Random(7)
    task_id = TaskID(new_id(rng))
    task = await store.update(
        lambda tx: tx.create(
            Task(
                id=task_id,
                service_id=ServiceID(new_id(rng)),
                spec_version=12345,
                slot=17,
                status=TaskStatus(timestamp=1e9, message="created"),
            )
        )
    )
    for state, message in (
        (TaskState.PENDING, "pending task scheduling"),
        (TaskState.ASSIGNED, "scheduler assigned task to node"),
        (TaskState.PREPARING, "preparing"),
        (TaskState.STARTING, "starting"),
        (TaskState.RUNNING, "started"),
        (TaskState.FAILED, "task: non-zero exit (137)"),
    ):
        status = TaskStatus(state=state, timestamp=1e9 + state, message=message)
        if state >= TaskState.STARTING:
            status = replace(status, container_id=container_id_of(task_id), pid=12345)
        changed = replace(task, status=status)
        if state == TaskState.ASSIGNED:
            changed = replace(changed, node_id=NodeID(new_id(rng)))
        task = await store.update(lambda tx, changed=changed: tx.update(changed))
    assert sum(len(entry.data) for entry in log.entries) <= 1024


async def many(store: Store, make_task: Any, count: int) -> View:
    """Fill a store with tasks."""
    await store.batch(range(count), lambda tx, i: tx.create(make_task(f"t{i:05}")))
    return store.view()


async def test_a_snapshot_lets_the_loop_run(store: Store, make_task: Any):
    """Between two chunks other tasks get their turn, and no chunk is far above its size."""
    view = await many(store, make_task, 6000)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.ensure_future(count_turns())
    chunks = [chunk async for chunk in snapshot_chunks(view)]
    other.cancel()
    assert len(chunks) > 4
    assert turns >= len(chunks) - 1
    assert max(map(len, chunks)) < 2 * snapshot_module.CHUNK_BYTES


async def test_a_snapshot_with_a_missing_chunk_is_refused(store: Store, make_task: Any):
    """The header's counts reveal it."""
    view = await many(store, make_task, 300)
    chunks = [chunk async for chunk in snapshot_chunks(view)]
    Restorer().load_snapshot(chunks)
    with pytest.raises(CorruptError, match="tasks, its header says 300"):
        Restorer().load_snapshot(chunks[:-1])


async def test_damaged_snapshots_are_refused(store: Store, make_task: Any):
    """An unknown format, an unknown table and rubbish are named, not skipped."""
    view = await many(store, make_task, 3)
    header, *rows = [chunk async for chunk in snapshot_chunks(view)]
    unknown_table = msgspec.msgpack.encode((31, []))
    for chunks, reason in (
        ([b"\x09" + header[1:]], "unknown format"),
        ([header[:1] + b"\xc1"], "header cannot be read"),
        ([header, *rows, unknown_table], "table 31 is unknown"),
        ([header, b"\xc1"], "a chunk cannot be read"),
    ):
        with pytest.raises(CorruptError, match=reason):
            Restorer().load_snapshot(chunks)


def test_entries_of_an_unknown_format_or_table_are_refused():
    """To skip what is not understood would lose it."""
    entry = encode_entry(0, 1.0, [])
    assert decode_entry(entry, 1).base == 0
    with pytest.raises(CorruptError, match="entry 5 has an unknown format"):
        decode_entry(b"\x02" + entry[1:], 5)
    unknown = msgspec.msgpack.encode((31 * 4 + 2, "x"))
    with pytest.raises(CorruptError, match="table 31 is unknown"):
        decode_entry(encode_entry(0, 1.0, [unknown]), 5)


async def test_an_entry_that_changes_what_is_not_there_is_damage(
    store: Store, log: Any, clock: Any, make_task: Any
):
    """A change without its object means that something before it is missing."""
    await store.update(lambda tx: tx.create(make_task("t1")))
    await store.update(lambda tx: tx.delete(Task, "t1"))
    delete = log.entries.pop()
    base_zero = encode_entry(0, 1.0, [])
    log.entries[0] = msgspec.structs.replace(log.entries[0], data=base_zero)
    log.entries.append(delete)
    with pytest.raises(CorruptError, match="transaction 2 changes 't1', which does not exist"):
        Store.open(log, clock)

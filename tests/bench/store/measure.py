"""Measure the store: bytes of log per task, writes, snapshot, restart. Prints figures.

Run it as `python tests/bench/store/measure.py [services] [tasks per service]`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from manager.store import Entry, Store, Transaction
from manager.store.snapshot import snapshot_chunks
from proto.clock import SystemClock
from proto.ids import NodeID, ServiceID, TaskID, container_id_of, new_id
from proto.objects import (
    ContainerSpec,
    Service,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskSpec,
    TaskStatus,
    spec_version_id,
)
from proto.states import TaskState
from raft.keys import KeyRing
from raft.node import RaftNode

replace = msgspec.structs.replace


class ListLog:
    """A log in memory that commits in the next turn of the loop."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.chunks: list[bytes] = []
        self.last_index = 0
        self.snapshot_index = 0
        self.entry_bytes = 0

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Commit soon."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self.last_index += 1
        self.entry_bytes += len(data)
        self.entries.append(Entry(self.last_index, data))
        loop.call_soon(future.set_result, self.last_index)
        return future

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Give everything."""
        return iter(self.chunks), iter(self.entries)

    def attach(self, listener) -> None:
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep the chunks."""
        self.chunks = [chunk async for chunk in chunks]
        self.snapshot_index = index
        self.entries = [entry for entry in self.entries if entry.index > index]

    async def close(self) -> None:
        """Do nothing."""


async def measure_task_life(store: Store, log: ListLog, rng: random.Random) -> None:
    """One task, each step an entry of its own: the worst case."""
    task_id = TaskID(new_id(rng))
    task = Task(
        id=task_id,
        service_id=ServiceID(new_id(rng)),
        spec_version=12345,
        slot=17,
        status=TaskStatus(state=TaskState.NEW, timestamp=time.time(), message="created"),
    )
    steps = [
        (TaskState.PENDING, "pending task scheduling"),
        (TaskState.ASSIGNED, "scheduler assigned task to node"),
        (TaskState.PREPARING, "preparing"),
        (TaskState.STARTING, "starting"),
        (TaskState.RUNNING, "started"),
        (TaskState.SHUTDOWN, "shutdown"),
    ]
    start = log.entry_bytes
    task = await store.update(lambda tx: tx.create(task))
    print(f"  create: {log.entry_bytes - start} B")
    for state, message in steps:
        before = log.entry_bytes
        status = TaskStatus(state=state, timestamp=time.time(), message=message)
        if state >= TaskState.STARTING:
            status = replace(status, container_id=container_id_of(task_id), pid=12345)
        changed = replace(task, status=status)
        if state == TaskState.ASSIGNED:
            changed = replace(changed, node_id=NodeID(new_id(rng)))
        task = await store.update(lambda tx, changed=changed: tx.update(changed))
        print(f"  {state.name}: {log.entry_bytes - before} B")
    print(f"log bytes of a task's life: {log.entry_bytes - start}")


def add_service(rng: random.Random, task_count: int, tx: Transaction, number: int) -> None:
    """Create a service and its tasks."""
    spec = ServiceSpec(
        name=f"service-{number}",
        labels={"com.example.team": "web"},
        task=TaskSpec(container=ContainerSpec(image="nginx:1.27@sha256:" + "0" * 64)),
    )
    service_id = ServiceID(new_id(rng))
    service = tx.create(Service(id=service_id, spec=spec, spec_version=tx.version))
    row = ServiceSpecVersion(
        id=spec_version_id(service_id, service.version),
        service_id=service_id,
        spec_version=service.version,
        spec=spec,
    )
    tx.create(row)
    for slot in range(1, task_count + 1):
        task_id = TaskID(new_id(rng))
        status = TaskStatus(
            state=TaskState.RUNNING,
            timestamp=tx.now,
            message="started",
            container_id=container_id_of(task_id),
            pid=slot,
        )
        node_id = NodeID(f"node{rng.randrange(200):021}")
        task = Task(
            id=task_id,
            service_id=service_id,
            spec_version=service.version,
            slot=slot,
            node_id=node_id,
            status=status,
        )
        tx.create(task)


async def longest_pause(stop: asyncio.Event) -> float:
    """Measure the longest time that the loop was held."""
    longest, last = 0.0, time.perf_counter()
    while not stop.is_set():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


async def main() -> None:
    """Measure everything."""
    services, per_service = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(1)
    log = ListLog()
    store = Store.open(log, SystemClock())
    await measure_task_life(store, log, rng)

    start = time.perf_counter()
    await store.batch(range(services), lambda tx, number: add_service(rng, per_service, tx, number))
    seconds = time.perf_counter() - start
    rows = services * (per_service + 2)
    print(f"created {rows} rows in {seconds:.2f} s, {rows / seconds:.0f}/s")

    start = time.perf_counter()
    again = Store.open(log, SystemClock())
    seconds = time.perf_counter() - start
    size = sum(len(entry.data) for entry in log.entries)
    print(f"restart from {len(log.entries)} entries, {size / 1e6:.1f} MB: {seconds:.2f} s")
    assert len(again.view().tasks) == len(store.view().tasks)

    stop = asyncio.Event()
    watcher = asyncio.ensure_future(longest_pause(stop))
    await asyncio.sleep(0)
    start = time.perf_counter()
    await log.save_snapshot(store.applied_index, snapshot_chunks(store.view()))
    seconds = time.perf_counter() - start
    stop.set()
    size = sum(map(len, log.chunks))
    print(
        f"snapshot of {size / 1e6:.1f} MB in {len(log.chunks)} chunks: {seconds:.2f} s, "
        f"longest pause {1000 * await watcher:.1f} ms"
    )

    del again
    gc.collect()
    start = time.perf_counter()
    again = Store.open(log, SystemClock())
    print(f"restart from the snapshot: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    gc.collect()
    print(f"full garbage collection: {1000 * (time.perf_counter() - start):.0f} ms")
    start = time.perf_counter()
    again.check()
    print(f"check of all indexes: {time.perf_counter() - start:.2f} s")
    tasks = list(again.view().tasks)[:2000]
    start = time.perf_counter()
    for task in tasks:
        status = replace(task.status, state=TaskState.SHUTDOWN)
        changed = replace(task, status=status)
        await again.update(lambda tx, changed=changed: tx.update(changed))
    seconds = time.perf_counter() - start
    print(f"one status per transaction: {1e6 * seconds / len(tasks):.0f} us each")


async def measure_disk(services: int, per_service: int) -> None:
    """Do the same on the encrypted log, with a restart of the whole manager's state."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "raft"
        keys = KeyRing.create(directory, os.urandom, None)
        options: dict[str, Any] = {
            "node_id": "n",
            "address": "n:1",
            "clock": SystemClock(),
            "rng": random.SystemRandom(),
        }
        log = await RaftNode.create(directory, keys, **options)
        store = Store.open(log, SystemClock())
        rng = random.Random(1)
        start = time.perf_counter()
        await store.batch(
            range(services), lambda tx, number: add_service(rng, per_service, tx, number)
        )
        print(f"on disk: created in {time.perf_counter() - start:.2f} s")
        for has_snapshot in (False, True):
            if has_snapshot:
                await log.save_snapshot(store.applied_index, snapshot_chunks(store.view()))
            await store.close()
            await log.close()
            start = time.perf_counter()
            log = await RaftNode.open(directory, keys, **options)
            store = Store.open(log, SystemClock())
            seconds = time.perf_counter() - start
            print(
                f"on disk: restart {'with' if has_snapshot else 'without'} a snapshot: "
                f"{seconds:.2f} s"
            )
        await store.close()
        await log.close()
        keys.close()


if __name__ == "__main__":
    asyncio.run(main())
    asyncio.run(measure_disk(int(sys.argv[1]), int(sys.argv[2])))

"""The store on the real log of a lone member: encrypted, synced, restarted."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec

from manager.store import Store
from proto.ids import ClusterID
from proto.objects import Cluster, ClusterSpec, Task
from raft.keys import KeyRing
from raft.node import RaftNode

replace = msgspec.structs.replace


def rows_of(store: Store) -> dict[str, Any]:
    """Give all rows of the committed state."""
    return {row.id: row for table in store.view().tables for row in table}


async def test_what_was_acknowledged_is_there_after_a_crash(
    tmp_path: Path, clock: Any, make_task: Any
):
    """A copy of the files, taken without closing anything, restores the acknowledged state.

    Snapshots were made meanwhile, and the store goes on after each restart.
    """
    home = tmp_path / "0"
    keys = KeyRing.create(home, os.urandom, None)
    settings = {"node_id": "n", "address": "n:1", "clock": clock, "rng": random.Random(1)}
    log = await RaftNode.create(home, keys, **settings)
    store = Store.open(log, clock)
    spec = ClusterSpec(raft_snapshot_interval=15)
    await store.update(lambda tx: tx.create(Cluster(id=ClusterID("c"), spec=spec)))
    for attempt in range(1, 4):
        futures = [
            store.update(lambda tx, i=i: tx.create(make_task(f"t{i:04}", slot=i)))
            for i in range(attempt * 100, attempt * 100 + 20)
        ]
        await asyncio.gather(*futures)
        first = store.view().tasks.get(f"t{attempt * 100:04}")
        await store.update(lambda tx, task=first: tx.update(replace(task, slot=7)))
        await store.update(lambda tx, n=attempt: tx.delete(Task, f"t{n * 100 + 1:04}"))
        while store._saver._task is not None:
            await asyncio.wait([store._saver._task])
        assert log.snapshot_index >= attempt * 15
        expected, version = rows_of(store), store.view().version
        after_crash = tmp_path / str(attempt)
        shutil.copytree(home, after_crash)
        await store.close()
        await log.close()
        keys.close()
        home = after_crash
        keys = KeyRing.open(home, None)
        log = await RaftNode.open(home, keys, **settings)
        store = Store.open(log, clock)
        store.check()
        assert rows_of(store) == expected
        assert store.view().version == version
        assert store.applied_index == log.last_index
    await store.close()
    await log.close()
    keys.close()

"""The managers' store as the state machine of `RaftNode`: what is tortured is what managers run.

A key's list lies in rows of nodes: a head row with the length and the digest, and rows of up to
`ROW_VALUES` values. An append is one transaction that reads the head row and writes both. Half of
the reads on a leader are transactions that change nothing, answered as the API's refusals are; the
others wait for a barrier and look at what is committed.
"""

from __future__ import annotations

import os
import random
import sys

import msgspec
from config import MemberConfig
from state import EMPTY_DIGEST, next_digest

from manager.store import Store, Transaction, View
from proto.clock import SystemClock
from proto.ids import ClusterID, NodeID
from proto.objects import Cluster, ClusterSpec, Node, NodeSpec
from raft.node import RaftNode

ROW_VALUES = 100

replace = msgspec.structs.replace


class StoreMachine:
    """Lists of numbers in a store."""

    def __init__(self, config: MemberConfig, node: RaftNode) -> None:
        """Take what the log holds."""
        self._config = config
        self._node = node
        self._padding = config.padding().decode()
        self._rng = random.Random(f"reads {config.seed} {config.id}")
        self._store: Store

    def attach(self) -> None:
        """Be told of everything from now on."""
        self._store = Store.open(self._node, SystemClock())

    async def append(self, key: str, value: int) -> None:
        """Append, durably on return."""
        await self._store.update(lambda tx: self._append(tx, key, value))

    def _append(self, tx: Transaction, key: str, value: int) -> None:
        if not tx.clusters:
            spec = ClusterSpec(raft_snapshot_interval=self._config.snapshot_entries)
            tx.create(Cluster(id=ClusterID("torture"), spec=spec))
        length, digest = _read(tx, key)
        # In every entry, so that one that is not encrypted is found.
        labels = {
            "length": str(length + 1),
            "digest": str(next_digest(digest, value)),
            "padding": self._padding,
        }
        _put(tx, key, labels)
        row_id = f"{key}/{length // ROW_VALUES}"
        row = tx.nodes.get(NodeID(row_id))
        values = row.spec.labels["values"] + "," if row is not None else ""
        _put(tx, row_id, {"values": f"{values}{value}"})

    async def read(self, key: str) -> tuple[int, int]:
        """Return how many values a key has, and the digest of them all."""
        if self._store.term and self._rng.random() < 0.5:
            return await self._store.update(lambda tx: _read(tx, key))
        return _read(await self._store.read_barrier(), key)

    def lists(self) -> dict[str, list[int]]:
        """Return all that was applied here, and check it."""
        self._store.check()
        view = self._store.view()
        found = {}
        for node in view.nodes:
            if "length" not in node.spec.labels:
                continue
            values: list[int] = []
            digest = EMPTY_DIGEST
            length, wanted = _read(view, node.id)
            while len(values) < length:
                row = view.nodes.get(NodeID(f"{node.id}/{len(values) // ROW_VALUES}"))
                assert row is not None, "a row of values is missing"
                values += [int(value) for value in row.spec.labels["values"].split(",")]
            for value in values:
                digest = next_digest(digest, value)
            assert (len(values), digest) == (length, wanted), "head and values do not fit"
            found[str(node.id)] = values
        return found

    async def work(self) -> None:
        """End with the store: whoever supervises us starts us again."""
        await self._store.broken.wait()
        print("the store cannot go on with this log", file=sys.stderr, flush=True)
        os._exit(1)


def _read(view: View, key: str) -> tuple[int, int]:
    node = view.nodes.get(NodeID(key))
    if node is None:
        return 0, EMPTY_DIGEST
    return int(node.spec.labels["length"]), int(node.spec.labels["digest"])


def _put(tx: Transaction, row_id: str, labels: dict[str, str]) -> None:
    node = tx.nodes.get(NodeID(row_id))
    if node is None:
        tx.create(Node(id=NodeID(row_id), spec=NodeSpec(labels=labels)))
    else:
        tx.update(replace(node, spec=NodeSpec(labels=labels)))

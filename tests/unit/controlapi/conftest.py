"""A control API on a store in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from manager.ca.tokens import new_join_token
from manager.controlapi import Control
from manager.store import Entry, Store
from proto.ids import ClusterID, NodeID
from proto.objects import (
    Cluster,
    ContainerSpec,
    EndpointSpec,
    JoinTokens,
    Node,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    PortConfig,
    ServiceSpec,
    TaskSpec,
)

replace = msgspec.structs.replace


class StandingClock:
    """A clock that stands."""

    def wall(self) -> float:
        """Read the time."""
        return 1_000_000.0

    def monotonic(self) -> float:
        """Read the time."""
        return 1.0


class MemoryLog:
    """A log that commits each entry in the next turn of the loop."""

    def __init__(self) -> None:
        self.last_index = 0
        self.snapshot_index = 0

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Commit soon."""
        assert data
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self.last_index += 1
        loop.call_soon(future.set_result, self.last_index)
        return future

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Give nothing."""
        return iter(()), iter(())

    def attach(self, listener) -> None:
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Take no snapshot."""

    async def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def store() -> Store:
    """Give an empty store."""
    return Store.open(MemoryLog(), StandingClock())


@pytest.fixture
async def control(store: Store) -> Control:
    """Give a control API on a store with a cluster and three nodes."""
    rng = random.Random(5)
    tokens = JoinTokens(worker=new_join_token("root", rng), manager=new_join_token("root", rng))
    cluster = Cluster(id=ClusterID("cluster1"), root_ca_certificate_pem="root", join_tokens=tokens)
    await store.update(lambda tx: tx.create(cluster))
    for node_id, name in (("node1a", ""), ("node1b", ""), ("node2", "db")):
        node = Node(
            id=NodeID(node_id),
            spec=NodeSpec(name=name),
            description=NodeDescription(hostname=f"host-{node_id}"),
            status=NodeStatus(state=NodeState.READY),
        )
        await store.update(lambda tx, node=node: tx.create(node))
    return Control(store, StandingClock(), rng)


def _spec(
    name: str = "web", *, ports: tuple[PortConfig, ...] = (), **container: Any
) -> ServiceSpec:
    values = {"image": "nginx:1.27", **container}
    return ServiceSpec(
        name=name,
        task=TaskSpec(container=ContainerSpec(**values)),
        endpoint=EndpointSpec(ports=ports) if ports else None,
    )


@pytest.fixture
def make_spec() -> Callable[..., ServiceSpec]:
    """Make specs of services; keywords are fields of the container."""
    return _spec

"""A cluster with its root in a store in memory, and what a node needs to ask for a certificate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest

from manager.ca.authority import CertificateAuthority
from manager.ca.credentials import NodeCredentials
from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from manager.store import Entry, Store
from proto.errors import NotLeaderError
from proto.ids import ClusterID, NodeID
from proto.objects import Cluster, JoinTokens
from raft.transport.identity import WORKER_ROLE, Credentials

NOW = 1_800_000_000.0
DAYS_90 = 90 * 86_400.0


class ManualClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def wall(self) -> float:
        """Read the time."""
        return self.now

    def monotonic(self) -> float:
        """Read the time."""
        return self.now


class MemoryLog:
    """A log that commits each entry in the next turn of the loop."""

    def __init__(self, *, is_leader: bool = True) -> None:
        self.last_index = 0
        self.snapshot_index = 0
        self.is_leader = is_leader
        self.listener = None

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
        """Lead from the start, or never."""
        self.listener = listener
        if self.is_leader:
            listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    def refusal(self):
        """Name the leader."""
        return NotLeaderError("10.0.0.1:2378")

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Take no snapshot."""

    async def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def clock() -> ManualClock:
    """Give a clock."""
    return ManualClock()


@pytest.fixture(scope="session")
def root():
    """Give a root authority."""
    return create_root(NOW)


@pytest.fixture(scope="session")
def other_root():
    """Give another one, of the same name."""
    return create_root(NOW)


@pytest.fixture
def cluster(root) -> Cluster:
    """Give the row of a cluster."""
    rng = random.Random(3)
    return Cluster(
        id=ClusterID("cluster1"),
        root_ca_certificate_pem=root.certificate_pem,
        root_ca_key_pem=root.key_pem,
        join_tokens=JoinTokens(
            worker=new_join_token(root.certificate_pem, rng),
            manager=new_join_token(root.certificate_pem, rng),
        ),
    )


@pytest.fixture
async def store(clock, cluster) -> Store:
    """Give a store that holds the cluster."""
    store = Store.open(MemoryLog(), clock)
    await store.update(lambda tx: tx.create(cluster))
    return store


@pytest.fixture
def follower(clock) -> Store:
    """Give the store of a manager that does not lead."""
    return Store.open(MemoryLog(is_leader=False), clock)


@pytest.fixture
def authority(store, clock) -> CertificateAuthority:
    """Give the authority of the leader."""
    return CertificateAuthority(store, clock, random.Random(7))


@pytest.fixture
def issue(root):
    """Issue certificates: `issue()` returns credentials."""

    def make(
        node_id: str = "node1",
        *,
        role: str = WORKER_ROLE,
        by=root,
        roots: str = "",
        expiry: float = DAYS_90,
        now: float = NOW,
        intermediates: str = "",
    ) -> Credentials:
        key_pem, csr_pem = new_key_and_csr()
        certificate = issue_certificate(
            by.certificate_pem,
            by.key_pem,
            csr_pem,
            node_id=NodeID(node_id),
            role=role,
            cluster_id=ClusterID("cluster1"),
            expiry_seconds=expiry,
            now=now,
            intermediates_pem=intermediates,
        )
        return Credentials(
            certificate_pem=certificate,
            key_pem=key_pem,
            roots_pem=(roots or by.certificate_pem).encode(),
        )

    return make


@pytest.fixture
def parts():
    """Spread credentials over keyword arguments."""

    def spread(credentials: Credentials) -> dict[str, bytes]:
        return {
            "certificate_pem": credentials.certificate_pem,
            "key_pem": credentials.key_pem,
            "roots_pem": credentials.roots_pem,
        }

    return spread


@pytest.fixture
def constants() -> SimpleNamespace:
    """Give what tests have to name."""
    return SimpleNamespace(now=NOW, days_90=DAYS_90, open=NodeCredentials.open)

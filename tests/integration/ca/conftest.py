"""A cluster on a store in memory and in real time, nodes with certificates, and an authority."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace

import pytest

from manager.ca.authority import CertificateAuthority
from manager.ca.credentials import NodeCredentials
from manager.ca.issue import new_key_and_csr
from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from manager.store import Store
from proto.clock import SystemClock
from proto.ids import ClusterID
from proto.objects import Cluster, JoinTokens, NodeAvailability
from raft.transport.identity import Credentials
from tests.integration.ca.cfssl import Cfssl, issue


class MemoryLog:
    """A log that commits in the next turn of the loop."""

    def __init__(self):
        self.last_index = 0
        self.snapshot_index = 0

    def propose(self, _data):
        """Commit soon."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.last_index += 1
        loop.call_soon(future.set_result, self.last_index)
        return future

    def restore(self):
        """Give nothing."""
        return iter(()), iter(())

    def attach(self, listener):
        """Lead."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0


@pytest.fixture
def tools():
    """Give the helpers."""
    return SimpleNamespace(issue=issue, new_root=lambda: create_root(time.time()))


@pytest.fixture
def root():
    """Give the cluster's root."""
    return create_root(time.time())


@pytest.fixture
async def store(root):
    """Give a store that holds the cluster."""
    rng = random.Random(1)
    store = Store.open(MemoryLog(), SystemClock())
    cluster = Cluster(
        id=ClusterID("cluster1"),
        root_ca_certificate_pem=root.certificate_pem,
        root_ca_key_pem=root.key_pem,
        join_tokens=JoinTokens(
            worker=new_join_token(root.certificate_pem, rng),
            manager=new_join_token(root.certificate_pem, rng),
        ),
    )
    await store.update(lambda tx: tx.create(cluster))
    return store


@pytest.fixture
def manager(root):
    """Give the credentials of the manager that leads."""
    key_pem, chain = issue(root, "manager1", "swarm-manager")
    return Credentials(
        certificate_pem=chain, key_pem=key_pem, roots_pem=root.certificate_pem.encode()
    )


@pytest.fixture
def authority(store, manager):
    """Give the leader's authority."""
    return CertificateAuthority(
        store, SystemClock(), random.SystemRandom(), credentials=lambda: manager
    )


@pytest.fixture
def join(store, authority, tmp_path):
    """Give a way to let nodes in, which returns their credentials on disk."""

    async def enter(role="worker"):
        (cluster,) = store.view().clusters
        key_pem, csr_pem = new_key_and_csr()
        joined = await authority.issue_for_join(
            getattr(cluster.join_tokens, role),
            csr_pem,
            hostname="host",
            availability=NodeAvailability.ACTIVE,
            address="127.0.0.1",
        )
        return NodeCredentials.save_new(
            tmp_path / joined.node_id,
            certificate_pem=joined.certificate_pem,
            key_pem=key_pem,
            roots_pem=joined.roots_pem,
            kek=None,
        )

    return enter


@pytest.fixture
async def cfssl(root):
    """Give an authority outside that has the cluster's root."""
    server = Cfssl(root, root.certificate_pem)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def more_cfssl():
    """Give a way to start further ones."""
    started = []

    async def start(root, trusted):
        server = Cfssl(root, trusted)
        await server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        await server.stop()

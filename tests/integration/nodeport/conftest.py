"""A manager's node port on loopback: real log, store, TLS, gRPC, and every service."""

import asyncio
import random
import time

import grpc
import msgspec
import pytest
from grpc import aio
from typing_extensions import override

from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import create_root
from manager.dispatcher.client import DispatcherClient
from manager.dispatcher.core import DispatcherCore
from manager.dispatcher.service import DispatcherService
from manager.logbroker.asker import Asker
from manager.logbroker.collector import Collector
from manager.logbroker.service import LogsService
from manager.nodeport.authorize import authorizing_interceptor
from manager.nodeport.errors import abort
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.store import Store
from proto.clock import SystemClock
from proto.errors import NotLeaderError
from proto.objects import (
    Cluster,
    ClusterSpec,
    Node,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    RemovedNode,
)
from proto.v1 import (
    ca_pb2,
    ca_pb2_grpc,
    dispatcher_pb2_grpc,
    logs_pb2_grpc,
    managers_pb2,
    managers_pb2_grpc,
)
from raft.keys import KeyRing
from raft.node import RaftNode
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Credentials
from raft.transport.transport import Transport

CLUSTER = "cluster1"


class Authority:
    """A root that signs what it is told to."""

    def __init__(self):
        self.root = create_root(time.time())

    def issue(self, node_id, *, role=WORKER_ROLE, cluster=CLUSTER, seconds=3600.0, roots=None):
        """Sign a certificate."""
        key, csr = new_key_and_csr()
        certificate = issue_certificate(
            self.root.certificate_pem,
            self.root.key_pem,
            csr,
            node_id=node_id,
            role=role,
            cluster_id=cluster,
            expiry_seconds=3600.0,
            now=time.time() + seconds - 3600.0,
        )
        return Credentials(
            certificate_pem=certificate,
            key_pem=key,
            roots_pem=roots or self.root.certificate_pem.encode(),
        )


class CAService(ca_pb2_grpc.CAServicer):
    """Answers if its manager leads; what it issues is the authority's matter."""

    def __init__(self, manager):
        self._manager = manager

    @override
    async def Renew(self, request, context):
        """Answer."""
        if not self._manager.store.term:
            await abort(context, NotLeaderError(self._manager.leader))
        return ca_pb2.RenewReply(certificate_pem=b"issued")


class ManagersService(managers_pb2_grpc.ManagersServicer):
    """Answers."""

    @override
    async def Join(self, request, context):
        """Answer."""
        return managers_pb2.ManagerJoinReply(member_id=7)

    @override
    async def Leave(self, request, context):
        """Answer."""
        return managers_pb2.ManagerLeaveReply()


def cluster_row(**settings):
    """Make the cluster's row."""
    removed = (RemovedNode(id="removed"),)
    return Cluster(id=CLUSTER, spec=ClusterSpec(**settings), removed_nodes=removed)


class Manager:
    """One manager process in small."""

    def __init__(self, authority, directory):
        self.authority = authority
        self.directory = directory
        self.address = ""
        self.peers = ()
        self.renew = set()
        self.port = 0
        self.leader = ""
        self.node_id = "manager"
        self.running = None
        self.remotes = Remotes()

    async def start(self, *, nodes=(), port=0, **settings):
        """Found or open the log, lead and listen."""
        clock = SystemClock()
        self.directory.mkdir(mode=0o700, exist_ok=True)
        is_new = not any(self.directory.iterdir())
        make_keys = KeyRing.create if is_new else KeyRing.open
        rng = random.Random(1)
        self.keys = (
            make_keys(self.directory, rng.randbytes, None)
            if is_new
            else make_keys(self.directory, None, rng_bytes=rng.randbytes)
        )
        begin = RaftNode.create if is_new else RaftNode.open
        self.log = await begin(
            self.directory, self.keys, node_id=self.node_id, address="x:1", clock=clock, rng=rng
        )
        self.store = Store.open(self.log, clock)
        if is_new:
            await self.store.update(lambda tx: tx.create(cluster_row(**settings)))
            await self.store.batch(nodes, lambda tx, node: tx.create(node))
        self.core = DispatcherCore(
            self.store,
            clock=clock,
            rng=rng,
            managers=lambda: self.peers,
            must_renew=lambda node: node.id in self.renew,
        )
        self._read_logs(rng)
        credentials = self.credentials
        self.transport = Transport(
            self.node_id,
            CLUSTER,
            lambda: credentials,
            on_messages=lambda _node, _messages: None,
            on_snapshot=self._snapshot,
            on_unreachable=lambda _node: None,
            is_allowed=lambda node_id: node_id in {"peer", "demoted"},
            clock=clock,
            rng=rng,
        )
        gate = authorizing_interceptor(
            CLUSTER, lambda: self.store, clock, knows_members=lambda: self.store.term > 0
        )
        self.port = await self.transport.start(
            f"127.0.0.1:{port}", add_services=(self._add,), interceptors=(gate,)
        )
        self.address = f"127.0.0.1:{self.port}"
        self.peers = (ManagerPeer(self.node_id, self.address),)
        self.collector.address = self.address
        self.running = asyncio.gather(self.core.run(), self.collector.run(), gate.run())
        return self

    def _read_logs(self, rng):
        self.credentials = self.authority.issue(self.node_id, role=MANAGER_ROLE)
        self.asker = Asker(
            CLUSTER,
            lambda: self.credentials,
            self.remotes,
            is_leader=lambda: self.store.term != 0,
            own_wishes=self.core.wishes,
            rng=rng,
        )
        self.collector = Collector(
            self.node_id,
            "",
            self.store.view,
            rng,
            self.asker,
        )

    async def _snapshot(self, _node_id, _header, chunks):
        async for _ in chunks:
            pass

    def _add(self, server):
        service = DispatcherService(self.core, lambda: self.leader)
        dispatcher_pb2_grpc.add_DispatcherServicer_to_server(service, server)
        logs = LogsService(self.collector, self.core.wishes, lambda: self.leader)
        logs_pb2_grpc.add_LogsServicer_to_server(logs, server)
        ca_pb2_grpc.add_CAServicer_to_server(CAService(self), server)
        managers_pb2_grpc.add_ManagersServicer_to_server(ManagersService(), server)

    def state(self, node_id):
        """Return a node's state."""
        return self.store.view().nodes.get(node_id).status.state

    async def stop(self):
        """Stop; the directory stays."""
        running, self.running = self.running, None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await self.transport.close()
        await self.store.close()
        await self.log.close()
        self.keys.close()


class Follower(Manager):
    """A manager that does not lead and names who does."""

    async def start(self, *, nodes=(), port=0, **settings):
        """Start, and lose the leadership."""
        await super().start(nodes=nodes, port=port, **settings)
        self.store.follow()
        return self


def node_row(node_id, role=NodeRole.WORKER, state=NodeState.UNKNOWN):
    """Make a node's row."""
    row = Node(id=node_id, spec=NodeSpec(role=role), role=role)
    return msgspec.structs.replace(row, status=msgspec.structs.replace(row.status, state=state))


ROWS = (
    node_row("manager", NodeRole.MANAGER),
    node_row("peer", NodeRole.MANAGER),
    node_row("demoted"),
    node_row("w1"),
    node_row("w2"),
)


async def eventually(condition, *, within=5.0, what=""):
    """Wait for a condition; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, what or "it did not come true in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture(name="eventually")
def _eventually():
    return eventually


@pytest.fixture(scope="session")
def authority():
    """Give the cluster's authority."""
    return Authority()


@pytest.fixture(scope="session")
def new_authority():
    """Give the way to make another."""
    return Authority


@pytest.fixture
async def start_manager(authority, tmp_path):
    """Start managers; they end with the test."""
    started = []

    async def start(name="a", *, kind=Manager, node_id="manager", **settings):
        manager = kind(authority, tmp_path / name)
        manager.node_id = node_id
        started.append(manager)
        return await manager.start(nodes=ROWS, **settings)

    yield start
    for manager in started:
        if manager.running is not None:
            await manager.stop()


@pytest.fixture
def follower():
    """Give the kind of manager that does not lead."""
    return Follower


@pytest.fixture
async def manager(start_manager):
    """Give a manager that leads."""
    return await start_manager()


@pytest.fixture
async def client(authority):
    """Make clients; they end with the test."""
    made = []

    def make(node_id, *managers, credentials=None, told=None, describe=None):
        credentials = credentials or authority.issue(node_id)
        description = NodeDescription(hostname=node_id)
        one = DispatcherClient(
            node_id,
            CLUSTER,
            lambda: credentials,
            Remotes(ManagerPeer(m.node_id, m.address) for m in managers),
            clock=SystemClock(),
            rng=random.Random(node_id),
            on_session=(told if told is not None else []).append,
            describe=describe or (lambda: description),
        )
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


@pytest.fixture
async def dial():
    """Make raw channels to a manager."""
    opened = []

    def make(manager, credentials, name="swarm-manager"):
        channel = aio.secure_channel(
            manager.address,
            grpc.ssl_channel_credentials(
                credentials.roots_pem, credentials.key_pem, credentials.certificate_pem
            ),
            options=[
                ("grpc.ssl_target_name_override", name),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        opened.append(channel)
        return channel

    yield make
    for channel in opened:
        await channel.close()


@pytest.fixture
def roles():
    """Give the names of the roles: manager, worker."""
    return MANAGER_ROLE, WORKER_ROLE

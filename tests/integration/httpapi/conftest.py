"""Managers' API ports on loopback: real TLS, real certificates, one store behind them all.

The managers share a store in memory, as if replication took no time; who leads is said by the
test. So what is tested here is the way to the leader, not the log.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from aiohttp import web

from manager.ca.authority import CertificateAuthority
from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import RootCA, create_root
from manager.ca.tokens import new_join_token
from manager.controlapi import Control
from manager.httpapi.app import make_app
from manager.httpapi.backend import (
    Joined,
    LeaderInfo,
    NodeFacts,
    Quorum,
    RemoteManager,
    SwarmFacts,
)
from manager.httpapi.server import Listener, TlsListener, serve_tls, serve_unix
from manager.store import Store, Watch
from proto.clock import SystemClock
from proto.errors import LockedError, NotLeaderError, SwarmError
from proto.ids import ClusterID, NodeID
from proto.objects import (
    Cluster,
    JoinTokens,
    ManagerStatus,
    Node,
    NodeAvailability,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Object,
    Reachability,
    RemovedNode,
)
from raft.transport.identity import MANAGER_ROLE, Credentials

CLUSTER_ID = ClusterID("cluster1")
DAY = 86_400.0
PAUSE_SECONDS_MAX = 3.0


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

    def restore(self) -> tuple[Iterator[bytes], Iterator[Any]]:
        """Give nothing."""
        return iter(()), iter(())

    def attach(self, listener: Any) -> None:
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0


class Pki:
    """The cluster's authority in the hands of the test."""

    def __init__(self) -> None:
        self.root: RootCA = create_root(time.time())

    def credentials(
        self,
        node_id: str,
        role: str = MANAGER_ROLE,
        *,
        cluster_id: str = CLUSTER_ID,
        expiry_seconds: float = DAY,
        now: float | None = None,
    ) -> Credentials:
        """Issue a certificate."""
        key_pem, csr_pem = new_key_and_csr(node_id)
        certificate_pem = issue_certificate(
            self.root.certificate_pem,
            self.root.key_pem,
            csr_pem,
            node_id=NodeID(node_id),
            role=role,
            cluster_id=ClusterID(cluster_id),
            expiry_seconds=expiry_seconds,
            now=time.time() if now is None else now,
        )
        roots_pem = self.root.certificate_pem.encode()
        return Credentials(certificate_pem=certificate_pem, key_pem=key_pem, roots_pem=roots_pem)


class Guarded:
    """The control API of one manager: changes only where it leads, and as the test wants."""

    def __init__(self, manager: Manager, control: Control) -> None:
        self._manager = manager
        self._control = control

    def __getattr__(self, name: str) -> Any:
        """Reads go through; changes are checked."""
        found = getattr(self._control, name)
        if name.startswith(("create_", "update_", "remove_")):
            return lambda *args, **kwargs: self._change(found, *args, **kwargs)
        return found

    async def _change(
        self, change: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        manager = self._manager
        manager.changes += 1
        if not manager.is_leader:
            raise NotLeaderError
        if manager.before_change is not None:
            await manager.before_change()
        result = await change(*args, **kwargs)
        if manager.after_change is not None:
            error, manager.after_change = manager.after_change, None
            raise error
        return result


class Manager:
    """One manager: what the API needs of a daemon."""

    def __init__(self, node_id: str, store: Store, credentials: Credentials) -> None:
        self.node_id = NodeID(node_id)
        self.store = store
        self.shown = credentials
        self.known_leader: LeaderInfo | None = None
        self.is_leader = False
        self.is_locked = False
        self.reachable = 3
        self.knows_loss = False
        self.changes = 0
        self.barrier_error: Exception | None = None
        # What happens to the next changes on this manager.
        self.before_change: Callable[[], Awaitable[None]] | None = None
        self.after_change: SwarmError | None = None
        rng = random.Random(node_id)
        self._control = Guarded(self, Control(store, SystemClock(), rng))
        self._authority = CertificateAuthority(store, SystemClock(), rng)
        self.tls: TlsListener | None = None
        self.unix: Listener | None = None

    @property
    def address(self) -> str:
        """Where its API port is."""
        assert self.tls is not None
        return self.tls.address

    def facts(self) -> NodeFacts:
        """Describe."""
        swarm = SwarmFacts(local_node_state="active", control_available=True)
        return NodeFacts(node_id=self.node_id, version="1.2.3", swarm=swarm)

    def control(self) -> Guarded:
        """Return it."""
        if self.is_locked:
            raise LockedError
        return self._control

    def watch(self, *kinds: type[Object]) -> Watch:
        """Watch the store."""
        return self.store.watch(*kinds)

    async def read_barrier(self) -> None:
        """Do as the test says."""
        if self.barrier_error is not None:
            raise self.barrier_error

    def leader(self) -> LeaderInfo | None:
        """Name who leads, as far as this one knows."""
        return self.known_leader

    @property
    def is_majority_lost(self) -> bool:
        """Do as the test says."""
        return self.knows_loss

    def quorum(self) -> Quorum:
        """Count."""
        return Quorum(self.reachable, 3, has_leader=self.known_leader is not None)

    def credentials(self) -> Credentials:
        """Show."""
        return self.shown

    async def issue_for_join(
        self,
        token: str,
        csr_pem: bytes,
        *,
        hostname: str,
        availability: NodeAvailability,
        address: str,
    ) -> Joined:
        """Issue by the real authority."""
        if not self.is_leader:
            raise NotLeaderError
        issued = await self._authority.issue_for_join(
            token, csr_pem, hostname=hostname, availability=availability, address=address
        )
        peer = RemoteManager(self.node_id, self.address)
        return Joined(
            node_id=issued.node_id,
            cluster_id=issued.cluster_id,
            role=NodeRole.MANAGER if issued.role == MANAGER_ROLE else NodeRole.WORKER,
            certificate_pem=issued.certificate_pem,
            roots_pem=issued.roots_pem,
            managers=(peer,),
            api_managers=(peer,),
        )


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body."""
        return msgspec.json.decode(self.body)

    @property
    def message(self) -> str:
        """The sentence of an error."""
        return str(self.json()["message"])


class Managers:
    """Three managers m1, m2, m3 of one cluster, a worker w1 and a removed manager."""

    def __init__(self, folder: Any) -> None:
        self.pki = Pki()
        self.folder = folder
        self.store = Store.open(MemoryLog(), SystemClock())
        self.all: dict[str, Manager] = {}

    async def start(self) -> None:
        """Fill the store and serve."""
        rng = random.Random(1)
        pem = self.pki.root.certificate_pem
        cluster = Cluster(
            id=CLUSTER_ID,
            root_ca_certificate_pem=pem,
            root_ca_key_pem=self.pki.root.key_pem,
            join_tokens=JoinTokens(
                worker=new_join_token(pem, rng), manager=new_join_token(pem, rng)
            ),
            removed_nodes=(RemovedNode(NodeID("gone"), time.time() + DAY),),
        )
        await self.store.update(lambda tx: tx.create(cluster))
        for name in ("m1", "m2", "m3", "w1"):
            if name != "w1":
                await self._serve(name)
            await self._add_row(name)
        self.lead("m1")

    async def _serve(self, name: str) -> None:
        manager = Manager(name, self.store, self.pki.credentials(name))
        manager.tls = await serve_tls(_app(manager), "127.0.0.1:0", manager.credentials)
        manager.unix = await serve_unix(_app(manager), self.folder / f"{name}.sock")
        self.all[name] = manager

    async def _add_row(self, name: str) -> None:
        role = NodeRole.WORKER if name == "w1" else NodeRole.MANAGER
        status = None
        if name in self.all:
            status = ManagerStatus(reachability=Reachability.REACHABLE, addr=self.all[name].address)
        node = Node(
            id=NodeID(name),
            spec=NodeSpec(role=role),
            status=NodeStatus(state=NodeState.READY),
            role=role,
            manager_status=status,
        )
        await self.store.update(lambda tx: tx.create(node))

    def lead(self, name: str | None, *, known_to: tuple[str, ...] = ("m1", "m2", "m3")) -> None:
        """Let a manager lead, and let those know it."""
        for manager in self.all.values():
            manager.is_leader = manager.node_id == name
            if manager.node_id in known_to:
                manager.known_leader = (
                    None if name is None else LeaderInfo(NodeID(name), self.all[name].address)
                )

    async def kill(self, name: str) -> None:
        """Close a manager's port; the others do not know that it is gone."""
        listener, self.all[name].tls = self.all[name].tls, None
        assert listener is not None
        await listener.close()

    async def close(self) -> None:
        """Stop all."""
        for manager in self.all.values():
            assert manager.unix is not None
            await manager.unix.close()
            if manager.tls is not None:
                await manager.tls.close()

    async def ask(
        self,
        name: str,
        method: str,
        path: str,
        body: Any = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask a manager on its socket."""
        unix = self.all[name].unix
        assert unix is not None
        reader, writer = await asyncio.open_unix_connection(str(unix.path))
        return await exchange(reader, writer, f"{method} {path}", body, headers)

    async def ask_tls(
        self,
        name: str,
        path: str,
        credentials: Credentials | None,
        *,
        method: str = "GET",
        body: Any = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask a manager on its API port, without looking who it is."""
        reader, writer = await self.dial(name, credentials)
        return await exchange(reader, writer, f"{method} {path}", body, headers)

    async def dial(
        self, name: str, credentials: Credentials | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a manager's API port."""
        host, _, port = self.all[name].address.rpartition(":")
        context = client_context(self.folder, credentials)
        return await asyncio.open_connection(host, int(port), ssl=context)


def _app(manager: Manager) -> web.Application:
    return make_app(manager, peers=manager, pause_seconds_max=PAUSE_SECONDS_MAX)


def client_context(folder: Any, credentials: Credentials | None) -> ssl.SSLContext:
    """Make a client's end that trusts anybody and shows these credentials."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if credentials is not None:
        path = folder / "identity.pem"
        path.write_bytes(credentials.certificate_pem + credentials.key_pem)
        context.load_cert_chain(path)
    return context


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    line: str,
    body: Any,
    headers: dict[str, str] | None,
) -> Answer:
    """Send a request, read the whole answer, and close."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    lines = [f"{line} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(raw)}", "", ""]
    try:
        async with asyncio.timeout(15):
            writer.write("\r\n".join(lines).encode() + raw)
            await writer.drain()
            data = await reader.read()
    finally:
        writer.transport.abort()
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *fields = head.decode().split("\r\n")
    found = {key.lower(): value for key, _, value in (line.partition(": ") for line in fields)}
    return Answer(int(status_line.split()[1]), found, rest)


@pytest.fixture
async def managers(tmp_path: Any) -> AsyncIterator[Managers]:
    """Serve three managers; m1 leads."""
    made = Managers(tmp_path)
    await made.start()
    yield made
    await made.close()

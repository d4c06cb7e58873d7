"""All that the node's shell uses of this package: one `Transport` for one member.

It carries opaque messages and snapshots to and from peers that are proven to be who they are. It
loses messages when it must (Raft stands that), but never grows, never blocks the caller, and
never hands over anything from somebody who may not speak.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

import msgspec
import structlog
from grpc import aio

from proto.clock import Clock
from proto.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from proto.ids import ClusterID, NodeID
from proto.v1 import raft_pb2_grpc
from raft.transport.channels import Interceptor
from raft.transport.identity import CredentialsSource, check_manager, read_identity
from raft.transport.inbound import Inbound, OnMessages, OnSnapshot, Rules
from raft.transport.limits import Lane, Limits
from raft.transport.link import Link, LinkStats, Surroundings, Target, report_bug
from raft.transport.outgoing_snapshot import send_snapshot
from raft.transport.port import Port
from raft.transport.throttle import Throttle

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class PeerStatus(msgspec.Struct, frozen=True):
    """What is known about the way to one peer.

    Attributes:
        address: where it is dialled.
        is_reachable: it has accepted both lanes' streams, and they live.
        contact: when it was last heard, by the monotonic clock; None if never.
        queued_bytes: what waits to be sent, on both lanes.
        lanes: counters.
    """

    address: str
    is_reachable: bool
    contact: float | None
    queued_bytes: int
    lanes: dict[Lane, LinkStats]


class Transport:
    """Carries messages between this member and its peers. Belongs to one event loop."""

    def __init__(
        self,
        me: NodeID,
        cluster_id: ClusterID,
        credentials: CredentialsSource,
        *,
        on_messages: OnMessages,
        on_snapshot: OnSnapshot,
        on_unreachable: Callable[[NodeID], None],
        is_allowed: Callable[[NodeID], bool],
        clock: Clock,
        rng: random.Random,
        limits: Limits = Limits(),  # noqa: B008 -- frozen
        address: str = "",
    ) -> None:
        """Do nothing yet.

        Args:
            me: this node.
            cluster_id: the only cluster that is talked to.
            credentials: asked at every handshake, from any thread.
            on_messages: gets what peers sent; see `OnMessages`.
            on_snapshot: gets a peer's snapshot; see `OnSnapshot`.
            on_unreachable: messages to this peer were lost or may have been; called on the loop,
                never from within a call of this class.
            is_allowed: whether a node is a member; asked with every frame.
            clock: for dates of certificates and for durations.
            rng: spreads the retries.
            limits: all bounds.
            address: where peers reach this member; they are told, in case it is new to them.
        """
        self._me = me
        self._address = address
        self._cluster_id = cluster_id
        self._around = Surroundings(credentials, limits, clock, rng, Throttle())
        self._on_unreachable = on_unreachable
        self._links: dict[NodeID, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._snapshots: set[NodeID] = set()
        self._port: Port | None = None
        self._is_closed = False
        self._inbound = Inbound(
            Rules(me, cluster_id, is_allowed),
            self._around,
            on_messages=on_messages,
            on_snapshot=on_snapshot,
            on_contact=self._heard,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def start(
        self,
        listen_address: str,
        *,
        add_services: Sequence[Callable[[aio.Server], None]] = (),
        interceptors: Sequence[Interceptor] = (),
    ) -> int:
        """Listen; return the port.

        Args:
            listen_address: `host:port`; port 0 takes a free one.
            add_services: add the other services of the node port to the same server.
            interceptors: see every call first; a `Guard` must know every RPC.

        Raises:
            DeniedError: our own certificate is not for this node, a manager of this cluster.
            UnavailableError: the address cannot be listened on.
        """
        assert self._port is None
        mine = read_identity(self._around.credentials().certificate_pem)
        check_manager(mine, self._cluster_id, self._around.clock.wall())
        if mine.node_id != self._me:
            raise DeniedError(f"the certificate is of node {mine.node_id}, this is {self._me}")
        port = Port(
            self._around.credentials,
            self._around.limits,
            add_services=(self._add_raft, *add_services),
            interceptors=interceptors,
        )
        number = await port.open(listen_address)
        self._port = port
        return number

    def _add_raft(self, server: aio.Server) -> None:
        raft_pb2_grpc.add_RaftServicer_to_server(self._inbound, server)

    async def close(self) -> None:
        """Stop to listen, end all streams; queued messages are dropped."""
        self._is_closed = True
        for node_id in list(self._links):
            self.remove_peer(node_id)
        if self._port is not None:
            await self._port.close()
            self._port = None
        if self._closing:
            await asyncio.wait(self._closing)

    def set_peer(self, node_id: NodeID, address: str) -> None:
        """Keep connections to a peer, from now on at this address."""
        assert node_id != self._me
        assert not self._is_closed
        link = self._links.get(node_id)
        if link is not None:
            if link.target.address == address:
                return
            self._close_link(node_id)
        target = Target(node_id, address, self._cluster_id, self._address)
        self._links[node_id] = Link(target, self._around, self._on_unreachable)

    def remove_peer(self, node_id: NodeID) -> None:
        """End all connections with a peer, in both directions; it may be unknown."""
        if node_id in self._links:
            self._close_link(node_id)
        self._inbound.cut(node_id)

    def send(
        self, node_id: NodeID, messages: Sequence[bytes], *, lane: Lane = Lane.CONTROL
    ) -> None:
        """Queue messages to a peer. Never waits; what cannot be sent is dropped.

        Messages of one lane arrive in order, if they arrive. Whenever some are dropped
        `on_unreachable` is called soon after; for an unknown peer nothing happens at all.

        Raises:
            InvalidError: a message is larger than `message_bytes_max`.
        """
        bytes_max = self._around.limits.message_bytes_max
        for message in messages:
            if len(message) > bytes_max:
                raise InvalidError(
                    f"a message of {len(message)} bytes is more than the {bytes_max} allowed"
                )
        link = self._links.get(node_id)
        if link is not None:
            link.send(lane, messages)

    async def send_snapshot(
        self, node_id: NodeID, header: bytes, chunks: AsyncIterator[bytes]
    ) -> None:
        """Send a snapshot on a connection of its own; return when the peer has taken it.

        Args:
            node_id: a peer that was set.
            header: up to `snapshot_header_bytes_max`, for the receiver.
            chunks: the content, read only as fast as it is sent; what it raises is raised.

        Raises:
            NotFoundError: no such peer.
            ConflictError: one is on its way to this peer.
            InvalidError: the header is too large.
            DeniedError: the peer does not let us.
            UnavailableError: it was not reached, or failed or stalled meanwhile.
        """
        link = self._links.get(node_id)
        if link is None:
            raise NotFoundError("peer", node_id)
        if node_id in self._snapshots:
            raise ConflictError(f"a snapshot to node {node_id} is on its way already")
        if len(header) > self._around.limits.snapshot_header_bytes_max:
            raise InvalidError(f"a snapshot's header of {len(header)} bytes is too large")
        self._snapshots.add(node_id)
        try:
            await send_snapshot(link.target, self._around, header, chunks)
        finally:
            self._snapshots.remove(node_id)

    def refresh_credentials(self) -> None:
        """Make all connections anew, gently, after the certificate or the roots changed.

        Connections that others made to us live on; from now on we show the new certificate, and
        trust the new roots.
        """
        if self._port is not None:
            self._port.renew()
        for link in self._links.values():
            link.redial()

    async def renewed(self) -> None:
        """Wait until whoever dials us is shown the credentials of now."""
        if self._port is not None:
            await self._port.renewed()

    def reachable(self, node_id: NodeID) -> bool:
        """Tell whether both lanes to a peer are accepted and alive."""
        link = self._links.get(node_id)
        return link is not None and link.is_up

    def status(self) -> dict[NodeID, PeerStatus]:
        """Return what is known about each peer."""
        return {node_id: _status(link) for node_id, link in self._links.items()}

    def _heard(self, node_id: NodeID, opened_from: str | None) -> None:
        link = self._links.get(node_id)
        if link is None:
            return
        link.heard()
        if opened_from is None:
            return
        if opened_from and opened_from != link.target.address:
            # Its certificate says who it is. The log learns of the address too, but perhaps only
            # when this very peer can be heard again.
            log.info("raft_peer_moved", peer_id=node_id, address=opened_from)
            self.set_peer(node_id, opened_from)
        else:
            link.hurry()

    def _close_link(self, node_id: NodeID) -> None:
        link = self._links.pop(node_id)
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        task.add_done_callback(report_bug)


def _status(link: Link) -> PeerStatus:
    streams = {lane: link.stream(lane) for lane in Lane}
    return PeerStatus(
        address=link.target.address,
        is_reachable=link.is_up,
        contact=link.contact,
        queued_bytes=sum(stream.queued_bytes for stream in streams.values()),
        lanes={lane: msgspec.structs.replace(stream.stats) for lane, stream in streams.items()},
    )

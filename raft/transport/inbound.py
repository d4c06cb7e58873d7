"""What peers send us: who may, and where it goes.

The handshake has verified that the peer's certificate comes from our authority. Here the rest is
checked, when a stream opens and again with each frame, because a stream outlives what was true
at its start: manager role, our cluster, not expired, a member, and meant for us. A refusal has
its reason, for the peer and, once a minute, for our log.

A peer has one stream of each kind: a newer one ends the older, which can only be a left-over of a
connection that broke, and is ended before the newer is accepted, so what it carried comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

import msgspec
import structlog
from grpc import aio
from typing_extensions import override

from proto.errors import DeniedError, InvalidError, SwarmError, UnavailableError
from proto.ids import ClusterID, NodeID
from proto.v1 import raft_pb2, raft_pb2_grpc
from raft.transport.identity import Identity, check_manager, read_identity
from raft.transport.limits import Lane
from raft.transport.link import ACCEPTED_BY_KEY, FROM_KEY, LANE_KEY, TO_KEY, Surroundings

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SNAPSHOT = "snapshot"

OnMessages = Callable[[NodeID, Sequence[bytes]], Awaitable[None] | None]
"""Takes a frame's messages from a peer whose node ID the certificate proves.

If it returns an awaitable, no more is read from that lane until it is done: so a receiver that
cannot keep up slows the sender instead of growing. It raises `DeniedError` if a message claims to
be from somebody else or cannot be read; the stream ends with that reason.
"""

OnSnapshot = Callable[[NodeID, bytes, AsyncIterator[bytes]], Awaitable[None]]
"""Takes a snapshot: the peer, the header and the content; having returned, it has it.

The iterator raises `UnavailableError` if the stream is cut: only its normal end is the end.
A `SwarmError` that it raises is told to the sender.
"""


Context = aio.ServicerContext[object, raft_pb2.Outcome]


class Rules(msgspec.Struct, frozen=True):
    """Whom this node lets in; `is_allowed` knows the members."""

    me: NodeID
    cluster_id: ClusterID
    is_allowed: Callable[[NodeID], bool]

    def check(self, peer: Identity, now: float) -> None:
        """Refuse a peer that may not speak now.

        Args:
            peer: what its certificate says.
            now: seconds since the epoch.

        Raises:
            DeniedError: with the reason.
        """
        check_manager(peer, self.cluster_id, now)
        if not self.is_allowed(peer.node_id):
            raise DeniedError(f"node {peer.node_id} is no member, or no longer one")


class _CutError(UnavailableError):
    """A stream is ended from our side, and not for what the peer did on it."""

    def __init__(self) -> None:
        """There is but one sentence."""
        super().__init__("we stop, or its member was removed or has a newer stream")


class Inbound(raft_pb2_grpc.RaftServicer):
    """The service: admits peers and hands over what they send."""

    def __init__(
        self,
        rules: Rules,
        around: Surroundings,
        *,
        on_messages: OnMessages,
        on_snapshot: OnSnapshot,
        on_contact: Callable[[NodeID, str | None], None],
    ) -> None:
        """Have no streams.

        `on_contact` is told who was heard and, when that opened a stream, where it says that it is
        reached: "" if it does not say.
        """
        self._rules = rules
        self._around = around
        self._on_messages = on_messages
        self._on_snapshot = on_snapshot
        self._on_contact = on_contact
        self._cuts: dict[tuple[NodeID, str], tuple[asyncio.Event, asyncio.Event]] = {}

    def cut(self, node_id: NodeID) -> None:
        """End all streams of a peer."""
        for (owner, _kind), (cut, _gone) in self._cuts.items():
            if owner == node_id:
                cut.set()

    @override
    async def Messages(self, request_iterator: object, context: Context) -> raft_pb2.Outcome:
        """Take a stream of messages."""

        async def take(peer: Identity) -> None:
            await self._accept(context, peer)
            while isinstance(frame := await context.read(), raft_pb2.Frame):
                self._rules.check(peer, self._around.clock.wall())
                self._on_contact(peer.node_id, None)
                slow = self._on_messages(peer.node_id, list(frame.messages))
                if slow is not None:
                    await slow

        return await self._serve(context, _lane_of(context), take)

    @override
    async def Snapshot(self, request_iterator: object, context: Context) -> raft_pb2.Outcome:
        """Take one snapshot."""

        async def take(peer: Identity) -> None:
            await self._accept(context, peer)
            first = await self._next_chunk(context, peer)
            chunks = self._chunks(context, peer)
            await self._on_snapshot(peer.node_id, first.header, chunks)

        return await self._serve(context, SNAPSHOT, take)

    async def _serve(
        self,
        context: Context,
        kind: str,
        take: Callable[[Identity], Coroutine[None, None, None]],
    ) -> raft_pb2.Outcome:
        """Admit a peer, let `take` work until it ends or is cut, and tell the peer why."""
        peer_id = "unknown"
        try:
            peer = _identity_of(context)
            peer_id = peer.node_id
            self._admit(context, peer, kind)
            await self._run_alone((peer.node_id, kind), take(peer))
        except SwarmError as error:
            now = self._around.clock.monotonic()
            if self._around.throttle.is_due((peer_id, error.message), now):
                if isinstance(error, _CutError):
                    log.info("raft_stream_cut", peer_id=peer_id, kind=kind)
                else:
                    log.warning(
                        "raft_peer_refused", peer_id=peer_id, kind=kind, reason=error.message
                    )
            is_denied = isinstance(error, DeniedError)
            return raft_pb2.Outcome(refusal=error.message, is_denied=is_denied)
        except Exception as error:
            # A bug of a callback. grpc would only log it; whoever watches over the loop must know.
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"receiving {kind} from {peer_id} failed", "exception": error}
            )
            raise
        return raft_pb2.Outcome()

    async def _run_alone(self, key: tuple[NodeID, str], work: Coroutine[None, None, None]) -> None:
        """Run `work` when the peer's older stream of this kind has ended; end it when cut."""
        cut, gone = asyncio.Event(), asyncio.Event()
        older = self._cuts.get(key)
        self._cuts[key] = (cut, gone)
        worker: asyncio.Task[None] | None = None
        waiter = asyncio.create_task(cut.wait())
        try:
            if older is not None:
                older[0].set()
                await older[1].wait()
            worker = asyncio.create_task(work)
            await asyncio.wait({worker, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if not worker.done():
                raise _CutError
            worker.result()
        finally:
            waiter.cancel()
            if worker is None:
                work.close()
            else:
                worker.cancel()
                await asyncio.wait({worker})
            gone.set()
            if self._cuts.get(key) == (cut, gone):
                del self._cuts[key]

    def _admit(self, context: Context, peer: Identity, kind: str) -> None:
        """Refuse a peer that may not speak to us, or means somebody else.

        Raises:
            DeniedError: with the reason.
            InvalidError: the stream does not say what it is.
        """
        self._rules.check(peer, self._around.clock.wall())
        if not kind:
            raise InvalidError("the stream does not say its lane")
        wanted = _metadata(context, TO_KEY)
        if wanted != self._rules.me:
            raise DeniedError(f"this is node {self._rules.me}, not {wanted or 'nobody'}")

    async def _accept(self, context: Context, peer: Identity) -> None:
        await context.send_initial_metadata(((ACCEPTED_BY_KEY, self._rules.me),))
        self._on_contact(peer.node_id, _metadata(context, FROM_KEY))

    async def _next_chunk(self, context: Context, peer: Identity) -> raft_pb2.SnapshotChunk:
        try:
            async with asyncio.timeout(self._around.limits.snapshot_stall_seconds_max):
                chunk = await context.read()
        except TimeoutError as error:
            raise UnavailableError(f"the snapshot from node {peer.node_id} stalled") from error
        if not isinstance(chunk, raft_pb2.SnapshotChunk):
            raise UnavailableError(f"the snapshot from node {peer.node_id} was cut short")
        self._rules.check(peer, self._around.clock.wall())
        self._on_contact(peer.node_id, None)
        return chunk

    async def _chunks(self, context: Context, peer: Identity) -> AsyncIterator[bytes]:
        while True:
            chunk = await self._next_chunk(context, peer)
            if chunk.data:
                yield chunk.data
            if chunk.is_last:
                return


def _identity_of(context: Context) -> Identity:
    certificates = context.auth_context().get("x509_pem_cert", ())
    for certificate in certificates:
        return read_identity(certificate)
    raise DeniedError("a manager has to show a certificate")


def _metadata(context: Context, key: str) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == key and isinstance(value, str):
            return value
    return ""


def _lane_of(context: Context) -> str:
    value = _metadata(context, LANE_KEY)
    return value if value in {lane.value for lane in Lane} else ""

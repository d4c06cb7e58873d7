"""The way to one peer: a stream for each lane, made again whenever it breaks.

A stream is a connection of its own: it dials, is accepted (the peer's initial metadata), writes
frames while there is something in its outbox, and ends for a reason. While one frame is being
written the next gathers, so the batches grow with the load and a lone message waits for nothing.
After an end it waits, longer each time, or until the peer is heard from.

It decides nothing about messages: what does not fit or cannot be sent is dropped and reported.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import msgspec
import structlog
from grpc import aio

from proto.clock import Clock
from proto.errors import SwarmError
from proto.ids import ClusterID, NodeID
from proto.v1 import raft_pb2, raft_pb2_grpc
from raft.transport.channels import secure_channel
from raft.transport.identity import MANAGER_ROLE, CredentialsSource, full_name
from raft.transport.limits import Lane, Limits, retry_seconds
from raft.transport.outbox import Outbox
from raft.transport.throttle import Throttle

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

Call = aio.StreamUnaryCall[raft_pb2.Frame, raft_pb2.Outcome]
AnyCall = Call | aio.StreamUnaryCall[raft_pb2.SnapshotChunk, raft_pb2.Outcome]

TO_KEY = "swarm-to"
LANE_KEY = "swarm-lane"
FROM_KEY = "swarm-from"
ACCEPTED_BY_KEY = "swarm-accepted-by"

_WRITE_FAILED = "Internal error from Core"


class Target(msgspec.Struct, frozen=True):
    """Whom a link is to; `own_address` is where that one may reach us, "" to say nothing."""

    node_id: NodeID
    address: str
    cluster_id: ClusterID
    own_address: str = ""

    @property
    def server_name(self) -> str:
        """What the peer's certificate has to be for."""
        return full_name(self.node_id, MANAGER_ROLE, self.cluster_id)

    def metadata(self, lane: Lane | None = None) -> tuple[tuple[str, str], ...]:
        """Return what a stream says at its start: whom it is for, and its lane."""
        if lane is None:
            return ((TO_KEY, self.node_id),)
        named = ((TO_KEY, self.node_id), (LANE_KEY, lane.value))
        return (*named, (FROM_KEY, self.own_address)) if self.own_address else named


class Surroundings(msgspec.Struct, frozen=True):
    """What every part of the transport has in common."""

    credentials: CredentialsSource
    limits: Limits
    clock: Clock
    rng: random.Random
    throttle: Throttle


class LinkStats(msgspec.Struct):
    """Counters of one lane to one peer since the link was made."""

    frames: int = 0
    messages: int = 0
    bytes: int = 0
    dropped: int = 0
    connects: int = 0


class Stream:
    """One lane to one peer."""

    def __init__(
        self,
        lane: Lane,
        target: Target,
        around: Surroundings,
        on_change: Callable[[Stream, bool], None],
    ) -> None:
        """Begin to dial; `on_change` is told when the stream is accepted (True) and ends (False).

        An attempt that fails is an end, too.
        """
        self.lane = lane
        self.stats = LinkStats()
        self.is_up = False
        self._target = target
        self._around = around
        self._on_change = on_change
        self._outbox = Outbox(lane, around.limits)
        self._is_away = False
        self._filled = asyncio.Event()
        self._hurry = asyncio.Event()
        self._wants_redial = False
        self._task = asyncio.create_task(self._run(), name=f"raft-{lane.value}-{target.node_id}")
        self._task.add_done_callback(report_bug)

    @property
    def queued_bytes(self) -> int:
        """What waits to be sent."""
        return self._outbox.size

    def put(self, messages: Sequence[bytes]) -> bool:
        """Queue messages; tell whether all, and all older ones, are still on their way."""
        dropped = self._outbox.put(messages)
        if self._is_away:
            dropped += self._outbox.clip()
        self._filled.set()
        self.stats.dropped += dropped
        return not dropped

    def hurry(self) -> None:
        """The peer shows signs of life: dial now if the stream is waiting to dial."""
        self._hurry.set()

    def redial(self) -> None:
        """Make the stream anew, with the credentials of now; nothing that waits is lost."""
        self._wants_redial = True
        self._filled.set()
        self._hurry.set()

    async def close(self) -> None:
        """End; queued messages are dropped."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        around = self._around
        attempt = 0
        while True:
            self._hurry.clear()
            self._wants_redial = False
            began = around.clock.monotonic()
            reason = await self._live_once()
            if self.is_up and around.clock.monotonic() - began > around.limits.retry_seconds_max:
                attempt = 0
            self._end(reason)
            wait = retry_seconds(attempt, around.limits, around.rng)
            attempt += 1
            try:
                async with asyncio.timeout(wait):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._is_away = False

    def _end(self, reason: str) -> None:
        was_up, self.is_up = self.is_up, False
        if not self._wants_redial:
            self._is_away = True
            # What waits when a connection breaks is answers and news to a peer that may be no
            # more: its next life has asked for none of that.
            self.stats.dropped += self._outbox.clear() if was_up else self._outbox.clip()
        self._on_change(self, False)
        node_id = self._target.node_id
        if self._wants_redial:
            log.info("raft_peer_dialled_anew", peer_id=node_id, lane=self.lane.value)
        elif self._around.throttle.is_due((node_id, reason), self._around.clock.monotonic()):
            log.warning(
                "raft_peer_lost" if was_up else "raft_peer_unreachable",
                peer_id=node_id,
                address=self._target.address,
                lane=self.lane.value,
                reason=reason,
            )

    async def _live_once(self) -> str:
        """Dial and write until it ends; return why it did."""
        try:
            credentials = self._around.credentials()
        except (SwarmError, OSError) as error:
            return f"our own credentials cannot be had: {error}"
        channel = secure_channel(
            self._target.address,
            self._target.server_name,
            credentials,
            self._around.limits,
        )
        try:
            stub: raft_pb2_grpc.RaftAsyncStub = raft_pb2_grpc.RaftStub(channel)
            call = stub.Messages(None, metadata=self._target.metadata(self.lane))
            call.add_done_callback(lambda _call: self._filled.set())
            try:
                is_accepted = await wait_accepted(call, self._target, self._around.limits)
            except TimeoutError:
                return "it did not accept the connection in time"
            if is_accepted:
                self.is_up = True
                self.stats.connects += 1
                self._on_change(self, True)
                await self._write_all(call)
            outcome = await outcome_of(call, self._around.limits.connect_seconds_max)
            return outcome.refusal or "it closed the stream"
        finally:
            await channel.close(None)

    async def _write_all(self, call: Call) -> None:
        """Write frames until the call is done."""
        outbox, filled, stats = self._outbox, self._filled, self.stats
        filled.set()
        while True:
            await filled.wait()
            if call.done():
                return
            size = outbox.size
            messages = outbox.take()
            if not len(outbox) and not self._wants_redial:
                filled.clear()
            try:
                if messages:
                    stats.frames += 1
                    stats.messages += len(messages)
                    stats.bytes += size - outbox.size
                    await call.write(raft_pb2.Frame(messages=messages))
                elif self._wants_redial:
                    await self._finish(call)
                    return
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def _finish(self, call: Call) -> None:
        """Let the peer read to the end, so that nothing is lost and order holds."""
        await call.done_writing()
        await outcome_of(call, self._around.limits.connect_seconds_max)


def report_bug(task: asyncio.Task[None]) -> None:
    """Hand a bug to whoever watches over the loop: without its stream the member is half dead."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": f"{task.get_name()} failed", "exception": error, "task": task}
        )


async def wait_accepted(call: AnyCall, target: Target, limits: Limits) -> bool:
    """Wait until the peer accepted the call (True) or refused it (False: the call knows why).

    A refusal has initial metadata as well, so it is the node ID in them that counts. The peer's
    certificate has proven it already.

    Raises:
        TimeoutError: neither in time.
    """
    async with asyncio.timeout(limits.connect_seconds_max):
        for key, value in await call.initial_metadata():
            if key == ACCEPTED_BY_KEY:
                return bool(value == target.node_id)
    return False


async def outcome_of(call: AnyCall, timeout: float) -> raft_pb2.Outcome:
    """Wait for a call to end, `timeout` seconds at most, and say how; never an error of gRPC."""
    if call.cancelled():
        # We gave it up before. Awaiting it would look as if it were us who is cancelled.
        return raft_pb2.Outcome(refusal="it did not answer in time")
    try:
        async with asyncio.timeout(timeout):
            return await call
    except TimeoutError:
        return raft_pb2.Outcome(refusal="it did not answer in time")
    except aio.AioRpcError as error:
        details = error.details()
        if details == _WRITE_FAILED or not details:
            details = "the connection was lost"
        return raft_pb2.Outcome(refusal=details)


class Link:
    """Both lanes to one peer, and what is known about it."""

    def __init__(
        self, target: Target, around: Surroundings, on_unreachable: Callable[[NodeID], None]
    ) -> None:
        """Begin to dial."""
        self.target = target
        self.contact: float | None = None
        self._clock = around.clock
        self._on_unreachable = on_unreachable
        self._is_report_due = False
        self._streams = {lane: Stream(lane, target, around, self._changed) for lane in Lane}

    @property
    def is_up(self) -> bool:
        """Both lanes are accepted by the peer."""
        return all(stream.is_up for stream in self._streams.values())

    def stream(self, lane: Lane) -> Stream:
        """Return one lane."""
        return self._streams[lane]

    def send(self, lane: Lane, messages: Sequence[bytes]) -> None:
        """Queue messages; if any are lost, say soon that the peer is unreachable."""
        if not self._streams[lane].put(messages):
            self._report()

    def heard(self) -> None:
        """The peer sent something."""
        self.contact = self._clock.monotonic()

    def hurry(self) -> None:
        """Dial at once what waits to dial."""
        for stream in self._streams.values():
            stream.hurry()

    def redial(self) -> None:
        """Make both connections anew."""
        for stream in self._streams.values():
            stream.redial()

    async def close(self) -> None:
        """End both lanes."""
        await asyncio.gather(*(stream.close() for stream in self._streams.values()))

    def _changed(self, _stream: Stream, is_up: bool) -> None:  # noqa: FBT001 -- two callers, both here
        if is_up:
            self.heard()
        else:
            self._report()

    def _report(self) -> None:
        """Report after the caller's turn, once for all that happens in it."""
        if not self._is_report_due:
            self._is_report_due = True
            asyncio.get_running_loop().call_soon(self._report_now)

    def _report_now(self) -> None:
        self._is_report_due = False
        self._on_unreachable(self.target.node_id)

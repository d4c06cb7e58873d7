"""Keeps the leader told of what this manager wishes to read.

While there is any wish there is one stream to the leader, or, where this manager leads, its own
dispatcher. A leader that goes is followed by the next one, which is told everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Protocol

import structlog
from grpc import aio

from manager.nodeport.channel import ChannelLimits, open_channel
from manager.nodeport.errors import error_of, error_of_call
from manager.nodeport.leader import Search
from manager.nodeport.logs import wish_to_wire
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.nodeport.streams import is_admitted, until_first
from proto.errors import SwarmError, UnavailableError
from proto.ids import ClusterID
from proto.logs import LogRequest
from proto.v1 import logs_pb2 as pb
from proto.v1 import logs_pb2_grpc
from raft.transport.identity import CredentialsSource

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

ADMIT_SECONDS_MAX = 4.0
"""What a manager may take to let this one ask."""

IDLE_SECONDS = 5.0
"""How long the stream stays after the last wish: `service logs` is often asked again."""

RETRY_SECONDS = 0.2

Call = aio.StreamStreamCall[pb.LogAsk, pb.LogAnswer]
Answer = Callable[[str], None]


class Wishes(Protocol):
    """What the leader's dispatcher keeps; `ended` is set when it leads no more."""

    ended: asyncio.Event

    def add(self, request: LogRequest, answer: Answer) -> None:
        """Tell the task's node."""

    def remove(self, request_id: str) -> None:
        """Forget a wish."""


class Asker:
    """See the module; works while `run` does. Belongs to one event loop."""

    def __init__(
        self,
        cluster_id: ClusterID,
        credentials: CredentialsSource,
        remotes: Remotes,
        *,
        is_leader: Callable[[], bool],
        own_wishes: Callable[[], Awaitable[Wishes]],
        rng: random.Random,
        limits: ChannelLimits = ChannelLimits(),  # noqa: B008 -- frozen
    ) -> None:
        """Connect to nobody yet.

        Args:
            cluster_id: this node's.
            credentials: asked for each connection.
            remotes: the other managers.
            is_leader: whether this manager leads.
            own_wishes: returns the wishes that this manager keeps as leader.
            rng: draws managers.
            limits: of connections.
        """
        self._cluster_id = cluster_id
        self._credentials = credentials
        self._remotes = remotes
        self._is_leader = is_leader
        self._own_wishes = own_wishes
        self._rng = rng
        self._limits = limits
        self._wishes: dict[str, tuple[LogRequest, Answer]] = {}
        self._news: asyncio.Queue[LogRequest | str] = asyncio.Queue()
        self._has_wishes = asyncio.Event()

    def ask(self, request: LogRequest, answer: Answer) -> None:
        """Let the leader know of a wish until `forget`; `answer` is told what it says of it."""
        self._wishes[request.id] = (request, answer)
        self._news.put_nowait(request)
        self._has_wishes.set()

    def forget(self, request_id: str) -> None:
        """Let the leader forget it."""
        if self._wishes.pop(request_id, None) is not None:
            self._news.put_nowait(request_id)
        if not self._wishes:
            self._has_wishes.clear()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._has_wishes.wait()
            try:
                if self._is_leader():
                    await self._tell_myself()
                else:
                    await self._tell_leader()
            except SwarmError as error:
                if self._wishes:
                    log.info(
                        "log_requests_not_told", wishes=len(self._wishes), reason=error.message
                    )
                await asyncio.sleep(RETRY_SECONDS)

    def _answer(self, request_id: str, obstacle: str) -> None:
        wish = self._wishes.get(request_id)
        if wish is not None:
            wish[1](obstacle)

    def _start_over(self) -> list[LogRequest]:
        """Return all wishes; what changes from now on is news."""
        while not self._news.empty():
            self._news.get_nowait()
        return [request for request, _ in self._wishes.values()]

    async def _next(self) -> LogRequest | str | None:
        """Return what changed; None when nothing has been wished for for a while."""
        while True:
            try:
                async with asyncio.timeout(None if self._wishes else IDLE_SECONDS):
                    return await self._news.get()
            except TimeoutError:
                if not self._wishes:
                    return None

    async def _tell_myself(self) -> None:
        kept = await self._own_wishes()
        await until_first(kept.ended.wait(), self._keep_told(kept))

    async def _keep_told(self, kept: Wishes) -> None:
        told: set[str] = set()
        try:
            for wish in self._start_over():
                told.add(wish.id)
                kept.add(wish, partial(self._answer, wish.id))
            while (news := await self._next()) is not None:
                if isinstance(news, LogRequest):
                    told.add(news.id)
                    kept.add(news, partial(self._answer, news.id))
                else:
                    told.discard(news)
                    kept.remove(news)
        finally:
            for request_id in told:
                kept.remove(request_id)

    async def _tell_leader(self) -> None:
        search = Search(self._remotes, self._rng)
        reason = "this manager knows no other"
        while (peer := search.next()) is not None:
            try:
                async with self._asking(peer) as call:
                    self._remotes.observe(peer.address, is_good=True)
                    await self._converse(call)
                    return
            except UnavailableError as error:
                search.failed(peer, error)
                reason = f"{peer.address}: {error.message}"
        raise UnavailableError(f"no manager answered as leader ({reason})")

    @contextlib.asynccontextmanager
    async def _asking(self, peer: ManagerPeer) -> AsyncGenerator[Call]:
        """Open a stream with a manager that leads.

        Raises:
            SwarmError: it does not let this one ask.
        """
        channel = open_channel(peer, self._cluster_id, self._credentials(), self._limits)
        try:
            stub: logs_pb2_grpc.LogsAsyncStub = logs_pb2_grpc.LogsStub(channel)
            call = stub.Ask(None)
            try:
                async with asyncio.timeout(ADMIT_SECONDS_MAX):
                    admitted = await call.initial_metadata()
            except TimeoutError as error:
                raise UnavailableError("it did not answer in time") from error
            if not is_admitted(admitted):
                raise await _reason(call)
            yield call
        except aio.AioRpcError as error:
            raise error_of_call(error) from error
        finally:
            await channel.close(None)

    async def _converse(self, call: Call) -> None:
        reading = asyncio.create_task(self._read(call))
        writing = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            # The reader knows why the call ended.
            (reading if reading.done() else writing).result()
        finally:
            writing.cancel()
            reading.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, call: Call) -> None:
        while isinstance(message := await call.read(), pb.LogAnswer):
            self._answer(message.id, message.obstacle)
        raise await _reason(call)

    async def _write(self, call: Call) -> None:
        try:
            for wish in self._start_over():
                await call.write(pb.LogAsk(wish=wish_to_wire(wish)))
            while (news := await self._next()) is not None:
                if isinstance(news, LogRequest):
                    await call.write(pb.LogAsk(wish=wish_to_wire(news)))
                else:
                    await call.write(pb.LogAsk(over=news))
        except asyncio.InvalidStateError:
            raise await _reason(call) from None


async def _reason(call: Call) -> SwarmError:
    """Return why a call ended."""
    return error_of(await call.code(), await call.details(), await call.trailing_metadata())

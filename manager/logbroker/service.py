"""The gRPC service: managers ask the leader, nodes send lines to whoever wished for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from grpc import aio
from typing_extensions import override

from manager.logbroker.asker import Wishes
from manager.logbroker.collector import Collector, Wish
from manager.nodeport.errors import abort
from manager.nodeport.logs import WISH_KEY, lines_of, wish_of
from manager.nodeport.peer import identity_of
from manager.nodeport.streams import admit, until_first
from proto.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    NotLeaderError,
    SwarmError,
    UnavailableError,
)
from proto.v1 import logs_pb2 as pb
from proto.v1 import logs_pb2_grpc

Context = aio.ServicerContext[Any, Any]


class LogsService(logs_pb2_grpc.LogsServicer):
    """See the module."""

    def __init__(
        self,
        collector: Collector,
        wishes: Callable[[], Awaitable[Wishes]],
        leader: Callable[[], str],
    ) -> None:
        """Serve a manager.

        Args:
            collector: has what its clients wish for.
            wishes: returns what managers wish for; raises `NotLeaderError` where it does not lead.
            leader: returns the leader's node-port address, "" if it is not known.
        """
        self._collector = collector
        self._wishes = wishes
        self._leader = leader

    @override
    async def Ask(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # grpc.aio takes a coroutine, too
        """Keep one manager's wishes for as long as it is there and this one leads."""
        try:
            wishes = await self._wishes()
            await admit(context)
            conversation = _Conversation(wishes, context, identity_of(context).node_id)
            await until_first(conversation.read(), conversation.write(), wishes.ended.wait())
            if wishes.ended.is_set():
                raise UnavailableError("this manager does not lead any more")
        except NotLeaderError as error:
            await abort(context, NotLeaderError(self._leader() or error.leader_address))
        except SwarmError as error:
            await abort(context, error)

    @override
    async def Publish(self, request_iterator: object, context: Context) -> pb.LogPublished:
        """Take the lines of one task from its node."""
        try:
            wish = self._collector.begin(_wish_id(context), identity_of(context).node_id)
            await admit(context)
            try:
                await until_first(_take(wish, context), wish.over.wait())
            finally:
                wish.over.set()
            if not wish.is_complete:
                raise NotFoundError("log request", wish.request.id)
        except SwarmError as error:
            await abort(context, error)
        return pb.LogPublished()


class _Conversation:
    """What one manager wishes, and is answered."""

    def __init__(self, wishes: Wishes, context: Context, manager_id: str) -> None:
        self._wishes = wishes
        self._context = context
        self._manager_id = manager_id
        self._answers: asyncio.Queue[pb.LogAnswer] = asyncio.Queue()

    async def read(self) -> None:
        told: set[str] = set()
        try:
            while isinstance(message := await self._context.read(), pb.LogAsk):
                if message.WhichOneof("kind") == "over":
                    told.discard(message.over)
                    self._wishes.remove(message.over)
                    continue
                wish = wish_of(message.wish)
                if wish.manager_id != self._manager_id:
                    raise DeniedError("a manager may wish for lines for itself only")
                told.add(wish.id)
                self._wishes.add(wish, partial(self._answer, wish.id))
        finally:
            for request_id in told:
                self._wishes.remove(request_id)

    def _answer(self, request_id: str, obstacle: str) -> None:
        self._answers.put_nowait(pb.LogAnswer(id=request_id, obstacle=obstacle))

    async def write(self) -> None:
        while True:
            await self._context.write(await self._answers.get())


async def _take(wish: Wish, context: Context) -> None:
    """Pass on the lines of a stream until its last message; one that breaks leaves the wish so."""
    while isinstance(message := await context.read(), pb.LogLines):
        records = lines_of(message)
        if records:
            await wish.put(records)
        if message.is_last:
            await wish.put(None)
            return


def _wish_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == WISH_KEY and isinstance(value, str):
            return value
    raise InvalidError("a stream of lines names the wish that it fulfils")

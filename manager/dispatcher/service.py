"""The dispatcher's gRPC service: one stream for each node's session.

Two coroutines serve a session. One reads: nearly always a heartbeat, which costs one look into a
dict. The other sleeps until the node is to be told something. Whichever ends first ends the
session, with its reason for the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from grpc import aio
from typing_extensions import override

from manager.dispatcher import wire
from manager.dispatcher.core import DispatcherCore
from manager.dispatcher.session import OpenSession
from manager.nodeport.claims import session_address
from manager.nodeport.errors import abort
from manager.nodeport.peer import address_of, identity_of
from manager.nodeport.streams import admit, until_first
from proto.errors import (
    InvalidError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from proto.objects import NodeDescription
from proto.v1 import dispatcher_pb2 as pb
from proto.v1 import dispatcher_pb2_grpc

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

HELLO_SECONDS_MAX = 5.0
"""What an agent that was let in may take to say hello."""

REPORTS_MAX = 4
"""Reports of one session that are being stored; more are not read until one is."""

Context = aio.ServicerContext[Any, Any]


class DispatcherService(dispatcher_pb2_grpc.DispatcherServicer):
    """Carries sessions between agents and the core."""

    def __init__(self, core: DispatcherCore, leader: Callable[[], str]) -> None:
        """Serve a core.

        Args:
            core: this manager's.
            leader: returns the leader's node-port address, "" if it is not known.
        """
        self._core = core
        self._leader = leader

    @override
    async def Session(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # grpc.aio takes a coroutine, too
        """Serve one session to its end."""
        try:
            session = await self._open(context)
            try:
                await self._serve(session, context)
            finally:
                self._core.end(session, is_goodbye=session.said_goodbye)
        except NotLeaderError as error:
            await abort(context, NotLeaderError(self._leader() or error.leader_address))
        except DecodeError as error:
            await abort(context, InvalidError(f"a message of the session is none: {error}"))
        except SwarmError as error:
            await abort(context, error)

    async def _open(self, context: Context) -> OpenSession:
        identity = identity_of(context)
        await admit(context)
        try:
            async with asyncio.timeout(HELLO_SECONDS_MAX):
                first = await context.read()
        except TimeoutError as error:
            raise UnavailableError("the agent did not say hello in time") from error
        if not isinstance(first, pb.FromAgent) or first.WhichOneof("kind") != "hello":
            raise InvalidError("a session begins with a hello")
        return await self._core.register(
            identity.node_id,
            wire.description_of(first.hello.description),
            address=session_address(first.hello.address, address_of(context)),
            certificate_role=identity.role,
            certificate_until=identity.valid_until,
            instance=first.hello.instance,
        )

    async def _serve(self, session: OpenSession, context: Context) -> None:
        writing = asyncio.Lock()
        await until_first(
            _write_all(session, context, writing),
            _Reader(self._core, session, context, writing).run(),
        )


async def _write_all(session: OpenSession, context: Context, writing: asyncio.Lock) -> None:
    while True:
        message = wire.to_agent(await session.next())
        async with writing:
            await context.write(message)


class _Reader:
    """Reads what an agent says."""

    def __init__(
        self,
        core: DispatcherCore,
        session: OpenSession,
        context: Context,
        writing: asyncio.Lock,
    ) -> None:
        self._core = core
        self._session = session
        self._context = context
        self._writing = writing
        self._reports = asyncio.Semaphore(REPORTS_MAX)
        self._storing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Read until the agent says goodbye, or the stream ends: a reset looks like an end."""
        read, heartbeat, session = self._context.read, self._core.heartbeat, self._session
        try:
            while isinstance(message := await read(), pb.FromAgent):
                if message.HasField("heartbeat"):
                    heartbeat(session)
                elif message.HasField("goodbye"):
                    session.said_goodbye = True
                    return
                else:
                    await self._take(message)
        finally:
            for task in self._storing:
                task.cancel()
            await asyncio.gather(*self._storing, return_exceptions=True)

    async def _take(self, message: pb.FromAgent) -> None:
        match message.WhichOneof("kind"):
            case "statuses":
                await self._reports.acquire()
                task = asyncio.create_task(self._store(message.statuses))
                self._storing.add(task)
                task.add_done_callback(self._stored)
            case "node":
                await self._describe(wire.description_of(message.node.description))
            case _:
                raise InvalidError("a session has one hello, and nothing that is not known")

    async def _describe(self, description: NodeDescription) -> None:
        try:
            await self._core.describe(self._session, description)
        except ResourceExhaustedError as error:
            # The node works all the same; it tells again when it registers the next time.
            log.warning(
                "description_not_stored", node_id=self._session.node_id, error=error.message
            )

    async def _store(self, report: pb.StatusReport) -> None:
        """Store a report and say so; unanswered, the agent sends it again."""
        try:
            await self._core.update_statuses(self._session, wire.updates_of(report.updates))
        except ResourceExhaustedError as error:
            log.warning("statuses_not_stored", node_id=self._session.node_id, error=error.message)
            return
        async with self._writing:
            await self._context.write(wire.ack(report.number))

    def _stored(self, task: asyncio.Task[None]) -> None:
        self._storing.discard(task)
        self._reports.release()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, SwarmError):
            self._session.close(error)
        elif error is not None and not isinstance(error, asyncio.InvalidStateError):
            task.get_loop().call_exception_handler(
                {"message": "storing a report failed", "exception": error, "task": task}
            )
            self._session.close(UnavailableError("the dispatcher failed; register again"))

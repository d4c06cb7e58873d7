"""The agent's side of a session over gRPC.

It looks for the leader among the managers that it knows, follows the one that is named, gives a
sign of life as often as the manager asked for, and tells when something about the node changed. A
manager that is dead is noticed within two seconds: by the connection's own signs of life, and by
data that nobody acknowledges. Waiting between attempts is the agent's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

import structlog
from grpc import aio

from manager.dispatcher import wire
from manager.dispatcher.assignments import Chain
from manager.dispatcher.describing import keep_described
from manager.dispatcher.session import Session
from manager.nodeport.channel import ChannelLimits, open_channel
from manager.nodeport.errors import error_of, error_of_call
from manager.nodeport.leader import Search
from manager.nodeport.logs import wish_of
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.nodeport.streams import is_admitted
from proto.assignments import AssignmentMessage, StatusUpdate
from proto.clock import Clock
from proto.errors import DuplicateNodeError, SwarmError, UnavailableError
from proto.ids import ClusterID, NodeID, new_id
from proto.logs import LogRequest
from proto.objects import Node, NodeDescription
from proto.v1 import dispatcher_pb2 as pb
from proto.v1 import dispatcher_pb2_grpc
from raft.transport.identity import CredentialsSource

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

REGISTER_SECONDS = 4.0
"""What one manager may take to let the node in."""

REGISTER_SECONDS_MAX = 16.0
"""The same after time-outs, each of which doubles it: whoever gives up and comes again only makes
the line at a busy manager longer."""

ACK_SECONDS_MAX = 5.0
MESSAGES_MAX = 64

Call = aio.StreamStreamCall[pb.FromAgent, pb.ToAgent]


class DispatcherClient:
    """Implements `worker.api.Dispatcher` for one node."""

    def __init__(
        self,
        node_id: NodeID,
        cluster_id: ClusterID,
        credentials: CredentialsSource,
        remotes: Remotes,
        *,
        clock: Clock,
        rng: random.Random,
        on_session: Callable[[Session], None],
        on_wish: Callable[[LogRequest], None] = lambda _wish: None,
        describe: Callable[[], NodeDescription],
        address: str = "",
        limits: ChannelLimits = ChannelLimits(),  # noqa: B008 -- frozen
    ) -> None:
        """Connect to nobody yet.

        Args:
            node_id: this node's.
            cluster_id: its cluster's.
            credentials: asked for each session.
            remotes: the managers that are known; kept up to date by what sessions tell.
            clock: for durations.
            rng: draws managers.
            on_session: told of each `Session`: the first, and whatever changes in it.
            on_wish: told of each wish for the output of one of this node's tasks; quick.
            describe: returns what the node says of itself now; asked every few seconds.
            address: where others reach the node; "" lets the manager see.
            limits: of the connection.
        """
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._credentials = credentials
        self._remotes = remotes
        self._clock = clock
        self._rng = rng
        self._on_session = on_session
        self._on_wish = on_wish
        self._describe = describe
        self._address = address
        self._limits = limits
        self._session: _ClientSession | None = None
        self._instance = new_id(rng)
        self._is_closed = False
        self._spread_seconds = 0.0
        self._register_seconds = REGISTER_SECONDS

    async def close(self, *, is_goodbye: bool = False) -> None:
        """End for good; with a goodbye the managers take the node for down at once."""
        self._is_closed = True
        await self._end_session(is_goodbye=is_goodbye)

    async def _end_session(self, *, is_goodbye: bool = False) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close(is_goodbye=is_goodbye)

    def interrupt(self, reason: str) -> None:
        """Let the session end, so that the agent opens another: elsewhere, or with a new name."""
        if self._session is not None:
            self._session.fail(UnavailableError(reason))

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session with the leader; see `worker.api.Dispatcher`.

        Raises:
            DuplicateNodeError: another program is this node.
            UnavailableError: no manager lets the node in now.
            DeniedError: the node may not.
        """
        assert node_id == self._node_id
        if self._is_closed:
            raise UnavailableError("this node is leaving its cluster, or stopping")
        await self._end_session()
        await asyncio.sleep(self._rng.uniform(0, self._spread_seconds))
        search = Search(self._remotes, self._rng)
        reason = "this node knows no manager"
        while (peer := search.next()) is not None:
            session = self._new_session(peer)
            try:
                told = await session.open(
                    description, self._address, timeout=self._register_seconds
                )
            except TimeoutError:
                seconds = self._register_seconds
                self._register_seconds = min(seconds * 2, REGISTER_SECONDS_MAX)
                search.failed(peer, UnavailableError("it did not answer in time"))
                reason = f"{peer.address} did not answer within {seconds:g} s"
                continue
            except DuplicateNodeError:
                raise
            except UnavailableError as error:
                search.failed(peer, error)
                reason = f"{peer.address}: {error.message}"
                continue
            self._remotes.observe(peer.address, is_good=True)
            self._session = session
            self._register_seconds = REGISTER_SECONDS
            self._take(told)
            session.start(description)
            log.info("dispatcher_found", address=peer.address, session_id=told.session_id)
            return told.node
        raise UnavailableError(f"no manager lets this node in ({reason})")

    def _new_session(self, peer: ManagerPeer) -> _ClientSession:
        channel = open_channel(peer, self._cluster_id, self._credentials(), self._limits)
        return _ClientSession(
            channel,
            describe=self._describe,
            on_session=self._take,
            on_wish=self._on_wish,
            instance=self._instance,
        )

    def _take(self, told: Session) -> None:
        self._remotes.replace(told.managers)
        self._spread_seconds = told.spread_seconds
        self._on_session(told)

    async def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield what this node shall run, as long as the session lives.

        Raises:
            SwarmError: why it ended.
        """
        assert node_id == self._node_id
        session = self._session
        if session is None:
            raise UnavailableError("there is no session with a manager")
        try:
            while True:
                yield await session.next()
        finally:
            await session.close()
            if self._session is session:
                self._session = None

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Report statuses; durable on return.

        Raises:
            UnavailableError: the session ended, or no answer came; it may be stored all the same.
        """
        assert node_id == self._node_id
        if self._session is None:
            raise UnavailableError("there is no session with a manager")
        await self._session.report(updates)


class _ClientSession:
    """One stream on a channel of its own."""

    def __init__(
        self,
        channel: aio.Channel,
        *,
        describe: Callable[[], NodeDescription],
        on_session: Callable[[Session], None],
        on_wish: Callable[[LogRequest], None],
        instance: str,
    ) -> None:
        self._instance = instance
        self._channel = channel
        self._describe = describe
        self._on_session = on_session
        self._on_wish = on_wish
        self._call: Call | None = None
        self._chain = Chain()
        self._messages: asyncio.Queue[AssignmentMessage] = asyncio.Queue(MESSAGES_MAX)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._heartbeat_seconds = 1.0
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, description: NodeDescription, address: str, *, timeout: float) -> Session:
        """Say hello and wait for the answer; closes itself when there is none.

        Raises:
            TimeoutError: none came in time.
            SwarmError: it was a refusal.
        """
        try:
            stub: dispatcher_pb2_grpc.DispatcherAsyncStub = dispatcher_pb2_grpc.DispatcherStub(
                self._channel
            )
            self._call = stub.Session(None)
            async with asyncio.timeout(timeout):
                told = await self._say_hello(
                    self._call, wire.hello(description, address, self._instance)
                )
        except aio.AioRpcError as error:
            await self.close()
            raise error_of_call(error) from error
        except BaseException:
            await self.close()
            raise
        self._heartbeat_seconds = told.heartbeat_seconds
        return told

    async def _say_hello(self, call: Call, hello: pb.FromAgent) -> Session:
        if is_admitted(await call.initial_metadata()):
            await call.write(hello)
        first = await call.read()
        if not isinstance(first, pb.ToAgent):
            raise await self._reason()
        return wire.session_of(first.session)

    def start(self, description: NodeDescription) -> None:
        """Begin to read, and to give signs of life."""
        works: tuple[Callable[[], Coroutine[None, None, None]], ...] = (
            self._read_all,
            self._beat,
            lambda: self._describe_again(description),
        )
        for work in works:
            task = asyncio.create_task(self._watched(work))
            self._tasks.append(task)

    async def next(self) -> AssignmentMessage:
        """Return the next message; those that came before the end come first."""
        if self._messages.empty():
            getter = asyncio.create_task(self._messages.get())
            try:
                await asyncio.wait((getter, self._ended), return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    return getter.result()
            finally:
                getter.cancel()
            self._ended.result()
        return self._messages.get_nowait()

    async def report(self, updates: Sequence[StatusUpdate]) -> None:
        """Send statuses and wait until they are stored."""
        self._number += 1
        number = self._number
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks[number] = stored
        try:
            await self._write(wire.status_report(number, updates))
            async with asyncio.timeout(ACK_SECONDS_MAX):
                await asyncio.wait((stored, self._ended), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            raise UnavailableError("the manager did not confirm the statuses in time") from error
        finally:
            del self._acks[number]
        if not stored.done():
            raise UnavailableError("the session ended before the statuses were confirmed")

    def fail(self, error: SwarmError) -> None:
        """End the session for a reason."""
        if not self._ended.done():
            self._ended.set_exception(error)
            self._ended.exception()  # it is seen even if nobody asks

    async def close(self, *, is_goodbye: bool = False) -> None:
        """End it and the channel."""
        if is_goodbye and self._call is not None and not self._call.done():
            # First: to give up a read cancels the call.
            await self._say_goodbye(self._call)
        self.fail(UnavailableError("the session was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._call is not None:
            self._call.cancel()
        await self._channel.close(None)

    async def _say_goodbye(self, call: Call) -> None:
        try:
            async with asyncio.timeout(1.0):
                async with self._writing:
                    await call.write(pb.FromAgent(goodbye=pb.Goodbye()))
                    await call.done_writing()
                await call.code()
        except (TimeoutError, aio.AioRpcError, asyncio.InvalidStateError):
            log.info("goodbye_not_heard")

    async def _watched(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except SwarmError as error:
            self.fail(error)
        except Exception as bug:  # noqa: BLE001 -- it goes to whoever watches over the loop
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a session's client failed", "exception": bug}
            )
            self.fail(UnavailableError("the session's client failed"))

    async def _read_all(self) -> None:
        assert self._call is not None
        while True:
            try:
                message = await self._call.read()
            except aio.AioRpcError as error:
                raise error_of_call(error) from error
            if not isinstance(message, pb.ToAgent):
                raise await self._reason()
            await self._take(message)

    async def _take(self, message: pb.ToAgent) -> None:
        match message.WhichOneof("kind"):
            case "ack":
                stored = self._acks.get(message.ack.number)
                if stored is not None and not stored.done():
                    stored.set_result(None)
            case "assignments":
                numbered = wire.assignments_of(message.assignments)
                if not self._chain.accept(
                    is_complete=numbered.is_complete,
                    applies_to=numbered.applies_to,
                    results_in=numbered.results_in,
                ):
                    raise UnavailableError("a message of the session is missing; it begins anew")
                await self._messages.put(numbered.content)
            case "session":
                told = wire.session_of(message.session)
                self._heartbeat_seconds = told.heartbeat_seconds
                self._on_session(told)
            case "log_request":
                self._on_wish(wish_of(message.log_request))
            case _:
                log.warning("session_message_unknown")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._write(wire.HEARTBEAT)

    async def _describe_again(self, description: NodeDescription) -> None:
        await keep_described(
            description, self._describe, lambda newer: self._write(wire.node_report(newer))
        )

    async def _write(self, message: pb.FromAgent) -> None:
        assert self._call is not None
        try:
            async with self._writing:
                await self._call.write(message)
        except aio.AioRpcError as error:
            # The reader knows the reason better, if there is one.
            raise error_of_call(error) from error
        except asyncio.InvalidStateError:
            raise await self._reason() from None

    async def _reason(self) -> SwarmError:
        """Return why the call ended."""
        assert self._call is not None
        return error_of(
            await self._call.code(),
            await self._call.details(),
            await self._call.trailing_metadata(),
        )

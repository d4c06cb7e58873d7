"""Sends the output of this node's tasks to the managers that wish for it.

One stream for each wish, over one connection for each manager. A stream that cannot be opened or
breaks is given up: the manager wishes again if it still wants the lines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import structlog
from grpc import aio

from manager.nodeport.channel import ChannelLimits, open_channel
from manager.nodeport.errors import error_of_call
from manager.nodeport.logs import WISH_KEY, lines_to_wire
from manager.nodeport.remotes import ManagerPeer
from manager.nodeport.streams import is_admitted
from proto.errors import NotFoundError, SwarmError
from proto.ids import ClusterID, TaskID
from proto.logs import LogOptions, LogRecord, LogRequest
from proto.v1 import logs_pb2, logs_pb2_grpc
from raft.transport.identity import CredentialsSource

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

STREAMS_MAX = 2_000
MESSAGE_BYTES = 64 * 1024
LINES_AHEAD_MAX = 1_024

Call = aio.StreamUnaryCall[logs_pb2.LogLines, logs_pb2.LogPublished]
Read = Callable[[TaskID, LogOptions], AsyncGenerator[LogRecord]]


class LogPublisher:
    """See the module. Belongs to one event loop."""

    def __init__(
        self,
        cluster_id: ClusterID,
        credentials: CredentialsSource,
        read: Read,
        limits: ChannelLimits = ChannelLimits(),  # noqa: B008 -- frozen
    ) -> None:
        """Connect to nobody yet.

        Args:
            cluster_id: this node's.
            credentials: asked for each connection.
            read: yields the output of one of this node's tasks.
            limits: of connections.
        """
        self._cluster_id = cluster_id
        self._credentials = credentials
        self._read = read
        self._limits = limits
        self._running: dict[str, asyncio.Task[None]] = {}
        self._channels: dict[ManagerPeer, tuple[aio.Channel, int]] = {}

    def take(self, request: LogRequest) -> None:
        """Begin to fulfil a wish, if that is not under way."""
        if request.id in self._running:
            return
        if len(self._running) >= STREAMS_MAX:
            log.warning(
                "log_request_refused",
                task_id=request.task_id,
                error=f"{STREAMS_MAX} outputs are being sent already",
            )
            return
        task = asyncio.create_task(self._fulfil(request))
        self._running[request.id] = task
        task.add_done_callback(lambda done: self._done(request.id, done))

    def _done(self, request_id: str, task: asyncio.Task[None]) -> None:
        del self._running[request_id]
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("log_stream_crashed", exc_info=bug)

    async def close(self) -> None:
        """Give up all streams."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fulfil(self, request: LogRequest) -> None:
        try:
            async with self._channel(ManagerPeer(request.manager_id, request.address)) as channel:
                await self._publish(channel, request)
        except NotFoundError:
            return  # whoever wished for it has gone
        except SwarmError as error:
            log.info("logs_not_sent", task_id=request.task_id, reason=error.message)

    @contextlib.asynccontextmanager
    async def _channel(self, peer: ManagerPeer) -> AsyncGenerator[aio.Channel]:
        """Lend the connection to a manager; the last one who has it closes it."""
        channel, users = self._channels.get(peer, (None, 0))
        if channel is None:
            channel = open_channel(peer, self._cluster_id, self._credentials(), self._limits)
        self._channels[peer] = (channel, users + 1)
        try:
            yield channel
        finally:
            channel, users = self._channels[peer]
            if users > 1:
                self._channels[peer] = (channel, users - 1)
            else:
                del self._channels[peer]
                await channel.close(None)

    async def _publish(self, channel: aio.Channel, request: LogRequest) -> None:
        stub: logs_pb2_grpc.LogsAsyncStub = logs_pb2_grpc.LogsStub(channel)
        call = stub.Publish(None, metadata=((WISH_KEY, request.id),))
        sender = asyncio.create_task(self._send(call, request))
        answer = asyncio.ensure_future(_answer(call))
        try:
            # The answer comes early when nobody wants the lines any more.
            await asyncio.wait((sender, answer), return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and sender.exception() is None:
                await asyncio.wait((answer,))
            (answer if answer.done() else sender).result()
        except aio.AioRpcError as error:
            raise error_of_call(error) from error
        finally:
            sender.cancel()
            answer.cancel()
            call.cancel()
            await asyncio.gather(sender, answer, return_exceptions=True)

    async def _send(self, call: Call, wish: LogRequest) -> None:
        try:
            if not is_admitted(await call.initial_metadata()):
                return
            async with contextlib.aclosing(
                _batches(self._read(wish.task_id, wish.options))
            ) as batches:
                async for records in batches:
                    await call.write(lines_to_wire(records))
            await call.write(lines_to_wire((), is_last=True))
            await call.done_writing()
        except asyncio.InvalidStateError:
            return  # the call has ended, and knows why


async def _batches(lines: AsyncGenerator[LogRecord]) -> AsyncGenerator[list[LogRecord]]:
    """Gather what there is without waiting for more."""
    queue: asyncio.Queue[LogRecord | BaseException | None] = asyncio.Queue(LINES_AHEAD_MAX)

    async def read() -> None:
        end: BaseException | None = None
        try:
            async with contextlib.aclosing(lines):
                async for record in lines:
                    await queue.put(record)
        except Exception as error:  # noqa: BLE001 -- raised below
            end = error
        await queue.put(end)

    reader = asyncio.create_task(read())
    try:
        while True:
            item = await queue.get()
            batch: list[LogRecord] = []
            size = 0
            while isinstance(item, LogRecord):
                batch.append(item)
                size += len(item.data)
                if size >= MESSAGE_BYTES or queue.empty():
                    break
                item = queue.get_nowait()
            if batch:
                yield batch
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _answer(call: Call) -> None:
    await call

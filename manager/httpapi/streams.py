"""Responses that take long: sent piece by piece, ended with the client or with the server.

A client that goes away cancels its handler (aiohttp does, when asked to), which closes the
iterator behind the response and so ends the work. When the server stops, streams are ended in
order: the client sees a complete response, not a broken one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
import structlog
from aiohttp import web

from manager.httpapi.frames import error_line, progress_line
from proto.errors import SwarmError
from worker.images.api import Progress

S = TypeVar("S")
T = TypeVar("T")

# Beyond these a producer waits (records) or its oldest steps are dropped (progress).
RECORDS_QUEUED_MAX = 256
PROGRESS_QUEUED_MAX = 256
# How long a stream may keep the loop from everybody else.
TURN_SECONDS_MAX = 0.01
# So much is sent at once where it is there.
WRITE_BYTES_MIN = 1 << 15

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Streams:
    """The streams being sent by one server."""

    def __init__(self) -> None:
        """Start with none."""
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_closing = False

    @property
    def count(self) -> int:
        """How many streams are being sent."""
        return len(self._tasks)

    async def send(
        self, request: web.Request, response: web.StreamResponse, chunks: AsyncGenerator[bytes]
    ) -> web.StreamResponse:
        """Send all chunks; closes the generator whatever happens."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._is_closing:
                return response
            await response.prepare(request)
            await _write_all(response, chunks)
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
            task.uncancel()
        except ConnectionResetError:
            # The client went away between two chunks: nobody is left to tell.
            log.debug("stream_abandoned", path=request.path)
        finally:
            self._tasks.discard(task)
            await chunks.aclose()
        return response

    def close(self) -> None:
        """End all streams."""
        self._is_closing = True
        for task in tuple(self._tasks):
            task.cancel()


class _Gatherer:
    """Gathers chunks that come without a pause into one write, of a line of a log each.

    A chunk is sent when enough are there, or when the loop has nothing better to do: the source
    waits for more then.
    """

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._lock = asyncio.Lock()
        self._has_pending = asyncio.Event()

    async def add(self, chunk: bytes) -> None:
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes >= WRITE_BYTES_MIN:
            await self.flush()
        else:
            self._has_pending.set()

    async def flush(self) -> None:
        # One write at a time: the next one has to wait for the client as well.
        async with self._lock:
            data = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            if data:
                await self._response.write(data)

    async def flush_when_idle(self) -> None:
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            await self.flush()


async def _write_all(response: web.StreamResponse, chunks: AsyncIterator[bytes]) -> None:
    loop = asyncio.get_running_loop()
    gatherer = _Gatherer(response)
    flushing = asyncio.create_task(gatherer.flush_when_idle())
    turn_end = loop.time() + TURN_SECONDS_MAX
    try:
        async for chunk in chunks:
            await gatherer.add(chunk)
            if flushing.done():
                flushing.result()  # the client went away
            # A source that has everything ready, for a client that reads fast, waits for nothing.
            if loop.time() >= turn_end:
                await asyncio.sleep(0)
                turn_end = loop.time() + TURN_SECONDS_MAX
        await gatherer.flush()
    finally:
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)


def _nothing(_: object) -> bytes:
    return b""


async def with_progress(
    operation: Callable[[Callable[[Progress], None]], Awaitable[T]],
    *,
    finish: Callable[[T], bytes] = _nothing,
    held_count: int = 0,
) -> AsyncGenerator[bytes]:
    """Run an operation and yield its progress, then how it ended.

    An operation that fails before anything was yielded raises, so that the response can still have
    a status; later, the failure is the last line. Closing the generator cancels the operation.

    Args:
        operation: given a function that takes each step, from the event loop's thread or others.
        finish: writes the result.
        held_count: so many first steps are kept back until another one comes.
    """
    steps: asyncio.Queue[Progress | None] = asyncio.Queue(PROGRESS_QUEUED_MAX)
    loop = asyncio.get_running_loop()

    def put(step: Progress | None) -> None:
        if steps.full():
            steps.get_nowait()  # what a client sees of progress may have gaps
        steps.put_nowait(step)

    def show(step: Progress) -> None:
        loop.call_soon_threadsafe(put, step)

    async def run() -> T:
        return await operation(show)

    task = loop.create_task(run())
    # Two hops: steps shown just before the end are still on their way through the loop.
    task.add_done_callback(lambda _: loop.call_soon(put, None))
    held: list[bytes] = []
    has_begun = False
    try:
        while (step := await steps.get()) is not None:
            held.append(progress_line(step))
            if has_begun or len(held) > held_count:
                has_begun = True
                yield b"".join(held)
                held.clear()
        try:
            last = finish(task.result())
        except SwarmError as error:
            if not has_begun:
                raise
            last = error_line(error.message)
        yield b"".join([*held, last])
    finally:
        task.cancel()
        await asyncio.wait([task])


class _End(msgspec.Struct, frozen=True):
    """A source has ended, well or not."""

    error: Exception | None = None


class _Merge(Generic[T]):
    """The sources of one merged iterator: a task for each, and one queue."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[T] | _End] = asyncio.Queue(RECORDS_QUEUED_MAX)
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, source: AsyncIterator[T]) -> None:
        self._tasks.append(asyncio.create_task(self._pump(source, self._take)))

    def add_all(self, sources: AsyncIterator[AsyncIterator[T]]) -> None:
        self._tasks.append(asyncio.create_task(self._pump(sources, self._take_source)))

    async def items(self) -> AsyncGenerator[T]:
        ended_count = 0
        while ended_count < len(self._tasks):
            got = await self._queue.get()
            if not isinstance(got, _End):
                yield got[0]
                continue
            if got.error is not None:
                raise got.error
            ended_count += 1

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, source: AsyncIterator[S], take: Callable[[S], Awaitable[None]]) -> None:
        error: Exception | None = None
        try:
            async for item in source:
                await take(item)
        except Exception as raised:  # noqa: BLE001 -- raised again by whoever iterates
            error = raised
        finally:
            await closed(source)
        await self._queue.put(_End(error))

    async def _take(self, item: T) -> None:
        await self._queue.put((item,))

    async def _take_source(self, source: AsyncIterator[T]) -> None:
        self.add(source)


async def merged(
    first: AsyncIterator[T], more: AsyncIterator[AsyncIterator[T]]
) -> AsyncGenerator[T]:
    """Yield what several iterators yield as it comes; `more` brings further ones over time.

    Ends when `more` and all iterators have ended; the first error ends it. Closing it closes all.
    """
    merge: _Merge[T] = _Merge()
    merge.add(first)
    merge.add_all(more)
    try:
        async for item in merge.items():
            yield item
    finally:
        await merge.close()


async def closed(source: object) -> None:
    """Close an async generator; other iterators have nothing to close."""
    if isinstance(source, AsyncGenerator):
        await source.aclose()

"""Blocking work in threads, that ends when its caller is cancelled.

A thread cannot be cancelled, so it is told: each piece of work gets a `threading.Event`, looks at
it between chunks (`Watched` does so at every read) and raises `StoppedError`. The caller waits for
that before it goes on, because only then may the files that the thread writes be removed.
Errors of the operating system become sentences here, in one place.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from proto.errors import ResourceExhaustedError, RuntimeFailedError, SwarmError, reason_of
from worker.diskspace import FULL_ERRNOS

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
_POLL_SECONDS = 0.1


class StoppedError(Exception):
    """The caller was cancelled; never seen outside this package."""


class Reader(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or none at the end."""


class Watched:
    """A reader that stops when told, and reports how far it is."""

    def __init__(
        self,
        source: Reader,
        stop: threading.Event,
        report: Callable[[int], None] | None = None,
    ) -> None:
        """Read from `source`; `report` gets the number of bytes read so far."""
        self._source = source
        self._stop = stop
        self._report = report
        self._count = 0

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or none at the end."""
        if self._stop.is_set():
            raise StoppedError
        data = self._source.read(size)
        self._count += len(data)
        if self._report is not None:
            self._report(self._count)
        return data


class StreamReader:
    """Lets a thread read an asynchronous stream of the event loop."""

    def __init__(
        self,
        stream: AsyncIterator[bytes],
        loop: asyncio.AbstractEventLoop,
        stop: threading.Event,
    ) -> None:
        """Read `stream`, which lives on `loop`."""
        self._stream = stream
        self._loop = loop
        self._stop = stop
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or none at the end."""
        if not self._rest:
            self._rest = memoryview(self._fetch())
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return data

    def _fetch(self) -> bytes:
        future = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
        while True:
            try:
                return future.result(timeout=_POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    # The stream's own time-out, not ours.
                    raise
                if self._stop.is_set():
                    future.cancel()
                    raise StoppedError from None

    async def _gather(self) -> bytes:
        """Collect small chunks into one, for each crossing of threads has a price."""
        chunks: list[bytes] = []
        count = 0
        while count < CHUNK_BYTES:
            try:
                chunk = await anext(self._stream)
            except StopAsyncIteration:
                break
            chunks.append(chunk)
            count += len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def in_thread(function: Callable[[threading.Event], T], where: Path) -> T:
    """Run `function` in a thread and wait for it, also when cancelled.

    Args:
        function: gets the event that tells it to stop.
        where: the directory that it writes to, for the sentence when that is full.

    Raises:
        ResourceExhaustedError: the disk is full.
        RuntimeFailedError: another error of the operating system.
    """
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, _translated, function, stop, where)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        await _settled(future)
        raise


async def to_the_end(steps: Coroutine[object, object, T]) -> T:
    """Run steps that may not stop halfway; a cancellation is raised when they are done."""
    task = asyncio.ensure_future(steps)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settled(task)
        raise


async def _settled(future: asyncio.Future[T]) -> None:
    """Wait for a thread that was told to stop, through any further cancellation."""
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            # We are being cancelled already; the caller raises it once the thread is done.
            continue
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, StoppedError):
        log.warning("cancelled_work_failed", error=reason_of(error))


def _translated(function: Callable[[threading.Event], T], stop: threading.Event, where: Path) -> T:
    try:
        return function(stop)
    except (SwarmError, ConnectionError, TimeoutError):
        raise
    except OSError as error:
        raise sentence_of(error, where) from error
    finally:
        # A reader that a helper thread still waits in must not outlive the work.
        stop.set()


def sentence_of(error: OSError, where: Path) -> SwarmError:
    """Turn an error of the operating system into a sentence that names the directory."""
    if error.errno in FULL_ERRNOS:
        return ResourceExhaustedError(
            f"no space left on device: {where} is full; remove images that are not needed "
            "(docker image prune) or give it a larger disk"
        )
    file = error.filename if error.filename is not None else where
    name = file.decode(errors="replace") if isinstance(file, bytes) else str(file)
    return RuntimeFailedError(f"the image store cannot use {name}: {error.strerror or error}")

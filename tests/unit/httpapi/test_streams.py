"""Merging, progress, and what closing them does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from typing_extensions import override

from manager.httpapi.streams import TURN_SECONDS_MAX, Streams, merged, with_progress
from proto.errors import NotFoundError
from worker.images.api import Progress


class Source:
    """An iterator that ends, fails or hangs, and tells when it was closed."""

    def __init__(self, *items: int, then: str = "end") -> None:
        self.items = items
        self.then = then
        self.is_closed = False

    async def read(self) -> AsyncGenerator[int]:
        """Yield the items."""
        try:
            for item in self.items:
                yield item
            if self.then == "hang":
                await asyncio.Event().wait()
            if self.then == "fail":
                raise NotFoundError("task", "t")
        finally:
            self.is_closed = True


async def _sources(*sources: Source) -> AsyncIterator[AsyncIterator[int]]:
    for source in sources:
        await asyncio.sleep(0)
        yield source.read()


async def test_all_sources_are_read_to_their_end() -> None:
    """Those that come later too."""
    first, second, third = Source(1, 2), Source(3), Source()
    got = [item async for item in merged(first.read(), _sources(second, third))]
    assert sorted(got) == [1, 2, 3]
    assert first.is_closed
    assert third.is_closed


async def test_leaving_closes_every_source() -> None:
    """A client that goes away must leave nothing running."""
    first, second = Source(1, then="hang"), Source(2, then="hang")
    async with aclosing(merged(first.read(), _sources(second))) as items:
        got = {await anext(items), await anext(items)}
    assert got == {1, 2}
    assert first.is_closed
    assert second.is_closed


async def test_an_error_of_one_source_ends_all() -> None:
    """The consumer sees it; the others are closed."""
    first, second = Source(1, then="hang"), Source(then="fail")
    with pytest.raises(NotFoundError):
        [item async for item in merged(first.read(), _sources(second))]
    assert first.is_closed


Show = Callable[[Progress], None]


async def _decoded(chunks: AsyncGenerator[bytes]) -> list[dict[str, object]]:
    return [
        msgspec.json.decode(line) async for chunk in chunks for line in chunk.splitlines() if line
    ]


async def test_steps_come_before_the_result() -> None:
    """Also those that were shown just before the end."""

    async def work(show: Show) -> str:
        show(Progress(status="one"))
        await asyncio.sleep(0)
        show(Progress(status="two"))
        return "done"

    chunks = with_progress(work, finish=lambda text: msgspec.json.encode({"status": text}))
    assert [line["status"] for line in await _decoded(chunks)] == ["one", "two", "done"]


async def test_steps_from_another_thread_come_in_order() -> None:
    """Unpacking reports from a thread."""

    async def work(show: Show) -> None:
        await asyncio.to_thread(lambda: [show(Progress(status=str(n))) for n in range(5)])

    assert [line["status"] for line in await _decoded(with_progress(work))] == list("01234")


async def _fails_after(count: int, show: Show) -> None:
    for number in range(count):
        show(Progress(status=str(number)))
        await asyncio.sleep(0.001)
    raise NotFoundError("image", "web")


async def test_an_early_failure_is_an_exception() -> None:
    """Nothing was sent, so the response can have a status; a held step does not count."""
    with pytest.raises(NotFoundError):
        await _decoded(with_progress(lambda show: _fails_after(0, show)))
    with pytest.raises(NotFoundError):
        await _decoded(with_progress(lambda show: _fails_after(1, show), held_count=1))


async def test_a_late_failure_is_the_last_line() -> None:
    """The status was sent long ago."""
    lines = await _decoded(with_progress(lambda show: _fails_after(2, show), held_count=1))
    assert [line.get("status") for line in lines] == ["0", "1", None]
    assert lines[-1]["error"] == "image web not found"


async def test_closing_cancels_the_operation() -> None:
    """A pull whose client went away must stop."""
    is_cancelled = asyncio.Event()

    async def work(show: Show) -> None:
        show(Progress(status="one"))
        try:
            await asyncio.Event().wait()
        finally:
            is_cancelled.set()

    async with aclosing(with_progress(work)) as chunks:
        await anext(chunks)
    assert is_cancelled.is_set()


class Sink(web.StreamResponse):
    """A response whose client takes everything at once, until it goes away."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.has_some = asyncio.Event()
        self.is_gone = False

    @override
    async def prepare(self, request: object) -> None:
        """Nothing to do."""

    @override
    async def write(self, data: object) -> None:
        """Take it."""
        if self.is_gone:
            raise ConnectionResetError
        assert isinstance(data, bytes)
        self.writes.append(data)
        self.has_some.set()


async def test_a_stream_that_never_waits_gives_others_their_turn() -> None:
    """Logs that lie ready must not keep heartbeats waiting."""
    loop = asyncio.get_running_loop()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(3):
            end = loop.time() + TURN_SECONDS_MAX
            while loop.time() < end:
                pass
            yield b"x"

    task = asyncio.create_task(others())
    streams = Streams()
    await streams.send(make_mocked_request("GET", "/"), Sink(), chunks())
    task.cancel()
    assert turns >= 2
    assert streams.count == 0


async def test_lines_that_lie_ready_go_out_together() -> None:
    """A hundred thousand lines are some dozens of writes, in order and complete."""

    async def chunks() -> AsyncGenerator[bytes]:
        for number in range(100_000):
            yield b"line %d\n" % number

    sink = Sink()
    await Streams().send(make_mocked_request("GET", "/"), sink, chunks())

    assert b"".join(sink.writes) == b"".join(b"line %d\n" % number for number in range(100_000))
    assert len(sink.writes) < 100


async def test_a_line_does_not_wait_for_the_next() -> None:
    """Whoever follows a log sees a line when it is there."""
    goes_on = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"first"
        await goes_on.wait()
        yield b"second"

    sink = Sink()
    sending = asyncio.create_task(Streams().send(make_mocked_request("GET", "/"), sink, chunks()))
    async with asyncio.timeout(5):
        await sink.has_some.wait()
    assert sink.writes == [b"first"]
    goes_on.set()
    await sending
    assert sink.writes == [b"first", b"second"]


async def test_a_stream_ends_when_its_client_is_gone() -> None:
    """The source is closed at the next chunk."""
    count = 0

    async def chunks() -> AsyncGenerator[bytes]:
        nonlocal count
        while True:
            count += 1
            sink.is_gone = count > 10
            yield b"x"
            await asyncio.sleep(0)

    sink, streams = Sink(), Streams()
    async with asyncio.timeout(5):
        await streams.send(make_mocked_request("GET", "/"), sink, chunks())
    assert count < 20
    assert streams.count == 0

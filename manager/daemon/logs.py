"""Merge the output of several tasks into one stream, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

# Lines read ahead of the consumer, over all sources: a slow client must not fill the memory.
LINES_AHEAD_MAX = 256


async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T]:
    """Yield the items of all sources until all have ended; each source's order is kept.

    An error of one source is raised here; leaving early closes every source.
    """
    queue: asyncio.Queue[T | BaseException | None] = asyncio.Queue(LINES_AHEAD_MAX)

    async def read(source: AsyncIterator[T]) -> None:
        end: BaseException | None = None
        try:
            if isinstance(source, AsyncGenerator):
                async with aclosing(source):
                    async for item in source:
                        await queue.put(item)
            else:
                async for item in source:
                    await queue.put(item)
        except Exception as error:  # noqa: BLE001 -- handed to the consumer, who raises it
            end = error
        await queue.put(end)

    readers = [asyncio.create_task(read(source)) for source in sources]
    try:
        left = len(readers)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

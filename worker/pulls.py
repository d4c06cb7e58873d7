"""Shares pulls: tasks that want the same image at once wait for one download.

When a service with many replicas arrives, its tasks all miss the same image in the same moment.
A download goes on as long as one of those who wait for it is still interested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from worker.images.api import Image

# Source: Docker's `max-concurrent-downloads` (3, of layers; here of images).
PULLS_MAX = 3


class _Pull:
    """A download and how many wait for it."""

    def __init__(self, work: asyncio.Task[Image]) -> None:
        self.work = work
        self.waiters = 0


class SharedPulls:
    """At most one download of each reference, and a few at once."""

    def __init__(self, pull: Callable[[str], Awaitable[Image]]) -> None:
        """Download with `pull`."""
        self._pull = pull
        self._room = asyncio.Semaphore(PULLS_MAX)
        self._pulls: dict[str, _Pull] = {}

    async def pull(self, ref: str) -> Image:
        """Download the image, or wait for who does; what `pull` raises, all raise."""
        shared = self._pulls.get(ref)
        if shared is None:
            shared = self._pulls[ref] = _Pull(asyncio.create_task(self._work(ref)))
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.work)
        finally:
            shared.waiters -= 1
            if not shared.waiters:
                shared.work.cancel()
                if self._pulls.get(ref) is shared:
                    del self._pulls[ref]

    async def _work(self, ref: str) -> Image:
        async with self._room:
            return await self._pull(ref)

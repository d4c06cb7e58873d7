"""Shares pulls: tasks that want the same image at once wait for one download.

When a service with many replicas arrives, its tasks all miss the same image in the same moment.
A download goes on as long as one of those who wait for it is still interested. Downloads from one
registry wait for each other, never for those from another: it may be one that does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from proto.errors import InvalidError
from worker.images import references
from worker.images.api import Image, Progress

# Source: Docker's `max-concurrent-downloads` (3, of layers; here of images of one registry).
PULLS_MAX = 3

PullImage = Callable[[str, Callable[[Progress], None]], Awaitable[Image]]


class _Pull:
    """A download, how many wait for it, and what it waits for itself."""

    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.waiters = 0
        self.doing = f"{PULLS_MAX} other images of {registry} to be downloaded"
        self.work: asyncio.Task[Image] | None = None


class SharedPulls:
    """At most one download of each reference, and a few at once of each registry."""

    def __init__(self, pull: PullImage) -> None:
        """Download with `pull`, which is given where to tell its progress."""
        self._pull = pull
        self._rooms: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._pulls: dict[str, _Pull] = {}

    async def pull(self, ref: str) -> Image:
        """Download the image, or wait for who does; what `pull` raises, all raise."""
        shared = self._pulls.get(ref)
        if shared is None:
            shared = self._pulls[ref] = _Pull(_registry_of(ref))
            shared.work = asyncio.create_task(self._work(ref, shared))
        assert shared.work is not None
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.work)
        finally:
            shared.waiters -= 1
            if not shared.waiters:
                shared.work.cancel()
                if self._pulls.get(ref) is shared:
                    del self._pulls[ref]

    def awaited(self, ref: str) -> str:
        """Say what a download waits for now."""
        shared = self._pulls.get(ref)
        return f"image {ref}" if shared is None else shared.doing

    async def _work(self, ref: str, shared: _Pull) -> Image:
        room = self._rooms.get(shared.registry)
        if room is None:
            room = self._rooms[shared.registry] = asyncio.Semaphore(PULLS_MAX)
        async with room:
            asked = f"the registry {shared.registry} to send image {ref}"
            shared.doing = asked

            def note(progress: Progress) -> None:
                # Progress of a single layer changes all the time, and says that there is some.
                shared.doing = asked if progress.id else f"{asked} ({progress.status})"

            return await self._pull(ref, note)


def _registry_of(ref: str) -> str:
    try:
        return references.parse(ref).domain
    except InvalidError:
        return ""  # the pull says what is wrong with it

"""A place for a few at once, where one that does not move on does not stand in the others' way.

Steps that wait for something outside take no time of this machine while they wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

SLOW_SECONDS = 10.0
"""Whoever is longer inside does not count any more: it waits for something, and takes no time."""

SLOW_MAX = 64
"""How many may be inside beyond those that count."""


class Room:
    """Like a semaphore, but see the module."""

    def __init__(self, places: int) -> None:
        """Have so many places for those that move on."""
        self._places = asyncio.Semaphore(places)
        self._slow = 0

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait for a place, and be inside."""
        await self._places.acquire()
        is_slow = False

        def make_place() -> None:
            nonlocal is_slow
            if self._slow < SLOW_MAX:
                is_slow = True
                self._slow += 1
                self._places.release()

        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, make_place)
        try:
            yield
        finally:
            timer.cancel()
            if is_slow:
                self._slow -= 1
            else:
                self._places.release()

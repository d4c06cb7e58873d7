"""Lets a read see everything that was committed before it, or tells that it may not.

An election is waited for, a lost quorum is not waited for twice: whoever lists a few things in a
row on a manager without a quorum waits at the first one only.
"""

from __future__ import annotations

import asyncio
import math

from manager.httpapi.backend import Backend
from proto.errors import LockedError, NotLeaderError, UnavailableError

BARRIER_SECONDS_MAX = 2.0
RETRY_SECONDS = 0.02
# After a read that waited in vain others do not wait as long, for this time.
MEMORY_SECONDS = 5.0
BRIEF_SECONDS_MAX = 0.1


class Freshness:
    """What reads of one application have found lately."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._failed_at = -math.inf

    async def is_fresh(self, backend: Backend) -> bool:
        """Wait until this manager shows what was committed before; False: not in time.

        Raises:
            LockedError: this manager is locked.
        """
        loop = asyncio.get_running_loop()
        is_doubtful = loop.time() - self._failed_at < MEMORY_SECONDS
        try:
            async with asyncio.timeout(BRIEF_SECONDS_MAX if is_doubtful else BARRIER_SECONDS_MAX):
                await _passed(backend)
        except LockedError:
            raise
        except (TimeoutError, UnavailableError):
            self._failed_at = loop.time()
            return False
        self._failed_at = -math.inf
        return True


async def _passed(backend: Backend) -> None:
    while True:
        try:
            await backend.read_barrier()
        except NotLeaderError:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return

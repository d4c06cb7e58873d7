"""Lets a read see everything that was committed before it, or tells that it may not.

An election is waited for, a lost quorum is not waited for twice: whoever lists a few things in a
row on a manager without a quorum waits at the first one only.
"""

from __future__ import annotations

import asyncio
import math

from manager.httpapi.backend import Backend
from proto.errors import LockedError, NotLeaderError, UnavailableError

WAIT_SECONDS_MAX = 2.0
RETRY_SECONDS = 0.02
# After a read that waited in vain others do not wait as long, for this time.
MEMORY_SECONDS = 5.0
BRIEF_SECONDS_MAX = 0.1


class Patience:
    """How long reads of one application wait for a leader, by what they have found lately."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._failed_at = -math.inf

    def seconds(self, now: float) -> float:
        """Return how long to wait: as long as an election takes, but not twice in vain."""
        is_doubtful = now - self._failed_at < MEMORY_SECONDS
        return BRIEF_SECONDS_MAX if is_doubtful else WAIT_SECONDS_MAX

    def failed(self, now: float) -> None:
        """Note that somebody waited in vain."""
        self._failed_at = now

    def succeeded(self) -> None:
        """Note that there is a leader."""
        self._failed_at = -math.inf


class Freshness:
    """Whether reads of one application show everything."""

    def __init__(self, patience: Patience) -> None:
        """Wait as long as `patience` says, and let it know."""
        self._patience = patience

    async def is_fresh(self, backend: Backend) -> bool:
        """Wait until this manager shows what was committed before; False: not in time.

        Raises:
            LockedError: this manager is locked.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience.seconds(loop.time())):
                await _passed(backend)
        except LockedError:
            raise
        except (TimeoutError, UnavailableError):
            self._patience.failed(loop.time())
            return False
        self._patience.succeeded()
        return True


async def _passed(backend: Backend) -> None:
    while True:
        try:
            await backend.read_barrier()
        except NotLeaderError:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return

"""How long to wait before trying again: doubling, bounded, with jitter. Pure."""

from __future__ import annotations

import random

# Source: swarmkit agent/agent.go (100 ms to 8 s).
SECONDS_MIN = 0.1
SECONDS_MAX = 8.0


class Backoff:
    """The pauses between attempts of one thing."""

    def __init__(self, rng: random.Random, *, seconds_max: float = SECONDS_MAX) -> None:
        """Begin with the shortest pause."""
        self._rng = rng
        self._seconds_max = seconds_max
        self._seconds = SECONDS_MIN

    def next_seconds(self) -> float:
        """Return the next pause: half of it certain, half drawn, so that nodes spread."""
        pause = self._seconds / 2 * (1 + self._rng.uniform(0, 1))
        self._seconds = min(self._seconds * 2, self._seconds_max)
        return pause

    def slow_down(self) -> None:
        """Go on with the longest pauses: it was said that trying does not help."""
        self._seconds = self._seconds_max

    def reset(self) -> None:
        """Begin anew after a success."""
        self._seconds = SECONDS_MIN

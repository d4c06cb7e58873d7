"""Time as shells read it. Pure code never imports this module: it takes `now`.

Two kinds, never mixed: `wall` for what people and other nodes read, `monotonic` for durations.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a shell needs of time; the simulator has one that it moves by hand."""

    def wall(self) -> float:
        """Seconds since the epoch, UTC; may jump."""

    def monotonic(self) -> float:
        """Seconds since some point; never goes back."""


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()  # noqa: TID251 -- this is the place that may

    def monotonic(self) -> float:
        """Seconds since boot, roughly."""
        return time.monotonic()  # noqa: TID251 -- this is the place that may

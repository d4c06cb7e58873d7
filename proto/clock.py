"""Time as shells read it. Pure code never imports this module: it takes `now`.

Two kinds, never mixed: `wall` for what people and other nodes read, `monotonic` for durations.
On Linux the usual monotonic clock stands still while the machine is suspended. That suits what
waits for others on the same machine; what was promised to other machines, and counts there
meanwhile, is measured by a `BootClock`.
"""

from __future__ import annotations

import time
from typing import Protocol

from typing_extensions import override


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


class BootClock(SystemClock):
    """The machine's clocks; suspension of the machine counts.

    Not what happens to a virtual machine from outside: while its host pauses it no clock of it
    runs, and nothing in it can tell.
    """

    @override
    def monotonic(self) -> float:
        """Seconds since boot, those in suspension too."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def counting_suspension(clock: Clock) -> Clock:
    """Return a clock whose durations hold the time in which the machine was suspended.

    Another than the machine's own knows no suspension, and stays.
    """
    return BootClock() if isinstance(clock, SystemClock) else clock

"""The machine's clocks."""

import time

import pytest

from proto.clock import BootClock, SystemClock, counting_suspension


class Frozen:
    """A clock that is moved by hand."""

    def wall(self):
        """Return a date."""
        return 5.0

    def monotonic(self):
        """Return a time."""
        return 7.0


def test_durations_that_count_at_other_machines_hold_suspension(monkeypatch):
    """The usual clock stands still while the machine sleeps; CLOCK_BOOTTIME goes on."""
    asked = []

    def gettime(which):
        asked.append(which)
        return 60.0

    monkeypatch.setattr(time, "clock_gettime", gettime)
    assert counting_suspension(SystemClock()).monotonic() == 60.0
    assert asked == [time.CLOCK_BOOTTIME]


def test_a_clock_of_somebody_else_stays():
    """A virtual clock is what its test says."""
    clock = Frozen()
    assert counting_suspension(clock) is clock


def test_all_clocks_tell_the_same_date():
    """Only durations differ."""
    clocks = (SystemClock(), BootClock())
    assert clocks[0].wall() == pytest.approx(clocks[1].wall(), abs=60)

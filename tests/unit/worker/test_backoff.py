"""Pauses between attempts."""

import random

import pytest

from worker.agent import SESSION_PAUSE_SECONDS_MAX
from worker.backoff import SECONDS_MAX, SECONDS_MIN, Backoff


@pytest.mark.parametrize("seconds_max", [SECONDS_MAX, SESSION_PAUSE_SECONDS_MAX])
def test_pauses_double_up_to_the_longest(seconds_max):
    """From half a tenth of a second to the bound, never beyond it; a success begins anew."""
    backoff = Backoff(random.Random(1), seconds_max=seconds_max)
    bound = SECONDS_MIN
    for _ in range(20):
        assert bound / 2 <= backoff.next_seconds() <= bound
        bound = min(bound * 2, seconds_max)
    backoff.reset()
    assert backoff.next_seconds() <= SECONDS_MIN


def test_it_slows_down_when_trying_does_not_help():
    """After a denial only the longest pauses are taken."""
    backoff = Backoff(random.Random(1))
    backoff.slow_down()
    assert SECONDS_MAX / 2 <= backoff.next_seconds() <= SECONDS_MAX

"""A reading that is interrupted goes on without gap and repetition."""

import random

import pytest

from manager.logbroker.position import Position
from proto.logs import LogOptions, LogRecord


def record(time_ns, text="x"):
    """Make a line."""
    return LogRecord(time_ns, "stdout", text.encode())


def selected(lines, options):
    """Return what a node would send, as `worker.runtime.logs` chooses."""
    wanted = [line for line in lines if line.time_ns >= options.since_ns]
    return wanted if options.tail < 0 else wanted[len(wanted) - min(options.tail, len(wanted)) :]


def test_the_first_attempt_asks_for_what_the_client_wants():
    """Nothing is changed before a line was had, however many attempts fail."""
    options = LogOptions(follow=True, tail=3, since_ns=5, until_ns=9)
    position = Position(options)
    assert position.begin() == options
    assert position.begin() == options


def test_the_next_attempt_begins_at_the_last_moment():
    """All later lines, whatever the tail was; the bounds and streams stay."""
    position = Position(LogOptions(tail=3, since_ns=5, until_ns=90, stderr=False))
    position.begin()
    position.fresh([record(7), record(8)])
    assert position.begin() == LogOptions(since_ns=8, until_ns=90, stderr=False)


def test_lines_of_one_moment_are_counted():
    """Of five lines with one time two were had: the other three come."""
    lines = [record(1, "a"), *(record(2, str(n)) for n in range(5)), record(3, "z")]
    position = Position(LogOptions())
    position.begin()
    assert position.fresh(lines[:3]) == lines[:3]
    again = selected(lines, position.begin())
    assert position.fresh(again[:3]) == lines[3:4]
    again = selected(lines, position.begin())
    assert position.fresh(again) == lines[4:]


@pytest.mark.parametrize("seed", range(200))
def test_any_interruptions(seed):
    """Cut anywhere, any number of times: what is had is what there is, in order."""
    rng = random.Random(seed)
    time_ns, lines = 10, []
    for number in range(rng.randrange(1, 60)):
        time_ns += rng.choice((0, 0, 1, 5))
        lines.append(record(time_ns, str(number)))
    options = LogOptions(tail=rng.choice((-1, -1, 5, 100)), since_ns=rng.choice((0, 12)))
    wanted = selected(lines, options)
    position, had = Position(options), []
    for attempt in range(50):
        sent = selected(lines, position.begin())
        cut = len(sent) if attempt == 49 else rng.randrange(len(sent) + 1)
        while sent and cut > 0:
            size = rng.randrange(1, 5)
            had += position.fresh(sent[: min(size, cut)])
            sent, cut = sent[size:], cut - size
    assert had == wanted

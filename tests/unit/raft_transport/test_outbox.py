"""The queue to a peer: order, bounds, and what goes when it is full."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.transport.limits import Lane, Limits, retry_seconds
from raft.transport.outbox import Outbox
from raft.transport.throttle import KEYS_MAX, Throttle

SMALL = Limits(
    message_bytes_max=10,
    frame_bytes=12,
    control_messages_max=4,
    control_bytes_max=20,
    control_messages_kept=2,
    entries_messages_max=4,
    entries_bytes_max=20,
)


def drain(outbox):
    """Take all frames."""
    frames = []
    while frame := outbox.take():
        frames.append(frame)
    return frames


def test_all_that_fits_is_one_frame():
    """Messages that gathered go together."""
    outbox = Outbox(Lane.CONTROL, SMALL)
    assert outbox.put([b"a", b"b"]) == 0
    assert outbox.put([b"c"]) == 0
    assert drain(outbox) == [[b"a", b"b", b"c"]]
    assert outbox.size == 0


def test_a_frame_is_closed_before_it_grows_too_large():
    """A frame has no more bytes than it should, unless one message alone has."""
    outbox = Outbox(Lane.CONTROL, Limits(frame_bytes=3))
    outbox.put([b"aa", b"bb", b"cccc", b"", b"d"])
    assert drain(outbox) == [[b"aa"], [b"bb"], [b"cccc"], [b"", b"d"]]


def test_control_drops_the_oldest():
    """A newer heartbeat is worth more than an older one, by number and by bytes."""
    outbox = Outbox(Lane.CONTROL, SMALL)
    assert outbox.put([b"1", b"2", b"3", b"4", b"5"]) == 1
    assert drain(outbox) == [[b"2", b"3", b"4", b"5"]]
    assert outbox.put([b"1" * 10, b"2" * 10, b"3" * 10]) == 1
    assert drain(outbox) == [[b"2" * 10], [b"3" * 10]]


def test_entries_refuse_the_newest():
    """Entries behind a gap are worth nothing, so the gap is at the end."""
    outbox = Outbox(Lane.ENTRIES, SMALL)
    assert outbox.put([b"1" * 10, b"2" * 10, b"3", b""]) == 2
    assert drain(outbox) == [[b"1" * 10], [b"2" * 10]]


def test_while_the_peer_is_away_only_new_control_messages_are_kept():
    """`clip` leaves the newest of control and nothing of entries."""
    control, entries = Outbox(Lane.CONTROL, SMALL), Outbox(Lane.ENTRIES, SMALL)
    for outbox in (control, entries):
        outbox.put([b"1", b"2", b"3"])
    assert (control.clip(), entries.clip()) == (1, 3)
    assert drain(control) == [[b"2", b"3"]]
    assert drain(entries) == []


@pytest.mark.parametrize("lane", Lane)
def test_nothing_outlives_a_broken_connection(lane):
    """What waited for it answers a life of the peer that may be over."""
    outbox = Outbox(lane, SMALL)
    outbox.put([b"1", b"2", b"3"])
    assert outbox.clear() == 3
    outbox.check()
    assert (len(outbox), outbox.size, drain(outbox)) == (0, 0, [])


@given(
    st.sampled_from(Lane),
    st.lists(st.one_of(st.none(), st.lists(st.binary(max_size=10), max_size=6)), max_size=30),
)
def test_bounds_hold_and_what_is_sent_is_in_order(lane, steps):
    """Whatever is put and taken, the bounds hold and nothing is invented, lost or reordered."""
    outbox = Outbox(lane, SMALL)
    put, dropped, taken = 0, 0, []
    for step in steps:
        if step is None:
            taken += outbox.take()
        else:
            numbered = [b"%03d" % (put + n) + message[:7] for n, message in enumerate(step)]
            put += len(step)
            dropped += outbox.put(numbered)
        outbox.check()
    for frame in drain(outbox):
        assert sum(map(len, frame)) <= SMALL.frame_bytes
        taken += frame
    assert taken == sorted(taken)
    assert len(taken) == put - dropped


def test_retries_slow_down_to_a_bound():
    """10 ms at first, doubling, never above the bound, never under half of it."""
    limits, rng = Limits(), random.Random(1)
    for attempt in (*range(12), 10_000):
        longest = min(0.5, 0.01 * 2 ** min(attempt, 20))
        for _ in range(20):
            assert longest / 2 <= retry_seconds(attempt, limits, rng) <= longest


def test_a_line_is_due_once_a_minute_and_the_memory_is_bounded():
    """The same key waits 60 s; other keys do not; the oldest key is forgotten first."""
    throttle = Throttle()
    assert throttle.is_due("a", 0.0)
    assert not throttle.is_due("a", 59.9)
    assert throttle.is_due("b", 59.9)
    assert throttle.is_due("a", 60.0)
    for number in range(KEYS_MAX):
        throttle.is_due(number, 61.0)
    assert len(throttle._last) == KEYS_MAX
    assert throttle.is_due("a", 61.0)


def test_a_queue_smaller_than_a_message_is_a_mistake():
    """A message that never fits would be dropped for ever."""
    with pytest.raises(AssertionError):
        Outbox(Lane.ENTRIES, Limits(entries_bytes_max=10))

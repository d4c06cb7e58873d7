"""What a leader sends to one peer, and when it waits."""

import pytest

from proto.errors import InvariantViolationError
from raft.core.progress import Progress, Stance


def replicating():
    """Return a peer that accepted up to 5, with room for 3 batches or 100 bytes."""
    progress = Progress(6, 0, 3, 100)
    progress.accepted(5)
    return progress


def test_one_probe_at_a_time():
    """After a probe, nothing more until an answer."""
    progress = Progress(6, 0, 3, 100)
    assert not progress.is_paused
    progress.sent(7, 20)
    assert progress.is_paused
    assert progress.next == 6
    progress.accepted(7)
    assert (progress.stance, progress.next, progress.match) == (Stance.REPLICATE, 8, 7)


def test_the_pipeline_is_capped_by_number_and_bytes():
    """Whichever comes first stops it; answers make room."""
    progress = replicating()
    for index in (6, 7, 8):
        assert not progress.is_paused
        progress.sent(index, 10)
    assert progress.is_paused
    progress.accepted(7)
    assert not progress.is_paused
    progress.sent(9, 90)
    assert progress.is_paused
    assert progress.bytes_under_way == 100
    progress.check(9)


def test_a_large_batch_passes_alone():
    """One over the cap goes out; the next waits."""
    progress = replicating()
    progress.sent(6, 1_000_000)
    assert progress.is_paused
    progress.accepted(6)
    assert not progress.is_paused


def test_a_rejection_ends_the_pipeline_and_old_ones_are_ignored():
    """From the last place where both agree, never below what matched."""
    progress = replicating()
    progress.sent(8, 10)
    assert not progress.rejected(5, 3)
    assert progress.rejected(8, 6)
    assert (progress.stance, progress.next) == (Stance.PROBE, 7)
    progress.sent(8, 10)
    assert not progress.rejected(8, 2)
    assert progress.is_paused
    assert progress.rejected(6, 2)
    assert progress.next == 6


def test_an_unanswered_batch_is_looked_for_after_a_quiet_heartbeat():
    """Not at once: it may only be slow."""
    progress = replicating()
    progress.sent(6, 10)
    assert not progress.answered()
    assert progress.answered()
    progress.accepted(6)
    assert not progress.answered()


def test_a_lost_probe_is_asked_for():
    """After a heartbeat's answer with nothing sent since the one before; not sent again."""
    progress = Progress(6, 0, 3, 100)
    progress.sent(7, 20)
    assert not progress.answered()
    assert progress.answered()
    assert progress.is_paused
    progress.asked()
    assert not progress.answered()
    assert progress.rejected(5, 3)
    assert not progress.is_paused


def test_only_answers_make_room_in_the_pipeline():
    """However often a peer with a hung disk answers heartbeats, no more is sent to it."""
    progress = replicating()
    for index in (6, 7, 8):
        progress.sent(index, 30)
    asked = 0
    for _ in range(100):
        if progress.answered():
            progress.asked()
            asked += 1
        assert progress.is_paused
    assert asked == 50
    assert progress.bytes_under_way == 90
    progress.accepted(6)
    assert not progress.is_paused


def test_a_lost_peer_gets_nothing_until_it_answers():
    """Then it is probed from where it was last known to be."""
    progress = replicating()
    progress.sent(6, 10)
    progress.lost()
    assert progress.is_paused
    assert progress.bytes_under_way == 0
    progress.answers(17)
    assert (progress.is_paused, progress.next, progress.heard) == (False, 6, 17)


@pytest.mark.parametrize(("is_sent", "following"), [(True, 21), (False, 1)])
def test_after_a_snapshot_it_probes(is_sent, following):
    """Behind the snapshot, or where it was if the stream broke."""
    progress = Progress(6, 0, 3, 100)
    progress.to_snapshot(20)
    assert progress.is_paused
    assert not progress.rejected(5, 0)
    progress.snapshot_done(is_sent=is_sent)
    assert (progress.stance, progress.next) == (Stance.PROBE, following)
    assert progress.is_paused


def test_an_early_answer_ends_the_snapshot():
    """The peer's answer may overtake the report."""
    progress = Progress(6, 0, 3, 100)
    progress.to_snapshot(20)
    progress.accepted(20)
    assert (progress.stance, progress.next) == (Stance.REPLICATE, 21)


def test_numbers_out_of_order_are_a_bug():
    """A peer cannot have more than we."""
    progress = replicating()
    with pytest.raises(InvariantViolationError, match="match 5, next 6, last 4"):
        progress.check(4)

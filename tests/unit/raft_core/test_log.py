"""The log in memory: merging, cutting, compaction, marks."""

import pytest

from proto.errors import InvariantViolationError
from raft.core import Entries, Member, Membership, RaftID, Snapshot, encode_membership
from raft.core.log import Log


def terms(log):
    """List the terms of the entries kept."""
    return [log.term(index) for index in range(log.start + 1, log.last + 1)]


def test_entries_that_match_stay(make_log, run_of):
    """An old message, even a short one, cuts nothing."""
    log = make_log([1, 1, 2, 2])
    assert log.merge(1, 1, run_of(2, [1, 2])) == 0
    assert terms(log) == [1, 1, 2, 2]
    assert log.durable == 4


def test_a_conflict_cuts_from_the_first_difference_only(make_log, run_of):
    """What equals before the conflict is not stored again."""
    log = make_log([1, 1, 2, 2])
    assert log.merge(1, 1, run_of(2, [1, 3, 3, 3])) == 3
    assert terms(log) == [1, 1, 3, 3, 3]
    assert log.durable == 2
    assert log.take_unstored().first == 3


def test_a_place_that_does_not_match_is_refused(make_log, run_of):
    """Neither a gap nor another term is bridged."""
    log = make_log([1, 1])
    assert log.merge(2, 2, run_of(3, [2])) == -1
    assert log.merge(3, 1, run_of(4, [1])) == -1
    assert terms(log) == [1, 1]


def test_committed_entries_are_never_cut(make_log, run_of):
    """A conflict at or below the commit index is a bug, told with numbers."""
    log = make_log([1, 1, 1], commit=2)
    with pytest.raises(InvariantViolationError, match=r"entry 2 conflicts.* up to 2 is committed"):
        log.merge(1, 1, run_of(2, [2]))


def test_commit_beyond_the_end_is_a_bug(make_log):
    """What was never there cannot be committed."""
    with pytest.raises(InvariantViolationError, match="commit of 3 asked for, the log ends at 2"):
        make_log([1, 1]).commit_to(3)


def test_stored_beyond_what_was_handed_out_is_a_bug(make_log):
    """The caller cannot have stored what it never got."""
    log = make_log([1])
    log.append(1, [b"x"])
    with pytest.raises(InvariantViolationError, match="entry 2 is said to be stored"):
        log.stored_to(2)


def test_terms_never_fall(make_log):
    """An entry of an older term after a newer one is a bug."""
    with pytest.raises(InvariantViolationError, match="term 1 after one of term 2"):
        make_log([2]).append(1, [b"x"])


def test_only_durable_entries_are_applied(make_log):
    """Committed and not yet stored here: not yet handed out."""
    log = make_log([1])
    log.append(1, [b"x"])
    log.take_unstored()
    log.commit_to(2)
    assert log.take_committed(100).data == [b"1"]
    assert log.take_committed(100) is None
    log.stored_to(2)
    assert log.take_committed(100).data == [b"x"]


def test_batches_have_limits_and_always_one_entry(make_log):
    """By bytes and by number; a single large entry passes."""
    log = make_log([1])
    log.append(1, [b"x" * 10, b"y" * 10, b"z" * 100, b"w"])
    assert log.limit(2, 20, 99) == 3
    assert log.limit(2, 19, 99) == 2
    assert log.limit(4, 5, 99) == 4
    assert log.limit(2, 1000, 2) == 3
    assert log.limit(2, 1000, 99) == 5
    assert log.size(2, 4) == 120


def test_compaction_keeps_terms_and_membership(make_log):
    """The boundary's term stays known; the membership of later entries too."""
    log = make_log([1, 1, 2])
    membership = Membership((Member(RaftID(1), is_voter=True),))
    log.append_change(2, encode_membership(membership), membership)
    log.append(3, [b"x", b"y"])
    log.take_unstored()
    log.stored_to(6)
    log.commit_to(6)
    log.take_committed(100)
    log.compact(Snapshot(5, 3, log.membership_at(5)), entries_kept=2)
    log.check()
    assert (log.start, log.last) == (3, 6)
    assert [log.term(index) for index in range(2, 8)] == [-1, 2, 2, 3, 3, -1]
    assert log.entries(4, 6).changes == (4,)
    log.compact(Snapshot(6, 3, log.membership_at(6)), entries_kept=0)
    log.check()
    assert (log.start, log.last, log.membership) == (6, 6, membership)
    assert log.merge(6, 3, Entries(7, [b"z"], ((7, 3),))) == 0


def test_a_restart_finds_changes_among_old_entries():
    """Entries may begin before the snapshot ends, and changes among them are still changes."""
    before = Membership((Member(RaftID(1), is_voter=True),))
    data = encode_membership(before)
    stored = Entries(3, [data, data, b"x", b"y"], ((3, 1), (5, 2)), (3, 4))
    log = Log(Snapshot(4, 1, before), stored, commit=5)
    log.check()
    assert (log.start, log.last, log.commit, log.delivered) == (3, 6, 5, 4)
    assert log.entries(4, 6).changes == (4,)
    assert [log.term(index) for index in range(3, 7)] == [1, 1, 2, 2]


def test_a_gap_between_snapshot_and_entries_is_a_bug():
    """A member that lost entries must not start."""
    with pytest.raises(InvariantViolationError, match="entries begin at 7, the snapshot ends at 5"):
        Log(Snapshot(5, 1), Entries(7, [b"x"], ((7, 1),)), commit=0)


def test_agreement_skips_whole_terms(make_log):
    """The hint is the last place whose term is no newer."""
    log = make_log([1, 1, 2, 2, 4, 4])
    assert log.agreement(6, 3) == 4
    assert log.agreement(9, 9) == 6
    assert log.agreement(6, 1) == 2
    assert log.agreement(3, 2) == 3
    assert log.agreement(6, 0) == 0


def test_a_snapshot_never_goes_back(make_log):
    """Nor does its installation count as stored before it is."""
    log = make_log([1, 1, 1], commit=3)
    with pytest.raises(InvariantViolationError, match="a snapshot of 3 would undo"):
        log.reset(Snapshot(3, 1))
    log.reset(Snapshot(9, 2))
    assert (log.durable, log.commit, log.last, log.last_term) == (0, 9, 9, 2)
    log.stored_to(9)
    log.check()

"""Changes of the membership and their guards."""

import pytest

from raft.core import (
    AddLearner,
    Demote,
    HardState,
    Member,
    Membership,
    Promote,
    RaftID,
    Readdress,
    RefusalCode,
    Refused,
    Remove,
    bootstrap,
    decode_membership,
    encode_membership,
    force_new_cluster,
)
from raft.core.membership import REMOVED_MAX, changed, moves_voters, quorum_refusal

GROUP = Membership(
    (
        Member(RaftID(1), is_voter=True, node_id="a", address="a:1"),
        Member(RaftID(2), is_voter=True),
        Member(RaftID(5), is_voter=False),
    ),
    (RaftID(4),),
)


def test_changes_do_what_they_say():
    """Each changes one member and keeps the order."""
    added = changed(GROUP, AddLearner(RaftID(3), "c", "c:1"))
    assert [(m.id, m.is_voter) for m in added.members] == [
        (1, True), (2, True), (3, False), (5, False),
    ]  # fmt: skip
    assert added.find(RaftID(3)).address == "c:1"
    assert changed(GROUP, Promote(RaftID(5))).voters == (1, 2, 5)
    assert changed(GROUP, Demote(RaftID(1))).voters == (2,)
    assert changed(GROUP, Remove(RaftID(1))).removed == (4, 1)
    moved = changed(GROUP, Readdress(RaftID(1), "b:2")).find(RaftID(1))
    assert (moved.address, moved.node_id, moved.is_voter) == ("b:2", "a", True)


@pytest.mark.parametrize(
    "change",
    [
        AddLearner(RaftID(1)),
        AddLearner(RaftID(4)),
        AddLearner(RaftID(0)),
        Promote(RaftID(1)),
        Promote(RaftID(9)),
        Demote(RaftID(5)),
        Remove(RaftID(4)),
        Readdress(RaftID(7), "x"),
    ],
    ids=str,
)
def test_changes_that_make_no_sense_are_refused(change):
    """With the member's number in the reason."""
    refusal = changed(GROUP, change)
    assert isinstance(refusal, Refused)
    assert refusal.code is RefusalCode.INVALID
    assert str(change.member_id) in refusal.reason or change.member_id <= 0


def test_a_change_that_loses_the_quorum_is_refused():
    """Counting only those that can be reached."""
    after = changed(GROUP, Promote(RaftID(5)))
    assert quorum_refusal(after, [1, 2]) is None
    refusal = quorum_refusal(after, [1])
    assert refusal.code is RefusalCode.QUORUM_LOSS
    assert "1 of the 3 voters" in refusal.reason
    assert quorum_refusal(Membership(), [1]).code is RefusalCode.QUORUM_LOSS


def test_only_votes_matter_for_the_quorum():
    """A learner or an address changes no majority."""
    assert not moves_voters(GROUP, changed(GROUP, AddLearner(RaftID(3))))
    assert not moves_voters(GROUP, changed(GROUP, Readdress(RaftID(2), "x")))
    assert moves_voters(GROUP, changed(GROUP, Demote(RaftID(2))))


def test_memberships_survive_encoding():
    """What an entry holds is read back the same."""
    assert decode_membership(encode_membership(GROUP)) == GROUP


def test_bootstrap_is_the_first_entry():
    """It counts as committed in term 1, and nobody has voted."""
    hard_state, entries = bootstrap(GROUP)
    assert hard_state == HardState(1, RaftID(0), 1)
    assert (entries.first, entries.last, entries.term(1), entries.changes) == (1, 1, 1, (1,))


def test_force_new_cluster_leaves_one():
    """Everybody else is gone for ever; the term moves on; the survivor may have a new number."""
    survivor = Member(RaftID(7), is_voter=False, node_id="a", address="a:2")
    hard_state, entries = force_new_cluster(HardState(6, RaftID(2), 3), 12, GROUP, survivor)
    assert hard_state == HardState(7, RaftID(0), 3)
    assert (entries.first, entries.term(13), entries.changes) == (13, 7, (13,))
    after = decode_membership(entries.data[0])
    assert after.voters == (7,)
    assert after.removed == (4, 1, 2, 5)


def test_the_newest_removed_numbers_are_remembered():
    """So many and no more, in the order in which they left: a membership stays small for ever."""
    membership = Membership((Member(RaftID(1), is_voter=True),))
    for number in range(2, REMOVED_MAX + 102):
        membership = changed(membership, AddLearner(RaftID(number)))
        membership = changed(membership, Remove(RaftID(number)))
        assert len(membership.removed) == min(number - 1, REMOVED_MAX)
    assert membership.removed == tuple(range(102, REMOVED_MAX + 102))
    large = Membership(membership.members, tuple((1 << 48) - n for n in range(REMOVED_MAX)))
    assert len(encode_membership(large)) < 10 * REMOVED_MAX


def test_a_forced_group_remembers_the_numbers_that_it_left_behind():
    """They are the newest, so it is older ones that are forgotten."""
    old = tuple(RaftID(number) for number in range(100, 100 + REMOVED_MAX))
    membership = Membership(GROUP.members, old)
    survivor = Member(RaftID(7), is_voter=True)
    _, entries = force_new_cluster(HardState(6, RaftID(2), 3), 12, membership, survivor)
    after = decode_membership(entries.data[0])
    assert after.removed == (*old[3:], 1, 2, 5)

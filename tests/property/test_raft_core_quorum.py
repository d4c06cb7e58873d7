"""The arithmetic of majorities against counting."""

from hypothesis import given
from hypothesis import strategies as st

from raft.core import Membership, RaftID
from raft.core.membership import changed
from raft.core.quorum import Outcome, majority, reached_by_majority, vote_outcome
from raft.core.values import Refused


@given(st.lists(st.integers(0, 20), max_size=9))
def test_reached_by_majority_is_the_largest_that_a_majority_has(values):
    """No larger number is reached by a majority, and this one is."""
    found = reached_by_majority(values)
    possible = [
        number for number in range(21) if sum(v >= number for v in values) * 2 > len(values)
    ]
    assert found == max(possible, default=0)


@given(st.integers(1, 12))
def test_two_majorities_share_a_member(voters):
    """The least that does."""
    assert 2 * majority(voters) > voters
    assert 2 * (majority(voters) - 1) <= voters


@given(st.sets(st.integers(1, 9)), st.dictionaries(st.integers(1, 12), st.booleans(), max_size=12))
def test_vote_outcome_counts_voters_only(voters, votes):
    """Won with a majority, lost when none is possible any more; strangers do not count."""
    yes = sum(votes.get(voter) is True for voter in voters)
    open_votes = sum(voter not in votes for voter in voters)
    outcome = vote_outcome(sorted(voters), votes)
    if voters and 2 * yes > len(voters):
        assert outcome is Outcome.WON
    elif 2 * (yes + open_votes) <= len(voters):
        assert outcome is Outcome.LOST
    else:
        assert outcome is Outcome.PENDING


@st.composite
def memberships_and_changes(draw):
    """Draw a chain of changes that make sense."""
    from raft.core import AddLearner, Demote, Promote, Remove  # noqa: PLC0415 -- used here only

    kinds = [AddLearner, Promote, Promote, Demote, Remove]
    return [
        draw(st.sampled_from(kinds))(RaftID(draw(st.integers(1, 6))))
        for _ in range(draw(st.integers(1, 30)))
    ]


@given(memberships_and_changes())
def test_majorities_before_and_after_a_change_share_a_member(changes):
    """One change moves at most one vote, so any two majorities meet; removed numbers stay away."""
    membership = Membership()
    for change in changes:
        after = changed(membership, change)
        if isinstance(after, Refused):
            continue
        before_voters, after_voters = set(membership.voters), set(after.voters)
        moved = before_voters ^ after_voters
        assert len(moved) <= 1
        together = len(before_voters | after_voters)
        if before_voters and after_voters:
            assert majority(len(before_voters)) + majority(len(after_voters)) > together
        assert not {member.id for member in after.members} & set(after.removed)
        assert set(membership.removed) <= set(after.removed)
        assert list(after.members) == sorted(after.members, key=lambda member: member.id)
        membership = after

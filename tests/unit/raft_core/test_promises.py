"""The promise that makes a lease: no help to anybody else, whatever happens to the term meanwhile.

A voter that answered a leader's heartbeat helps no other candidate for an election time-out, unless
that leader itself tells one to stand.
"""

import random

import pytest

from raft.core import Config, Core, Demote, Member, Membership, RaftID, Remove, Role, bootstrap
from raft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Install,
    PreVote,
    PreVoteReply,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    Vote,
    VoteReply,
)
from raft.core.values import Entries, Snapshot
from raft.sim.disk import Disk

ONE, TWO, THREE = RaftID(1), RaftID(2), RaftID(3)
ELECTION_TICKS = 10
# What may tell member 2 of term 3, but an election itself.
RAISING = [
    PreVoteReply(THREE, TWO, 3, 3, False),
    VoteReply(THREE, TWO, 3, False),
    AppendReply(THREE, TWO, 3, 0, True),
    HeartbeatReply(THREE, TWO, 3, 1),
    ReadRequest(THREE, TWO, 3, 1, 7),
    ReadReply(THREE, TWO, 3, 1, 1, 7),
]
MEMBERSHIP = Membership(tuple(Member(number, is_voter=True) for number in (ONE, TWO, THREE)))


class Voter:
    """Member 2 of three, and what it said."""

    def __init__(self):
        self.disk = Disk()
        self.disk.boot(*bootstrap(MEMBERSHIP))
        self.start()

    def start(self):
        """Start from what is stored."""
        self.core = Core(
            Config(id=TWO, election_ticks=ELECTION_TICKS),
            random.Random(2),
            hard_state=self.disk.hard_state,
            snapshot=self.disk.snapshot,
            entries=self.disk.entries(),
        )

    def said(self, *, is_stored=True):
        """Carry out the duties; return what was sent."""
        sent = []
        while (ready := self.core.ready()) is not None:
            sent += ready.messages
            if is_stored:
                if ready.has_to_store:
                    self.disk.store(ready)
                    self.core.persisted(ready.number)
                sent += ready.messages_after
        return sent

    def hear(self, message, *, is_stored=True):
        """Take a message; return what was sent then."""
        self.core.step(message)
        return self.said(is_stored=is_stored)

    def asked(self, term, *, is_forced=False):
        """Ask for its vote in this term; return whether it was given."""
        vote = Vote(THREE, TWO, term, 9, term - 1, is_forced)
        return any(isinstance(m, VoteReply) and m.is_granted for m in self.hear(vote))

    def asked_before(self, term):
        """Ask whether it would vote in the next term; return what it says."""
        (reply,) = self.hear(PreVote(THREE, TWO, term, 9, term))
        return reply.is_granted


@pytest.fixture
def voter():
    """Return member 2, which has just answered the leader of term 2."""
    voter = Voter()
    assert HeartbeatReply(TWO, ONE, 2, 1) in voter.hear(Heartbeat(ONE, TWO, 2, 0, 1))
    return voter


@pytest.mark.parametrize("message", RAISING, ids=lambda each: type(each).__name__)
def test_the_promise_holds_in_a_newer_term(voter, message):
    """Somebody tells it of term 3 first; then it is asked for its vote of that same term."""
    voter.hear(message)
    assert voter.core.term == 3
    assert voter.core.vote == 0
    assert not voter.asked(3)
    assert not voter.asked_before(3)
    for _ in range(ELECTION_TICKS - 1):
        voter.core.tick()
    assert not voter.asked(3)
    voter.core.tick()
    assert voter.asked(3)


def test_the_promise_holds_for_any_newer_term(voter):
    """A request of a newer term is passed over, and its term as well."""
    assert not voter.asked(3)
    assert not voter.asked(4)
    assert not voter.asked_before(5)
    assert voter.core.term == 2


def test_only_the_leader_itself_releases(voter):
    """A candidate that the leader told to stand gets the vote, the term raised or not."""
    voter.hear(VoteReply(THREE, TWO, 3, False))
    assert not voter.asked(3)
    assert voter.asked(3, is_forced=True)


def test_one_that_is_to_take_over_stands_at_once(voter):
    """`TimeoutNow` is the release of the one that gets it; only in its own term."""
    voter.hear(VoteReply(THREE, TWO, 3, False))
    voter.hear(TimeoutNow(ONE, TWO, 2))
    assert voter.core.role is Role.FOLLOWER
    sent = voter.hear(TimeoutNow(THREE, TWO, 3))
    assert [m for m in sent if isinstance(m, Vote) and m.is_forced and m.term == 4]


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(ONE, TWO, 2, 0, 1),
        Append(ONE, TWO, 2, 1, 1, 0, Entries(2, [b""], ((2, 2),))),
        Install(ONE, TWO, 2, Snapshot(7, 2, MEMBERSHIP)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_restarted_voter_keeps_a_promise_that_it_may_have_made(message):
    """It does not know when it heard from the leader: it waits a whole election time-out."""
    voter = Voter()
    voter.hear(message)
    voter.start()
    assert not voter.asked(3)
    voter.hear(VoteReply(THREE, TWO, 3, False))
    for _ in range(ELECTION_TICKS):
        assert not voter.asked(3)
        voter.core.tick()
    assert voter.asked(3)


def test_a_heartbeat_is_not_answered_before_its_term_is_stored():
    """Else a voter that forgot the term would not know, after a restart, that it has promised."""
    voter = Voter()
    heartbeat = Heartbeat(ONE, TWO, 2, 0, 1)
    assert voter.hear(heartbeat, is_stored=False) == []
    voter.start()
    assert voter.core.term == 1
    # This answer makes the promise, and the next life knows of it.
    assert voter.hear(heartbeat) == [HeartbeatReply(TWO, ONE, 2, 1)]
    voter.start()
    assert not voter.asked(3)


def test_later_heartbeats_are_answered_at_once():
    """A disk that hangs does not keep a follower from saying that it follows."""
    voter = Voter()
    voter.hear(Heartbeat(ONE, TWO, 2, 0, 1))
    entries = Entries(2, [b""], ((2, 2),))
    assert voter.hear(Append(ONE, TWO, 2, 1, 1, 0, entries), is_stored=False) == []
    sent = voter.hear(Heartbeat(ONE, TWO, 2, 0, 2), is_stored=False)
    assert sent == [HeartbeatReply(TWO, ONE, 2, 2)]


def test_a_voter_that_was_never_told_of_a_leader_helps_at_once():
    """The first election of a group has no promise to wait for."""
    assert Voter().asked(2)


def test_a_stale_lease_read_takes_more_than_a_pre_vote(group):
    """The leader has a lease from member 2; 3 asks 2 in the term that it told it before."""
    cores = group(3, has_lease_reads=True)
    leader = cores.elect(1)
    cores.tick(2)
    cores.isolate(3)
    cores.tick()
    assert leader.has_lease
    # 3 stood in a term of its own; 2 hears of it as an answer, then is asked.
    cores.cores[2].step(PreVoteReply(THREE, TWO, 3, 3, False))
    cores.cores[2].step(Vote(THREE, TWO, 3, leader.log.last, leader.log.last_term, False))
    cores.work(2)
    assert not [m for m in cores.under_way if isinstance(m, VoteReply) and m.is_granted]


@pytest.mark.parametrize("change", [Remove, Demote])
def test_a_leader_that_gives_up_its_vote_has_no_lease(group, change):
    """The one voter left may be restarted, and leads then without asking anybody."""
    cores = group(2, has_lease_reads=True)
    leader = cores.elect(1)
    cores.tick(2)
    assert leader.has_lease
    cores.cut = {(2, 1)}
    leader.propose_change(change(ONE))
    cores.settle()
    assert cores.cores[2].membership.voters == (TWO,)
    assert leader.is_leader
    assert not leader.has_lease
    leader.read_index(7)
    cores.settle()
    assert cores.reads[1] == []

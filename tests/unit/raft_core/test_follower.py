"""A follower's duties, by the message: what it commits, acknowledges and stores."""

import random

import pytest

from raft.core import Config, Core, HardState, Member, Membership, RaftID, Snapshot
from raft.core.membership import encode_membership
from raft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    Install,
    PreVoteReply,
    Vote,
    VoteReply,
)
from raft.core.values import Entries

ONE, TWO, THREE = RaftID(1), RaftID(2), RaftID(3)
MEMBERSHIP = Membership(tuple(Member(number, is_voter=True) for number in (ONE, TWO, THREE)))


def follower(terms, term=0, commit=1):
    """Return member 2 with a log of these terms, the first entry being the membership."""
    runs = tuple(
        (index, each)
        for index, each in enumerate(terms, 1)
        if index == 1 or terms[index - 2] != each
    )
    data = [encode_membership(MEMBERSHIP), *(b"%d" % each for each in terms[1:])]
    return Core(
        Config(id=TWO),
        random.Random(2),
        hard_state=HardState(term or terms[-1], RaftID(0), commit),
        entries=Entries(1, data, runs, (1,)),
    )


def done(core):
    """Carry out all duties at once; return what was sent and what was stored."""
    sent, stored = [], []
    while (ready := core.ready()) is not None:
        sent += ready.messages
        if ready.has_to_store:
            stored.append(ready)
            core.persisted(ready.number)
        sent += ready.messages_after
    return sent, stored


@pytest.mark.parametrize("data", [[], [b"1"]], ids=["empty", "one entry"])
def test_it_commits_no_further_than_the_message_says(data):
    """The leader has committed more, but only the part in the message is known to fit."""
    core = follower([1, 1, 2, 2])
    entries = Entries(2, data, ((2, 1),) if data else ())
    core.step(Append(ONE, TWO, 3, 1, 1, 4, entries))
    assert core.log.commit == 1 + len(data)
    assert core.log.last == 4


def test_it_acknowledges_no_further_than_the_message_says():
    """What follows in its log may be another leader's, and be cut by the next message."""
    core = follower([1, 1, 2, 2])
    core.step(Append(ONE, TWO, 3, 1, 1, 1, Entries(2, [b"1"], ((2, 1),))))
    sent, _ = done(core)
    assert AppendReply(TWO, ONE, 3, 2) in sent


def test_a_vote_in_a_term_that_is_stored_already_is_stored():
    """The term came first, with an answer; the vote of that term must survive a crash as well."""
    core = follower([1, 1], term=2)
    core.step(PreVoteReply(ONE, TWO, 3, 3, False))
    _, (ready,) = done(core)
    assert ready.hard_state == HardState(3, RaftID(0), 1)
    for _ in range(10):
        core.tick()
    core.step(Vote(THREE, TWO, 3, 9, 2, False))
    ready = core.ready()
    assert ready.hard_state == HardState(3, THREE, 1)
    assert not [message for message in ready.messages if isinstance(message, VoteReply)]
    assert ready.messages_after == [VoteReply(TWO, THREE, 3, True)]


def test_nothing_is_stored_twice():
    """A step that changes nothing durable has nothing to store."""
    core = follower([1, 1], term=2)
    core.step(Heartbeat(ONE, TWO, 2, 2, 1))
    _, stored = done(core)
    assert stored == []


def test_a_snapshot_is_acknowledged_once_it_is_stored():
    """Its content is there, its place in the log is not yet."""
    core = follower([1, 1])
    core.step(Install(ONE, TWO, 2, Snapshot(9, 2, MEMBERSHIP)))
    ready = core.ready()
    assert ready.snapshot == Snapshot(9, 2, MEMBERSHIP)
    assert ready.messages == []
    assert ready.messages_after == [AppendReply(TWO, ONE, 2, 9)]
    assert core.log.durable == 0
    core.persisted(ready.number)
    assert core.log.commit == core.log.delivered == 9


def test_what_was_being_stored_when_a_snapshot_came_counts_for_nothing():
    """The end of the old sync says nothing about the log that takes its place."""
    core = follower([1, 1])
    data = [b"2"] * 10
    core.step(Append(ONE, TWO, 2, 2, 1, 1, Entries(3, data, ((3, 2),))))
    former = core.ready()
    assert former.entries.last == 12
    core.step(Install(THREE, TWO, 3, Snapshot(9, 3, MEMBERSHIP)))
    installing = core.ready()
    core.persisted(former.number)
    assert core.log.durable == 0
    core.persisted(installing.number)
    assert core.log.durable == core.log.last == 9

"""One core and small groups: what the scripts do not show."""

import random

import pytest

from proto.errors import InvariantViolationError
from raft.core import (
    Accepted,
    AddLearner,
    Config,
    Core,
    HardState,
    Member,
    Membership,
    NotLeader,
    RaftID,
    RefusalCode,
    Refused,
    Role,
    Snapshot,
    bootstrap,
    force_new_cluster,
)
from raft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Install,
    PreVote,
    ReadRequest,
    TimeoutNow,
    Vote,
    VoteReply,
)
from raft.core.values import Entries


def test_a_group_of_one_leads_after_it_stored_its_vote(group):
    """Not before: a vote that is not durable does not count, even the own."""
    core = group(1).cores[1]
    core.campaign()
    ready = core.ready()
    assert core.role is Role.CANDIDATE
    assert ready.hard_state.vote == 1
    core.persisted(ready.number)
    assert core.is_leader


def test_the_same_calls_give_the_same_results(group):
    """No clock, no hidden randomness: two groups run alike."""

    def life():
        cores = group(3)
        seen = []
        for _ in range(60):
            cores.tick()
            seen.append([(c.role, c.term, c.log.last) for c in cores.cores.values()])
        return seen

    first = life()
    assert any(role is Role.LEADER for row in first for role, _, _ in row)
    assert first == life()


def test_proposals_are_batched_into_one_message(group):
    """Many calls between two `ready` make one append to each follower."""
    cores = group(3)
    leader = cores.elect(1)
    for number in range(100):
        leader.propose([b"%d" % number])
    ready = leader.ready()
    appends = [m for m in ready.messages if isinstance(m, Append)]
    assert [(m.to, len(m.entries.data)) for m in appends] == [(2, 100), (3, 100)]
    assert len(ready.entries.data) == 100


def test_answers_to_proposals_differ(group):
    """Accepted with place and term; not the leader, with who is; refused with a reason."""
    cores = group(3, uncommitted_bytes_max=100)
    leader = cores.elect(2)
    assert cores.cores[1].propose([b"x"]) == NotLeader(RaftID(2))
    assert leader.propose([b"x", b"y"]) == Accepted(3, 4, 2)
    cores.isolate(2)
    leader.propose([b"z" * 100])
    refusal = leader.propose([b"z"])
    assert isinstance(refusal, Refused)
    assert refusal.code is RefusalCode.BUSY


def test_an_empty_proposal_is_a_bug(group):
    """Empty entries are the leader's own."""
    with pytest.raises(InvariantViolationError, match="an empty entry"):
        group(1).elect(1).propose([b""])


def test_a_message_to_somebody_else_is_a_bug(group):
    """The transport mixed up its streams."""
    with pytest.raises(InvariantViolationError, match="member 1 got a message to 2"):
        group(3).cores[1].step(TimeoutNow(RaftID(3), RaftID(2), 1))


def test_two_leaders_in_a_term_are_a_bug(group):
    """Whoever sees it stops."""
    cores = group(3)
    cores.elect(1)
    with pytest.raises(InvariantViolationError, match="members 1 and 3 both lead term 2"):
        cores.cores[2].step(Heartbeat(RaftID(3), RaftID(2), 2, 0, 1))


def test_stale_replies_are_ignored(group):
    """An answer to an older term counts for nothing."""
    cores = group(5)
    leader = cores.elect(1)
    for number in (2, 3, 4, 5):
        cores.isolate(number)
    leader.propose([b"x"])
    cores.work(1)
    for sender in (2, 3, 4):
        leader.step(AppendReply(RaftID(sender), RaftID(1), 1, 3))
    cores.work(1)
    assert leader.log.commit == 2
    for sender in (2, 3):
        leader.step(AppendReply(RaftID(sender), RaftID(1), 2, 3))
    assert leader.log.commit == 3


@pytest.mark.parametrize(
    "message",
    [
        Append(RaftID(3), RaftID(2), 1, 1, 1, 1, Entries(2, [], ())),
        Heartbeat(RaftID(3), RaftID(2), 1, 0, 1),
        Install(RaftID(3), RaftID(2), 1, Snapshot()),
        Vote(RaftID(3), RaftID(2), 1, 9, 1, False),
        PreVote(RaftID(3), RaftID(2), 1, 9, 1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_who_lags_is_told_the_term(group, message):
    """Whoever asks in an older term gets an answer with the newer one."""
    cores = group(3)
    cores.elect(1)
    core = cores.cores[2]
    core.step(message)
    (reply,) = core.ready().messages
    assert (reply.to, reply.term) == (3, 2)


def test_a_restarted_member_keeps_the_promise_it_may_have_made(group):
    """For an election time-out it helps nobody: it may have promised that to a leader."""
    cores = group(3)
    cores.elect(1)
    before = cores.cores[2]
    core = Core(
        Config(id=RaftID(2)),
        random.Random(2),
        hard_state=HardState(2, RaftID(1), 2),
        entries=before.log.entries(1, before.log.last),
    )
    core.step(Vote(RaftID(3), RaftID(2), 3, 9, 2, False))
    assert core.term == 2
    for _ in range(10):
        core.tick()
    core.step(Vote(RaftID(3), RaftID(2), 3, 9, 2, False))
    assert (core.term, core.vote) == (3, 3)


def test_heartbeats_go_before_large_entries(group):
    """And a peer that does not answer gets no more than the cap."""
    cores = group(3, under_way_bytes_max=2 << 20, entries_bytes_max=1 << 20)
    leader = cores.elect(1)
    big = bytes(b"x" * (3 << 19))
    for _ in range(10):
        leader.propose([big])
    leader.tick()
    messages = leader.ready().messages
    kinds = [type(message) for message in messages]
    assert kinds[:2] == [Heartbeat, Heartbeat]
    to_two = [m for m in messages if isinstance(m, Append) and m.to == 2]
    assert [len(m.entries.data) for m in to_two] == [1, 1]
    leader.tick()
    assert all(isinstance(message, Heartbeat) for message in leader.ready().messages)


def test_a_leader_with_a_slow_disk_gives_way(group):
    """To the best follower, at once."""
    cores = group(3, store_ticks_max=4)
    leader = cores.elect(1)
    leader.propose([b"x"])
    leader.ready()
    for _ in range(4):
        leader.step(HeartbeatReply(RaftID(2), RaftID(1), 2, leader._round))
        leader.step(HeartbeatReply(RaftID(3), RaftID(1), 2, leader._round))
        leader.tick()
    assert leader.role is Role.FOLLOWER
    kinds = [type(m) for ready in iter(leader.ready, None) for m in ready.messages]
    assert TimeoutNow in kinds


def test_a_candidate_with_a_hanging_disk_does_not_ask_again(group):
    """It could not store its own vote; terms do not grow in vain."""
    core = group(1).cores[1]
    core.campaign()
    core.ready()
    for _ in range(200):
        core.tick()
    assert core.term == 2


def test_cut_entries_that_were_being_stored_do_not_count(group):
    """A sync that ends after its entries were replaced promises nothing."""
    cores = group(3)
    core = cores.cores[2]
    core.step(Append(RaftID(1), RaftID(2), 2, 1, 1, 1, Entries(2, [b"a", b"b"], ((2, 2),))))
    first = core.ready()
    core.step(Append(RaftID(3), RaftID(2), 3, 1, 1, 1, Entries(2, [b"c", b"d"], ((2, 3),))))
    second = core.ready()
    core.persisted(first.number)
    assert core.log.durable == 1
    core.persisted(second.number)
    assert core.log.durable == 3
    core.check()


def test_a_report_of_something_never_handed_out_is_a_bug(group):
    """The numbers are the core's."""
    with pytest.raises(InvariantViolationError, match="Ready 99"):
        group(1).cores[1].persisted(99)


def test_the_stored_commit_index_does_not_cover_what_is_stored_after_it(group):
    """A crash between hard state and entries must not commit what lies in their places."""
    core = group(3).cores[2]
    while core.ready() is not None:
        pass
    sent = Entries(2, [b"a", b"b"], ((2, 2),))
    core.step(Append(RaftID(1), RaftID(2), 2, 1, 1, 3, sent))
    ready = core.ready()
    assert core.log.commit == 3
    assert (ready.entries.first, ready.hard_state.commit) == (2, 1)


def test_waiting_reads_have_a_limit(group):
    """More fail at once; those before them are served after the round."""
    cores = group(3, has_lease_reads=False, reads_waiting_max=2)
    leader = cores.elect(1)
    for context in (7, 8, 9):
        assert leader.read_index(context)
    ready = leader.ready()
    assert ready.reads_failed == [9]
    cores.under_way += ready.messages
    cores.settle()
    assert [read.context for read in cores.reads[1]] == [7, 8]


def test_a_leader_that_hears_nobody_steps_down(group):
    """Also if all hear it: they keep following until then, and elect another after it."""
    cores = group(3)
    leader = cores.elect(1)
    cores.cut = {(2, 1), (3, 1)}
    cores.tick(9)
    assert leader.is_leader
    assert cores.cores[2].leader == 1
    cores.tick(2)
    assert not leader.is_leader
    cores.tick(25)
    assert [n for n in (2, 3) if cores.cores[n].is_leader]


def test_a_follower_far_behind_gets_a_snapshot_while_others_go_on(group):
    """Its stream is reported broken once, then sent; meanwhile entries are committed."""
    cores = group(3)
    leader = cores.elect(1)
    cores.isolate(3)
    leader.propose([b"x"] * 50)
    cores.settle()
    leader.compact(leader.log.delivered, 0)
    cores.cut.clear()
    cores.tick(3)
    assert cores.cores[3].snapshot.index == 52
    leader.propose([b"y"])
    cores.settle()
    assert leader.log.commit == 53
    assert leader._peers[3].snapshot_index in (0, 52)
    leader.snapshot_sent(RaftID(3), is_sent=True)
    cores.tick(3)
    assert cores.cores[3].log.commit == 53
    assert dict(leader.matched())[RaftID(3)] == 53


def test_commit_is_not_durable_and_need_not_be(group):
    """A commit index that moves alone asks for no storing."""
    cores = group(3)
    leader = cores.elect(1)
    leader.propose([b"x"])
    ready = leader.ready()
    leader.persisted(ready.number)
    leader.step(AppendReply(RaftID(2), RaftID(1), 2, 3))
    ready = leader.ready()
    assert ready.committed.data == [b"x"]
    assert not ready.has_to_store


def test_what_joins_begins_with_nothing(group):
    """A member without anything stored neither votes for itself nor stands."""
    core = Core(Config(id=RaftID(9)), random.Random(1))
    for _ in range(100):
        core.tick()
    assert core.ready() is None
    assert (core.role, core.term, core.membership) == (Role.FOLLOWER, 0, Membership())
    cores = group(1)
    cores.cores[9] = core
    cores.applied[9] = []
    cores.reads[9] = []
    leader = cores.elect(1)
    leader.propose_change(AddLearner(RaftID(9)))
    cores.tick(4)
    assert core.log.last == leader.log.last
    assert core.membership == leader.membership


def test_a_survivor_goes_on_alone():
    """After `force_new_cluster` it elects itself, keeps all entries and accepts new ones."""
    members = Membership(tuple(Member(RaftID(n), is_voter=True) for n in (1, 2, 3)))
    hard_state, entries = bootstrap(members)
    core = Core(Config(id=RaftID(2)), random.Random(1), hard_state=hard_state, entries=entries)
    leader = RaftID(1)
    core.step(Append(leader, RaftID(2), 4, 1, 1, 1, Entries(2, [b"", b"a"], ((2, 4),))))
    ready = core.ready()
    core.persisted(ready.number)
    forced, more = force_new_cluster(
        ready.hard_state, core.log.last, core.membership, members.members[1]
    )
    stored = core.log.entries(1, core.log.last)
    whole = Entries(
        1, stored.data + more.data, stored.terms + more.terms, stored.changes + more.changes
    )
    again = Core(Config(id=RaftID(2)), random.Random(1), hard_state=forced, entries=whole)
    applied = []
    again.campaign()
    while (ready := again.ready()) is not None:
        if ready.has_to_store:
            again.persisted(ready.number)
        if ready.committed:
            applied += ready.committed.data
    assert again.is_leader
    assert b"a" in applied
    assert isinstance(again.propose([b"b"]), Accepted)
    again.step(Vote(RaftID(1), RaftID(2), 99, 99, 99, True))
    assert again.is_leader, "a member that was left behind must not disturb"


def test_removed_members_and_strangers_do_not_depose(group):
    """A reply with a huge term from somebody who is no member changes nothing."""
    cores = group(3)
    leader = cores.elect(1)
    leader.step(VoteReply(RaftID(8), RaftID(1), 99, False))
    leader.step(Vote(RaftID(8), RaftID(1), 99, 99, 99, False))
    leader.step(ReadRequest(RaftID(8), RaftID(1), 99, 1, 1))
    assert (leader.is_leader, leader.term) == (True, 2)


def test_wrong_settings_are_refused():
    """Heartbeats must come before elections; numbers are positive."""
    with pytest.raises(ValueError, match="heartbeats every 5 ticks"):
        Config(id=RaftID(1), election_ticks=5, heartbeat_ticks=5)
    with pytest.raises(ValueError, match="above 0"):
        Config(id=RaftID(0))


def test_a_log_newer_than_the_hard_state_is_a_bug():
    """Hard state is stored before entries; the other way round something was lost."""
    with pytest.raises(
        InvariantViolationError, match="the stored log has term 2, the hard state 1"
    ):
        Core(
            Config(id=RaftID(1)),
            random.Random(1),
            hard_state=HardState(1),
            entries=Entries(1, [b"x"], ((1, 2),)),
        )


def to_peer(leader, peer):
    """Take what a leader sends now; return the bytes of entries and what else is to one peer."""
    size, kinds = 0, []
    while (ready := leader.ready()) is not None:
        if ready.has_to_store:
            leader.persisted(ready.number)
        for message in ready.messages:
            if message.to == peer:
                kinds.append(type(message))
                if isinstance(message, Append):
                    size += sum(map(len, message.entries.data))
    return size, kinds


def test_a_lost_peer_gets_heartbeats_only(group):
    """Until it answers one; then a small probe, and all else when that is answered."""
    leader = group(3).elect(1)
    third = RaftID(3)
    leader.unreachable(third)
    for _ in range(50):
        leader.propose([b"x" * 10_000] * 20)
        leader.unreachable(third)
        assert to_peer(leader, third) == (0, [])
    leader.tick()
    assert to_peer(leader, third) == (0, [Heartbeat])
    leader.step(HeartbeatReply(third, RaftID(1), leader.term, leader._round))
    size, kinds = to_peer(leader, third)
    assert kinds == [Append]
    assert 0 < size <= leader.config.probe_bytes_max
    leader.unreachable(third)
    leader.step(HeartbeatReply(third, RaftID(1), leader.term, leader._round))
    leader.step(AppendReply(third, RaftID(1), leader.term, leader._peers[third].next + 5))
    assert to_peer(leader, third)[0] > leader.config.probe_bytes_max


def test_a_peer_that_does_not_answer_gets_heartbeats_only(group):
    """Nothing told of a broken link: an election time-out of silence says the same."""
    cores = group(3)
    leader = cores.elect(1)
    cores.isolate(3)
    cores.tick(11)
    assert leader.is_leader
    leader.propose([b"x" * 1000])
    cores.work(1)
    cores.under_way.clear()
    leader.tick()
    assert to_peer(leader, RaftID(3)) == (0, [Heartbeat])


def test_a_probe_of_large_entries_carries_none(group):
    """It asks first; what fits follows the answer."""
    leader = group(3).elect(1)
    third = RaftID(3)
    leader.unreachable(third)
    leader.propose([b"x" * 1_000_000])
    to_peer(leader, third)
    leader.step(HeartbeatReply(third, RaftID(1), leader.term, leader._round))
    assert to_peer(leader, third) == (0, [Append])
    leader.step(AppendReply(third, RaftID(1), leader.term, leader._peers[third].next - 1))
    assert to_peer(leader, third) == (1_000_000, [Append])


def test_entries_that_a_peer_on_its_way_up_needs_are_named(group):
    """Of one that answers; not of one that does not, or that came no nearer for long."""
    cores = group(3)
    leader = cores.elect(1)
    cores.tick(3)
    log = leader.log
    assert leader.needed_from(log.commit) == log.commit + 1
    reached = log.last
    for _ in range(10):
        leader.propose([b"x"])
    third = leader._peers[RaftID(3)]
    assert leader.needed_from(log.last) == reached + 1
    third.to_snapshot(reached + 4)
    leader._peers[RaftID(2)].lost()
    assert leader.needed_from(log.last) == reached + 5
    third.moved = leader.clock - leader.config.catch_up_ticks_max
    assert leader.needed_from(log.last) == log.last + 1

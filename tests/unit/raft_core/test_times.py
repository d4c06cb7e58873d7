"""Every time and bound of the core, to the tick and to the last one that fits."""

import pytest

from raft.core import Accepted, Demote, Promote, RaftID, RefusalCode, Refused, Role
from raft.core.messages import (
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Install,
    PreVote,
    ReadReply,
    ReadRequest,
    TimeoutNow,
)

ONE, TWO, THREE = RaftID(1), RaftID(2), RaftID(3)


def silent_ticks(core, condition, at_most=60):
    """Tick one core that hears nothing until a condition holds; return how many it took."""
    for ticks in range(1, at_most):
        core.tick()
        if condition():
            return ticks
    raise AssertionError("it did not come true")


def test_a_follower_stands_at_its_time_out_and_not_before(group):
    """Drawn between one and two election time-outs, whatever was heard before."""
    for number in (1, 2, 3):
        core = group(3).cores[number]
        timeout = core._timeout
        assert 10 <= timeout < 20
        assert silent_ticks(core, lambda core=core: core.role is Role.PRE_CANDIDATE) == timeout


def test_a_heartbeat_begins_the_time_out_anew(group):
    """The clock that counts is the one since the leader was heard."""
    core = group(3).cores[2]
    core.step(Heartbeat(ONE, TWO, 2, 0, 1))
    timeout = core._timeout
    ready = core.ready()
    core.persisted(ready.number)
    for _ in range(8):
        core.tick()
    core.step(Heartbeat(ONE, TWO, 2, 0, 2))
    assert silent_ticks(core, lambda: core.role is Role.PRE_CANDIDATE) == timeout


def test_a_voter_with_a_hung_disk_waits_a_new_time_out_each_time(group):
    """It could not store its own vote; when the disk goes on it does not stand at once."""
    core = group(3).cores[2]
    core.step(Heartbeat(ONE, TWO, 2, 0, 1))
    ready = core.ready()
    while core.ready() is not None:
        pass
    drawn = silent_ticks(core, lambda: core._elapsed == 0)
    assert core.role is Role.FOLLOWER
    assert drawn >= 10
    core.persisted(ready.number)
    core.tick()
    assert core.role is Role.FOLLOWER


@pytest.mark.parametrize(("setting", "expected"), [(0, 10), (4, 4), (13, 13)])
def test_a_leader_whose_disk_hangs_gives_way_in_time(group, setting, expected):
    """After `store_ticks_max`, or an election time-out; the best follower is told to begin."""
    cores = group(3, store_ticks_max=setting)
    leader = cores.elect(1)
    cores.settle()
    leader.propose([b"x"])
    ready = leader.ready()
    assert ready.entries is not None
    term = leader.term

    def tick_and_answer():
        sent = []
        while (each := leader.ready()) is not None:
            sent += each.messages
        for heartbeat in sent:
            if isinstance(heartbeat, Heartbeat) and heartbeat.round:
                leader.step(HeartbeatReply(heartbeat.to, ONE, term, heartbeat.round))
        tick_and_answer.sent = sent
        return not leader.is_leader

    assert silent_ticks(leader, tick_and_answer) == expected
    told = [each for each in tick_and_answer.sent if isinstance(each, TimeoutNow)]
    assert len(told) == 1
    assert leader.leader == 0


def test_a_lone_leader_whose_disk_hangs_tells_nobody(group):
    """There is no follower that could begin."""
    cores = group(1)
    leader = cores.elect(1)
    leader.propose([b"x"])
    assert leader.ready().entries is not None
    assert silent_ticks(leader, lambda: not leader.is_leader) == 10
    sent = []
    while (ready := leader.ready()) is not None:
        sent += ready.messages
    assert sent == []


def test_a_leader_without_answers_steps_down_after_an_election_time_out(group):
    """Not a tick later, and not before: some other may be elected from then on."""
    cores = group(3)
    leader = cores.elect(1)
    cores.tick(3)
    assert silent_ticks(leader, lambda: not leader.is_leader) == 10


def test_one_answer_of_two_is_enough_to_go_on(group):
    """A majority is the leader and one other."""
    cores = group(3)
    leader = cores.elect(1)
    cores.isolate(3)
    cores.tick(40)
    assert leader.is_leader
    assert leader.term == 2


def test_a_lease_lasts_from_the_sending_for_so_many_ticks(group):
    """Seven of ten: a fifth and one less than the voters' promise."""
    cores = group(3, has_lease_reads=True)
    leader = cores.elect(1)
    cores.tick(2)
    assert leader.config.lease_ticks == 7
    assert leader.has_lease
    assert silent_ticks(leader, lambda: not leader.has_lease) == 7


def test_a_hand_over_ends_after_an_election_time_out(group):
    """Then proposals are taken again; until then they are refused."""
    cores = group(3)
    leader = cores.elect(1)
    cores.tick(2)
    cores.cut = {(1, 3)}
    leader.transfer_leader(THREE)
    cores.settle()
    assert leader.is_handing_over
    refusal = leader.propose([b"x"])
    assert isinstance(refusal, Refused)
    assert refusal.code is RefusalCode.HANDING_OVER
    ticks = 0
    while leader.is_handing_over:
        leader.tick()
        leader.step(HeartbeatReply(TWO, ONE, leader.term, leader._round))
        ticks += 1
        assert ticks < 30
    assert ticks == 10
    assert isinstance(leader.propose([b"x"]), Accepted)


@pytest.mark.parametrize("interval", [1, 3])
def test_heartbeats_are_as_often_as_asked_for(group, interval):
    """One to each follower, every so many ticks."""
    cores = group(3, heartbeat_ticks=interval)
    leader = cores.elect(1)
    beats = []
    for tick in range(1, 10):
        leader.tick()
        ready = leader.ready()
        messages = ready.messages if ready else []
        if any(isinstance(each, Heartbeat) and each.round for each in messages):
            beats.append(tick)
        for each in messages:
            if isinstance(each, Heartbeat) and each.round:
                leader.step(HeartbeatReply(each.to, ONE, leader.term, each.round))
        while leader.ready() is not None:
            pass
    assert beats == list(range(interval, 10, interval))


@pytest.mark.parametrize("silent", [9, 10])
def test_who_did_not_answer_for_an_election_time_out_is_out_of_reach(group, silent):
    """To the tick: nobody hands over to one who may be gone."""
    cores = group(3)
    leader = cores.elect(1)
    cores.tick(2)
    for _ in range(silent):
        leader.tick()
        leader.step(HeartbeatReply(TWO, ONE, leader.term, leader._round))
    answer = leader.transfer_leader(THREE)
    assert isinstance(answer, Refused) == (silent == 10)


def test_reads_beyond_the_bound_fail_at_once_or_go_unanswered(group):
    """As many as the bound wait, whoever asked; the next local one is told, a follower's is not."""
    cores = group(3, reads_waiting_max=2)
    leader = cores.elect(1)
    cores.isolate(1)
    leader.read_index(1)
    leader.step(ReadRequest(TWO, ONE, leader.term, 7, 5))
    leader.read_index(2)
    leader.step(ReadRequest(THREE, ONE, leader.term, 8, 6))
    ready = leader.ready()
    assert ready.reads_failed == [2]
    assert ready.reads == []
    cores.cut.clear()
    leader.tick()
    sent, reads = [], []
    cores.work(1)
    for heartbeat in [each for each in cores.under_way if isinstance(each, Heartbeat)]:
        leader.step(HeartbeatReply(heartbeat.to, ONE, leader.term, heartbeat.round))
    while (ready := leader.ready()) is not None:
        sent += ready.messages
        reads += ready.reads
    assert [each.context for each in reads] == [1]
    answers = [each for each in sent if isinstance(each, ReadReply)]
    assert [(each.to, each.context, each.life) for each in answers] == [(TWO, 7, 5)]


@pytest.mark.parametrize(("lag", "is_allowed"), [(3, True), (4, False)])
def test_a_learner_may_lag_so_far_to_become_a_voter(group, lag, is_allowed):
    """Exactly as many entries as the setting says."""
    cores = group(3, promotion_lag_entries_max=3)
    leader = cores.elect(1)
    leader.propose_change(Demote(THREE))
    cores.tick(2)
    cores.cut = {(1, 3)}
    leader.propose([b"%d" % number for number in range(1, lag + 1)])
    cores.settle()
    answer = leader.propose_change(Promote(THREE))
    assert isinstance(answer, Accepted) == is_allowed


def test_a_pre_candidate_asks_every_other_voter_once_with_its_logs_end(group):
    """The term is not raised by asking."""
    core = group(3).cores[2]
    core.campaign()
    messages = core.ready().messages
    assert messages == [PreVote(TWO, ONE, 1, 1, 1), PreVote(TWO, THREE, 1, 1, 1)]
    assert core.term == 1


def test_an_answer_from_a_stranger_counts_for_nothing(group):
    """A number that is no peer moves no mark."""
    cores = group(3)
    leader = cores.elect(1)
    leader.propose([b"x"])
    leader.ready()
    commit = leader.log.commit
    leader.step(AppendReply(RaftID(9), ONE, leader.term, leader.log.last))
    leader.step(HeartbeatReply(RaftID(9), ONE, leader.term, 99))
    assert leader.log.commit == commit
    assert leader._confirmed <= leader._round


def test_proposals_are_refused_from_the_bound_on(group):
    """As many bytes as the bound may wait, and no byte more."""
    cores = group(3, uncommitted_bytes_max=10)
    leader = cores.elect(1)
    cores.isolate(1)
    assert isinstance(leader.propose([b"x" * 9]), Accepted)
    assert isinstance(leader.propose([b"x"]), Accepted)
    refusal = leader.propose([b"x"])
    assert isinstance(refusal, Refused)
    assert refusal.code is RefusalCode.BUSY


def test_heartbeats_go_before_what_waits_and_displace_nothing(group):
    """Whatever is to be sent already is sent after them."""
    cores = group(3)
    leader = cores.elect(1)
    leader.step(PreVote(TWO, ONE, leader.term, 9, leader.term))
    leader.tick()
    kinds = [type(each).__name__ for each in leader.ready().messages]
    assert kinds == ["Heartbeat", "Heartbeat", "PreVoteReply"]


def test_a_snapshot_is_offered_once_until_it_is_reported(group):
    """Answers of the follower meanwhile are no reason to send it again."""
    cores = group(3)
    leader = cores.elect(1)
    cores.isolate(3)
    for number in range(5):
        leader.propose([b"%d" % number])
        cores.settle()
    leader.compact(leader.log.delivered, 0)
    leader.propose([b"x"])
    cores.settle()
    cores.tick(2)
    leader.unreachable(THREE)
    offered = 0
    for _ in range(5):
        leader.tick()
        leader.step(HeartbeatReply(THREE, ONE, leader.term, leader._round))
        while (ready := leader.ready()) is not None:
            offered += sum(isinstance(each, Install) for each in ready.messages)
    assert offered == 1

"""A group of members: elections, commits, outcomes of proposals, snapshots, reads, members."""

from __future__ import annotations

import asyncio
import random

import pytest

from proto.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from raft.core import encode
from raft.core.messages import Heartbeat
from raft.node import ENTRY_BYTES_MAX, RaftNode, force_cluster_of_one


async def outcome(future):
    """Return an index, or the error's class."""
    try:
        return await future
    except SwarmError as error:
        return type(error)


def test_a_lone_member_commits_at_once_and_restarts(play):
    """A cluster of one leads when it is open, needs no timer, and has everything again."""

    async def story(group):
        peer = await group.form("a")
        node = peer.node
        assert node.is_leader
        indexes = await asyncio.gather(*(peer.propose(b"%d" % n) for n in range(200)))
        assert indexes == list(range(3, 203))
        assert node._timer is None
        assert await node.read_barrier() == 202
        peer.kill()
        await peer.restart()
        assert peer.machine.entries == [b"%d" % n for n in range(200)]
        assert peer.node.is_leader
        assert peer.machine.roles == [3]

    play(story)


def test_all_see_the_same_entries_in_the_same_order(play):
    """Proposals of a leader come to all, also what concurrent callers proposed."""

    async def story(group):
        leader = await group.form("abc")
        await asyncio.gather(*(leader.propose(b"%d" % n) for n in range(500)))
        assert await group.agree() == [b"%d" % n for n in range(500)]
        assert group["b"].machine.roles == []
        address = group["b"].node.leader_address
        with pytest.raises(NotLeaderError, match="the leader is a:1"):
            group["b"].propose(b"x")
        assert address == "a:1"

    play(story)


def test_a_new_leader_within_two_seconds(play):
    """When the leader dies another leads soon, and nothing acknowledged is lost."""

    async def story(group):
        leader = await group.form("abc")
        await asyncio.gather(*(leader.propose(b"%d" % n) for n in range(100)))
        leader.kill()
        began = group.loop.time()
        second = await group.leader("bc")
        assert group.loop.time() - began < 2.5
        await second.propose(b"after")
        await leader.restart()
        assert await group.agree() == [b"%d" % n for n in range(100)] + [b"after"]

    play(story)


def test_three_outcomes_of_a_proposal(play):
    """Acknowledged; refused with the leader's address; unknown when leadership was lost."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"kept")
        group.isolate("a")
        lost = old.propose(b"lost")
        await group.commit(b"new", "bc")
        assert await outcome(lost) is UnavailableError
        assert old.machine.roles[-1] == 0
        with pytest.raises(NotLeaderError, match="no leader is known"):
            old.propose(b"refused")
        group.heal()
        assert await group.agree() == [b"kept", b"new"]
        with pytest.raises(NotLeaderError, match=r"the leader is [bc]:1"):
            old.propose(b"refused")

    play(story)


def test_an_unknown_proposal_may_be_kept(play):
    """Unknown means unknown: what had reached another member is committed by the next leader."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"1")
        # Appends pass, answers do not.
        group.cuts |= {("b", "a"), ("c", "a")}
        future = old.propose(b"2")
        assert await outcome(future) is UnavailableError
        group.heal()
        await group.commit(b"3")
        assert await group.agree() == [b"1", b"2", b"3"]

    play(story)


def test_a_lagging_member_gets_a_snapshot_while_others_go_on(play):
    """Its entries are gone from the logs; it gets the state and then what came meanwhile."""

    async def story(group):
        group.settings = type(group.settings)(entries_kept=10)
        leader = await group.form("abc")
        group.isolate("c")
        for number in range(300):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        await group["b"].snapshot()
        group.heal()
        later = [leader.propose(b"later %d" % n) for n in range(50)]
        await asyncio.gather(*later)
        entries = await group.agree()
        assert len(entries) == 350
        assert group["c"].machine.installs == 1
        group["c"].kill()
        await group["c"].restart()
        assert await group.agree() == entries

    play(story)


def test_installing_a_snapshot_survives_a_crash_at_every_operation(play):
    """Wherever power is lost, the member comes back and catches up."""

    async def story(group):
        group.settings = type(group.settings)(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        third = group["c"]
        crashes = 0
        for operation in range(60):
            third.kill()
            for number in range(20):
                await leader.propose(b"%d.%d" % (operation, number))
            await leader.snapshot()
            await third.restart()
            third.files.operations, third.files.crash_at = 0, operation
            await group.until(
                lambda: third.files.is_stopped or third.machine.index == leader.machine.index
            )
            crashes += third.files.is_stopped
            third.kill(is_power_lost=group.rng.random() < 0.7)
            await third.restart()
            await group.agree()
        assert crashes > 10

    play(story)


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04, 0.08])
def test_a_disk_that_fails_while_a_snapshot_comes_in(play, delay):
    """The member reads its disk anew, tells its listener what is there, and catches up."""

    async def story(group):
        group.settings = type(group.settings)(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        third = group["c"]
        for turn in range(6):
            group.isolate("c")
            for number in range(20):
                await leader.propose(b"%d.%d" % (turn, number))
            await leader.snapshot()
            installs = third.machine.installs
            group.heal()
            await group.until(lambda: third.node._received or third.node._installing, 5.0)
            await asyncio.sleep(delay * group.rng.random())
            third.files.fail_sync = True
            await asyncio.sleep(1.0)
            third.files.fail_sync = False
            await leader.propose(b"%d" % turn)
            await group.agree()
            assert third.machine.installs > installs
        third.kill()
        await third.restart()
        await group.agree()

    play(story)


def test_a_full_disk_refuses_and_recovers(play):
    """A lone member says that the disk is full, keeps nothing of it, and goes on with room."""

    async def story(group):
        peer = await group.form("a")
        await peer.propose(b"1")
        peer.files.room_bytes = 10
        assert await outcome(peer.propose(b"2")) is ResourceExhaustedError
        with pytest.raises(ResourceExhaustedError, match="make room"):
            peer.propose(b"3")
        await asyncio.sleep(5)
        with pytest.raises(ResourceExhaustedError, match="make room"):
            peer.propose(b"3")
        peer.files.room_bytes = None
        await group.until(lambda: peer.node.is_leader, 3.0)
        await peer.propose(b"4")
        assert peer.machine.entries == [b"1", b"4"]
        peer.kill()
        await peer.restart()
        assert peer.machine.entries == [b"1", b"4"]

    play(story)


def test_a_lone_member_starts_on_a_full_disk(play):
    """What it holds can be read; it says why it takes no changes, and does so with room."""

    async def story(group):
        peer = await group.form("a")
        await peer.propose(b"1")
        peer.kill()
        peer.files.room_bytes = 0
        await peer.restart()
        assert peer.machine.entries == [b"1"]
        with pytest.raises(ResourceExhaustedError):
            peer.propose(b"2")
        peer.files.room_bytes = None
        await group.until(lambda: peer.node.is_leader, 3.0)
        await peer.propose(b"3")
        assert peer.machine.entries == [b"1", b"3"]

    play(story)


def test_a_leader_whose_disk_is_full_makes_room_for_another(play):
    """The others go on; with room again it is a member as before."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"1")
        old.files.room_bytes = 0
        assert await outcome(old.propose(b"2")) in {UnavailableError, ResourceExhaustedError}
        await group.commit(b"3", "bc")
        old.files.room_bytes = None
        entries = await group.agree()
        assert entries in ([b"1", b"3"], [b"1", b"2", b"3"])

    play(story)


def test_a_leader_with_a_slow_disk_steps_down(play):
    """One that takes seconds for a sync hands over to one that does not."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"1")
        old.slow_seconds = 30.0
        old.propose(b"2").add_done_callback(lambda future: future.exception())
        second = await group.leader("bc", within=5.0)
        await second.propose(b"3")
        old.slow_seconds = 0.0
        await group.agree(within=60.0)

    play(story)


def test_a_failing_sync_is_not_acknowledged(play):
    """After EIO the member reads its disk anew; what was acknowledged before is there."""

    async def story(group):
        peer = await group.form("a")
        await peer.propose(b"1")
        peer.files.fail_sync = True
        assert await outcome(peer.propose(b"2")) in {UnavailableError, ResourceExhaustedError}
        peer.files.fail_sync = False
        await group.until(lambda: peer.node.is_leader, 3.0)
        await peer.propose(b"3")
        assert peer.machine.entries[0] == b"1"
        assert peer.machine.entries[-1] == b"3"
        live = list(peer.machine.entries)
        peer.kill()
        await peer.restart()
        assert peer.machine.entries == live

    play(story)


def test_reads_are_linearizable_everywhere(play):
    """A barrier on any member shows what was committed before it was asked for."""

    async def story(group):
        leader = await group.form("abc")
        for number in range(20):
            await leader.propose(b"%d" % number)
            follower = group["bc"[number % 2]]
            await follower.node.read_barrier()
            assert len(follower.machine.entries) == number + 1

    play(story)


def test_a_leader_that_was_cut_off_serves_no_reads(play):
    """Its lease ends before another can lead; then it refuses, whatever it was told before."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"1")
        group.isolate("a")
        await group.commit(b"2", "bc")
        assert await outcome(old.node.read_barrier()) in {NotLeaderError, UnavailableError}

    play(story)


def test_a_leader_that_slept_serves_no_stale_read(play):
    """A paused process learns how late it is before it looks at its lease."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"1")
        assert await old.node.read_barrier()
        old.node._timer.cancel()
        group.isolate("a")
        await group.commit(b"2", "bc")
        assert await outcome(old.node.read_barrier()) in {NotLeaderError, UnavailableError}

    play(story)


def test_leadership_is_handed_over_on_close(play):
    """A graceful end costs no election time-out."""

    async def story(group):
        old = await group.form("abc")
        await old.propose(b"1")
        began = group.loop.time()
        await old.node.close()
        old.node = None
        second = await group.leader("bc")
        assert group.loop.time() - began < 0.5
        await second.propose(b"2")

    play(story)


def test_leadership_is_handed_over_to_whom_one_wants(play):
    """The named member leads, and the former leader knows it."""

    async def story(group):
        old = await group.form("abc")
        await old.node.transfer_leadership("c")
        assert await group.leader() is group["c"]
        assert old.node.leader_address == "c:1"
        with pytest.raises(NotLeaderError):
            await old.node.transfer_leadership("b")
        with pytest.raises(NotFoundError):
            await group["c"].node.transfer_leadership("x")

    play(story)


def test_members_come_and_go(play):
    """Joining is idempotent, removal is for ever, an address can change, all is told to links."""

    async def story(group):
        leader = await group.form("abc")
        node = leader.node
        member_id = node.status()[0].member_id
        assert len({status.member_id for status in node.status()}) == 3
        assert await node.add_learner("b", "b:1") in {s.member_id for s in node.status()}
        with pytest.raises(ConflictError, match="node b is a manager already, at b:1"):
            await node.add_learner("b", "b:2")
        await node.change_address("b", "b:2")
        await group.until(lambda: group["c"].node._linked.get("b") == "b:2")
        gone = group["c"].node.member_id
        await node.remove("c")
        await node.remove("c")
        await group.until(lambda: group["c"].node.is_removed)
        await asyncio.sleep(5)
        assert leader.node._linked.keys() == {"b"}
        assert not node.is_allowed("c")
        await leader.propose(b"1")
        group["c"].kill()
        group["c"].files = type(group["c"].files)(random.Random(5))
        group.peers["c"] = type(leader)(group, "c")
        await group.join("c")
        assert gone in node.membership.removed
        assert group["c"].node.member_id != gone
        assert await group.agree() == [b"1"]
        assert member_id

    play(story)


def test_removal_that_would_lose_quorum_is_refused_with_the_reason(play):
    """Two of three are needed; with one dead, another may not go."""

    async def story(group):
        leader = await group.form("abc")
        group["c"].kill()
        await asyncio.sleep(2)
        with pytest.raises(ConflictError, match="cannot remove b: 1 of the 2 voters"):
            await leader.node.remove("b")
        with pytest.raises(ConflictError, match="cannot demote b: 1 of the 2 voters"):
            await leader.node.demote("b")
        await leader.node.remove("c")
        with pytest.raises(NotFoundError, match="manager c not found"):
            await leader.node.demote("c")

    play(story)


def test_the_last_voter_cannot_leave(play):
    """Somebody has to keep the state."""

    async def story(group):
        leader = await group.form("a")
        with pytest.raises(ConflictError, match="the last voter cannot leave"):
            await leader.node.remove("a")

    play(story)


def test_a_leader_that_is_removed_hands_over_first(play):
    """The one who asked is sent to the successor, which does it."""

    async def story(group):
        leader = await group.form("abc")
        with pytest.raises(NotLeaderError, match=r"the leader is [bc]:1"):
            await leader.node.remove("a")
        second = await group.leader("bc")
        await second.node.remove("a")
        await group.until(lambda: leader.node.is_removed)
        await second.propose(b"1")

    play(story)


def test_a_demoted_member_follows_and_does_not_count(play):
    """It gets entries and is not promoted by itself."""

    async def story(group):
        leader = await group.form("abc")
        await leader.node.demote("c")
        await leader.propose(b"1")
        await group.agree()
        await asyncio.sleep(5)
        assert not group.is_voter(leader.node, "c")
        await leader.node.promote("c")
        assert group.is_voter(leader.node, "c")

    play(story)


def test_a_cluster_is_forced_from_a_survivor(play):
    """What the survivor has is the state; the others are never listened to again."""

    async def story(group):
        leader = await group.form("abc")
        for number in range(30):
            await leader.propose(b"%d" % number)
        await group.agree()
        old_id = group["b"].node.member_id
        for name in "abc":
            group[name].kill()
        survivor = group["b"]
        member_id = force_cluster_of_one(
            survivor.home,
            survivor.keys,
            node_id="b",
            address="b:9",
            rng=survivor.rng,
            files=survivor.files,
        )
        await survivor.restart()
        assert survivor.node.member_id == member_id != old_id
        assert survivor.machine.entries == [b"%d" % n for n in range(30)]
        assert [m.address for m in survivor.node.membership.members] == ["b:9"]
        assert len(survivor.node.membership.removed) == 3
        await survivor.propose(b"alone")
        group.peers["d"] = type(survivor)(group, "d")
        await group.join("d")
        assert group["d"].machine.entries[-1] == b"alone"

    play(story)


def test_sizes_are_limited(play):
    """An entry of 1.5 MiB and its envelope passes, a larger or empty one is refused."""

    async def story(group):
        leader = await group.form("abc")
        data = bytes(ENTRY_BYTES_MAX)
        await asyncio.gather(*(leader.propose(data) for _ in range(10)))
        assert await group.agree() == [data] * 10
        for wrong in (b"", bytes(ENTRY_BYTES_MAX + 1)):
            with pytest.raises(InvalidError):
                leader.propose(wrong)

    play(story)


def test_bytes_in_flight_are_limited(play):
    """A flood is refused at once, and nothing of it is anywhere."""

    async def story(group):
        group.settings = type(group.settings)(in_flight_bytes_max=4 << 20)
        leader = await group.form("abc")
        first = [leader.propose(bytes(1 << 20)) for _ in range(3)]
        with pytest.raises(ResourceExhaustedError, match="waiting to be committed"):
            leader.propose(bytes(1 << 20))
        await asyncio.gather(*first)
        await leader.propose(b"1")
        assert leader.node._proposals.size == 0

    play(story)


def test_messages_of_impostors_are_refused(play):
    """A node may only speak for its own member, and only readable messages."""

    async def story(group):
        leader = await group.form("abc")
        node = leader.node
        b, c = (group[name].node.member_id for name in "bc")
        fake = encode([Heartbeat(c, node.member_id, 99, 0, 0)])
        with pytest.raises(DeniedError, match="node b speaks for member"):
            node.on_messages("b", [fake])
        with pytest.raises(DeniedError, match="cannot be read"):
            node.on_messages("b", [b"nonsense"])
        assert node.term < 99
        assert b

    play(story)


def test_the_data_key_is_changed_while_running(play):
    """Old files go with the next snapshot, and so does the old key."""

    async def story(group):
        leader = await group.form("abc")
        await leader.propose(b"1")
        index = await leader.node.rotate_data_key()
        assert leader.node.is_rotating
        await leader.propose(b"2")
        assert leader.machine.index > index
        await leader.snapshot()
        assert not leader.node.is_rotating
        assert leader.keys.ids == (2,)
        leader.kill()
        await leader.restart()
        assert await group.agree() == [b"1", b"2"]

    play(story)


def test_a_broken_invariant_stops_the_member(play, monkeypatch):
    """A bug is not a fault of the disk: everybody is told, nothing goes on, others lead."""

    async def story(group):
        leader = await group.form("abc")
        await leader.propose(b"1")

        def bug(*_args):
            raise AssertionError("a bug")

        monkeypatch.setattr(leader.node._core, "step", bug)
        future = leader.propose(b"2")
        assert await outcome(future) is UnavailableError
        assert leader.machine.failed is not None
        with pytest.raises(UnavailableError, match="stopped: a bug"):
            leader.propose(b"3")
        second = await group.leader("bc")
        await second.propose(b"4")

    play(story)


def test_a_second_cluster_is_not_made_over_the_first(play):
    """`create` and `join` want an empty directory, `open` one that is not."""

    async def story(group):
        peer = await group.form("a")
        peer.kill()
        with pytest.raises(ConflictError, match="holds a log already"):
            await peer.start("create")
        with pytest.raises(ConflictError, match="holds a log already"):
            await peer.start("join", member_id=5, peers=())
        await peer.restart()
        other = group.peers["x"] = type(peer)(group, "x")
        with pytest.raises(NotFoundError):
            await other.restart()
        assert isinstance(peer.node, RaftNode)

    play(story)

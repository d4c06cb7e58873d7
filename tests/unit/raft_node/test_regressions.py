"""Faults that the torture of real processes found, each in the smallest story that shows it."""

from __future__ import annotations

from raft.core import Member
from raft.core.values import RaftID
from raft.node import Settings

LARGE = b"x" * (1 << 20)


async def come_back(group, name, **more):
    """Let a removed member join again, on an empty disk and under a new number."""
    group[name].kill()
    peer = group.peers[name] = group.new_peer(name)
    leader = (await group.leader()).node
    member_id = await leader.add_learner(name, f"{name}:1")
    await peer.start("join", member_id=member_id, **more)
    return peer


def test_a_node_that_came_back_does_not_link_to_its_former_self(play):
    """The log tells it first of the days when it was a member under another number."""

    async def story(group):
        leader = await group.form("abc")
        await leader.propose(b"1")
        former = group["c"].node.member_id
        # More than a message takes: what follows comes later.
        for _ in range(4):
            await leader.propose(LARGE)
        await leader.node.remove("c")
        group.isolate("c")
        third = await come_back(group, "c", peers=leader.node.membership.members)
        seen = set()

        def note():
            seen.update(member.id for member in third.node.membership.members)
            return group.is_voter(third.node, "c") and third.node.member_id in seen

        group.heal()
        await group.until(note)
        assert former in seen, "the story did not happen"
        await group.agree()
        assert third.wire.ever_linked == {"a", "b"}

    play(story)


def test_a_node_that_came_back_does_not_link_to_itself_when_it_connects(play):
    """Those who told it of the members had not heard of its removal yet."""

    async def story(group):
        leader = await group.form("abc")
        await leader.node.remove("c")
        members = leader.node.membership.members
        former = Member(RaftID(7), True, "c", "c:1")
        third = await come_back(group, "c", peers=(*members, former))
        await group.until(lambda: group.is_voter(leader.node, "c"))
        assert third.wire.ever_linked == {"a", "b"}

    play(story)


def test_a_member_whose_entries_are_gone_is_removed_without_farewell(play):
    """What it would need to learn of it is before the start of the log: nothing to say."""

    async def story(group):
        group.settings = Settings(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        group["c"].kill()
        for number in range(20):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        await leader.propose(b"after")
        await leader.node.remove("c")
        members = leader.node.membership.members
        assert {member.node_id for member in members} == {"a", "b"}
        await leader.propose(b"on")
        await group.agree("ab")

    play(story)


def test_a_member_that_has_everything_is_removed_without_farewell(play):
    """It got the entry of its removal before the majority had it: nothing is left to send."""

    async def story(group):
        leader = await group.form("abc")
        # The answer comes too late to be known when the removal is proposed, never after it.
        core = leader.node._core
        matched = core.matched
        core.matched = lambda: [(member, core.log.last + 1) for member, _ in matched()]
        await leader.node.remove("c")
        core.matched = matched
        await leader.propose(b"on")
        await group.agree("ab")

    play(story)


def test_a_member_past_the_offered_snapshot_says_so(play):
    """Its answers were lost, so the leader offers a snapshot that it has no use for.

    It must hear how far the member is, or it offers the same one for ever.
    """

    async def story(group):
        group.settings = Settings(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        third = group["c"]
        group.cuts.add(("c", "a"))
        for number in range(10):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        index = leader.node.snapshot_index
        for number in range(10, 20):
            await leader.propose(b"%d" % number)
        await group.until(lambda: third.machine.index > index)
        group.heal()
        leader.node.on_unreachable("c")
        await group.until(lambda: leader.wire.snapshots_begun, 1.0)
        await leader.propose(b"on")
        await group.agree(within=5.0)
        assert third.machine.installs == 0
        assert leader.wire.snapshots_begun == 1

    play(story)

"""A member knows that a majority is gone, soon, and only then."""

from __future__ import annotations

import asyncio

import pytest

# A leader notices within one election's time; others begin to ask within two, and wait half of one.
KNOWN_SECONDS = 2.6


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("names", ["abc", "abcde"])
def test_whoever_is_cut_off_knows_it(play, seed, names):
    """The leader and a follower, until the links are mended; those who are a majority never do."""

    async def story(group):
        leader = await group.form(names)
        await group.until(lambda: all(_knows_all(peer) for peer in group.peers.values()))
        follower = group[names[1]]
        for lonely in (leader, follower):
            others = [group[name] for name in names if group[name] is not lonely]
            group.isolate(lonely.name)
            await asyncio.sleep(0.5)
            assert not lonely.node.has_lost_majority
            await _never(group, others, KNOWN_SECONDS - 0.5)
            assert lonely.node.has_lost_majority
            await _never(group, others, 5.0)
            assert lonely.node.has_lost_majority
            group.heal()
            await group.until(lambda one=lonely: not one.node.has_lost_majority, within=5.0)
            await group.leader()

    play(story, seed)


def _knows_all(peer):
    return len(peer.node.membership.voters) == len(peer.group.peers)


async def _never(group, others, seconds):
    """Look all the time."""
    until = group.loop.time() + seconds
    while group.loop.time() < until:
        assert not any(one.node.has_lost_majority for one in others)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("names", ["abc", "abcde"])
def test_a_fail_over_loses_no_majority(play, seed, names):
    """While an election can succeed nobody says that none can."""

    async def story(group):
        await group.form(names)
        for _ in range(3):
            dead = await group.leader()
            dead.kill()
            rest = [peer for peer in group.peers.values() if peer is not dead]
            until = group.loop.time() + 6.0
            while group.loop.time() < until and not any(peer.node.is_leader for peer in rest):
                assert not any(peer.node.has_lost_majority for peer in rest)
                await asyncio.sleep(0.01)
            await group.leader()
            await dead.restart()
            await asyncio.sleep(1.0)

    play(story, seed)


def test_a_lone_member_is_a_majority(play):
    """There is nobody to lose."""

    async def story(group):
        peer = await group.form("a")
        assert not peer.node.has_lost_majority

    play(story)

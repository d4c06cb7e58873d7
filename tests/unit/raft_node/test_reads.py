"""Linearizable reads as the node serves them: what they cost, and what they survive."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from proto.errors import SwarmError
from raft.core import decode
from raft.core.messages import Heartbeat
from raft.node import Settings


class StoppedClock:
    """The clock of a machine that is paused from outside: it stands still, and cannot tell."""

    def __init__(self, loop):
        self._loop = loop
        self._lost = 0.0
        self._since = None

    def wall(self):
        """Return some date."""
        return 1.7e9

    def monotonic(self):
        """Return the seconds in which the machine ran."""
        now = self._loop.time() if self._since is None else self._since
        return now - self._lost

    def pause(self):
        """Stop."""
        self._since = self._loop.time()

    def go_on(self):
        """Run again, from where it stopped."""
        self._lost += self._loop.time() - self._since
        self._since = None


def rounds_of(group, name):
    """Collect the rounds of heartbeats that a member begins from now on."""
    carry, rounds = group.carry, set()

    def note(source, to, messages, lane):
        for data in messages:
            for each in decode(data):
                if source.name == name and isinstance(each, Heartbeat) and each.round:
                    rounds.add(each.round)
        carry(source, to, messages, lane)

    group.carry = note
    return rounds


def test_a_leader_that_was_paused_from_outside_serves_no_stale_read(play):
    """No clock of its own tells it; so it asks the others, as it does by default."""

    async def story(group):
        usual, clock = group.clock, StoppedClock(group.loop)
        group.clock = clock
        await group.form("a")
        group.clock = usual
        for name in "bc":
            group.peers[name] = group.new_peer(name)
            await group.join(name)
        a = group["a"]
        assert await group.leader() is a
        await a.propose(b"old")
        assert await a.node.read_barrier()
        clock.pause()
        a.node._timer.cancel()
        group.isolate("a")
        await asyncio.sleep(60.0)
        await group.commit(b"NEW", "bc")
        clock.go_on()
        a.node._timer = None
        a.node._arm_timer()
        assert a.node.is_leader, "it believes that nothing happened"
        with contextlib.suppress(SwarmError):
            await a.node.read_barrier()
            assert b"NEW" in a.machine.entries

    play(story)


def test_reads_that_come_together_share_a_round(play):
    """A thousand callers at the leader, or at a follower, cost what one does, or two."""

    async def story(group):
        leader = await group.form("abc")
        await leader.propose(b"1")
        await group.agree()
        for name in "ab":
            rounds = rounds_of(group, "a")
            await asyncio.gather(*(group[name].node.read_barrier() for _ in range(1000)))
            assert 1 <= len(rounds) <= 3

    play(story)


def test_with_leases_a_leader_asks_nobody(play):
    """That is what the option is for."""

    async def story(group):
        group.settings = Settings(has_lease_reads=True)
        leader = await group.form("abc")
        await leader.propose(b"1")
        await asyncio.sleep(1.0)
        rounds = rounds_of(group, "a")
        assert await leader.node.read_barrier() == leader.node.applied_index
        assert rounds == set()

    play(story)


def test_a_lone_member_asks_nobody(play):
    """There is nobody to ask, with leases or without: the answer is there in the same turn."""

    async def story(group):
        lone = await group.form("a")
        await lone.propose(b"1")
        steps = lone.node.read_barrier()
        with pytest.raises(StopIteration) as done:
            steps.send(None)
        assert done.value.value == lone.node.applied_index

    play(story)

"""Everything that can happen to a group, at random; then all agree on what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from proto.errors import NotLeaderError, ResourceExhaustedError, SwarmError, UnavailableError

CALLERS = 6
TROUBLES = 25


class Story:
    """Callers that note the outcome of each proposal, and trouble meanwhile."""

    def __init__(self, group):
        self.group = group
        self.rng = group.rng
        self.acknowledged = []
        self.refused = []
        self.number = 0
        self.is_over = False
        self.kinds = (
            self.crash,
            self.isolate,
            self.cut,
            self.heal,
            self.lose,
            self.save,
            self.transfer,
        )

    async def call(self):
        """Propose one entry after the other, to anybody."""
        while not self.is_over:
            peer = self.group[self.rng.choice("abc")]
            await asyncio.sleep(self.rng.uniform(0.0, 0.02))
            if peer.node is None:
                continue
            self.number += 1
            data = b"%d" % self.number
            try:
                index = await peer.propose(data)
            except (NotLeaderError, ResourceExhaustedError):
                self.refused.append(data)
            except UnavailableError:
                continue
            else:
                self.acknowledged.append((index, data))

    async def crash(self, peer):
        """Kill one, with or without its power, and start it again later."""
        if peer.node is not None:
            peer.kill(is_power_lost=self.rng.random() < 0.7)
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
            await peer.restart()

    async def isolate(self, peer):
        """Cut one off."""
        self.group.isolate(peer.name)

    async def cut(self, peer):
        """Cut one link, one way."""
        others = [name for name in "abc" if name != peer.name]
        self.group.cuts.add((peer.name, self.rng.choice(others)))

    async def heal(self, _peer):
        """Mend all."""
        self.group.heal()

    async def lose(self, _peer):
        """Lose some messages from now on."""
        self.group.loss = self.rng.choice((0.0, 0.05, 0.3))

    async def save(self, peer):
        """Take a snapshot."""
        if peer.node is not None and peer.machine.index > peer.node.snapshot_index:
            with contextlib.suppress(SwarmError):
                await peer.snapshot()

    async def transfer(self, peer):
        """Let a leader hand over."""
        if peer.node is not None and peer.node.is_leader:
            with contextlib.suppress(SwarmError):
                await peer.node.transfer_leadership()

    async def play(self):
        """Make trouble under load, end it, and wait until all agree; return the state."""
        group = self.group
        await group.form("abc")
        callers = [asyncio.ensure_future(self.call()) for _ in range(CALLERS)]
        for _ in range(TROUBLES):
            await asyncio.sleep(self.rng.uniform(0.05, 1.5))
            await self.rng.choice(self.kinds)(group[self.rng.choice("abc")])
        self.is_over = True
        group.heal()
        await group.commit(b"end")
        entries = await group.agree(within=60.0)
        for caller in callers:
            caller.cancel()
        return entries


@pytest.mark.parametrize("seed", range(int(os.environ.get("SWARM_SIM_SEEDS", "10"))))
def test_nothing_acknowledged_is_lost_whatever_happens(play, seed):
    """Crashes, power loss, cuts, losses, snapshots and transfers; then all agree.

    Acknowledged entries are in the final state once, in the order of their indexes; refused ones
    are not; unknown ones may be.
    """

    async def story(group):
        group.settings = type(group.settings)(entries_kept=5)
        told = Story(group)
        entries = await told.play()
        assert len(entries) == len(set(entries)), "applied twice"
        in_order = [data for _, data in sorted(told.acknowledged)]
        known = set(in_order)
        assert [data for data in entries if data in known] == in_order
        assert not set(told.refused) & set(entries)
        return len(in_order)

    assert play(story, seed) > 20

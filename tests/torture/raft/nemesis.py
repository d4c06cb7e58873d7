"""What goes wrong, and when. `plan` decides from a seed and is pure; `Nemesis` does it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from cluster import Cluster

WEIGHTS: Mapping[str, Mapping[str, int]] = {
    "ours": {
        "kill": 6,
        "strike": 3,
        "kill_majority": 1,
        "kill_all": 1,
        "pause": 4,
        "isolate": 3,
        "mute": 2,
        "deafen": 2,
        "cut": 2,
        "cut_one_way": 2,
        "fill": 2,
        "hang": 3,
        "change": 2,
        "replace": 1,
    },
    # Its members die of a full disk (their journal is a mapped file) and do not come back from some
    # partitions at all, so its faults are only those that any replicated log should bear.
    "pysyncobj": {"kill": 2, "strike": 4, "isolate": 6},
}
LEADER_SHARE = 0.75
DOUBLE_SHARE = 0.25
STRIKE_SECONDS = 2.5
PROMOTE_SECONDS_MAX = 15.0
KINDS_OF_MANY = {"kill_majority", "kill_all", "strike"}


class Fault(msgspec.Struct, frozen=True):
    """One thing that goes wrong for some time.

    Attributes:
        kind: a name of `WEIGHTS`.
        hosts: those that it befalls; of a "strike" the leader, then the follower.
        links: pairs of which the second does not hear the first any more.
        seconds: until it is healed.
        spare_bytes: what a full disk has left.
    """

    kind: str
    hosts: tuple[int, ...]
    links: tuple[tuple[int, int], ...]
    seconds: float
    spare_bytes: int = 0


def plan(  # noqa: C901, PLR0912 -- one case a kind
    rng: random.Random,
    weights: Mapping[str, int],
    members: Sequence[int],
    leader: int | None,
    busy: set[int],
) -> Fault | None:
    """Choose what goes wrong next.

    Args:
        rng: chooses.
        weights: how often each kind comes.
        members: all, also those that are down.
        leader: who leads; it is the victim more often than not.
        busy: members that suffer something now; they are let alone.

    Returns:
        The fault; None if nobody is left to suffer it.
    """
    kind = rng.choices(list(weights), list(weights.values()))[0]
    seconds = rng.uniform(0.3, 4.0)
    spare = rng.choice((0, 1, 4_096, 65_536))
    free = [member for member in members if member not in busy]
    if not free or (kind in KINDS_OF_MANY and busy):
        return None
    victim = leader if leader in free and rng.random() < LEADER_SHARE else rng.choice(free)
    others = [member for member in members if member != victim]
    other = rng.choice(others)
    outgoing = tuple((victim, each) for each in others)
    incoming = tuple((each, victim) for each in others)
    hosts: tuple[int, ...] = (victim,)
    links: tuple[tuple[int, int], ...] = ()
    match kind:
        case "kill":
            seconds = rng.uniform(0.1, 1.5)
        case "strike":
            hosts = (victim, other)
        case "kill_majority":
            hosts = (victim, *rng.sample(others, len(members) // 2))
        case "kill_all":
            hosts = tuple(members)
        case "isolate":
            links = outgoing + incoming
        case "mute":
            links = outgoing
        case "deafen":
            links = incoming
        case "cut":
            links = ((victim, other), (other, victim))
        case "cut_one_way":
            links = ((victim, other),)
        case "replace":
            seconds = rng.uniform(0.0, 0.5)
        case "hang":
            # No longer than others: a change of members waits for a majority no longer either.
            seconds = rng.uniform(0.3, 4.0)
        case "pause" | "fill" | "change":
            pass
        case _:
            raise AssertionError(kind)
    return Fault(kind, hosts, links, seconds, spare)


class Nemesis:
    """Does the damage and heals it.

    Attributes:
        done: how often each kind was done.
    """

    def __init__(self, cluster: Cluster, rng: random.Random, weights: Mapping[str, int]) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._rng = rng
        self._weights = weights
        self._busy: set[int] = set()
        self._cuts: Counter[tuple[int, int]] = Counter()
        # All others cut links.
        self._ways: Mapping[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "kill_majority": self._kill,
            "kill_all": self._kill,
            "strike": self._strike,
            "pause": self._pause,
            "fill": self._fill,
            "hang": self._hang,
            "change": self._change,
            "replace": self._replace,
        }

    async def run(self, seconds: float) -> None:
        """Go on for so long; everything is healed on return."""
        deadline = asyncio.get_running_loop().time() + seconds
        members = range(self._cluster.lab.hosts)
        async with asyncio.TaskGroup() as group:
            while asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(self._rng.uniform(0.8, 2.5))
                count = 2 if self._rng.random() < DOUBLE_SHARE else 1
                tasks = []
                for _ in range(count):
                    leader = await self._cluster.leader()
                    fault = plan(self._rng, self._weights, members, leader, self._busy)
                    if fault is not None:
                        self._busy.update(fault.hosts)
                        tasks.append(group.create_task(self._suffer(fault)))
                if tasks and self._rng.random() < 0.8:
                    await asyncio.wait(tasks)

    async def _suffer(self, fault: Fault) -> None:
        self.done[fault.kind] += 1
        await self._ways.get(fault.kind, self._cut)(fault)
        self._busy.difference_update(fault.hosts)

    async def _kill(self, fault: Fault) -> None:
        for host in fault.hosts:
            self._cluster.kill(host)
        await asyncio.sleep(fault.seconds)
        for host in fault.hosts:
            self._cluster.start(host)

    async def _pause(self, fault: Fault) -> None:
        for host in fault.hosts:
            self._cluster.pause(host)
        await asyncio.sleep(fault.seconds)
        for host in fault.hosts:
            self._cluster.resume(host)

    async def _fill(self, fault: Fault) -> None:
        (host,) = fault.hosts
        if not self._cluster.lab.fill(host, fault.spare_bytes):
            self.done[fault.kind] -= 1
            return
        await asyncio.sleep(fault.seconds)
        self._cluster.lab.relieve(host)

    async def _hang(self, fault: Fault) -> None:
        (host,) = fault.hosts
        sign = self._cluster.lab.hang(host)
        sign.touch()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            sign.unlink()

    async def _replace(self, fault: Fault) -> None:
        await self._cluster.replace(fault.hosts[0], fault.seconds)

    async def _strike(self, fault: Fault) -> None:
        """Let one follower fall behind, then kill the leader and keep it down over an election.

        What was acknowledged meanwhile is on those that are left, or nowhere.
        """
        cluster = self._cluster
        leader, follower = fault.hosts
        cluster.pause(follower)
        await asyncio.sleep(fault.seconds / 2)
        cluster.kill(leader)
        cluster.resume(follower)
        await asyncio.sleep(STRIKE_SECONDS + fault.seconds / 2)
        cluster.start(leader)

    async def _cut(self, fault: Fault) -> None:
        """Cut links; faults that overlap may share some."""
        lab = self._cluster.lab
        fresh = [link for link in fault.links if not self._cuts[link]]
        self._cuts.update(fault.links)
        if fresh:
            lab.cut(fresh)
        await asyncio.sleep(fault.seconds)
        self._cuts.subtract(fault.links)
        healed = [link for link in fault.links if not self._cuts[link]]
        if healed:
            lab.join(healed)

    async def _change(self, fault: Fault) -> None:
        """Take a vote from a member, then give it back; the first may be refused."""
        await self._cluster.change("demote", fault.hosts[0], 0.0)
        await asyncio.sleep(fault.seconds)
        await self._cluster.change("promote", fault.hosts[0], PROMOTE_SECONDS_MAX)

"""Disks that rot, and the operator who replaces the members that have stopped because of it.

A disk rots when its machine loses power, and only while the group can afford to lose it: what was
committed must be with enough others. Its member either starts and has everything, or refuses to.
Then the operator does what the manual says, each step until the group has agreed to it: remove
the member, let a new machine join under a new number, give it a vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proto.errors import CorruptError
from raft.core import AddLearner, Change, Core, Promote, RaftID, Remove

if TYPE_CHECKING:
    from raft.sim.host import Host
    from raft.sim.world import World


class Repairs:
    """See the module."""

    def __init__(self, world: World, voters: int) -> None:
        """Nothing is damaged; so many voters there are at first, and shall always be."""
        self._world = world
        self._rot = world.scenario.rot
        # The member that has stopped and is being replaced, and the number of the new one.
        self._broken: Host | None = None
        self._newcomer = RaftID(0)
        self._voters = voters
        self._spares = [RaftID(number) for number in world.hosts if number > voters]

    def may_rot(self, host: Host) -> bool:
        """Whether this host, which loses power, loses bytes too."""
        world = self._world
        if not self._rot or self._broken is not None or not self._spares:
            return False
        if world.random() >= self._rot:
            return False
        leader = next(iter(world.leaders()), None)
        if leader is None or leader.core is None:
            return False
        core = leader.core
        voters = core.membership.voters
        if core.membership_index > core.log.commit or len(voters) < self._voters:
            return False
        # All others have what is committed: what only some have may be lost with the next disk.
        index = len(world.truth.terms)
        return host.id in voters and all(
            world.hosts[voter].core is not None
            and world.hosts[voter].disk.holds(index, world.truth.terms[-1])
            for voter in voters
            if voter != host.id
        )

    def rot(self, host: Host) -> None:
        """Change bytes on its disk."""
        where = host.disk.rot()
        if where:
            self._world.note("rot", host.id, where)
            self._broken = host

    def started(self, host: Host) -> None:
        """A machine has read its disk and found nothing wrong: what had rotted was not needed."""
        if host is self._broken:
            self._world.note("unharmed", host.id)
            self._broken = None

    def stopped(self, host: Host, error: CorruptError) -> None:
        """A machine does not start because of its disk."""
        assert host is self._broken, f"damage without rot: {error}"
        self._world.note("damaged", host.id, error)
        self._newcomer = self._spares.pop(0)
        self._world.after(self._world.election_time, self._operate, host)

    def _operate(self, broken: Host) -> None:
        """Do the next step, until all are done."""
        world = self._world
        leader = next(iter(world.leaders()), None)
        if leader is not None and leader.core is not None:
            core = leader.core
            change = self._next_change(core, broken)
            if change is None:
                world.note("replaced", broken.id, self._newcomer)
                self._broken = None
                return
            if core.membership_index <= core.log.commit:
                world.note("change", leader.id, change)
                core.propose_change(change)
                leader.work()
        world.after(world.election_time / 2.0, self._operate, broken)

    def _next_change(self, core: Core, broken: Host) -> Change | None:
        membership = core.membership
        if membership.find(broken.id) is not None:
            return Remove(broken.id)
        newcomer = membership.find(self._newcomer)
        if newcomer is None:
            host = self._world.hosts[self._newcomer]
            if host.core is None and not host.incarnation:
                host.start()
            return AddLearner(self._newcomer)
        if not newcomer.is_voter or core.membership_index > core.log.commit:
            return Promote(self._newcomer)
        return None

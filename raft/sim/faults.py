"""The faults that a scenario chooses from, and the check that nobody disturbs a good leader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raft.core import AddLearner, Change, Core, Demote, Promote, RaftID, Readdress, Remove
from raft.sim.checks import Failure
from raft.sim.host import BEFORE, DOOMS, INSTALLING, REPLACING, Host
from raft.sim.interruptions import Interruptions
from raft.sim.scenarios import WILD

if TYPE_CHECKING:
    from raft.sim.world import World


class Faults(Interruptions):
    """Acts on a world; the public methods that scenarios name are the faults."""

    def __init__(self, world: World) -> None:
        """Prepare the scenario's choice."""
        super().__init__(world)
        self._is_over = False
        self._partner = 0
        # Numbers are never given again, also when the group has forgotten them.
        self._left: set[RaftID] = set()
        self._choice: list[Callable[[], None]] = []
        faults = list(world.scenario.faults)
        if faults and world.random() < world.scenario.wild:
            faults += WILD
        for name, weight in faults:
            self._choice += [getattr(self, name)] * weight

    def start(self) -> None:
        """Begin to make trouble."""
        if self._choice:
            self._world.after(self._pause(), self._next, None)

    def _pause(self) -> float:
        return self._world.scenario.fault_time * (0.3 + 1.4 * self._world.random())

    def _next(self, _: None) -> None:
        if self._is_over:
            return
        world = self._world
        fault = self._choice[int(world.random() * len(self._choice))]
        world.note("fault", fault.__name__)
        fault()
        world.after(self._pause(), self._next, None)

    def heal_all(self) -> None:
        """End all trouble."""
        self._is_over = True
        self._world.note("healed")
        self.heal()
        for host in self._world.hosts.values():
            host.doom = ""
            host.dooms_left = 0
            host.unstick()
            self._set_clock_right(host)
            host.go_on()
            if host.core is None and host.incarnation:
                host.start()

    # Choices.

    def _isolate(self, host: Host | None) -> None:
        if host is not None:
            others = [number for number in self._world.hosts if number != host.id]
            self._world.network.split([host.id], others)

    def _isolate_unless_over(self, host: Host) -> None:
        if not self._is_over:
            self._isolate(host)

    # Power.

    def crash_one(self) -> None:
        """Some host loses power for a while."""
        self._crash(self._one())

    def crash_leader(self) -> None:
        """The leader loses power for a while."""
        self._crash(self._leader())

    def blink_one(self) -> None:
        """Some host loses power and is back at once: its next life gets what was under way."""
        host = self._one()
        if host is not None:
            host.crash()
            self._world.after(2.0 * self._world.random(), self._world.revive, host)

    def pair_leader(self) -> None:
        """The leader is left with one other."""
        host = self._leader()
        if host is not None:
            self._pair_off(host)

    def crash_all(self) -> None:
        """The power goes everywhere."""
        for host in self._world.up():
            self._crash(host)

    def _crash(self, host: Host | None) -> None:
        if host is not None:
            host.crash()
            self._world.revive_later(host)

    def doom_one(self) -> None:
        """Some host will lose power around its next sync."""
        host = self._one()
        if host is not None:
            host.doom = DOOMS[int(self._world.random() * len(DOOMS))]

    def doom_replacing(self) -> None:
        """Whoever replaces entries of a former leader next loses power at it."""
        for host in self._world.up():
            host.doom = REPLACING

    def doom_installing(self) -> None:
        """Somebody loses power while it installs a snapshot, and again when it tries anew."""
        host = self._one()
        if host is not None:
            host.doom = INSTALLING
            host.dooms_left = 1 + int(self._world.random() * 2)

    def doom_all(self) -> None:
        """The leader loses power, and the others around their next sync: that of a vote."""
        for host in self._world.up():
            host.doom = DOOMS[int(self._world.random() * len(DOOMS))]
        self._crash(self._leader())

    def doom_follower_and_crash_leader(self) -> None:
        """The leader loses power, and somebody else before its next sync: that of a vote."""
        leader = self._leader()
        host = self._one()
        if leader is not None and host is not None and host is not leader:
            host.doom = BEFORE
            self._crash(leader)

    # Disks.

    def stick_disk(self) -> None:
        """Some disk hangs, or is full."""
        host = self._one()
        if host is not None:
            host.is_disk_stuck = True

    def stick_leader_disk(self) -> None:
        """The leader's does."""
        host = self._leader()
        if host is not None:
            host.is_disk_stuck = True

    def unstick_disks(self) -> None:
        """All disks go on."""
        for host in list(self._world.hosts.values()):
            host.unstick()

    # Links.

    def mute(self) -> None:
        """Nobody hears one host, often the leader; it hears all."""
        host = self._one_or_leader()
        if host is not None:
            for number in self._world.hosts:
                if number != host.id:
                    self._world.network.cut(host.id, number)

    def deafen(self) -> None:
        """One host, often the leader, hears nobody; all hear it."""
        host = self._one_or_leader()
        if host is not None:
            for number in self._world.hosts:
                if number != host.id:
                    self._world.network.cut(number, host.id)

    def _one_or_leader(self) -> Host | None:
        return self._leader() if self._world.random() < 0.5 else self._one()  # noqa: PLR2004 -- a coin

    def glimpse(self) -> None:
        """The leader is mute for an election time-out, one hears it for a moment, it is cut off."""
        self.heal()
        leader = self._leader()
        if leader is not None:
            world = self._world
            for number in world.hosts:
                if number != leader.id:
                    world.network.cut(leader.id, number)
            world.network.laggard = leader.id
            world.after((0.9 + 0.8 * world.random()) * world.election_time, self._show, leader)

    def _show(self, leader: Host) -> None:
        if self._is_over:
            return
        world = self._world
        self.heal()
        others = [number for number in world.hosts if number != leader.id]
        others.pop(int(world.random() * len(others)))
        world.network.split([leader.id], others)
        world.after(2.0 + 8.0 * world.random(), self._isolate_unless_over, leader)

    def split(self) -> None:
        """Cut the hosts in two groups."""
        some = [number for number in self._world.hosts if self._world.random() < 0.5]  # noqa: PLR2004 -- a coin
        others = [number for number in self._world.hosts if number not in some]
        self._world.network.split(some, others)

    def isolate_leader(self) -> None:
        """Cut the leader off, and join those that were cut off before."""
        self.heal()
        self._isolate(self._leader())

    def isolate_leader_after_write(self) -> None:
        """The leader takes writes that nobody else gets to see; former such leaders come back."""
        self._isolate_after_write(self._leader())

    def _isolate_after_write(self, host: Host | None) -> None:
        self.heal()
        if host is not None and not self._is_over:
            self._isolate(host)
            for _ in range(1 + int(self._world.random() * 3)):
                self._world.clients.write(host)

    def led(self, host: Host) -> None:
        """Somebody was elected: what the scenario has in store for new leaders."""
        world = self._world
        scenario = world.scenario
        if self._is_over:
            return
        for delay in scenario.doubts:
            world.after(delay, world.clients.doubt, None)
        if scenario.is_changing_first:
            # Cut off before its first message leaves; the change is for few or none to see.
            if world.random() < scenario.fall:
                self.heal()
                self._isolate(host)
            else:
                self._pair_off(host)
            world.after(0.0, self._change_votes, host)
        elif scenario.fall and world.random() < scenario.fall:
            world.after(scenario.fall_time * world.random(), self._isolate_after_write, host)

    def _pair_off(self, host: Host) -> None:
        """Leave a host with one other, apart from the rest."""
        if self._is_over:
            return
        self.heal()
        others = [number for number in self._world.hosts if number != host.id]
        self._partner = others.pop(int(self._world.random() * len(others)))
        self._world.network.split([host.id, self._partner], others)

    def seesaw(self) -> None:
        """The leader takes writes that one other gets to see; a successor arises; it comes back.

        What the other answered in the first term arrives late, perhaps in the third.
        """
        host = self._leader()
        if host is None:
            return
        self._pair_off(host)
        for _ in range(3 + int(self._world.random() * 8)):
            self._world.clients.write(host)
        after = self._world.after
        after(2.6 * self._world.election_time, self._cut_partner, None)
        after(3.6 * self._world.election_time, self._hand_back, host)

    def betray(self) -> None:
        """One follower is cut from the leader for long; then the other restarts without a leader.

        The restarted one may have promised the leader not to help the first.
        """
        self.heal()
        leader = self._leader()
        others = [host for host in self._world.up() if host is not leader]
        if leader is not None and others:
            self._partner = others[0].id
            self._world.network.split([leader.id], [self._partner])
            time = (1.5 + 2.0 * self._world.random()) * self._world.election_time
            self._world.after(time, self._betray, leader)

    def _betray(self, leader: Host) -> None:
        if self._is_over:
            return
        self._isolate(leader)
        for host in self._world.up():
            if host is not leader and host.id != self._partner:
                host.crash()
                host.start()
                break

    def _cut_partner(self, _: None) -> None:
        if not self._is_over:
            self.heal()
            self._isolate(self._world.hosts[self._partner])

    def _hand_back(self, former: Host) -> None:
        host = None if self._is_over else self._leader()
        if host is not None and host.core is not None:
            host.core.transfer_leader(former.id)
            host.work()

    def lag_leader(self) -> None:
        """Many answers to the leader are late, then it is cut off: those still arrive."""
        self.heal()
        leader = self._leader()
        if leader is not None:
            self._world.network.laggard = leader.id
            time = 0.8 * self._world.election_time
            self._world.after(time, self._isolate_laggard, leader)

    def _isolate_laggard(self, leader: Host) -> None:
        if not self._is_over:
            self.heal()
            self._isolate(leader)

    def isolate_one(self) -> None:
        """Cut somebody off."""
        self._isolate(self._one())

    def cut_one_way(self) -> None:
        """One host hears another no more, but not the other way round."""
        a, b = self._one(), self._one()
        if a is not None and b is not None and a is not b:
            self._world.network.cut(a.id, b.id)

    def heal(self) -> None:
        """Join all."""
        self._world.network.heal()

    # Leaders and members.

    def transfer(self) -> None:
        """Ask the leader to hand over."""
        self._transfer()

    def transfer_and_isolate(self) -> None:
        """The leader is cut off just after it handed over."""
        host = self._transfer()
        self.heal()
        world = self._world
        if host is not None:
            world.after(4.0 * world.random(), self._isolate_unless_over, host)

    def _transfer(self) -> Host | None:
        host = self._leader()
        if host is None or host.core is None:
            return None
        voters = host.core.membership.voters
        if voters:
            host.core.transfer_leader(voters[int(self._world.random() * len(voters))])
            host.work()
        return host

    def change(self) -> None:
        """Ask the leader for a change of the membership."""
        self._change(self._leader())

    def change_burst(self) -> None:
        """Ask for several at once, and everybody who thinks it leads."""
        for host in self._world.leaders():
            for _ in range(3):
                self._change(host)

    def isolate_leader_and_change(self) -> None:
        """Ask for several while nobody can agree, leaving others free to elect a successor."""
        self.heal()
        host = self._leader()
        self._isolate(host)
        for _ in range(4):
            self._change(host)

    def _change(self, host: Host | None) -> None:
        if host is None or host.core is None:
            return
        change = self._draw_change(host.core)
        if change is None:
            return
        self._world.note("change", host.id, change)
        joining = self._world.hosts[change.member_id]
        if joining.core is None and not joining.incarnation:
            joining.start()
        if isinstance(change, Remove):
            self._left.add(change.member_id)
        host.core.propose_change(change)
        host.work()

    def _change_votes(self, host: Host) -> None:
        """Ask for a change that gives or takes a vote, and keeps the number of the member."""
        if host.core is None or self._is_over:
            return
        options: list[Change] = [
            Demote(member.id) if member.is_voter else Promote(member.id)
            for member in host.core.membership.members
            if member.id != host.id
        ]
        if options:
            host.core.propose_change(options[int(self._world.random() * len(options))])
            host.work()

    def _draw_change(self, core: Core) -> Change | None:
        world = self._world
        membership = core.membership
        options: list[Change] = []
        for member in membership.members:
            if not member.is_voter:
                options += [Promote(member.id)] * 4
                options.append(Remove(member.id))
            else:
                options += [Remove(member.id), Demote(member.id)]
        for number in world.hosts:
            host_id = RaftID(number)
            if membership.find(host_id) is None and host_id not in self._left:
                options += [AddLearner(host_id)] * 2
        if membership.members:
            options.append(Readdress(membership.members[0].id, f"at-{world.steps}"))
        return options[int(world.random() * len(options))] if len(options) > 0 else None

    # Nobody disturbs.

    def check_disruption(self, steps_max: int) -> None:
        """Cut a follower off for long, let it back, remove another: the leader must stay."""
        world = self._world
        for turn in range(3):
            world.run_until(world.now + 6.0 * world.election_time, steps_max)
            leader = self._leader()
            if leader is None or leader.core is None:
                raise Failure("no progress", "nobody leads in calm weather")
            term = leader.core.term
            others = [number for number in world.hosts if number != leader.id]
            follower = world.hosts[others[int(world.random() * len(others))]]
            if turn == 0 and len(others) > 2:  # noqa: PLR2004 -- two must be left
                self._left.add(follower.id)
                leader.core.propose_change(Remove(follower.id))
                leader.work()
            else:
                self._isolate(follower)
            world.run_until(world.now + 5.0 * world.election_time, steps_max)
            self.heal()
            world.run_until(world.now + 5.0 * world.election_time, steps_max)
            core = world.hosts[leader.id].core
            if core is None or not core.is_leader or core.term != term:
                now = [(host.id, host.core.term) for host in world.up() if host.core]
                raise Failure(
                    "disrupted",
                    f"member {leader.id} led term {term} until {follower.id} came back: {now}",
                )

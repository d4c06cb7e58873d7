"""The simulated world: virtual time, hosts, network, clients and faults, all from one seed.

Events are (time, number, function, argument) in a heap; one event is one step. Everything random
comes from one generator, nothing depends on the order of sets or on hashes, so a seed is a run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from raft.core import Config, Core, Member, Membership, RaftID, Role, Snapshot, bootstrap
from raft.core.messages import Message, TimeoutNow
from raft.sim.checks import Failure, Truth
from raft.sim.clients import Clients
from raft.sim.disk import Content, Disk
from raft.sim.filedisk import FileDisk
from raft.sim.host import Host
from raft.sim.linear import Operation
from raft.sim.network import Network, Weather
from raft.sim.repairs import Repairs
from raft.sim.scenarios import Scenario
from raft.sim.stale import StaleReads

# The unit of time is a tenth of a tick.
TICK_TIME = 10.0
# Clocks differ by so much at most while a leader has leases: within what `lease_ticks` bears.
CLOCK_DRIFT = 0.1
# How often a transport tells its member that it lost what it was given for another.
_LOSS_REPORTED = 0.3
# How often a machine that lost power is back at once.
_BLINKS = 0.2
_TRACE_LINES_MAX = 100_000


class World:
    """See the module.

    Attributes:
        rng: the only source of randomness.
        now: the time.
        steps: events so far.
        trace: lines for a person, or None.
        hosts: by number, also those that are not members yet.
        truth: what the checks know.
    """

    def __init__(
        self,
        seed: int,
        scenario: Scenario,
        core_class: type[Core] = Core,
        disk_class: type[FileDisk] = FileDisk,
        *,
        is_traced: bool = False,
    ) -> None:
        """Build everything and switch the first members on."""
        self.rng = random.Random(seed)  # noqa: S311 -- a simulation repeats
        self.random = self.rng.random
        self.scenario = scenario
        self.core_class = core_class
        self.now = 0.0
        self.steps = 0
        self.trace: list[str] | None = [] if is_traced else None
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        self._contents: dict[tuple[int, int], Content] = {(0, 0): {}}
        self.operations: list[Operation] = []
        self.truth = Truth()
        self.network = Network(self.rng, scenario.weather)
        self.snapshot_every = scenario.snapshot_every
        self.entries_kept = scenario.entries_kept
        self.election_ticks = scenario.election_ticks
        self.election_time = scenario.election_ticks * TICK_TIME
        self.patience = scenario.patience * TICK_TIME
        # Without leases nothing rests on clocks, so they may do what they like.
        self.has_leases = self.random() < scenario.leases
        self.clients = Clients(self, scenario.operations, scenario.think_time)
        self.hosts: dict[int, Host] = {}
        self.disks: list[Disk] = []
        voters = self._build(disk_class)
        self.faults = StaleReads(self)
        self.repairs = Repairs(self, voters)
        for number in range(1, voters + 1):
            self.hosts[number].start()

    def _build(self, disk_class: type[FileDisk]) -> int:
        """Make the machines; return how many of them, the first, are the group."""
        scenario = self.scenario
        voters = self.rng.choice(scenario.voters)
        has_files = bool(scenario.rot) or self.random() < scenario.files
        for number in range(1, voters + scenario.spares + 1):
            config = Config(
                id=RaftID(number),
                election_ticks=scenario.election_ticks,
                has_lease_reads=self.has_leases,
                entries_max=scenario.entries_max,
                under_way_messages_max=scenario.under_way,
                promotion_lag_entries_max=20,
            )
            disk = disk_class(config.id, self.rng, self.content) if has_files else Disk()
            host = Host(self, config.id, config, disk, self.draw_tick_time())
            # No two disks are equally fast; some of them are much slower than the others.
            host.disk_time = scenario.disk_time * (0.2 + 1.6 * self.random())
            self.hosts[number] = host
            self.disks.append(host.disk)
        members = tuple(Member(RaftID(number), is_voter=True) for number in range(1, voters + 1))
        for number in range(1, voters + 1):
            self.disks[number - 1].boot(*bootstrap(Membership(members)))
        return voters

    # Events.

    def after(self, delay: float, function: Callable[[Any], None], argument: Any) -> None:
        """Let something happen later."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay, self._sequence, function, argument))

    def run_until(self, time: float, steps_max: int) -> None:
        """Let time pass."""
        heap = self._heap
        pop = heapq.heappop
        while heap[0][0] <= time:
            self.now, _, function, argument = pop(heap)
            self.steps += 1
            function(argument)
            if self.steps > steps_max:
                raise Failure("too many steps", f"{self.steps} by time {self.now:.1f}")
        self.now = time

    def send(self, message: Message) -> None:
        """Give a message to the network."""
        host = self.hosts[message.to]
        late = 0.0
        if isinstance(message, TimeoutNow) and self.random() < self.scenario.late_hand_over:
            late = 3.0 * self.election_time * self.random()
        delays = self.network.delays(message.sender, message.to, late)
        if not delays and self.random() < _LOSS_REPORTED:
            self.after(0.0, self.hosts[message.sender].lost_touch, message.to)
        for delay in delays:
            self._sequence += 1
            heapq.heappush(self._heap, (self.now + delay, self._sequence, host.receive, message))

    def keeps(self) -> bool:
        """Whether some transport keeps a message for a host that is down."""
        return self.random() < self.scenario.kept

    def draw_tick_time(self, spread: float = CLOCK_DRIFT) -> float:
        """Return how long some host's tick takes."""
        return TICK_TIME * (1.0 + spread * (2.0 * self.random() - 1.0))

    def note(self, *what: object) -> None:
        """Add a line to the trace."""
        trace = self.trace
        if trace is not None and len(trace) < _TRACE_LINES_MAX:
            trace.append(f"{self.now:9.1f} " + " ".join(map(str, what)))

    # Snapshots' contents: equal for all, since they are of the same entries.

    def content(self, snapshot: Snapshot) -> Content:
        """Return what a snapshot contains."""
        return self._contents[snapshot.index, snapshot.term]

    def keep_content(self, snapshot: Snapshot, state: Content) -> None:
        """Somebody took a snapshot."""
        kept = self._contents.setdefault((snapshot.index, snapshot.term), dict(state))
        if kept != state:
            raise Failure("state machines differ", f"snapshots of {snapshot.index}")

    # Hosts.

    def leaders(self) -> list[Host]:
        """Return those that think they lead, the newest term first."""
        found = [
            (host.core.term, host)
            for host in self.hosts.values()
            if host.core is not None and host.core.role is Role.LEADER
        ]
        found.sort(key=lambda each: -each[0])
        return [host for _, host in found]

    def up(self) -> list[Host]:
        """Return those that are switched on."""
        return [host for host in self.hosts.values() if host.core is not None]

    def choose_host(self) -> Host | None:
        """Return one that is up."""
        hosts = self.up()
        return hosts[int(self.random() * len(hosts))] if hosts else None

    def revive_later(self, host: Host) -> None:
        """Switch a crashed host on again after a while."""
        is_quick = self.random() < _BLINKS
        time = 2.0 if is_quick else 2.0 * self.election_time
        self.after(time * self.random(), self.revive, host)

    def revive(self, host: Host) -> None:
        """Switch a host on if it is not."""
        if host.core is None:
            self.note("start", host.id)
            host.start()
            host.work()

    # The end.

    def settle(self, steps_max: int) -> None:
        """Heal everything, then everybody must come to agree and serve within a bounded time."""
        self.faults.heal_all()
        self.clients.stop()
        for host in self.hosts.values():
            host.disk_time = min(host.disk_time, 1.0)
        self.network.weather = Weather()
        deadline = self.now + 60.0 * self.election_time
        write: Operation | None = None
        while self.now < deadline:
            self.run_until(self.now + self.election_time / 2.0, steps_max)
            leaders = self.leaders()
            if not leaders:
                continue
            if write is None or self._is_gone(leaders[0], write):
                write = self.clients.write(leaders[0])
            elif self._is_settled(leaders[0], write):
                self._check_equal(leaders[0])
                return
        raise Failure("no progress", f"60 election time-outs after healing: {self._story()}")

    def _is_gone(self, leader: Host, write: Operation) -> bool:
        """Whether the last write was refused, or lost with a former leader."""
        core = leader.core
        assert core is not None
        is_idle = core.log.commit == core.log.last == leader.applied
        is_there = leader.state.get(write.key) == (write.id,)
        return write.id not in self.clients.history or (is_idle and not is_there)

    def _is_settled(self, leader: Host, write: Operation) -> bool:
        core = leader.core
        assert core is not None
        return leader.state.get(write.key) == (write.id,) and all(
            self.hosts[member.id].applied == core.log.last for member in core.membership.members
        )

    def _check_equal(self, leader: Host) -> None:
        core = leader.core
        assert core is not None
        for member in core.membership.members:
            if self.hosts[member.id].state != leader.state:
                raise Failure("state machines differ", f"members {leader.id} and {member.id}")

    def _story(self) -> str:
        return "; ".join(
            f"{host.id}: {core.role.value} term {core.term} log {core.log.start}-{core.log.last} "
            f"commit {core.log.commit} applied {host.applied}"
            for host in self.hosts.values()
            if (core := host.core) is not None
        )

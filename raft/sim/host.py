"""One machine of the simulator: a core, its disk, a state machine, and the caller's duties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proto.errors import CorruptError
from raft.core import Accepted, Config, Core, Entries, RaftID, Ready, Role
from raft.core.messages import Install, Message
from raft.sim.checks import Failure
from raft.sim.disk import Content, Disk
from raft.sim.linear import Operation, State, changed

if TYPE_CHECKING:
    from raft.sim.world import World

BEFORE, TORN, AFTER = "before", "torn", "after"
DOOMS = (BEFORE, TORN, AFTER)
# In the first sync that replaces stored entries, whenever that is.
REPLACING = "replacing"
# How often a core's own invariants are verified: every so many pieces of work.
_CHECK_EVERY = 16


class Host:
    """See the module.

    Attributes:
        core: None while it is down.
        disk: what survives.
        applied: the last entry in the state machine.
        state: the state machine: what each key holds.
        is_damaged: it does not start any more, because of what its disk says.
        is_disk_stuck: syncs do not end (a full disk, or one that hangs).
        doom: the machine crashes at the next sync: before it, in it, or after it; or `REPLACING`.
        disk_time: how long a sync takes at most, in tenths of a tick.
    """

    def __init__(
        self, world: World, member_id: RaftID, config: Config, disk: Disk, tick_time: float
    ) -> None:
        """Make a machine that is switched off."""
        self.world = world
        self.id = member_id
        self.config = config
        self.tick_time = tick_time
        self.disk = disk
        self.disk_time = 0.0
        self.is_damaged = False
        self.is_disk_stuck = False
        self.doom = ""
        self.core: Core | None = None
        self.applied = 0
        self.state: Content = {}
        self.incarnation = 0
        self.writes: dict[int, tuple[int, Operation]] = {}
        self.reads: dict[int, Operation] = {}
        self._reads_ready: list[tuple[int, Operation]] = []
        self._queue: list[Ready] = []
        self._syncing = 0
        self._works = 0
        self._led = 0

    # Life.

    def start(self) -> None:
        """Switch on: read the disk, begin to tick; with a damaged disk that is all."""
        assert self.core is None
        if self.is_damaged:
            return
        world = self.world
        disk = self.disk
        self.incarnation += 1
        try:
            content = disk.open()
        except CorruptError as error:
            self.is_damaged = True
            world.repairs.stopped(self, error)
            return
        world.repairs.started(self)
        self.core = world.core_class(
            self.config,
            world.rng,
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=disk.entries(),
        )
        self.applied = disk.snapshot.index
        self.state = dict(world.content(disk.snapshot)) if content is None else content
        self._led = 0
        world.after(self.tick_time * world.random(), self._tick, self.incarnation)

    def crash(self) -> None:
        """Lose power: what is being synced may survive in part."""
        if self.core is None:
            return
        world = self.world
        world.note("crash", self.id)
        will_rot = world.repairs.may_rot(self)
        self.core = None
        for place in range(self._syncing):
            if world.random() < 0.5:  # noqa: PLR2004 -- a coin
                self.disk.tear(self._queue[place], world.rng)
                break
            self.disk.store(self._queue[place])
        self.disk.lose_power()
        if will_rot:
            world.repairs.rot(self)
        self._queue = []
        self._syncing = 0
        self.doom = ""
        self.writes = {}
        self.reads = {}
        self._reads_ready = []
        self.incarnation += 1

    # Events.

    def _tick(self, incarnation: int) -> None:
        core = self.core
        if core is None or incarnation != self.incarnation:
            return
        core.tick()
        self.work()
        self.world.after(self.tick_time, self._tick, incarnation)

    def receive(self, message: Message) -> None:
        """A message arrives."""
        core = self.core
        if core is not None:
            if self.world.trace is not None:
                self.world.note("deliver", message)
            core.step(message)
            self.work()

    def snapshot_report(self, report: tuple[int, RaftID, bool]) -> None:
        """The stream of a snapshot ended."""
        incarnation, to, is_sent = report
        if self.core is not None and incarnation == self.incarnation:
            self.core.snapshot_sent(to, is_sent=is_sent)
            self.work()

    def submit(self, operation: Operation) -> bool:
        """A client asks for something; return False if it was surely not taken."""
        core = self.core
        if core is None:
            return False
        if operation.kind == "read":
            self.reads[operation.id] = operation
            is_taken = core.read_index(operation.id)
        else:
            answer = core.propose([b"%d" % operation.id])
            is_taken = isinstance(answer, Accepted)
            if isinstance(answer, Accepted):
                self.writes[answer.first] = (answer.term, operation)
        self.work()
        return is_taken

    # Duties.

    def work(self) -> None:  # noqa: C901 -- a duty each, in their order
        """Do what the core asks for, in its order."""
        core = self.core
        if core is None:
            return
        if core.role is Role.LEADER and core.term != self._led:
            self._led = core.term
            self.world.note("leads", self.id, core.term)
            self.world.truth.led(core)
            self.world.faults.led(self)
        self._works += 1
        if self._works % _CHECK_EVERY == 0:
            core.check()
        while (ready := core.ready()) is not None:
            if ready.messages:
                self._send(ready.messages)
            if ready.entries is not None:
                self.world.truth.storing(core, ready.entries)
            if ready.reads or ready.reads_failed:
                self._note_reads(ready)
            if ready.committed is not None:
                self._apply(core, ready.committed)
            if ready.has_to_store or (ready.messages_after and self._queue):
                self._queue.append(ready)
                if not self._syncing and not self._sync():
                    return
            elif ready.messages_after:
                self._send(ready.messages_after)
            if self._reads_ready:
                self._serve_reads()

    def _send(self, messages: list[Message]) -> None:
        world = self.world
        for message in messages:
            if isinstance(message, Install):
                self._stream(message)
            else:
                world.send(message)

    def _stream(self, message: Install) -> None:
        """Send a snapshot; it takes a while, and the sender hears how it went."""
        world = self.world
        delays = world.network.delays(message.sender, message.to)
        report_time = 5.0 + 20.0 * world.random()
        for delay in delays:
            world.after(report_time + delay, world.hosts[message.to].receive, message)
        report = (self.incarnation, message.to, bool(delays))
        world.after(report_time + 3.0 * world.random(), self.snapshot_report, report)

    def _sync(self) -> bool:
        """Begin a sync of all that is queued; return False if the machine crashed."""
        self._syncing = len(self._queue)
        if self.is_disk_stuck:
            return True
        if self.disk_time <= 0.0:
            return self._synced(self.incarnation)
        self.world.after(self.disk_time * self.world.random(), self._sync_ended, self.incarnation)
        return True

    def _sync_ended(self, incarnation: int) -> None:
        # A disk that hung meanwhile began anew: of two ends, the first counts.
        is_current = incarnation == self.incarnation and not self.is_disk_stuck
        if is_current and self._syncing and self._synced(incarnation):
            self.work()

    def unstick(self) -> None:
        """The disk goes on."""
        if self.is_disk_stuck:
            self.is_disk_stuck = False
            if self.core is not None and self._queue:
                self._syncing = 0
                self._sync()
                self.work()

    def _synced(self, incarnation: int) -> bool:
        """What was being synced is durable; return False if the machine crashed."""
        core = self.core
        if core is None or incarnation != self.incarnation:
            return False
        done, self._queue = self._queue[: self._syncing], self._queue[self._syncing :]
        self._syncing = 0
        if self.doom and (self.doom != REPLACING or self._is_replacing(done)):
            self._fulfil_doom(done)
            return False
        for ready in done:
            if ready.has_to_store:
                self.disk.store(ready)
            if ready.snapshot is not None:
                self.applied = ready.snapshot.index
                self.state = dict(self.world.content(ready.snapshot))
        core.persisted(done[-1].number)
        for ready in done:
            if ready.messages_after:
                self._send(ready.messages_after)
        if self._queue:
            return self._sync()
        return True

    def _is_replacing(self, done: list[Ready]) -> bool:
        last = self.disk.last
        return any(each.entries is not None and each.entries.first <= last for each in done)

    def _fulfil_doom(self, done: list[Ready]) -> None:
        """Crash at a chosen point of a sync."""
        if self.doom == AFTER:
            for ready in done:
                self.disk.store(ready)
        elif self.doom in (TORN, REPLACING):
            for ready in done[:-1]:
                self.disk.store(ready)
            self.disk.tear(done[-1], self.world.rng)
        self._queue = []
        self.crash()
        self.world.revive_later(self)

    # The state machine.

    def _apply(self, core: Core, entries: Entries) -> None:
        world = self.world
        if entries.first != self.applied + 1:
            raise Failure(
                "entries skipped", f"member {self.id} at {self.applied} gets {entries.first}"
            )
        world.truth.applying(core, entries, world.disks)
        index = self.applied
        changes = entries.changes
        taken: State = ()
        for data in entries.data:
            index += 1
            if data and index not in changes:
                operation = world.operations[int(data)]
                before = self.state.get(operation.key, ())
                self.state[operation.key] = changed(before, operation)
                taken = before[:1]
            if index in self.writes:
                term, operation = self.writes.pop(index)
                if entries.term(index) == term:
                    result = taken if operation.kind == "dequeue" else None
                    world.clients.ended(operation, result)
                else:
                    world.clients.refused(operation)
        self.applied = index
        every = world.snapshot_every
        if every and index - self.disk.snapshot.index >= every:
            self._take_snapshot(core)
        if self._reads_ready:
            self._serve_reads()

    def _take_snapshot(self, core: Core) -> None:
        snapshot = core.describe_snapshot(self.applied)
        self.world.keep_content(snapshot, self.state)
        core.compact(self.applied, self.world.entries_kept)
        self.disk.keep_snapshot(snapshot, min(core.log.start, snapshot.index))

    def _note_reads(self, ready: Ready) -> None:
        for read in ready.reads:
            operation = self.reads.pop(read.context, None)
            if operation is not None:
                self._reads_ready.append((read.index, operation))
        for context in ready.reads_failed:
            operation = self.reads.pop(context, None)
            if operation is not None:
                self.world.clients.refused(operation)

    def _serve_reads(self) -> None:
        waiting = []
        for index, operation in self._reads_ready:
            if index <= self.applied:
                self.world.clients.ended(operation, self.state.get(operation.key, ()))
            else:
                waiting.append((index, operation))
        self._reads_ready = waiting

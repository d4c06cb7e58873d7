"""One machine of the simulator: a core, its disk, a state machine, and the caller's duties."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proto.errors import CorruptError
from raft.core import Accepted, Config, Core, Entries, RaftID, Ready, Role
from raft.core.messages import Install, Message, Vote, VoteReply
from raft.sim.checks import Failure, QuorumWatch
from raft.sim.disk import Content, Disk
from raft.sim.linear import Operation, State, changed

if TYPE_CHECKING:
    from raft.sim.world import World

BEFORE, TORN, AFTER = "before", "torn", "after"
DOOMS = (BEFORE, TORN, AFTER)
# In the first sync that replaces stored entries, or installs a snapshot, whenever that is.
REPLACING, INSTALLING = "replacing", "installing"
# So many messages wait for a host that is down, and come to its next life.
_MAIL_MAX = 64
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
        is_paused: the process does not run; what comes for it waits.
        is_clock_stopped: it runs, and no tick comes.
        doom: the machine crashes at the next sync: before it, in it, or after it; or at the next
            of a kind: `REPLACING`, `INSTALLING`.
        dooms_left: it is doomed in the same way again when it is back, so often.
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
        self.is_paused = False
        self.is_clock_stopped = False
        self.doom = ""
        self.dooms_left = 0
        self.core: Core | None = None
        self.applied = 0
        self.state: Content = {}
        self.incarnation = 0
        self.writes: dict[int, tuple[int, Operation]] = {}
        self.reads: dict[int, Operation] = {}
        self._reads_asked = 0
        self._deferred: list[tuple[Callable[[Any], None], Any]] = []
        self._ticks_missed = 0
        self._mail: list[Message] = []
        self._watch = QuorumWatch(config.election_ticks)
        self._commit_seen = 0
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
        world.truth.started(self.core)
        self.applied = disk.snapshot.index
        self.state = dict(world.content(disk.snapshot)) if content is None else content
        self._led = 0
        self._reads_asked = 0
        world.after(self.tick_time * world.random(), self._tick, self.incarnation)
        mail, self._mail = self._mail, []
        for place, message in enumerate(mail):
            world.after(1.0 + 0.1 * place, self.receive, message)

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
        self.doom = self.doom if self.dooms_left else ""
        self.dooms_left = max(0, self.dooms_left - 1)
        self.is_paused = False
        self._deferred = []
        self._ticks_missed = 0
        self.writes = {}
        self.reads = {}
        self._reads_ready = []
        self.incarnation += 1

    # Events.

    def _tick(self, incarnation: int) -> None:
        if self.core is None or incarnation != self.incarnation:
            return
        if self.is_paused:
            self._ticks_missed += 1
        elif not self.is_clock_stopped:
            self.tick(1)
        self.world.after(self.tick_time, self._tick, incarnation)

    def tick(self, count: int) -> None:
        """Let so many ticks pass at once."""
        core = self.core
        if core is None:
            return
        for _ in range(count):
            core.tick()
            self._watch.ticked(core)
        self.work()

    def pause(self) -> None:
        """Stop the process where it is; the disk and the network go on."""
        if self.core is not None:
            self.is_paused = True

    def go_on(self) -> None:
        """Run again: first the ticks that were missed, as a shell gives them, then what waits."""
        if not self.is_paused or self.core is None:
            return
        self.world.note("goes on", self.id, self._ticks_missed)
        self.is_paused = False
        missed, self._ticks_missed = self._ticks_missed, 0
        if missed:
            # A leader has to know how late it is; to a follower it is harmless (`raft.state`).
            ticks = min(missed, 2 * self.config.election_ticks) if self.core.is_leader else 1
            self.tick(ticks)
        deferred, self._deferred = self._deferred, []
        for function, argument in deferred:
            function(argument)

    def _defers(self, function: Callable[[Any], None], argument: Any) -> bool:
        """Keep an event for later if the process does not run."""
        if self.is_paused:
            self._deferred.append((function, argument))
        return self.is_paused

    def receive(self, message: Message) -> None:
        """A message arrives; for one that is down some transport may keep it."""
        core = self.core
        world = self.world
        if core is None:
            if self.incarnation and len(self._mail) < _MAIL_MAX and world.keeps():
                self._mail.append(message)
        elif not self._defers(self.receive, message):
            if world.trace is not None:
                world.note("deliver", message)
            self._watch.heard(core, message)
            core.step(message)
            self.work()

    def lost_touch(self, to: RaftID) -> None:
        """The transport has lost what it was given for somebody."""
        if self.core is not None and not self._defers(self.lost_touch, to):
            self.core.unreachable(to)
            self.work()

    def snapshot_report(self, report: tuple[int, RaftID, bool]) -> None:
        """The stream of a snapshot ended."""
        incarnation, to, is_sent = report
        if self._defers(self.snapshot_report, report):
            return
        if self.core is not None and incarnation == self.incarnation:
            self.core.snapshot_sent(to, is_sent=is_sent)
            self.work()

    def submit(self, operation: Operation) -> bool:
        """A client asks for something; return False if it was surely not taken."""
        core = self.core
        if core is None:
            return False
        if self._defers(self._submit_late, operation):
            return True
        if operation.kind == "read":
            # Each life counts anew, as a caller may.
            self._reads_asked += 1
            self.reads[self._reads_asked] = operation
            is_taken = core.read_index(self._reads_asked)
        else:
            answer = core.propose([b"%d" % operation.id])
            is_taken = isinstance(answer, Accepted)
            if isinstance(answer, Accepted):
                self.writes[answer.first] = (answer.term, operation)
        self.work()
        return is_taken

    def _submit_late(self, operation: Operation) -> None:
        if not self.submit(operation):
            self.world.clients.refused(operation)

    # Duties.

    def work(self) -> None:  # noqa: C901 -- a duty each, in their order
        """Do what the core asks for, in its order."""
        core = self.core
        if core is None:
            return
        self._note_leading(core)
        self._works += 1
        if self._works % _CHECK_EVERY == 0:
            core.check()
        while (ready := core.ready()) is not None:
            self._note_leading(core)
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

    def _note_leading(self, core: Core) -> None:
        """Let the observers see who leads, and what was just committed."""
        if core.role is Role.LEADER and core.term != self._led:
            self._led = core.term
            self._commit_seen = core.log.commit
            self._watch.led(core)
            self.world.note("leads", self.id, core.term)
            self.world.truth.led(core)
            self.world.faults.led(self)
        # One that has just committed its own removal leads no more.
        if core.term == self._led and core.log.commit > self._commit_seen:
            self._commit_seen = core.log.commit
            self.world.truth.committing(core, self.world.disks)

    def _send(self, messages: list[Message]) -> None:
        world = self.world
        for message in messages:
            if isinstance(message, Vote | VoteReply):
                world.truth.voting(message)
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
        if self._defers(self._sync_ended, incarnation):
            return
        # A disk that hung meanwhile began anew: of two ends, the first counts.
        is_current = incarnation == self.incarnation and not self.is_disk_stuck
        if is_current and self._syncing and self._synced(incarnation):
            self.work()

    def unstick(self) -> None:
        """The disk goes on."""
        if self.is_disk_stuck:
            self.is_disk_stuck = False
            self._begin_sync_anew(None)

    def _begin_sync_anew(self, _: None) -> None:
        if self.core is not None and self._queue and not self._defers(self._begin_sync_anew, None):
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
        if self.doom and self._is_doomed(done):
            self._fulfil_doom(done)
            return False
        for ready in done:
            if ready.has_to_store:
                self.disk.store(ready)
            if ready.snapshot is not None:
                self.world.truth.describing(ready.snapshot)
                self.applied = ready.snapshot.index
                self.state = dict(self.world.content(ready.snapshot))
        core.persisted(done[-1].number)
        for ready in done:
            if ready.messages_after:
                self._send(ready.messages_after)
        if self._queue:
            return self._sync()
        return True

    def _is_doomed(self, done: list[Ready]) -> bool:
        """Whether this is the sync at which the machine crashes."""
        if self.doom == INSTALLING:
            return any(each.snapshot is not None for each in done)
        if self.doom != REPLACING:
            return True
        last = self.disk.last
        return any(each.entries is not None and each.entries.first <= last for each in done)

    def _fulfil_doom(self, done: list[Ready]) -> None:
        """Crash at a chosen point of a sync."""
        if self.doom == AFTER:
            for ready in done:
                self.disk.store(ready)
        elif self.doom in (TORN, REPLACING, INSTALLING):
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
        self.world.truth.describing(snapshot)
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

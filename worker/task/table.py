"""Decides for the node as a whole: which tasks there are, and which ports are published. Pure.

Each task has its `TaskMachine`; this table gives every event to the right one and adds what no
single task can know: that a host port is taken, which containers belong to nobody, and the one set
of published ports that all running tasks make together. Only one `PublishPorts` is under way at a
time; tasks that wait for their ports to open or close are told when a set that fits them has been
applied.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from overlay.api import PublishedPort
from proto.ids import ContainerID, TaskID, container_id_of
from proto.objects import PortMode, TaskStatus
from proto.states import TaskState
from worker.api import Assignment, AssignmentChanges, CompleteAssignments
from worker.ports import (
    Claim,
    conflict,
    conflict_sentence,
    published_ports,
    with_host_ports,
    with_known_numbers,
)
from worker.runtime.api import ContainerState
from worker.task.events import (
    Assigned,
    Event,
    Forget,
    Found,
    Instruction,
    MachineInstruction,
    Observation,
    PortsApplied,
    PortsFailed,
    Prepared,
    Publish,
    Published,
    PublishFailed,
    PublishPorts,
    RemoveStray,
    Report,
    ReportBug,
    Start,
    StartFailed,
    StrayKept,
    Tick,
    Unassigned,
    Withdraw,
    Withdrawn,
)
from worker.task.machine import TaskMachine

PORTS_RETRY_SECONDS = 2.0
STRAY_RETRY_SECONDS = 10.0
ABANDONED = "task: internal error of the node's agent; see its log"


class Remains(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a task from an earlier daemon."""

    container: ContainerState
    prepared: Prepared | None = None


class TaskTable:
    """The tasks of this node.

    Attributes:
        machines: by task; for reading only.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.machines: dict[TaskID, TaskMachine] = {}
        self._remains: dict[ContainerID, Remains] = {}
        # Containers to remove as soon as no port leads to them.
        self._strays: dict[ContainerID, Remains | None] = {}
        # Containers that could not be removed, and when that is tried again.
        self._kept_until: dict[ContainerID, float] = {}
        self._again: dict[TaskID, Assignment] = {}
        self._timers: list[tuple[float, TaskID]] = []
        self._timer_of: dict[TaskID, float] = {}
        self._is_ports_changed = True
        self._ports_applied: tuple[PublishedPort, ...] | None = None
        self._ports_asked: tuple[PublishedPort, ...] | None = None
        self._waiting: dict[TaskID, type[Publish | Withdraw]] = {}
        self._answered_next: dict[TaskID, type[Publish | Withdraw]] = {}
        self._ports_retry_at: float | None = None

    def adopt(
        self,
        stored: Sequence[tuple[Assignment, TaskStatus | None]],
        remains: Mapping[ContainerID, Remains],
        now: float,
    ) -> list[Instruction]:
        """Go on with what an earlier daemon knew and left; once, before any event."""
        assert not self.machines
        self._remains = dict(remains)
        out: list[Instruction] = []
        for assignment, status in sorted(stored, key=lambda one: not _has_numbers(*one)):
            out += self._begin(assignment, status, now)
        return out + self._settle_ports(now)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take one event into account; return what is to be done, in order.

        An event of a task that is gone is of no interest and returns nothing.
        """
        match event:
            case CompleteAssignments(assignments=assignments):
                out = self._complete(assignments, now)
            case AssignmentChanges(updated=updated, removed=removed):
                out = [i for a in updated for i in self._assign(a, now)]
                out += [i for task_id in removed for i in self._unassign(task_id, now)]
            case PortsApplied():
                out = self._ports_answered(now, error="")
            case PortsFailed(error=error):
                out = self._ports_answered(now, error=error)
            case StrayKept(container_id=container_id):
                self._kept_until[container_id] = now + STRAY_RETRY_SECONDS
                out = []
            case _:
                out = self._give(event, now)
        return out + self._settle_ports(now)

    def tick(self, now: float) -> list[Instruction]:
        """Do what has become due."""
        out: list[Instruction] = []
        while self._timers and self._timers[0][0] <= now:
            due, task_id = heapq.heappop(self._timers)
            if self._timer_of.get(task_id) == due:
                del self._timer_of[task_id]
                out += self._give(Tick(task_id), now)
        if self._ports_retry_at is not None and self._ports_retry_at <= now:
            self._ports_retry_at = None
        for container_id in [i for i, due in self._kept_until.items() if due <= now]:
            del self._kept_until[container_id]
            self._strays[container_id] = None
        return out + self._settle_ports(now)

    def next_timer(self) -> float | None:
        """Return when `tick` is due at the latest; it may turn out that nothing is."""
        first = self._timers[0][0] if self._timers else None
        stray = min(self._kept_until.values(), default=None)
        times = [t for t in (first, self._ports_retry_at, stray) if t is not None]
        return min(times, default=None)

    def stamp(self, report: Report, wall: float) -> TaskStatus:
        """Return the status to store for a report: its task's newest, with its date."""
        machine = self.machines.get(report.task_id)
        if machine is None:
            return msgspec.structs.replace(report.status, timestamp=wall)
        return machine.stamp(wall)

    def check(self) -> None:
        """Assert what must hold between two events."""
        for task_id, machine in self.machines.items():
            machine.check()
            assert machine.task_id == task_id
            assert machine.next_timer() == self._timer_of.get(task_id)
        assert set(self._timer_of) <= set(self.machines)
        for task_id in self._again:
            assert not self.machines[task_id].is_assigned
        hosted = [
            (port.published_port, port.protocol)
            for machine in self._holders()
            for port in self._claim(machine).ports
            if port.publish_mode is PortMode.HOST
        ]
        assert len(hosted) == len(set(hosted))

    # --- assignments ---

    def _complete(self, assignments: Sequence[Assignment], now: float) -> list[Instruction]:
        out: list[Instruction] = []
        wanted = {assignment.task.id for assignment in assignments}
        for assignment in sorted(assignments, key=lambda one: not _has_numbers(one, None)):
            is_known = assignment.task.id in self.machines
            out += self._assign(assignment, now)
            out += self._remind(assignment) if is_known else []
        for task_id in [i for i in self.machines if i not in wanted]:
            out += self._unassign(task_id, now)
        # Whatever else an earlier daemon left belongs to nobody.
        self._strays |= self._remains
        self._remains = {}
        return out

    def _remind(self, assignment: Assignment) -> list[Instruction]:
        """Report again what the manager of a new session does not know."""
        machine = self.machines[assignment.task.id]
        if not machine.is_assigned or machine.status.state <= assignment.task.status.state:
            return []
        return [Report(machine.task_id, machine.status)]

    def _assign(self, assignment: Assignment, now: float) -> list[Instruction]:
        task_id = assignment.task.id
        machine = self.machines.get(task_id)
        if machine is None:
            return self._begin(assignment, None, now)
        if not machine.is_assigned:
            # It came back while its former container is being removed.
            self._again[task_id] = assignment
            return []
        if machine.assignment == assignment:
            return []
        return self._give(Assigned(task_id, assignment), now)

    def _unassign(self, task_id: TaskID, now: float) -> list[Instruction]:
        self._again.pop(task_id, None)
        machine = self.machines.get(task_id)
        if machine is None or not machine.is_assigned:
            return []
        return self._give(Unassigned(task_id), now)

    def _begin(
        self, assignment: Assignment, status: TaskStatus | None, now: float
    ) -> list[Instruction]:
        task_id = assignment.task.id
        machine = self.machines[task_id] = TaskMachine(assignment, status=status)
        container_id = container_id_of(task_id)
        is_stray = container_id in self._strays or container_id in self._kept_until
        remains = self._remains.pop(container_id, None) or self._strays.pop(container_id, None)
        self._kept_until.pop(container_id, None)
        if remains is None and is_stray:
            # Nobody knows how much of it is left: whoever makes it anew removes that first.
            state = ContainerState(id=container_id, name="", state="broken")
            remains = Remains(container=state)
        if remains is None:
            return self._give(Found(task_id), now)
        out = self._give(Found(task_id, remains.container, remains.prepared), now)
        if machine.is_holding_ports:
            # It started before, but perhaps its host ports were never reported.
            self._number_host_ports(machine)
        return out

    # --- one task ---

    def _give(self, event: Observation, now: float) -> list[Instruction]:
        machine = self.machines.get(event.task_id)
        if machine is None:
            return []
        was_published = machine.is_published
        try:
            instructions = machine.handle(event, now)
        except AssertionError as bug:
            # This is the one task's supervisor: the component that stops is the task.
            return [ReportBug(event.task_id, str(bug)), *self._abandon(machine)]
        self._is_ports_changed |= machine.is_published != was_published
        self._plan_timer(machine)
        return self._take(machine, instructions, now)

    def _abandon(self, machine: TaskMachine) -> list[Instruction]:
        """Give a task up after a bug in its handling: FAILED, and its container removed."""
        task_id = machine.task_id
        del self.machines[task_id]
        for index in (self._timer_of, self._waiting, self._answered_next, self._again):
            index.pop(task_id, None)
        self._is_ports_changed = True
        out: list[Instruction] = []
        if machine.is_assigned and not machine.status.state.is_terminal:
            status = msgspec.structs.replace(
                machine.status, state=TaskState.FAILED, err=ABANDONED, timestamp=0.0
            )
            out.append(Report(task_id, status))
        self._strays[container_id_of(task_id)] = None
        return out

    def _plan_timer(self, machine: TaskMachine) -> None:
        """Keep one live entry of the heap for the machine; older ones are skipped when due."""
        due = machine.next_timer()
        if due is None:
            self._timer_of.pop(machine.task_id, None)
        elif self._timer_of.get(machine.task_id) != due:
            self._timer_of[machine.task_id] = due
            heapq.heappush(self._timers, (due, machine.task_id))

    def _take(
        self, machine: TaskMachine, instructions: Sequence[MachineInstruction], now: float
    ) -> list[Instruction]:
        """Keep what is for the table; pass on the rest."""
        out: list[Instruction] = []
        for instruction in instructions:
            match instruction:
                case Publish() | Withdraw():
                    self._waiting[machine.task_id] = type(instruction)
                    self._answered_next.pop(machine.task_id, None)
                case Start():
                    out += self._start(machine, instruction, now)
                case Forget():
                    out.append(instruction)
                    out += self._forget(machine, now)
                case _:
                    out.append(instruction)
        return out

    def _start(self, machine: TaskMachine, start: Start, now: float) -> list[Instruction]:
        if machine.has_ports:
            self._number_host_ports(machine)
            refused = conflict(self._claim(machine), self._other_claims(machine))
            if refused is not None:
                return self._give(StartFailed(machine.task_id, conflict_sentence(refused)), now)
        return [start]

    def _number_host_ports(self, machine: TaskMachine) -> None:
        ports = with_host_ports(self._claim(machine), self._other_claims(machine))
        machine.host_ports = tuple(p for p in ports if p.publish_mode is PortMode.HOST)

    def _other_claims(self, machine: TaskMachine) -> list[Claim]:
        return [self._claim(other) for other in self._holders() if other is not machine]

    def _forget(self, machine: TaskMachine, now: float) -> list[Instruction]:
        task_id = machine.task_id
        del self.machines[task_id]
        again = self._again.pop(task_id, None)
        return [] if again is None else self._begin(again, None, now)

    # --- ports ---

    def _holders(self) -> Iterator[TaskMachine]:
        return (m for m in self.machines.values() if m.has_ports and m.is_holding_ports)

    def _claim(self, machine: TaskMachine) -> Claim:
        task = machine.assignment.task
        return Claim(
            task_id=task.id,
            service_id=task.service_id,
            spec_version=task.spec_version,
            slot=task.slot,
            address="" if machine.prepared is None else machine.prepared.address,
            ports=with_known_numbers(machine.ports, machine.host_ports),
        )

    def _settle_ports(self, now: float) -> list[Instruction]:
        """Ask for the ports that the tasks now make together, unless a request is under way.

        As long as containers of an earlier daemon wait for their assignments, their ports stay.
        """
        out: list[Instruction] = []
        while self._ports_asked is None and self._ports_retry_at is None and not self._remains:
            if self._is_ports_changed or self._ports_applied is None:
                claims = [self._claim(m) for m in self.machines.values() if m.is_published]
                wanted = published_ports(claims)
                self._is_ports_changed = False
            else:
                wanted = self._ports_applied
            if wanted != self._ports_applied:
                self._ports_asked = wanted
                self._answered_next, self._waiting = self._waiting, {}
                out.append(PublishPorts(wanted))
            elif self._waiting:
                self._answered_next, self._waiting = self._waiting, {}
                out += self._answer(Published, now)
            else:
                break
        if self._ports_asked is None and not self._remains:
            out += [RemoveStray(container_id) for container_id in sorted(self._strays)]
            self._strays = {}
        return out

    def _ports_answered(self, now: float, *, error: str) -> list[Instruction]:
        assert self._ports_asked is not None
        asked, self._ports_asked = self._ports_asked, None
        if not error:
            self._ports_applied = asked
            return self._answer(Published, now)
        self._ports_applied = None
        self._ports_retry_at = now + PORTS_RETRY_SECONDS
        return self._answer(lambda task_id: PublishFailed(task_id, error), now)

    def _answer(
        self, opened: Callable[[TaskID], Published | PublishFailed], now: float
    ) -> list[Instruction]:
        answered, self._answered_next = self._answered_next, {}
        out: list[Instruction] = []
        for task_id, request in answered.items():
            is_closing = request is Withdraw
            out += self._give(Withdrawn(task_id) if is_closing else opened(task_id), now)
        return out


def _has_numbers(assignment: Assignment, status: TaskStatus | None) -> bool:
    """Tell whether the numbers of a task's open host ports are known.

    Such tasks are adopted first, so that no other is given a number that is theirs.
    """
    return bool(assignment.task.status.host_ports or (status is not None and status.host_ports))

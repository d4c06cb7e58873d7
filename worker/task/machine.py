"""Decides what becomes of one task on this node: events in, instructions out. Pure.

A machine knows two things of its task. The *state* is what the manager is told: it only goes
forward (`proto.states`), one report for each step. The *phase* is what is being done with the
container. Exactly one operation is under way in a phase that names one; its outcome is the event
that leaves the phase. Wishes (a new desired state, the assignment's end, a failed check) may come
at any time: they are noted, and take effect at once or when the operation under way has ended.

The phases and their table are in `phases.py`.

The process may end in PROBING, PUBLISHING and RUNNING too (Exited): to RELEASING if ports lead to
it, else to DETACHING. An ended container is kept for its logs until the assignment goes; one that
never started has none and is removed at once. Ports are withdrawn *before* a stop signal, so that
no new connection meets a stopping process, and before the address is freed.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

import msgspec

from proto.errors import InvariantViolationError
from proto.ids import ImageID, container_id_of
from proto.objects import PortConfig, TaskStatus
from proto.states import Actor, TaskState, check_transition
from worker.api import Assignment
from worker.container import prepared_of
from worker.images.api import ImageConfig
from worker.runtime.api import ContainerState, ExitStatus
from worker.task.events import (
    Assigned,
    CancelPrepare,
    Detach,
    Detached,
    Exited,
    Forget,
    Found,
    HealthcheckDone,
    Kill,
    MachineInstruction,
    Observation,
    Prepare,
    PrepareCancelled,
    Prepared,
    PrepareDone,
    PrepareFailed,
    Publish,
    Published,
    PublishFailed,
    Remove,
    Removed,
    RemoveFailed,
    Report,
    RunHealthcheck,
    Start,
    Started,
    StartFailed,
    Tick,
    Unassigned,
    Wait,
    WaitFailed,
    Waiting,
    Withdraw,
    Withdrawn,
)
from worker.task.health import Health, HealthMonitor
from worker.task.phases import (
    PHASES_AFTER,
    PHASES_HOLDING_PORTS,
    PHASES_WITH_MAKING,
    PHASES_WITH_PROCESS,
    Phase,
)

KILL_REPEAT_SECONDS = 5.0
REMOVE_RETRY_SECONDS_MIN = 1.0
REMOVE_RETRY_SECONDS_MAX = 30.0
STORY_LENGTH_MAX = 32

VANISHED = "task: container vanished while nobody watched it"
UNSEEN = "task: container ended while nobody watched it"
NETWORK_LOST = "task: container lost its network while nobody watched it"
UNHEALTHY = "task: unhealthy container"


# SwarmKit's words for each state, which `docker service ps` users know.
_MESSAGES = {
    TaskState.ACCEPTED: "accepted",
    TaskState.PREPARING: "preparing",
    TaskState.READY: "prepared",
    TaskState.STARTING: "starting",
    TaskState.RUNNING: "started",
    TaskState.COMPLETE: "finished",
    TaskState.SHUTDOWN: "shutdown",
}

Instructions = list[MachineInstruction]


class TaskMachine:
    """One task on this node.

    The attributes are for reading; only `handle` changes them. Instructions are to be carried out
    in their order: a status is stored before the operation that it announces begins.

    Attributes:
        assignment: what the manager last said.
        status: what was last reported.
        prepared: what is known of the container, once it exists.
        ports: what the task publishes; fixed for its life.
        host_ports: ports of mode host as opened on this node; set by whoever gives them out.
        is_assigned: whether the manager still knows the task.
    """

    def __init__(self, assignment: Assignment, *, status: TaskStatus | None = None) -> None:
        """Begin with the newer of the stored `status` and what the manager says."""
        self.assignment = assignment
        known = assignment.task.status
        self.status = known if status is None or status.state < known.state else status
        assert self.status.state >= TaskState.ASSIGNED
        self.phase = Phase.NEW
        self.prepared: Prepared | None = None
        self.host_ports: tuple[PortConfig, ...] = self.status.host_ports
        self.is_assigned = True
        self.task_id = assignment.task.id
        endpoint = assignment.spec.endpoint
        self.ports = assignment.ports or (() if endpoint is None else endpoint.ports)
        self._desired = assignment.task.desired_state
        self._failure = ""  # why we stop it ourselves
        self._pid = self.status.pid
        self._has_remains = False
        self._health: HealthMonitor | None = None
        self._timer: float | None = None
        self._remove_attempts = 0
        self._story: deque[str] = deque(maxlen=STORY_LENGTH_MAX)

    # --- what others read ---

    @property
    def is_published(self) -> bool:
        """Tell whether published ports shall lead to the container."""
        return self.phase in {Phase.PUBLISHING, Phase.RUNNING} and self.has_ports

    @property
    def has_ports(self) -> bool:
        """Tell whether the task publishes anything."""
        return bool(self.ports)

    @property
    def has_process(self) -> bool:
        """Tell whether the container's process runs, as far as we know."""
        return self.phase in PHASES_WITH_PROCESS

    @property
    def is_holding_ports(self) -> bool:
        """Tell whether the task's host ports are taken: from its start until withdrawn."""
        return self.phase in PHASES_HOLDING_PORTS

    @property
    def health(self) -> Health | None:
        """Return what the health check says; None without one or before the start."""
        return None if self._health is None else self._health.health

    def next_timer(self) -> float | None:
        """Return when a `Tick` is due, or None."""
        times = [t for t in (self._timer, self._next_check()) if t is not None]
        return min(times, default=None)

    def check(self) -> None:
        """Assert what must hold between two events."""
        assert (self.phase in PHASES_WITH_PROCESS) <= (self.prepared is not None)
        assert (self.phase is Phase.RUNNING) <= (self.status.state is TaskState.RUNNING)
        assert (self.phase is Phase.ENDED) <= (self.status.state.is_terminal)
        assert (self.phase is Phase.STOPPING) == (self._timer is not None) or (
            self.phase is Phase.REMOVING
        )

    def stamp(self, wall: float) -> TaskStatus:
        """Date the last report, if its time is not known yet; return the status.

        The machine's own time is no date, so whoever carries out a `Report` calls this.
        """
        if not self.status.timestamp:
            is_running = self.status.state is TaskState.RUNNING
            self.status = msgspec.structs.replace(
                self.status,
                timestamp=wall,
                running_at=wall if is_running else self.status.running_at,
            )
        return self.status

    # --- events ---

    def handle(self, event: Observation, now: float) -> Instructions:
        """Take one event into account; return what is to be done, in order.

        Raises:
            InvariantViolationError: the event cannot happen in this phase; a bug. The text holds
                the task's last events.
        """
        assert event.task_id == self.task_id
        self._story.append(f"{now:.3f} {self.phase.value}: {type(event).__name__}")
        out = self._observe(event, now)
        out += self._pursue(now)
        self.check()
        return out

    def _observe(self, event: Observation, now: float) -> Instructions:  # noqa: C901, PLR0911, PLR0912 -- a table
        match event:
            case Found():
                return self._found(event, now)
            case Assigned():
                self.assignment = event.assignment
                self._desired = max(self._desired, event.assignment.task.desired_state)
                return []
            case Unassigned():
                self.is_assigned = False
                return self._ended_to_removing()
            case PrepareDone() | PrepareFailed() | PrepareCancelled():
                return self._preparation_ended(event)
            case Started() | StartFailed():
                return self._start_ended(event, now)
            case Exited(exit=exit_status):
                return self._exited(exit_status)
            case WaitFailed(error=error):
                return self._lost(error)
            case HealthcheckDone():
                return self._health_checked(event, now)
            case Published():
                return self._running() if self.phase is Phase.PUBLISHING else []
            case PublishFailed(error=error):
                if self.phase is Phase.PUBLISHING:
                    self._failure = f"task: cannot publish its ports: {error}"
                return []
            case Withdrawn():
                return self._withdrawn(now)
            case Detached():
                self._require(Phase.DETACHING)
                return self._enter(Phase.ENDED) + self._ended_to_removing()
            case Removed() | RemoveFailed():
                return self._removal_ended(event, now)
            case Waiting(sentence=sentence):
                return self._waiting(sentence)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def _found(self, event: Found, now: float) -> Instructions:
        """Begin, or go on where an earlier daemon was."""
        self._require(Phase.NEW)
        container, self.prepared = event.container, event.prepared
        if container is not None and self.prepared is None:
            # Made without our label: what the image says of stopping and health is not known.
            self.prepared = prepared_of(
                self.assignment.spec.task.container, ImageConfig(), image_id=ImageID("")
            )
        if self.status.state.is_terminal:
            return self._found_ended(container, now)
        if container is None or container.state == "broken":
            return self._found_nothing(container)
        match container.state:
            case "created":
                # Without its network the container is not what was prepared: make it again.
                is_whole = self.status.state >= TaskState.READY and bool(self._address())
                return self._enter(Phase.PREPARED) if is_whole else self._again()
            case "exited":
                assert container.exit is not None
                if container.exit.is_lost and self.status.state < TaskState.STARTING:
                    return self._again()  # It was created only, and never started.
                return self._end_of_process(container.exit, Phase.DETACHING)
            case "running":
                return self._found_running(container, now)
            case _:
                assert_never(container.state)

    def _found_ended(self, container: ContainerState | None, now: float) -> Instructions:
        if container is None or container.state != "running":
            return [*self._enter(Phase.DETACHING), Detach(self.task_id)]
        return [*self._enter(Phase.STOPPING), Wait(self.task_id), *self._kill("SIGKILL", now)]

    def _found_nothing(self, container: ContainerState | None) -> Instructions:
        if self.status.state >= TaskState.STARTING:
            return self._end(TaskState.FAILED, err=VANISHED) + self._remove()
        return self._enter(Phase.IDLE) if container is None else self._again()

    def _again(self) -> Instructions:
        """Prepare anew what is broken or incomplete."""
        self.prepared = None
        self._has_remains = True
        return self._enter(Phase.IDLE)

    def _found_running(self, container: ContainerState, now: float) -> Instructions:
        self._pid = container.pid
        if not self._address():
            self._failure = NETWORK_LOST
        out: Instructions = [Wait(self.task_id)]
        if self.status.state is TaskState.RUNNING:
            self._health = self._monitor(now)
            return [*self._enter(Phase.RUNNING), *out]
        return [*self._report(TaskState.STARTING), *out, *self._open(now)]

    def _preparation_ended(
        self, event: PrepareDone | PrepareFailed | PrepareCancelled
    ) -> Instructions:
        if self.phase is Phase.CANCELLING:
            return self._end(TaskState.SHUTDOWN) + self._remove()
        self._require(Phase.PREPARING)
        match event:
            case PrepareDone(prepared=prepared):
                self.prepared = prepared
                return self._enter(Phase.PREPARED) + self._report(TaskState.READY)
            case PrepareFailed(error=error):
                # Made again after a restart of the daemon, the task may be past READY.
                is_late = self.status.state >= TaskState.STARTING
                end = TaskState.FAILED if is_late else TaskState.REJECTED
                return self._end(end, err=error) + self._remove()
            case PrepareCancelled():
                raise self._impossible("nobody asked to cancel")
            case _:
                assert_never(event)

    def _start_ended(self, event: Started | StartFailed, now: float) -> Instructions:
        self._require(Phase.STARTING)
        match event:
            case Started(pid=pid):
                self._pid = pid
                return [Wait(self.task_id), *self._open(now)]
            case StartFailed(error=error):
                is_stopping = self._is_stop_wished() and not self._failure
                end = TaskState.SHUTDOWN if is_stopping else TaskState.FAILED
                return self._end(end, err="" if is_stopping else error) + self._remove()
            case _:
                assert_never(event)

    def _open(self, now: float) -> Instructions:
        """The process runs: check its health first, then let connections in."""
        if self._health is None:
            self._health = self._monitor(now)
            if self._health is not None:
                return self._enter(Phase.PROBING)
        if self._is_stop_wished():
            # Not published yet; `_pursue` stops it from here.
            return self._enter(Phase.PROBING) if self.phase is not Phase.PROBING else []
        if self.has_ports:
            return [*self._enter(Phase.PUBLISHING), Publish(self.task_id)]
        return self._running()

    def _running(self) -> Instructions:
        return self._enter(Phase.RUNNING) + self._report(
            TaskState.RUNNING, host_ports=self.host_ports
        )

    def _exited(self, exit_status: ExitStatus | None) -> Instructions:
        if self.phase not in PHASES_WITH_PROCESS:
            raise self._impossible("no process runs")
        is_open = self.phase in {Phase.PROBING, Phase.PUBLISHING, Phase.RUNNING}
        if is_open and self.has_ports:
            out: Instructions = [Withdraw(self.task_id)]
            return self._end_of_process(exit_status, Phase.RELEASING) + out
        is_withdrawing = self.phase is Phase.WITHDRAWING
        phase = Phase.RELEASING if is_withdrawing else Phase.DETACHING
        return self._end_of_process(exit_status, phase)

    def _end_of_process(self, exit_status: ExitStatus | None, phase: Phase) -> Instructions:
        if self._failure or exit_status is None:
            out = self._end(TaskState.FAILED, err=self._failure, exit_status=exit_status)
        elif self._is_stop_wished():
            out = self._end(TaskState.SHUTDOWN, exit_status=exit_status)
        elif exit_status.is_lost:
            out = self._end(TaskState.FAILED, err=UNSEEN, exit_status=exit_status)
        elif exit_status.exit_code == 0:
            out = self._end(TaskState.COMPLETE, exit_status=exit_status)
        else:
            cause = "its memory limit was reached" if exit_status.oom_killed else exit_status.cause
            err = f"task: non-zero exit ({exit_status.exit_code}){cause and f': {cause}'}"
            out = self._end(TaskState.FAILED, err=err, exit_status=exit_status)
        out += self._enter(phase)
        if phase is Phase.DETACHING:
            out.append(Detach(self.task_id))
        return out

    def _lost(self, error: str) -> Instructions:
        """Nobody watches the process any more: make sure that it ends, and say so."""
        self._failure = self._failure or f"task: lost sight of its container: {error}"
        out: Instructions = [Kill(self.task_id, "SIGKILL")]
        return out + self._exited(None)

    def _health_checked(self, event: HealthcheckDone, now: float) -> Instructions:
        if self.phase not in {Phase.PROBING, Phase.PUBLISHING, Phase.RUNNING}:
            return []  # A check of a container that was stopped meanwhile.
        assert self._health is not None
        if not event.is_made:
            self._health.skipped(now)
            return []
        self._health.finished(is_success=event.exit_code == 0, now=now)
        if self._health.health is Health.UNHEALTHY:
            self._failure = UNHEALTHY
        elif self._health.health is Health.HEALTHY and self.phase is Phase.PROBING:
            return self._open(now)
        return []

    def _withdrawn(self, now: float) -> Instructions:
        if self.phase is Phase.RELEASING:
            return [*self._enter(Phase.DETACHING), Detach(self.task_id)]
        self._require(Phase.WITHDRAWING)
        return self._stop(now)

    def _waiting(self, sentence: str) -> Instructions:
        """Let the manager know what a task that is being made waits for; its state stays."""
        if self.phase not in PHASES_WITH_MAKING or not self.is_assigned:
            return []
        words = _MESSAGES.get(self.status.state, "")
        message = f"{words}: {sentence}" if sentence else words
        if message == self.status.message:
            return []
        self.status = msgspec.structs.replace(self.status, message=message)
        return [Report(self.task_id, self.status)]

    def _removal_ended(self, event: Removed | RemoveFailed, now: float) -> Instructions:
        self._require(Phase.REMOVING)
        match event:
            case Removed():
                self._remove_attempts = 0
                self.prepared = None
                if self.is_assigned:
                    return self._enter(Phase.ENDED)
                return [*self._enter(Phase.GONE), Forget(self.task_id)]
            case RemoveFailed():
                pause = REMOVE_RETRY_SECONDS_MIN * 2**self._remove_attempts
                self._remove_attempts = min(self._remove_attempts + 1, 8)
                self._timer = now + min(pause, REMOVE_RETRY_SECONDS_MAX)
                return []
            case _:
                assert_never(event)

    def _tick(self, now: float) -> Instructions:
        out: Instructions = []
        if self._timer is not None and now >= self._timer:
            if self.phase is Phase.STOPPING:
                out += self._kill("SIGKILL", now)
            else:
                self._require(Phase.REMOVING)
                self._timer = None
                out.append(Remove(self.task_id))
        check_at = self._next_check()
        if check_at is not None and now >= check_at:
            assert self._health is not None
            self._health.begin(now)
            argv, timeout = self._health.argv, self._health.timeout_seconds
            out.append(RunHealthcheck(self.task_id, argv, timeout))
        return out

    # --- wishes ---

    def _is_stop_wished(self) -> bool:
        return not self.is_assigned or self._desired >= TaskState.SHUTDOWN or bool(self._failure)

    def _pursue(self, now: float) -> Instructions:  # noqa: PLR0911 -- a table
        """Do what is wished, where no operation under way forbids it."""
        is_stop = self._is_stop_wished()
        match self.phase:
            case Phase.IDLE if is_stop:
                return self._end(TaskState.SHUTDOWN) + self._remove()
            case Phase.IDLE:
                reports = self._report(TaskState.ACCEPTED) + self._report(TaskState.PREPARING)
                phase = self._enter(Phase.PREPARING)
                prepare = Prepare(self.task_id, self.assignment, self._has_remains)
                return [*reports, *phase, prepare]
            case Phase.PREPARING if is_stop:
                return [*self._enter(Phase.CANCELLING), CancelPrepare(self.task_id)]
            case Phase.PREPARED if is_stop:
                return self._end(TaskState.SHUTDOWN) + self._remove()
            case Phase.PREPARED if self._desired >= TaskState.RUNNING:
                report = self._report(TaskState.STARTING)
                return [*report, *self._enter(Phase.STARTING), Start(self.task_id)]
            case Phase.PROBING | Phase.PUBLISHING | Phase.RUNNING if is_stop and self.has_ports:
                # Also while probing: an earlier daemon may have published it just before its end.
                return [*self._enter(Phase.WITHDRAWING), Withdraw(self.task_id)]
            case Phase.PROBING | Phase.RUNNING if is_stop:
                return self._stop(now)
            case _:
                return []

    def _stop(self, now: float) -> Instructions:
        assert self.prepared is not None
        phase = self._enter(Phase.STOPPING)
        self._timer = now + self.prepared.grace_seconds
        return [*phase, Kill(self.task_id, self.prepared.stop_signal)]

    def _kill(self, signal: str, now: float) -> Instructions:
        self._timer = now + KILL_REPEAT_SECONDS
        return [Kill(self.task_id, signal)]

    # --- small steps ---

    def _enter(self, phase: Phase) -> Instructions:
        """Change the phase; return nothing to do, so that it can stand in a list of doings."""
        if phase not in PHASES_AFTER[self.phase]:
            raise self._impossible(f"may not enter {phase.value}")
        self.phase = phase
        self._timer = None
        return []

    def _report(
        self,
        state: TaskState,
        *,
        err: str = "",
        exit_status: ExitStatus | None = None,
        host_ports: tuple[PortConfig, ...] = (),
    ) -> Instructions:
        """Go forward to `state`; nothing when the task is there already."""
        if state <= self.status.state:
            return []
        check_transition(Actor.AGENT, self.status.state, state, self.task_id)
        started = state >= TaskState.RUNNING and self.prepared is not None
        self.status = TaskStatus(
            state=state,
            timestamp=0.0 if exit_status is None else exit_status.finished_at,
            message=_MESSAGES.get(state, self.status.message),
            err=err,
            container_id=container_id_of(self.task_id) if self.prepared is not None else "",
            pid=self._pid if started else 0,
            exit_code=None if exit_status is None else exit_status.exit_code,
            host_ports=host_ports,
            running_at=self.status.running_at,
        )
        return [Report(self.task_id, self.status)] if self.is_assigned else []

    def _end(
        self, state: TaskState, *, err: str = "", exit_status: ExitStatus | None = None
    ) -> Instructions:
        if self.status.state.is_terminal:
            return []
        return self._report(state, err=err, exit_status=exit_status)

    def _remove(self) -> Instructions:
        return [*self._enter(Phase.REMOVING), Remove(self.task_id)]

    def _ended_to_removing(self) -> Instructions:
        """Remove an ended container whose assignment is gone."""
        if self.phase is Phase.ENDED and not self.is_assigned:
            return self._remove()
        return []

    def _address(self) -> str:
        return "" if self.prepared is None else self.prepared.address

    def _monitor(self, now: float) -> HealthMonitor | None:
        assert self.prepared is not None
        config = self.prepared.healthcheck
        return None if config is None else HealthMonitor(config, now)

    def _next_check(self) -> float | None:
        if self._health is None or self.phase not in {
            Phase.PROBING,
            Phase.PUBLISHING,
            Phase.RUNNING,
        }:
            return None
        return self._health.next_check_at

    def _require(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise self._impossible(f"expected only while {phase.value}")

    def _impossible(self, reason: str) -> InvariantViolationError:
        story = "; ".join(self._story)
        return InvariantViolationError(f"task {self.task_id}: {reason}; its last events: {story}")

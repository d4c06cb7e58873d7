"""The words between the task machines and the shell that acts for them.

An `Instruction` asks the shell for one thing; whatever takes time ends in exactly one of the events
named in its docstring, also when it fails, is cancelled, or its code has a bug. An event is a fact
that somebody observed. Both are plain frozen values, so a scenario is a list of them.
"""

from __future__ import annotations

import msgspec

from overlay.api import PublishedPort
from proto.ids import ContainerID, ImageID, TaskID
from proto.objects import HealthConfig, TaskStatus
from worker.api import Assignment, AssignmentMessage
from worker.runtime.api import ContainerState, ExitStatus


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What was learnt while a container was made, kept with it as a label.

    Attributes:
        image_id: the image that the container was made from.
        stop_signal: the first signal that asks it to stop.
        grace_seconds: how long it may take to obey.
        healthcheck: the merged check of spec and image; None when there is none.
        address: on the node's bridge; "" without a network. Not part of the label: the network
            knows it.
    """

    image_id: ImageID = ImageID("")
    stop_signal: str = "SIGTERM"
    grace_seconds: float = 10.0
    healthcheck: HealthConfig | None = None
    address: str = ""


# --- events ---------------------------------------------------------------------------------


class TaskEvent(msgspec.Struct, frozen=True):
    """Base of what happens to one task."""

    task_id: TaskID


class Found(TaskEvent, frozen=True):
    """The task begins here: new, or known from before this daemon started.

    `container` and `prepared` are what an earlier daemon left of it, if anything.
    """

    container: ContainerState | None = None
    prepared: Prepared | None = None


class Assigned(TaskEvent, frozen=True):
    """The manager changed what it wants of the task."""

    assignment: Assignment


class Unassigned(TaskEvent, frozen=True):
    """The manager has forgotten the task: all of it has to go."""


class PrepareDone(TaskEvent, frozen=True):
    """The container exists and waits for its start."""

    prepared: Prepared


class PrepareFailed(TaskEvent, frozen=True):
    """The container could not be made; parts of it may exist."""

    error: str


class PrepareCancelled(TaskEvent, frozen=True):
    """The preparation was given up as asked; parts of it may exist."""


class Started(TaskEvent, frozen=True):
    """The container's process runs."""

    pid: int


class StartFailed(TaskEvent, frozen=True):
    """The container's process could not be started."""

    error: str


class Exited(TaskEvent, frozen=True):
    """The container's process has ended."""

    exit: ExitStatus


class WaitFailed(TaskEvent, frozen=True):
    """Nobody can tell any more whether the process runs."""

    error: str


class HealthcheckDone(TaskEvent, frozen=True):
    """A health check ended; `exit_code` 0 means healthy.

    If the node could not make it, `is_made` is false, and nothing is known of the container.
    """

    exit_code: int
    output: str = ""
    is_made: bool = True


class Published(TaskEvent, frozen=True):
    """The task's ports lead to it."""


class PublishFailed(TaskEvent, frozen=True):
    """The task's ports could not be opened."""

    error: str


class Withdrawn(TaskEvent, frozen=True):
    """No published port leads to the task any more."""


class Detached(TaskEvent, frozen=True):
    """The ended task's address is free (or could not be freed: removing tries again)."""


class Removed(TaskEvent, frozen=True):
    """Container, network attachment and anonymous volumes are gone."""


class RemoveFailed(TaskEvent, frozen=True):
    """Something of the container is still there."""

    error: str


class Waiting(TaskEvent, frozen=True):
    """The operation under way waits for something outside; "" when it does not any more.

    `sentence` says for what and since when.
    """

    sentence: str


class Tick(TaskEvent, frozen=True):
    """The time that `next_timer` named has come."""


class PortsApplied(msgspec.Struct, frozen=True):
    """The node's published ports are as last asked by `PublishPorts`."""


class PortsFailed(msgspec.Struct, frozen=True):
    """The node's published ports are not as asked, after several attempts."""

    error: str


class StrayKept(msgspec.Struct, frozen=True):
    """A container that belongs to no task could not be removed."""

    container_id: ContainerID
    error: str


Observation = (
    Found
    | Assigned
    | Unassigned
    | PrepareDone
    | PrepareFailed
    | PrepareCancelled
    | Started
    | StartFailed
    | Exited
    | WaitFailed
    | HealthcheckDone
    | Published
    | PublishFailed
    | Withdrawn
    | Detached
    | Removed
    | RemoveFailed
    | Waiting
    | Tick
)
Event = Observation | PortsApplied | PortsFailed | StrayKept | AssignmentMessage


# --- instructions ---------------------------------------------------------------------------


class TaskInstruction(msgspec.Struct, frozen=True):
    """Base of what is to be done for one task."""

    task_id: TaskID


class Report(TaskInstruction, frozen=True):
    """Store the status, then tell the manager; `timestamp` 0 means now. No outcome."""

    status: TaskStatus


class Prepare(TaskInstruction, frozen=True):
    """Make the container. Outcome: `PrepareDone`, `PrepareFailed` or `PrepareCancelled`.

    With `is_anew` an earlier daemon left something of it that may not fit: remove that first.
    """

    assignment: Assignment
    is_anew: bool = False


class CancelPrepare(TaskInstruction, frozen=True):
    """Give up the running `Prepare` where it waits for others. Its own outcome still comes."""


class Start(TaskInstruction, frozen=True):
    """Start the container's process. Outcome: `Started` or `StartFailed`."""


class Wait(TaskInstruction, frozen=True):
    """Watch the process. Outcome: `Exited` or `WaitFailed`."""


class Kill(TaskInstruction, frozen=True):
    """Send a signal. No outcome: `Exited` follows, or the machine's timer tries again."""

    signal: str


class RunHealthcheck(TaskInstruction, frozen=True):
    """Run a command in the container. Outcome: `HealthcheckDone`, also when it cannot run."""

    argv: tuple[str, ...]
    timeout: float


class Publish(TaskInstruction, frozen=True):
    """Let the task's ports lead to it. Outcome: `Published` or `PublishFailed`."""


class Withdraw(TaskInstruction, frozen=True):
    """Take the task out of the published ports. Outcome: `Withdrawn`."""


class Detach(TaskInstruction, frozen=True):
    """Free the network of an ended container. Outcome: `Detached`."""


class Remove(TaskInstruction, frozen=True):
    """Remove container, network and anonymous volumes. Outcome: `Removed` or `RemoveFailed`."""


class Forget(TaskInstruction, frozen=True):
    """Nothing is left: drop the task's record."""


class RemoveStray(msgspec.Struct, frozen=True):
    """Remove a container that belongs to no task. Outcome: none, or `StrayKept`."""

    container_id: ContainerID


class ReportBug(TaskInstruction, frozen=True):
    """Log that the task was given up because its machine met the impossible. No outcome."""

    story: str


class PublishPorts(msgspec.Struct, frozen=True):
    """Make these the node's published ports. Outcome: `PortsApplied` or `PortsFailed`."""

    ports: tuple[PublishedPort, ...]


MachineInstruction = (
    Report
    | Prepare
    | CancelPrepare
    | Start
    | Wait
    | Kill
    | RunHealthcheck
    | Publish
    | Withdraw
    | Detach
    | Remove
    | Forget
)
# What reaches the shell: `Publish` and `Withdraw` have become `PublishPorts` for the whole node.
Instruction = (
    Report
    | Prepare
    | CancelPrepare
    | Start
    | Wait
    | Kill
    | RunHealthcheck
    | Detach
    | Remove
    | Forget
    | RemoveStray
    | ReportBug
    | PublishPorts
)

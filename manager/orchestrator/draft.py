"""The working copy of one service's tasks while a pass decides.

A pass reads and changes tasks through a `Draft`; what it changed comes out as a `ServicePlan`, a
value that can be printed, compared and refused. Every transition of a state is asserted here
against the table in `proto.states`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from proto.errors import InvariantViolationError
from proto.ids import NodeID, TaskID, new_id
from proto.objects import Service, ServiceSpec, Task, TaskStatus
from proto.states import DESIRED_STATES, Actor, TaskState, check_transition


class ServiceState(msgspec.Struct, frozen=True):
    """What a pass is given: a service (None when removed) with its tasks and spec versions."""

    service_id: str
    service: Service | None
    tasks: tuple[Task, ...]
    specs: Mapping[int, ServiceSpec]


class ServicePlan(msgspec.Struct, frozen=True):
    """What a pass wants changed.

    Attributes:
        created: new tasks.
        updated: pairs of the task that was read and what it becomes.
        deleted: tasks whose rows go.
        service: the service with a new update status or a rolled-back spec, if that changes.
        wake_at: when a pass is due though nothing happens (seconds since the epoch), or None.
        is_short: a task found no node: a pass is due when one becomes freer.
    """

    created: tuple[Task, ...] = ()
    updated: tuple[tuple[Task, Task], ...] = ()
    deleted: tuple[Task, ...] = ()
    service: Service | None = None
    wake_at: float | None = None
    is_short: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to write."""
        return not (self.created or self.updated or self.deleted or self.service)


class Draft:
    """Tasks of one service, by slot, with the changes made so far."""

    def __init__(self, state: ServiceState, *, now: float, rng: random.Random) -> None:
        """Start from what the store holds."""
        self.state = state
        self.now = now
        self.service = state.service
        self.rng = rng
        self._before = {task.id: task for task in state.tasks}
        self._tasks = dict(self._before)
        self._wake_at: float | None = None
        # Slots whose next task is made only when their restart delay is over.
        self.waiting: set[int] = set()
        self.is_short = False

    def tasks(self) -> Iterator[Task]:
        """Iterate over the present tasks in no particular order."""
        return iter(tuple(self._tasks.values()))

    def slots(self) -> dict[int, list[Task]]:
        """Group the tasks that are not being removed by slot, oldest first, slots ascending."""
        slots: dict[int, list[Task]] = {}
        for task in sorted(self._tasks.values(), key=_age):
            if task.desired_state is not TaskState.REMOVE:
                slots.setdefault(task.slot, []).append(task)
        return slots

    def spec_of(self, task: Task) -> ServiceSpec:
        """Return the version of the spec that the task was made from."""
        return self.state.specs[task.spec_version]

    def create(
        self, slot: int, *, desired: TaskState = TaskState.RUNNING, not_before: float = 0.0
    ) -> Task:
        """Add a NEW task of the service's present spec."""
        assert self.service is not None
        task = Task(
            id=TaskID(new_id(self.rng)),
            created_at=self.now,
            service_id=self.service.id,
            spec_version=self.service.spec_version,
            slot=slot,
            desired_state=desired,
            not_before=not_before,
            status=TaskStatus(state=TaskState.NEW, timestamp=self.now, message="created"),
        )
        self._tasks[task.id] = task
        return task

    def want(self, task: Task, desired: TaskState) -> None:
        """Raise a task's desired state; it never goes back."""
        current = self._tasks[task.id]
        assert desired in DESIRED_STATES
        if desired < current.desired_state:
            message = (
                f"desired state of task {task.id} may not go back "
                f"from {current.desired_state.name} to {desired.name}"
            )
            raise InvariantViolationError(message)
        if desired is not current.desired_state:
            self._tasks[task.id] = msgspec.structs.replace(current, desired_state=desired)

    def advance(self, task: Task, actor: Actor, state: TaskState, message: str) -> Task:
        """Move a task's observed state forward on behalf of `actor`; return what it becomes."""
        current = self._tasks[task.id]
        check_transition(actor, current.status.state, state, task.id)
        status = TaskStatus(state=state, timestamp=self.now, message=message)
        advanced = self._tasks[task.id] = msgspec.structs.replace(current, status=status)
        return advanced

    def assign(self, task: Task, node_id: NodeID) -> Task:
        """Give a PENDING task to a node; return what it becomes."""
        current = self._tasks[task.id]
        assert not current.node_id
        self._tasks[task.id] = msgspec.structs.replace(current, node_id=node_id)
        return self.advance(
            task, Actor.SCHEDULER, TaskState.ASSIGNED, "scheduler assigned task to node"
        )

    def refuse(self, task: Task, reason: str) -> None:
        """Write on a PENDING task why it has no node."""
        current = self._tasks[task.id]
        if current.status.err != reason:
            status = msgspec.structs.replace(current.status, err=reason)
            self._tasks[task.id] = msgspec.structs.replace(current, status=status)

    def delete(self, task: Task) -> None:
        """Drop a task's row."""
        del self._tasks[task.id]

    def wake(self, at: float) -> None:
        """Ask for a pass at this time at the latest."""
        if self._wake_at is None or at < self._wake_at:
            self._wake_at = at

    def plan(self) -> ServicePlan:
        """Return the difference to what the draft started from, each list in the order of IDs."""
        after, before = self._tasks, self._before
        return ServicePlan(
            created=tuple(after[i] for i in _sorted(after.keys() - before.keys())),
            updated=tuple(
                (before[i], after[i])
                for i in _sorted(after.keys() & before.keys())
                if after[i] is not before[i]
            ),
            deleted=tuple(before[i] for i in _sorted(before.keys() - after.keys())),
            service=self.service if self.service is not self.state.service else None,
            wake_at=self._wake_at,
            is_short=self.is_short,
        )


def _age(task: Task) -> tuple[int, bool, float, TaskID]:
    """Order by slot, oldest first; a wanted task is the newest, whatever the clock says."""
    is_wanted = task.desired_state <= TaskState.RUNNING
    return (task.slot, is_wanted, task.created_at, task.id)


def _sorted(ids: Iterable[TaskID]) -> list[TaskID]:
    return sorted(ids)

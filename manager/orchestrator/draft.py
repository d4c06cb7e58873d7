"""The working copy of one service's tasks while a pass decides.

A pass reads and changes tasks through a `Draft`; what it changed comes out as a `ServicePlan`, a
value that can be printed, compared and refused. Every transition of a state is asserted here
against the table in `proto.states`.

A *slot* is what has one task at a time: of a replicated service a number, of a global one a node.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from manager.orchestrator.difference import Difference, difference_of
from manager.orchestrator.nodes import Nodes
from proto.errors import InvariantViolationError
from proto.ids import NodeID, TaskID, new_id
from proto.objects import GlobalMode, Service, ServiceSpec, Task, TaskStatus
from proto.states import DESIRED_STATES, Actor, TaskState, check_transition

Slot = tuple[int, NodeID]
"""A number and "", or 0 and a node's ID."""

_NO_NODE = NodeID("")


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

    def __init__(
        self, state: ServiceState, nodes: Nodes, *, now: float, rng: random.Random
    ) -> None:
        """Start from what the store holds."""
        self.state = state
        self.nodes = nodes
        self.now = now
        self.service = state.service
        self.rng = rng
        self._before = {task.id: task for task in state.tasks}
        self._tasks = dict(self._before)
        self._wake_at: float | None = None
        # Slots whose next task is made only when their restart delay is over.
        self.waiting: set[Slot] = set()
        self.is_short = False
        # How older specs differ from the present one, as far as it was asked.
        self._differences: dict[int, Difference] = {}

    def tasks(self) -> Iterator[Task]:
        """Iterate over the present tasks in no particular order."""
        return iter(tuple(self._tasks.values()))

    @property
    def is_global(self) -> bool:
        """Tell whether the service has a task on each node."""
        return self.service is not None and isinstance(self.service.spec.mode, GlobalMode)

    def slots(self) -> dict[Slot, list[Task]]:
        """Group the tasks that are not being removed by slot, oldest first, slots ascending."""
        slots: dict[Slot, list[Task]] = {}
        for task in self._tasks.values():
            if task.desired_state is not TaskState.REMOVE:
                slots.setdefault(slot_of(task), []).append(task)
        for tasks in slots.values():
            if len(tasks) > 1:
                tasks.sort(key=_age)
        return dict(sorted(slots.items()))

    def spec_of(self, task: Task) -> ServiceSpec:
        """Return the version of the spec that the task was made from."""
        return self.state.specs[task.spec_version]

    def difference(self, spec_version: int) -> Difference:
        """Tell how a version of the spec differs from the service's present one."""
        difference = self._differences.get(spec_version)
        if difference is None:
            assert self.service is not None
            difference = difference_of(self.state.specs[spec_version], self.service.spec)
            self._differences[spec_version] = difference
        return difference

    def create(
        self, slot: Slot, *, desired: TaskState = TaskState.RUNNING, not_before: float = 0.0
    ) -> Task:
        """Add a NEW task of the service's present spec."""
        assert self.service is not None
        task = Task(
            id=TaskID(new_id(self.rng)),
            created_at=self.now,
            service_id=self.service.id,
            spec_version=self.service.spec_version,
            slot=slot[0],
            node_id=slot[1],
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
        status = msgspec.structs.replace(
            current.status, state=state, timestamp=self.now, message=message, err=""
        )
        advanced = self._tasks[task.id] = msgspec.structs.replace(current, status=status)
        return advanced

    def assign(self, task: Task, node_id: NodeID) -> Task:
        """Give a PENDING task to a node, its own if it has one; return what it becomes."""
        current = self._tasks[task.id]
        assert current.node_id in {_NO_NODE, node_id}
        self._tasks[task.id] = msgspec.structs.replace(current, node_id=node_id)
        return self.advance(
            task, Actor.SCHEDULER, TaskState.ASSIGNED, "scheduler assigned task to node"
        )

    def explain(self, task: Task, reason: str) -> None:
        """Write on a task why it has no node, or is wanted no more."""
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

    def changes(self) -> list[tuple[Task, Task]]:
        """List the tasks that the pass has changed so far: as they were, and as they are."""
        after, before = self._tasks, self._before
        return [
            (before[i], after[i])
            for i in _sorted(i for i in after if i in before and after[i] is not before[i])
        ]

    def plan(self) -> ServicePlan:
        """Return the difference to what the draft started from, each list in the order of IDs."""
        after, before = self._tasks, self._before
        return ServicePlan(
            created=tuple(after[i] for i in _sorted(after.keys() - before.keys())),
            updated=tuple(self.changes()),
            deleted=tuple(before[i] for i in _sorted(before.keys() - after.keys())),
            service=self.service if self.service is not self.state.service else None,
            wake_at=self._wake_at,
            is_short=self.is_short,
        )


def slot_of(task: Task) -> Slot:
    """Return the slot that a task belongs to."""
    return (task.slot, _NO_NODE) if task.slot else (0, task.node_id)


def is_wanted(task: Task) -> bool:
    """Tell whether a task is to run, now or when it is let go."""
    return task.desired_state <= TaskState.RUNNING


def _age(task: Task) -> tuple[bool, float, TaskID]:
    """Order tasks of a slot, oldest first; a wanted one is the newest, whatever the clock says."""
    return (is_wanted(task), task.created_at, task.id)


def _sorted(ids: Iterable[TaskID]) -> list[TaskID]:
    return sorted(ids)

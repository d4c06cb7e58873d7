"""The working copy of one service's tasks while a pass decides.

A pass reads and changes tasks through a `Draft`; what it changed comes out as a `ServicePlan`.
Every transition of a state is asserted here against the table in `proto.states`.

Tasks of *open* slots are in the draft from the start. The others (`quiet`, `stale`: see `quiet.py`)
need nothing but to be counted; one is taken in by `open` when it is to be changed after all. So a
pass costs what there is to do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import msgspec

from manager.orchestrator.difference import Difference
from manager.orchestrator.nodes import Nodes
from manager.orchestrator.plan import ServicePlan, ServiceState, Slot, is_wanted, slot_of
from manager.orchestrator.quiet import Versions, partition
from proto.errors import InvariantViolationError
from proto.ids import NodeID, TaskID, new_id
from proto.objects import GlobalMode, ServiceSpec, Task, TaskStatus
from proto.states import DESIRED_STATES, Actor, TaskState, check_transition

# A pass makes, places and removes at most so many tasks, that it never holds the loop for long; the
# next goes on.
CREATED_MAX = 500
PLACED_MAX = 500
REMOVED_MAX = 500


class Draft:
    """Tasks of one service, by slot, with the changes made so far."""

    def __init__(
        self,
        state: ServiceState,
        nodes: Nodes,
        *,
        history_limit: int,
        now: float,
        rng: random.Random,
        is_thorough: bool = False,
    ) -> None:
        """Start from what the store holds; a thorough draft has every slot open."""
        self.state = state
        self.nodes = nodes
        self.now = now
        self.service = state.service
        self.rng = rng
        self.versions = Versions(state, nodes)
        parts = partition(
            state, nodes, self.versions, history_limit=-2 if is_thorough else history_limit
        )
        self.quiet = parts.quiet
        self.stale = parts.stale
        self._history = parts.history
        self._before: dict[TaskID, Task] = {}
        self._tasks: dict[TaskID, Task] = {}
        self._slots: dict[Slot, dict[TaskID, None]] = {}
        for task in parts.open:
            self._take_in(task)
        self._created = 0
        self._wake_at: float | None = None
        # Slots whose next task is made only when their restart delay is over, or in the next pass.
        self.waiting: set[Slot] = set()
        self.is_short = False
        self.is_partial = False

    def _take_in(self, task: Task) -> None:
        self._before[task.id] = self._tasks[task.id] = task
        self._slots.setdefault(slot_of(task), {})[task.id] = None

    @property
    def is_global(self) -> bool:
        """Tell whether the service has a task on each node."""
        return self.service is not None and isinstance(self.service.spec.mode, GlobalMode)

    def tasks(self) -> Iterator[Task]:
        """Iterate over the tasks of open slots in no particular order."""
        return iter(tuple(self._tasks.values()))

    def history(self) -> Iterator[Task]:
        """Iterate over the tasks of other slots that are not wanted."""
        return (task for tasks in self._history.values() for task in tasks)

    def slots(self) -> dict[Slot, list[Task]]:
        """Group the tasks that are not being removed by open slot, slots ascending."""
        slots = ((slot, self.rows(slot)) for slot in sorted(self._slots))
        return {slot: rows for slot, rows in slots if rows}

    def rows(self, slot: Slot) -> list[Task]:
        """List the tasks of an open slot that are not being removed, oldest first."""
        tasks = self._tasks
        rows = [
            tasks[task_id]
            for task_id in self._slots.get(slot, ())
            if tasks[task_id].desired_state is not TaskState.REMOVE
        ]
        if len(rows) > 1:
            rows.sort(key=_age)
        return rows

    def open(self, slot: Slot) -> list[Task]:
        """Open a slot if it is not; return its tasks, oldest first."""
        task = self.quiet.pop(slot, None) or self.stale.pop(slot, None)
        if task is not None:
            for row in (*self._history.pop(slot, ()), task):
                self._take_in(row)
        return self.rows(slot)

    def has_slot(self, slot: Slot) -> bool:
        """Tell whether a slot, open or not, has a task that is not being removed."""
        return slot in self.quiet or slot in self.stale or bool(self.rows(slot))

    def spec_of(self, task: Task) -> ServiceSpec:
        """Return the version of the spec that the task was made from."""
        return self.state.specs[task.spec_version]

    def difference(self, spec_version: int) -> Difference:
        """Tell how a version of the spec differs from the service's present one."""
        return self.versions.difference(spec_version)

    def has_room(self) -> bool:
        """Tell whether this pass may make another task; if not, there will be another pass."""
        if self._created >= CREATED_MAX:
            self.is_partial = True
        return not self.is_partial

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
        self._slots.setdefault(slot, {})[task.id] = None
        self._created += 1
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
        assert current.node_id in {"", node_id}
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
        del self._slots[slot_of(task)][task.id]

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
            is_partial=self.is_partial,
        )


def _age(task: Task) -> tuple[bool, float, TaskID]:
    """Order tasks of a slot, oldest first; a wanted one is the newest, whatever the clock says."""
    return (is_wanted(task), task.created_at, task.id)


def _sorted(ids: Iterable[TaskID]) -> list[TaskID]:
    return sorted(ids)

"""Which slots a pass need not look at: the shortcut that makes a pass cost what there is to do.

A slot is *quiet* when its wanted task has been let go, was made from the present template, and is
on a node that may keep it, or waits for one; *stale* when all is the same but the template. Beside
that task it may have only rows that nobody waits for and no more than the history keeps. Nothing
happens to a quiet slot but that it is counted, placed, or removed when the service is scaled down;
to a stale one but that the updater gets to it. All others are *open*.

A pass with every slot open comes to the same plan (`tests/property/test_orchestrator.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable

import msgspec

from manager.orchestrator.difference import Difference, difference_of
from manager.orchestrator.nodes import Nodes
from manager.orchestrator.plan import NO_NODE, ServiceState, Slot, is_over, slot_of
from proto.ids import NodeID
from proto.objects import GlobalMode, Task
from proto.states import TaskState
from scheduler import meets_constraints, suits

_PENDING, _ASSIGNED, _RUNNING = TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING
_SHUTDOWN, _REMOVE = TaskState.SHUTDOWN, TaskState.REMOVE


class Parts(msgspec.Struct):
    """The tasks of a service.

    Attributes:
        open: the tasks of open slots, and those that are being removed.
        quiet: the wanted task of each quiet slot.
        stale: the wanted task of each stale slot.
        history: the other tasks of quiet and stale slots.
    """

    open: list[Task] = []
    quiet: dict[Slot, Task] = {}
    stale: dict[Slot, Task] = {}
    history: dict[Slot, list[Task]] = {}


class Versions:
    """What is to be known of each version of the spec, worked out when it is asked for."""

    def __init__(self, state: ServiceState, nodes: Nodes) -> None:
        """Know nothing yet."""
        self._state = state
        self._nodes = nodes
        self._differences: dict[int, Difference] = {}

    def difference(self, spec_version: int) -> Difference:
        """Tell how a version of the spec differs from the service's present one."""
        difference = self._differences.get(spec_version)
        if difference is None:
            assert self._state.service is not None
            difference = difference_of(self._state.specs[spec_version], self._state.service.spec)
            self._differences[spec_version] = difference
        return difference

    def is_stale(self, spec_version: int) -> bool:
        """Tell whether tasks of a version are to be replaced, wherever they are."""
        service = self._state.service
        assert service is not None
        if spec_version == service.spec_version:
            return False
        return self.difference(spec_version) is Difference.TEMPLATE

    def is_present(self, spec_version: int) -> bool:
        """Tell whether tasks of a version are as the present spec wants them, wherever they are."""
        service = self._state.service
        assert service is not None
        if spec_version == service.spec_version:
            return True
        return self.difference(spec_version) is Difference.NONE

    def good_nodes(self, spec_version: int) -> frozenset[NodeID]:
        """Return the nodes where tasks of a version may certainly stay."""
        service = self._state.service
        assert service is not None
        is_global = isinstance(service.spec.mode, GlobalMode)
        is_present = is_global or not self.is_stale(spec_version)
        spec = service.spec if is_present else self._state.specs[spec_version]
        keeping, by_id = self._nodes.keeping, self._nodes.by_id
        if is_global and spec.task.placement.platforms:
            return frozenset(n for n in keeping if suits(spec.task, by_id[n]))
        if not spec.task.placement.constraints:
            return keeping
        return frozenset(n for n in keeping if meets_constraints(spec.task, by_id[n]))


def partition(
    state: ServiceState, nodes: Nodes, versions: Versions, *, history_limit: int
) -> Parts:
    """Sort the tasks.

    It is the one thing that a pass does with every row, and written accordingly.

    Args:
        state: the service with its tasks.
        nodes: all nodes.
        versions: of that state.
        history_limit: rows kept per slot; -1 for all, -2 to have every slot open.
    """
    if state.service is None or history_limit < -1:
        return Parts(open=list(state.tasks), quiet={}, stale={}, history={})
    named = {task.spec_version for task in state.tasks}
    good = {version: versions.good_nodes(version) for version in named}
    alone: dict[Slot, Task] = {}
    rest: list[Task] = []
    dead: defaultdict[int | NodeID, list[Task]] = defaultdict(list)
    opened: dict[Slot, None] = {}
    known = nodes.by_id
    for task in state.tasks:
        desired = task.desired_state
        if desired is _SHUTDOWN and (task.node_id in known or (task.slot and is_over(task))):
            # Nobody need look at it. Those of a node that was removed are to be ended, or dropped.
            dead[task.slot or task.node_id].append(task)
            continue
        slot = (task.slot, NO_NODE) if task.slot else (0, task.node_id)
        if desired is _RUNNING and slot not in alone:
            status = task.status.state
            is_given = _ASSIGNED <= status <= _RUNNING and task.node_id in good[task.spec_version]
            if is_given or (status is _PENDING and _is_waiting(task, versions)):
                alone[slot] = task
                continue
        if desired is not _REMOVE:
            opened[slot] = None
        rest.append(task)
    history = _history(dead.values(), alone, opened, rest, history_limit)
    rest.extend([alone.pop(slot) for slot in opened if slot in alone])
    stale = {version for version in named if versions.is_stale(version)}
    if not stale:
        return Parts(open=rest, quiet=alone, stale={}, history=history)
    return Parts(
        open=rest,
        quiet={slot: task for slot, task in alone.items() if task.spec_version not in stale},
        stale={slot: task for slot, task in alone.items() if task.spec_version in stale},
        history=history,
    )


def _is_waiting(task: Task, versions: Versions) -> bool:
    """Tell whether a task of the present template waits for any node that takes it."""
    return not task.node_id and versions.is_present(task.spec_version)


def _history(
    groups: Iterable[list[Task]],
    alone: Container[Slot],
    opened: dict[Slot, None],
    rest: list[Task],
    history_limit: int,
) -> dict[Slot, list[Task]]:
    """Return the rows of slots that stay closed; open those that have too many."""
    history: dict[Slot, list[Task]] = {}
    for rows in groups:
        slot = slot_of(rows[0])
        is_too_long = history_limit >= 0 and len(rows) >= history_limit
        if slot in opened or slot not in alone or is_too_long:
            opened[slot] = None
            rest.extend(rows)
        else:
            history[slot] = rows
    return history

"""What a node is told of its tasks. Pure.

A node is told of the tasks that are assigned to it and of nothing else, each with the version of
its service's spec that it names. A task's status is its own news, so only a new task, a changed
desired state, and a task that is gone are changes. A task of a node that was away for too long is
ORPHANED: another has taken its place, so for the node it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from manager.store.tables import View
from manager.store.watch import Change
from proto.assignments import Assignment, AssignmentChanges, CompleteAssignments
from proto.ids import NodeID, TaskID
from proto.objects import PortConfig, PortMode, Task, spec_version_id
from proto.states import TaskState

# Source: swarmkit manager/dispatcher/dispatcher.go (modificationBatchLimit).
CHANGES_MAX = 100
"""The tasks of one incremental message."""

GATHER_SECONDS_MAX = 0.02
GATHER_SECONDS_PER_NODE = 0.0005
"""How long a change waits for others, while changes come thick: about as long as it takes to tell
as many nodes as were told last, so that telling takes half of the time at most."""


def is_visible(task: Task | None, node_id: NodeID) -> bool:
    """Tell whether a node is told of a task."""
    return (
        task is not None
        and task.node_id == node_id
        and TaskState.ASSIGNED <= task.status.state < TaskState.ORPHANED
    )


def touched_nodes(change: Change) -> tuple[tuple[NodeID, TaskID], ...]:
    """Return which nodes have to be told of a change of a task; mostly none or one."""
    old, new = change.old, change.new
    assert old is None or isinstance(old, Task)
    assert new is None or isinstance(new, Task)
    if new is not None and (old is None or old.node_id == new.node_id):
        node_id = new.node_id
        was, now = is_visible(old, node_id), is_visible(new, node_id)
        if now and old is not None and was:
            is_news = old.desired_state is not new.desired_state
        else:
            is_news = was or now
        return ((node_id, new.id),) if is_news else ()
    return tuple(
        (task.node_id, task.id)
        for task in (old, new)
        if task is not None and is_visible(task, task.node_id)
    )


def complete_assignments(view: View, node_id: NodeID) -> CompleteAssignments:
    """Return all assignments of a node, in the order of their IDs."""
    tasks = sorted(view.tasks.find("node_id", node_id), key=lambda task: task.id)
    return CompleteAssignments(
        tuple(_assignment(view, task) for task in tasks if is_visible(task, node_id))
    )


def assignment_changes(view: View, node_id: NodeID, touched: Iterable[TaskID]) -> AssignmentChanges:
    """Return how a node's touched tasks are now."""
    updated: list[Assignment] = []
    removed: list[TaskID] = []
    for task_id in touched:
        task = view.tasks.get(task_id)
        if task is not None and is_visible(task, node_id):
            updated.append(_assignment(view, task))
        else:
            removed.append(task_id)
    return AssignmentChanges(tuple(updated), tuple(removed))


def flush_at(now: float, last_flush: float, told: int, waiting: int) -> float:
    """Return when to tell the nodes of what has gathered.

    The first change after a pause goes at once, and so do enough for a whole message.

    Args:
        now: seconds, monotonic.
        last_flush: when they were told last.
        told: how many nodes that were.
        waiting: how many changes have gathered.
    """
    if waiting >= CHANGES_MAX:
        return now
    return max(now, last_flush + min(told * GATHER_SECONDS_PER_NODE, GATHER_SECONDS_MAX))


class Chain:
    """The numbers that tie incremental messages together, for the side that reads them."""

    def __init__(self) -> None:
        """Expect a complete message."""
        self._state: int | None = None

    def accept(self, *, is_complete: bool, applies_to: int, results_in: int) -> bool:
        """Tell whether a message follows what came before; if not, nothing after it does."""
        if not is_complete and applies_to != self._state:
            self._state = None
            return False
        self._state = results_in
        return True


def _assignment(view: View, task: Task) -> Assignment:
    row = view.spec_versions.get(spec_version_id(task.service_id, task.spec_version))
    assert row is not None, "a spec version is kept while a task names it"
    service = view.services.get(task.service_id)
    allocated = service.endpoint.ports if service is not None else ()
    endpoint = row.spec.endpoint
    return Assignment(task, row.spec, numbered_ports(endpoint.ports if endpoint else (), allocated))


def numbered_ports(
    ports: Sequence[PortConfig], allocated: Sequence[PortConfig]
) -> tuple[PortConfig, ...]:
    """Return a task's ports with their published numbers.

    Args:
        ports: of the spec that the task was made from, so that an older task is not given the
            target ports of a newer spec.
        allocated: what its service has now. A port without a number takes that of the like port,
            else that of the first of its kind that is left; where there is none it stays 0.
    """
    taken = {(p.protocol, p.published_port) for p in ports if p.published_port}
    spare = [port for port in allocated if (port.protocol, port.published_port) not in taken]
    numbered: list[PortConfig] = []
    for port in ports:
        chosen = port
        if not port.published_port and port.publish_mode is PortMode.INGRESS:
            like = [p for p in spare if _unnumbered(p) == port]
            kin = [p for p in spare if _kind(p) == _kind(port)]
            for found in (*like, *kin)[:1]:
                spare.remove(found)
                chosen = msgspec.structs.replace(port, published_port=found.published_port)
        numbered.append(chosen)
    return tuple(numbered)


def _unnumbered(port: PortConfig) -> PortConfig:
    return msgspec.structs.replace(port, published_port=0)


def _kind(port: PortConfig) -> tuple[object, object]:
    return port.protocol, port.publish_mode

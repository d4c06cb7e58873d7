"""What tasks take of nodes, kept up to date change by change: placing one is no walk over all.

`Usage.apply` is told of every change of a task; `check` compares the sums with a full count. A
task counts from the moment it has a node until it is wanted gone *and* has ended, as its
container holds memory and ports until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from proto.ids import NodeID, ServiceID
from proto.objects import Resources, Task


class NodeUsage(msgspec.Struct):
    """Sums over the tasks of one node; `by_service` counts those that are wanted to run."""

    tasks: int = 0
    nano_cpus: int = 0
    memory_bytes: int = 0
    by_service: dict[ServiceID, int] = {}


ReservationsOf = Callable[[Task], Resources]


class Usage:
    """Usage of every node that has a task."""

    def __init__(self, tasks: Iterable[Task], reservations_of: ReservationsOf) -> None:
        """Count the tasks once."""
        self._nodes: dict[NodeID, NodeUsage] = {}
        self._reservations_of = reservations_of
        # What each counted task added: its spec version may be gone when it is taken off again.
        self._counted: dict[str, tuple[NodeID, ServiceID, Resources]] = {}
        for task in tasks:
            self.apply(None, task)

    def of(self, node_id: NodeID) -> NodeUsage:
        """Return the usage of a node (zeros if it has no task); do not modify it."""
        return self._nodes.get(node_id) or NodeUsage()

    def apply(self, old: Task | None, new: Task | None) -> None:
        """Take a created (`old` None), changed or deleted (`new` None) task into account."""
        changed = new or old
        assert changed is not None
        was_counted = changed.id in self._counted
        is_counted = new is not None and _holds_resources(new)
        if was_counted and not is_counted:
            self._add(*self._counted.pop(changed.id), sign=-1)
        if is_counted and not was_counted:
            assert new is not None
            entry = (new.node_id, new.service_id, self._reservations_of(new))
            self._counted[new.id] = entry
            self._add(*entry, sign=1)

    def _add(
        self, node_id: NodeID, service_id: ServiceID, resources: Resources, *, sign: int
    ) -> None:
        usage = self._nodes.setdefault(node_id, NodeUsage(by_service={}))
        usage.tasks += sign
        usage.nano_cpus += sign * resources.nano_cpus
        usage.memory_bytes += sign * resources.memory_bytes
        count = usage.by_service.get(service_id, 0) + sign
        assert count >= 0
        if count:
            usage.by_service[service_id] = count
        else:
            del usage.by_service[service_id]

    def check(self, tasks: Iterable[Task]) -> None:
        """Assert that the sums equal a full count of `tasks`."""
        fresh = Usage(tasks, self._reservations_of)
        mine = {n: u for n, u in self._nodes.items() if u.tasks}
        assert mine == fresh._nodes

    def by_node(self) -> Mapping[NodeID, NodeUsage]:
        """Return all nodes that ever had a task; do not modify it."""
        return self._nodes


def _holds_resources(task: Task) -> bool:
    """Tell whether the task has a node and has not ended."""
    return bool(task.node_id) and not task.status.state.is_terminal

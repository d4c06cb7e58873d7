"""What tasks take of nodes, kept up to date change by change: placing one is no walk over all.

`Usage.apply` is told of every change of a task; `check` compares the sums with a full count. A
task counts from the moment it has a node until it is wanted gone *and* has ended, as its
container holds memory and ports until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from proto.ids import NodeID, ServiceID
from proto.objects import PortMode, Resources, ServiceSpec, Task

HostPort = tuple[str, int]
"""A protocol and the number of a port of the node itself (`mode=host`)."""


class Needs(msgspec.Struct, frozen=True):
    """What one task takes of its node for itself."""

    reservations: Resources = Resources()
    host_ports: tuple[HostPort, ...] = ()


def needs_of(spec: ServiceSpec) -> Needs:
    """Return what each task of this version of a service takes."""
    ports = spec.endpoint.ports if spec.endpoint is not None else ()
    return Needs(
        reservations=spec.task.resources.reservations,
        host_ports=tuple(
            (port.protocol, port.published_port)
            for port in ports
            if port.publish_mode is PortMode.HOST and port.published_port
        ),
    )


class NodeUsage(msgspec.Struct):
    """Sums over the tasks of one node that have not ended."""

    tasks: int = 0
    nano_cpus: int = 0
    memory_bytes: int = 0
    by_service: dict[ServiceID, int] = {}
    host_ports: dict[HostPort, int] = {}


NeedsOf = Callable[[Task], Needs]


class Usage:
    """Usage of every node that has a task."""

    def __init__(self, tasks: Iterable[Task], needs_of: NeedsOf) -> None:
        """Count the tasks once."""
        self._nodes: dict[NodeID, NodeUsage] = {}
        self._needs_of = needs_of
        # What each counted task added: its spec version may be gone when it is taken off again.
        self._counted: dict[str, tuple[NodeID, ServiceID, Needs]] = {}
        for task in tasks:
            self.apply(None, task)

    def of(self, node_id: NodeID) -> NodeUsage:
        """Return the usage of a node (zeros if it has no task); do not modify it."""
        return self._nodes.get(node_id) or NodeUsage()

    def apply(self, old: Task | None, new: Task | None) -> bool:
        """Take a created (`old` None), changed or deleted (`new` None) task into account.

        Returns:
            whether that freed something, so that tasks which found no node may find one now.
        """
        changed = new or old
        assert changed is not None
        was_counted = changed.id in self._counted
        is_counted = new is not None and _holds_resources(new)
        is_freed = was_counted and not is_counted
        if is_freed:
            self._add(*self._counted.pop(changed.id), sign=-1)
        if is_counted and not was_counted:
            assert new is not None
            entry = (new.node_id, new.service_id, self._needs_of(new))
            self._counted[new.id] = entry
            self._add(*entry, sign=1)
        return is_freed

    def _add(self, node_id: NodeID, service_id: ServiceID, needs: Needs, *, sign: int) -> None:
        usage = self._nodes.setdefault(node_id, NodeUsage(by_service={}, host_ports={}))
        usage.tasks += sign
        usage.nano_cpus += sign * needs.reservations.nano_cpus
        usage.memory_bytes += sign * needs.reservations.memory_bytes
        _count(usage.by_service, service_id, sign)
        for port in needs.host_ports:
            _count(usage.host_ports, port, sign)

    def check(self, tasks: Iterable[Task]) -> None:
        """Assert that the sums equal a full count of `tasks`."""
        fresh = Usage(tasks, self._needs_of)
        mine = {n: u for n, u in self._nodes.items() if u.tasks}
        assert mine == fresh._nodes

    def by_node(self) -> Mapping[NodeID, NodeUsage]:
        """Return all nodes that ever had a task; do not modify it."""
        return self._nodes


_Key = TypeVar("_Key")


def _count(counts: dict[_Key, int], key: _Key, sign: int) -> None:
    count = counts.get(key, 0) + sign
    assert count >= 0
    if count:
        counts[key] = count
    else:
        del counts[key]


def _holds_resources(task: Task) -> bool:
    """Tell whether the task has a node and has not ended."""
    return bool(task.node_id) and not task.status.state.is_terminal

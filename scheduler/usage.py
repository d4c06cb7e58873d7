"""What tasks take of nodes, kept up to date change by change: placing one is no walk over all.

`Usage.apply` is told of every change of a task; `check` compares the sums with a full count. From
the moment a task is assigned until it has ended it *holds* resources and ports of its node, wanted
or not. For the spread only the *wanted* ones of these count: a node that is being rid of its tasks,
or that comes back with tasks which were replaced meanwhile, is not full of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import PortMode, Resources, ServiceSpec, Task
from proto.states import TaskState

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
    """Sums over the tasks of one node that have not ended.

    Attributes:
        held: how many hold something.
        tasks: how many of these are wanted.
        nano_cpus: what the held reserve.
        memory_bytes: likewise.
        by_service: how many are wanted of each service.
        host_ports: which ports of the node are held.
    """

    held: int = 0
    tasks: int = 0
    nano_cpus: int = 0
    memory_bytes: int = 0
    by_service: dict[ServiceID, int] = {}
    host_ports: dict[HostPort, int] = {}


class _Counted(msgspec.Struct, frozen=True):
    """What a task added: the version of its spec may be gone when it is taken off again."""

    node_id: NodeID
    service_id: ServiceID
    needs: Needs
    is_wanted: bool


NeedsOf = Callable[[Task], Needs]
_NOTHING = NodeUsage()


class Usage:
    """Usage of every node that has a task."""

    def __init__(self, tasks: Iterable[Task], needs_of: NeedsOf) -> None:
        """Count the tasks once."""
        self._nodes: dict[NodeID, NodeUsage] = {}
        self._needs_of = needs_of
        self._counted: dict[TaskID, _Counted] = {}
        # During a trial: what was counted of the tasks that it has touched.
        self._before: dict[TaskID, _Counted | None] | None = None
        for task in tasks:
            self.apply(None, task)

    def of(self, node_id: NodeID) -> NodeUsage:
        """Return the usage of a node (zeros if it has no task); do not modify it."""
        return self._nodes.get(node_id, _NOTHING)

    def apply(self, old: Task | None, new: Task | None) -> bool:
        """Take a created (`old` None), changed or deleted (`new` None) task into account.

        Returns:
            whether that freed something, so that tasks which found no node may find one now.
        """
        changed = new or old
        assert changed is not None
        before = self._counted.get(changed.id)
        is_held = new is not None and _holds_resources(new)
        after = None
        if is_held:
            needs = before.needs if before is not None else self._needs_of(changed)
            is_wanted = changed.desired_state <= TaskState.RUNNING
            after = _Counted(changed.node_id, changed.service_id, needs, is_wanted)
        self._set(changed.id, after)
        if before is None:
            return False
        return after is None or (before.is_wanted and not after.is_wanted)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Undo at the end of the block what is applied within it."""
        assert self._before is None
        self._before = {}
        try:
            yield
        finally:
            before, self._before = self._before, None
            for task_id, counted in before.items():
                self._set(task_id, counted)

    def _set(self, task_id: TaskID, after: _Counted | None) -> None:
        before = self._counted.get(task_id)
        if after == before:
            return
        if self._before is not None:
            self._before.setdefault(task_id, before)
        if before is not None:
            self._want(before, -1)
            self._hold(before, -1)
            del self._counted[task_id]
        if after is not None:
            self._counted[task_id] = after
            self._hold(after, 1)
            self._want(after, 1)

    def _hold(self, counted: _Counted, sign: int) -> None:
        usage = self._nodes.get(counted.node_id)
        if usage is None:
            usage = self._nodes[counted.node_id] = NodeUsage(by_service={}, host_ports={})
        reservations = counted.needs.reservations
        usage.held += sign
        usage.nano_cpus += sign * reservations.nano_cpus
        usage.memory_bytes += sign * reservations.memory_bytes
        for port in counted.needs.host_ports:
            _count(usage.host_ports, port, sign)
        if not usage.held:
            del self._nodes[counted.node_id]

    def _want(self, counted: _Counted, sign: int) -> None:
        if counted.is_wanted:
            usage = self._nodes[counted.node_id]
            usage.tasks += sign
            _count(usage.by_service, counted.service_id, sign)

    def nodes(self) -> Mapping[NodeID, NodeUsage]:
        """Return the usage of the nodes that have a task; do not modify it."""
        return self._nodes

    def check(self, tasks: Iterable[Task]) -> None:
        """Assert that the sums equal a full count of `tasks`."""
        assert self._nodes == Usage(tasks, self._needs_of).nodes()


_Key = TypeVar("_Key")


def _count(counts: dict[_Key, int], key: _Key, sign: int) -> None:
    count = counts.get(key, 0) + sign
    assert count >= 0
    if count:
        counts[key] = count
    else:
        del counts[key]


def _holds_resources(task: Task) -> bool:
    """Tell whether the task was given to its node and has not ended."""
    return TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING

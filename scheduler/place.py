"""Place tasks on nodes: filters say which nodes can, spread says which of them should.

A `TaskGroup` is the waiting tasks of one version of one service: they are alike, so that nodes
are filtered once for all of them. The ranking is Docker Swarm's: fewest tasks of the service,
then fewest tasks in all, then the node's ID so that a view always gives the same plan. A refusal
is a value with the reason, counted over the nodes, as `docker service ps` shows it. Source of
rules and texts: swarmkit manager/scheduler (filter.go, scheduler.go).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from proto.errors import InvalidError
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import Node, NodeAvailability, NodeState, TaskSpec
from scheduler.constraints import Constraint, parse_constraint
from scheduler.usage import HostPort, Usage


class TaskGroup(msgspec.Struct, frozen=True):
    """Waiting tasks, in the order in which they are to be placed, that share a spec."""

    service_id: ServiceID
    spec: TaskSpec
    task_ids: tuple[TaskID, ...]
    host_ports: tuple[HostPort, ...] = ()


class Placement(msgspec.Struct, frozen=True):
    """This task goes to this node."""

    task_id: TaskID
    node_id: NodeID


class Refusal(msgspec.Struct, frozen=True):
    """No node can take this task now; `reason` is the sentence a person is shown."""

    task_id: TaskID
    reason: str


Decision = Placement | Refusal

_NODE_UNAVAILABLE = "is not available for new tasks"
_NO_RESOURCES = "insufficient resources"
_NO_CONSTRAINT = "scheduling constraints not satisfied"
_HOST_PORT_TAKEN = "host-mode port already in use"
_NO_PLATFORM = "unsupported platform"
_MAX_REPLICAS = "max replicas per node limit exceed"


class _Candidate:
    """A node with what is free on it while the plan grows."""

    def __init__(self, node: Node, usage: Usage, service_id: ServiceID) -> None:
        used = usage.of(node.id)
        total = node.description.resources
        self.node = node
        self.free_nano_cpus = total.nano_cpus - used.nano_cpus
        self.free_memory_bytes = total.memory_bytes - used.memory_bytes
        self.service_tasks = used.by_service.get(service_id, 0)
        self.all_tasks = used.tasks
        self.host_ports = set(used.host_ports) if used.host_ports else set()

    def rank(self) -> tuple[int, int, NodeID]:
        return (self.service_tasks, self.all_tasks, self.node.id)

    def refuses(self, group: TaskGroup) -> str | None:
        """Check what changes while the group is placed."""
        wanted = group.spec.resources.reservations
        if wanted.nano_cpus > self.free_nano_cpus and wanted.nano_cpus:
            return _NO_RESOURCES
        if wanted.memory_bytes > self.free_memory_bytes and wanted.memory_bytes:
            return _NO_RESOURCES
        if not self.host_ports.isdisjoint(group.host_ports):
            return _HOST_PORT_TAKEN
        limit = group.spec.placement.max_replicas_per_node
        if limit and self.service_tasks >= limit:
            return _MAX_REPLICAS
        return None

    def take(self, group: TaskGroup) -> None:
        wanted = group.spec.resources.reservations
        self.free_nano_cpus -= wanted.nano_cpus
        self.free_memory_bytes -= wanted.memory_bytes
        self.service_tasks += 1
        self.all_tasks += 1
        self.host_ports.update(group.host_ports)


def place(group: TaskGroup, nodes: Sequence[Node], usage: Usage) -> list[Decision]:
    """Decide for every task of the group, in its order.

    Args:
        group: the waiting tasks.
        nodes: all nodes of the cluster.
        usage: what is taken already, without this group.
    """
    reasons: Counter[str] = Counter()
    constraints, message = _constraints(group.spec)
    if message:
        return [Refusal(task_id, message) for task_id in group.task_ids]
    candidates: list[_Candidate] = []
    for node in nodes:
        reason = _static_refusal(node, group.spec, constraints)
        if reason:
            reasons[reason] += 1
        else:
            candidates.append(_Candidate(node, usage, group.service_id))
    heap = [(*candidate.rank(), candidate) for candidate in candidates]
    heapq.heapify(heap)
    decisions: list[Decision] = []
    refusal = ""
    for task_id in group.task_ids:
        chosen = None if refusal else _next_candidate(heap, group, reasons)
        if chosen is None:
            # No node is left for this one, hence none for the others.
            refusal = refusal or _explain(reasons)
            decisions.append(Refusal(task_id, refusal))
            continue
        chosen.take(group)
        heapq.heappush(heap, (*chosen.rank(), chosen))
        decisions.append(Placement(task_id, chosen.node.id))
    return decisions


def confirm(
    group: TaskGroup, node_ids: Sequence[NodeID], nodes: Mapping[NodeID, Node], usage: Usage
) -> list[Decision]:
    """Decide for tasks that each have a node already, as those of a global service do.

    Args:
        group: the waiting tasks.
        node_ids: for each of them the only node that it may go to.
        nodes: all nodes of the cluster.
        usage: what is taken already, without this group.
    """
    decisions: list[Decision] = []
    constraints, message = _constraints(group.spec)
    for task_id, node_id in zip(group.task_ids, node_ids, strict=True):
        node = nodes.get(node_id)
        reason: str | None = _NODE_UNAVAILABLE
        if node is not None:
            reason = _static_refusal(node, group.spec, constraints)
            reason = reason or _Candidate(node, usage, group.service_id).refuses(group)
        if message or reason:
            decisions.append(Refusal(task_id, message or _explain(Counter((reason or "",)))))
        else:
            decisions.append(Placement(task_id, node_id))
    return decisions


def eligible(spec: TaskSpec, nodes: Iterable[Node]) -> list[NodeID]:
    """List the nodes that a global service has a task on, in the order given.

    They are up and active, and have the platform and what the constraints ask for. Whether there
    is room is found out when a task is placed: one that finds none waits and says so.
    """
    constraints, message = _constraints(spec)
    if message:
        return []
    return [node.id for node in nodes if _static_refusal(node, spec, constraints) is None]


def meets_constraints(spec: TaskSpec, node: Node) -> bool:
    """Tell whether a node has what the placement constraints ask for, wherever it is needed."""
    constraints, message = _constraints(spec)
    return not message and all(constraint.matches(node) for constraint in constraints)


def suits(spec: TaskSpec, node: Node) -> bool:
    """Tell whether a node has the platform too, whether or not it takes tasks now."""
    return meets_constraints(spec, node) and _has_platform(spec, node)


def _constraints(spec: TaskSpec) -> tuple[list[Constraint], str]:
    """Parse the constraints; the second value says what is wrong with them."""
    try:
        return [parse_constraint(text) for text in spec.placement.constraints], ""
    except InvalidError as error:
        return [], error.message


def _next_candidate(
    heap: list[tuple[int, int, NodeID, _Candidate]], group: TaskGroup, reasons: Counter[str]
) -> _Candidate | None:
    """Pop the best node that still has room; those that have none are dropped for good."""
    while heap:
        candidate = heapq.heappop(heap)[3]
        reason = candidate.refuses(group)
        if reason is None:
            return candidate
        reasons[reason] += 1
    return None


def _static_refusal(node: Node, spec: TaskSpec, constraints: Sequence[Constraint]) -> str | None:
    """Check what does not change while the group is placed."""
    is_ready = node.status.state is NodeState.READY
    if not is_ready or node.spec.availability is not NodeAvailability.ACTIVE:
        return _NODE_UNAVAILABLE
    if not all(constraint.matches(node) for constraint in constraints):
        return _NO_CONSTRAINT
    return None if _has_platform(spec, node) else _NO_PLATFORM


def _has_platform(spec: TaskSpec, node: Node) -> bool:
    platforms = spec.placement.platforms
    own = node.description.platform
    return not platforms or any(
        (not p.os or p.os == own.os)
        and (not p.architecture or _architecture(p.architecture) == _architecture(own.architecture))
        for p in platforms
    )


def _architecture(name: str) -> str:
    """Give one name to the two that uname and Go have for an architecture."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(name, name)


def _explain(reasons: Counter[str]) -> str:
    """Say why no node fits: `no suitable node (… on 2 nodes; … on 1 node)`."""
    if not reasons:
        return "no suitable node (the cluster has no node)"
    parts = []
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        plural = "s" if count > 1 else ""
        if reason == _NODE_UNAVAILABLE:
            verb = "nodes are" if count > 1 else "node is"
            parts.append(f"{count} {verb} not available for new tasks")
        else:
            parts.append(f"{reason} on {count} node{plural}")
    return f"no suitable node ({'; '.join(parts)})"

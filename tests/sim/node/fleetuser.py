"""A user of a cluster of several nodes: also global services and constraints."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from typing_extensions import override

from manager.controlapi import Control
from proto.ids import NodeID
from proto.objects import GlobalMode, NodeAvailability, ReplicatedMode, ServiceSpec

from .user import NAMES, Operation, User, changed

REPLICAS_MAX = 6
_CONSTRAINTS = (
    ("node.labels.disk==ssd",),
    ("node.labels.disk!=ssd",),
    ("node.role==manager",),
    ("node.role!=manager",),
    ("node.hostname!=node2",),
)


class FleetUser(User):
    """Draws operations for many nodes."""

    @override
    def draw(self) -> tuple[str, Operation]:
        """Return the next operation and what it is called."""
        rng = self._rng
        kind = rng.choices(("create", "constraints", "scale", ""), (4, 2, 4, 10))[0]
        if kind == "create":
            return self.create()
        name = self._last
        if kind == "constraints":
            constraints = self._constraints()
            return (
                f"update {name}: constraints {constraints}",
                lambda control: changed(control, name, lambda s: constrained(s, constraints)),
            )
        if kind == "scale":
            replicas = rng.randint(0, REPLICAS_MAX)
            return (
                f"scale {name} to {replicas}",
                lambda control: changed(control, name, lambda s: scaled(s, replicas)),
            )
        name, operation = super().draw()
        # Changing the node is the operator's work here, and done elsewhere.
        return self.draw() if name.startswith("node ") else (name, operation)

    def create(self) -> tuple[str, Operation]:
        """Return the creation of a service."""
        name = self._last = self._rng.choice(NAMES)
        spec = self._spec(name)
        return f"create {name}", lambda control: control.create_service(spec)

    @override
    def _spec(self, name: str) -> ServiceSpec:
        spec = super()._spec(name)
        mode = GlobalMode()
        if self._rng.random() < 0.65:
            mode = ReplicatedMode(replicas=self._rng.randint(1, REPLICAS_MAX))
        spec = msgspec.structs.replace(spec, mode=mode)
        return constrained(spec, self._constraints())

    def _constraints(self) -> tuple[str, ...]:
        return self._rng.choice(_CONSTRAINTS) if self._rng.random() < 0.3 else ()


def constrained(spec: ServiceSpec, constraints: tuple[str, ...]) -> ServiceSpec:
    """Give a service other placement constraints."""
    placement = msgspec.structs.replace(spec.task.placement, constraints=constraints)
    task = msgspec.structs.replace(spec.task, placement=placement)
    return msgspec.structs.replace(spec, task=task)


def scaled(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    """Give a replicated service another number of replicas."""
    if not isinstance(spec.mode, ReplicatedMode):
        return spec
    return msgspec.structs.replace(spec, mode=ReplicatedMode(replicas=replicas))


async def changed_node(
    control: Control,
    node_id: NodeID,
    *,
    availability: NodeAvailability | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Give a node another availability or other labels."""
    node = control.node(node_id)
    spec = node.spec
    if availability is not None:
        spec = msgspec.structs.replace(spec, availability=availability)
    if labels is not None:
        spec = msgspec.structs.replace(spec, labels=labels)
    await control.update_node(node.id, node.version, spec)

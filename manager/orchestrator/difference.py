"""How two versions of a service's spec differ, as far as their tasks are concerned."""

from __future__ import annotations

from enum import Enum

import msgspec

from proto.objects import ServiceSpec


class Difference(Enum):
    """Whether a task of one spec would have to be replaced by one of the other."""

    NONE = 0
    CONSTRAINTS = 1
    """Only the placement constraints differ: it depends on the task's node."""
    TEMPLATE = 2


def difference_of(old: ServiceSpec, new: ServiceSpec) -> Difference:
    """Compare the task templates and the ports."""
    if _ports(old) != _ports(new):
        return Difference.TEMPLATE
    if old.task == new.task:
        return Difference.NONE
    placement = msgspec.structs.replace(
        old.task.placement, constraints=new.task.placement.constraints
    )
    if msgspec.structs.replace(old.task, placement=placement) == new.task:
        return Difference.CONSTRAINTS
    return Difference.TEMPLATE


def _ports(spec: ServiceSpec) -> object:
    return spec.endpoint.ports if spec.endpoint else ()

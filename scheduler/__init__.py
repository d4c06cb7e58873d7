"""The scheduler: pure functions from a view of nodes and tasks to placements and refusals."""

from scheduler.constraints import Constraint, parse_constraint
from scheduler.place import (
    Decision,
    Placement,
    Refusal,
    TaskGroup,
    confirm,
    eligible,
    meets_constraints,
    place,
    suits,
)
from scheduler.usage import HostPort, Needs, NodeUsage, Usage, needs_of

__all__ = [
    "Constraint",
    "Decision",
    "HostPort",
    "Needs",
    "NodeUsage",
    "Placement",
    "Refusal",
    "TaskGroup",
    "Usage",
    "confirm",
    "eligible",
    "meets_constraints",
    "needs_of",
    "parse_constraint",
    "place",
    "suits",
]

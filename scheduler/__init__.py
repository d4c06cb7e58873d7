"""The scheduler: pure functions from a view of nodes and tasks to placements and refusals."""

from scheduler.constraints import Constraint, parse_constraint
from scheduler.place import Decision, Placement, Refusal, TaskGroup, place
from scheduler.usage import NodeUsage, Usage

__all__ = [
    "Constraint",
    "Decision",
    "NodeUsage",
    "Placement",
    "Refusal",
    "TaskGroup",
    "Usage",
    "parse_constraint",
    "place",
]

"""What a pass is given and what it gives back: values, to be printed, compared and refused.

A *slot* is what has one task at a time: of a replicated service a number, of a global one a node.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proto.ids import NodeID
from proto.objects import Service, ServiceSpec, Task
from proto.states import TaskState

Slot = tuple[int, NodeID]
"""A number and "", or 0 and a node's ID."""

NO_NODE = NodeID("")


class ServiceState(msgspec.Struct, frozen=True):
    """What a pass is given: a service (None when removed) with its tasks and spec versions."""

    service_id: str
    service: Service | None
    tasks: tuple[Task, ...]
    specs: Mapping[int, ServiceSpec]


class ServicePlan(msgspec.Struct, frozen=True):
    """What a pass wants changed.

    Attributes:
        created: new tasks.
        updated: pairs of the task that was read and what it becomes.
        deleted: tasks whose rows go.
        service: the service with a new update status or a rolled-back spec, if that changes.
        wake_at: when a pass is due though nothing happens (seconds since the epoch), or None.
        is_short: a task found no node: a pass is due when one becomes freer.
        is_partial: more is to be done than one pass may do: another is due at once.
    """

    created: tuple[Task, ...] = ()
    updated: tuple[tuple[Task, Task], ...] = ()
    deleted: tuple[Task, ...] = ()
    service: Service | None = None
    wake_at: float | None = None
    is_short: bool = False
    is_partial: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to write."""
        return not (self.created or self.updated or self.deleted or self.service)


def slot_of(task: Task) -> Slot:
    """Return the slot that a task belongs to."""
    return (task.slot, NO_NODE) if task.slot else (0, task.node_id)


def is_wanted(task: Task) -> bool:
    """Tell whether a task is to run, now or when it is let go."""
    return task.desired_state <= TaskState.RUNNING


def is_over(task: Task) -> bool:
    """Tell whether no node has anything of this task that runs."""
    return not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING

"""What a dispatcher and an agent tell each other, in process or over the wire."""

from __future__ import annotations

import msgspec

from proto.ids import TaskID
from proto.objects import PortConfig, ServiceSpec, Task, TaskStatus


class Assignment(msgspec.Struct, frozen=True):
    """A task of this node with the version of its service's spec that it was made from.

    `ports` are the spec's with their published numbers as allocated by the manager; when empty,
    those in the spec are taken.
    """

    task: Task
    spec: ServiceSpec
    ports: tuple[PortConfig, ...] = ()


class CompleteAssignments(msgspec.Struct, frozen=True, tag=True):
    """All that this node shall have; whatever else it runs is to be removed."""

    assignments: tuple[Assignment, ...]


class AssignmentChanges(msgspec.Struct, frozen=True, tag=True):
    """What changed since the last message; `removed` tasks are forgotten, containers and all."""

    updated: tuple[Assignment, ...] = ()
    removed: tuple[TaskID, ...] = ()


AssignmentMessage = CompleteAssignments | AssignmentChanges


class StatusUpdate(msgspec.Struct, frozen=True):
    """What the agent observed of one task; the state never goes back."""

    task_id: TaskID
    status: TaskStatus

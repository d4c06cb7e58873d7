"""The seam between the worker's agent and a manager's dispatcher.

The agent opens a session, gets everything that this node shall run (`CompleteAssignments`), then
only what changes, and reports statuses in batches. On a manager's own node the dispatcher is called
in process; on others a gRPC client has the same methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from proto.ids import NodeID, TaskID
from proto.objects import Node, NodeDescription, PortConfig, ServiceSpec, Task, TaskStatus


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


class Dispatcher(Protocol):
    """What an agent needs of a manager. All raise `UnavailableError` when none is reached."""

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session: the node becomes READY; return it as the manager sees it."""

    def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield one `CompleteAssignments`, then changes, for as long as the session lives."""

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Store what was observed; returns when it is durable."""

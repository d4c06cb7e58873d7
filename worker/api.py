"""The seam between the worker's agent and a manager's dispatcher.

The agent opens a session, gets everything that this node shall run (`CompleteAssignments`), then
only what changes, and reports statuses in batches. On a manager's own node the dispatcher is called
in process; on others a gRPC client has the same methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from proto.assignments import (
    Assignment,
    AssignmentChanges,
    AssignmentMessage,
    CompleteAssignments,
    StatusUpdate,
)
from proto.ids import NodeID
from proto.objects import Node, NodeDescription

__all__ = [
    "Assignment",
    "AssignmentChanges",
    "AssignmentMessage",
    "CompleteAssignments",
    "Dispatcher",
    "StatusUpdate",
]


class Dispatcher(Protocol):
    """What an agent needs of a manager. All raise `UnavailableError` when none is reached."""

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session: the node becomes READY; return it as the manager sees it."""

    def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield one `CompleteAssignments`, then changes, for as long as the session lives."""

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Store what was observed; returns when it is durable."""

"""What a node's report may change. Pure.

A report never moves a task backwards, a report from a node that the task is not assigned to is
ignored, and texts are bounded, since they go into the log.
"""

from __future__ import annotations

import msgspec

from manager.store.transaction import Transaction
from proto.assignments import StatusUpdate
from proto.ids import NodeID, TaskID
from proto.objects import TaskStatus
from proto.states import Actor, TaskState, is_transition

TEXT_CHARACTERS_MAX = 4_096


class Ignored(msgspec.Struct, frozen=True):
    """A report that changed nothing, and why."""

    task_id: TaskID
    reason: str


def write_status(tx: Transaction, node_id: NodeID, update: StatusUpdate) -> Ignored | None:
    """Write a status if it moves its task forward; say why not otherwise.

    A task that is gone is no surprise: the report and the removal crossed.
    """
    task = tx.tasks.get(update.task_id)
    if task is None:
        return None
    if task.node_id != node_id:
        return Ignored(task.id, "the task is not assigned to this node")
    status = merge_status(task.status, update.status)
    if status is None:
        old, new = task.status.state.name, update.status.state.name
        return Ignored(task.id, f"a task does not go from {old} to {new}")
    tx.update(msgspec.structs.replace(task, status=status))
    return None


def merge_status(stored: TaskStatus, reported: TaskStatus) -> TaskStatus | None:
    """Return what to store of a report, or None if it would move the task backwards."""
    if reported.state is not stored.state and not is_transition(
        Actor.AGENT, stored.state, reported.state
    ):
        return None
    running_at = stored.running_at or reported.running_at
    if not running_at and reported.state is TaskState.RUNNING:
        running_at = reported.timestamp
    return msgspec.structs.replace(
        reported,
        running_at=running_at,
        message=reported.message[:TEXT_CHARACTERS_MAX],
        err=reported.err[:TEXT_CHARACTERS_MAX],
    )


def orphan(tx: Transaction, task_id: TaskID, node_id: NodeID) -> bool:
    """Make a task ORPHANED whose node was away for too long; tell whether it was one to be."""
    task = tx.tasks.get(task_id)
    if task is None or task.node_id != node_id:
        return False
    if not is_transition(Actor.LEADER, task.status.state, TaskState.ORPHANED):
        return False
    status = msgspec.structs.replace(
        task.status,
        state=TaskState.ORPHANED,
        timestamp=tx.now,
        message="its node was away for too long",
    )
    tx.update(msgspec.structs.replace(task, status=status))
    return True

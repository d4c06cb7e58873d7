"""What a node's report may change. Pure.

A report never moves a task backwards, a report from a node that the task is not assigned to is
ignored, and what is stored of one was checked by `nodeport/claims`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from manager.nodeport.claims import checked_status
from manager.store.transaction import Transaction
from proto.assignments import StatusUpdate
from proto.errors import InvalidError
from proto.ids import NodeID, TaskID
from proto.objects import TaskStatus
from proto.states import Actor, TaskState, is_transition
from raft.transport.throttle import KEYS_MAX, Throttle

COST_CHARACTERS = 256
"""So much text of a status counts as one status. An honest one has less."""

_PORT_CHARACTERS = 32


def cost(update: StatusUpdate) -> int:
    """Return how many statuses one counts as: what it may take in the log, not only that it is one.

    A program that was taken may write thousands of characters into each, and names of ports.
    """
    status = update.status
    characters = len(status.message) + len(status.err) + len(status.container_id)
    characters += sum(len(port.name) + _PORT_CHARACTERS for port in status.host_ports)
    return 1 + characters // COST_CHARACTERS


class Ignored(msgspec.Struct, frozen=True):
    """A report that changed nothing, and why."""

    task_id: TaskID
    reason: str


class IgnoredBurst(msgspec.Struct, frozen=True):
    """Reports of one node that changed nothing, since the last that was told of: one line."""

    count: int
    first: Ignored


class IgnoredStatuses:
    """Makes one line of many ignored reports: a node may send thousands a second."""

    def __init__(self) -> None:
        """Know of none."""
        self._throttle = Throttle()
        self._counts: dict[NodeID, int] = {}

    def note(self, node_id: NodeID, results: Iterable[object], now: float) -> IgnoredBurst | None:
        """Count the `Ignored` among the results of a report; return what is to be told now.

        Args:
            node_id: whose report it was.
            results: what became of each status.
            now: seconds, monotonic.
        """
        ignored = [result for result in results if isinstance(result, Ignored)]
        if not ignored:
            return None
        count = self._counts.pop(node_id, 0) + len(ignored)
        if self._throttle.is_due(node_id, now):
            return IgnoredBurst(count, ignored[0])
        while len(self._counts) >= KEYS_MAX:
            del self._counts[next(iter(self._counts))]
        self._counts[node_id] = count
        return None


def write_status(tx: Transaction, node_id: NodeID, update: StatusUpdate) -> Ignored | None:
    """Write a status if it moves its task forward; say why not otherwise.

    A task that is gone is no surprise: the report and the removal crossed.
    """
    task = tx.tasks.get(update.task_id)
    if task is None:
        return None
    if task.node_id != node_id:
        return Ignored(task.id, "the task is not assigned to this node")
    try:
        reported = checked_status(update.status, since=task.created_at, now=tx.now)
    except InvalidError as error:
        return Ignored(task.id, error.message)
    status = merge_status(task.status, reported)
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
    return msgspec.structs.replace(reported, running_at=running_at)


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

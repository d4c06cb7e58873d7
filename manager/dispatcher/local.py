"""The dispatcher as an agent in the same process calls it (the protocol of `worker.api`).

It decides nothing but what a status may change: a report never moves a task backwards, a report
of a node that the task is not assigned to is ignored, and both are logged. Assignments carry the
spec version that the task names. The gRPC service for other nodes will stand on the same
functions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
import structlog

from manager.store.store import Store
from manager.store.tables import View
from manager.store.transaction import Transaction
from manager.store.watch import Event, Resync
from proto.assignments import (
    Assignment,
    AssignmentChanges,
    AssignmentMessage,
    CompleteAssignments,
    StatusUpdate,
)
from proto.errors import NotFoundError
from proto.ids import NodeID, TaskID
from proto.objects import (
    Node,
    NodeDescription,
    NodeState,
    NodeStatus,
    PortConfig,
    PortMode,
    Task,
    TaskStatus,
    spec_version_id,
)
from proto.states import Actor, TaskState, is_transition

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class LocalDispatcher:
    """Serves the agent of the manager's own node."""

    def __init__(self, store: Store) -> None:
        """Keep the store."""
        self._store = store

    def interrupt(self, reason: str) -> None:
        """Sessions end with their store."""

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Make the node READY with what it says of itself."""

        def change(tx: Transaction) -> Node:
            node = tx.nodes.get(node_id)
            if node is None:
                raise NotFoundError("node", node_id)
            status = NodeStatus(state=NodeState.READY, addr=node.status.addr)
            return tx.update(msgspec.structs.replace(node, description=description, status=status))

        node = await self._store.update(change)
        log.info("node_registered", node_id=node_id)
        return node

    async def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield everything that the node shall have, then what changes."""
        async with self._store.watch(Task) as watch:
            yield complete_assignments(watch.view, node_id)
            async for events in watch:
                batch = (*events, *watch.drain())
                resync = next((e for e in reversed(batch) if isinstance(e, Resync)), None)
                if resync is not None:
                    yield complete_assignments(self._store.view(), node_id)
                    continue
                changes = assignment_changes(batch, self._store.view(), node_id)
                if changes.updated or changes.removed:
                    yield changes

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Write the reported statuses, durably on return."""
        await self._store.update(lambda tx: write_statuses(tx, node_id, updates))


def complete_assignments(view: View, node_id: NodeID) -> CompleteAssignments:
    """Return all assignments of a node."""
    tasks = sorted(view.tasks.find("node_id", node_id), key=lambda task: task.id)
    return CompleteAssignments(tuple(_assignment(view, task) for task in tasks))


def assignment_changes(events: Sequence[Event], view: View, node_id: NodeID) -> AssignmentChanges:
    """Reduce events of tasks to what the node must be told; statuses are its own news."""
    touched: dict[TaskID, None] = {}
    for event in events:
        assert not isinstance(event, Resync)
        old, new = event.old, event.new
        if isinstance(new, Task) and new.node_id == node_id:
            is_known = isinstance(old, Task) and old.node_id == node_id
            if not is_known or _differs(old, new):
                touched[new.id] = None
        elif isinstance(old, Task) and old.node_id == node_id:
            touched[old.id] = None
    updated: list[Assignment] = []
    removed: list[TaskID] = []
    for task_id in touched:
        task = view.tasks.get(task_id)
        if task is None:
            removed.append(task_id)
        else:
            updated.append(_assignment(view, task))
    return AssignmentChanges(tuple(updated), tuple(removed))


def _differs(old: object, new: Task) -> bool:
    assert isinstance(old, Task)
    return old.desired_state is not new.desired_state


def _assignment(view: View, task: Task) -> Assignment:
    row = view.spec_versions.get(spec_version_id(task.service_id, task.spec_version))
    assert row is not None, "a spec version is kept while a task names it"
    service = view.services.get(task.service_id)
    allocated = service.endpoint.ports if service is not None else ()
    endpoint = row.spec.endpoint
    return Assignment(task, row.spec, numbered_ports(endpoint.ports if endpoint else (), allocated))


def numbered_ports(
    ports: tuple[PortConfig, ...], allocated: tuple[PortConfig, ...]
) -> tuple[PortConfig, ...]:
    """Return a task's ports with their published numbers.

    Args:
        ports: of the spec that the task was made from, so that an older task is not given the
            target ports of a newer spec.
        allocated: what its service has now. A port without a number takes that of the like port,
            else that of the first of its kind that is left; where there is none it stays 0.
    """
    spare = [
        port
        for port in allocated
        if (port.protocol, port.published_port)
        not in {(p.protocol, p.published_port) for p in ports if p.published_port}
    ]
    numbered: list[PortConfig] = []
    for port in ports:
        chosen = port
        if not port.published_port and port.publish_mode is PortMode.INGRESS:
            like = [p for p in spare if msgspec.structs.replace(p, published_port=0) == port]
            kin = [
                p
                for p in spare
                if (p.protocol, p.publish_mode) == (port.protocol, PortMode.INGRESS)
            ]
            for found in (*like, *kin)[:1]:
                spare.remove(found)
                chosen = msgspec.structs.replace(port, published_port=found.published_port)
        numbered.append(chosen)
    return tuple(numbered)


def write_statuses(tx: Transaction, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
    """Write each status that moves its task forward."""
    for update in updates:
        task = tx.tasks.get(update.task_id)
        if task is None:
            continue
        if task.node_id != node_id:
            log.warning("foreign_status_ignored", task_id=task.id, node_id=node_id)
            continue
        status = merge_status(task.status, update.status)
        if status is None:
            log.warning(
                "status_ignored",
                task_id=task.id,
                stored=task.status.state.name,
                reported=update.status.state.name,
            )
            continue
        tx.update(msgspec.structs.replace(task, status=status))


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

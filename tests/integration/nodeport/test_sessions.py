"""Sessions over real gRPC and TLS."""

import pytest

from proto.assignments import AssignmentChanges, CompleteAssignments, StatusUpdate
from proto.objects import (
    NodeDescription,
    NodeState,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskStatus,
)
from proto.states import TaskState

pytestmark = pytest.mark.integration


def create_task(tx, name, node_id):
    """Assign a task."""
    if "svc.1" not in tx.spec_versions:
        spec = ServiceSpec(name="web")
        tx.create(ServiceSpecVersion(id="svc.1", service_id="svc", spec_version=1, spec=spec))
    tx.create(
        Task(
            id=name,
            service_id="svc",
            spec_version=1,
            node_id=node_id,
            status=TaskStatus(state=TaskState.ASSIGNED),
        )
    )


async def test_a_node_registers_and_is_ready(manager, client):
    """A hello makes the node READY with its description and the address it came from."""
    told = []
    node = await client("w1", manager, told=told).register("w1", NodeDescription(hostname="h"))

    assert node.status.state is NodeState.READY
    stored = manager.store.view().nodes.get("w1")
    assert (stored.description.hostname, stored.status.addr) == ("h", "127.0.0.1")
    assert [peer.address for peer in told[0].managers] == [manager.address]


async def test_tasks_come_and_statuses_go(manager, client):
    """Everything first, then what changes; a status is stored when the report returns."""
    one = client("w1", manager)
    await manager.store.update(lambda tx: create_task(tx, "t1", "w1"))
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")

    first = await anext(messages)
    await manager.store.update(lambda tx: create_task(tx, "t2", "w1"))
    await manager.store.update(lambda tx: create_task(tx, "t3", "w2"))
    second = await anext(messages)
    running = TaskStatus(state=TaskState.RUNNING, timestamp=5.0)
    await one.update_statuses("w1", [StatusUpdate("t1", running), StatusUpdate("t3", running)])

    assert isinstance(first, CompleteAssignments)
    assert [a.task.id for a in first.assignments] == ["t1"]
    assert isinstance(second, AssignmentChanges)
    assert [(a.task.id, a.spec.name) for a in second.updated] == [("t2", "web")]
    tasks = manager.store.view().tasks
    assert tasks.get("t1").status.state is TaskState.RUNNING
    assert tasks.get("t3").status.state is TaskState.ASSIGNED
    await messages.aclose()

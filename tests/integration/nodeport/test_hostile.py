"""A worker that was taken says what it likes, with a certificate that is good."""

import msgspec
import pytest
import structlog

from manager.dispatcher import wire
from manager.httpapi.convert.node import node_to_json
from manager.httpapi.convert.task import task_to_json
from proto.assignments import StatusUpdate
from proto.objects import (
    NodeDescription,
    NodeState,
    PortConfig,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskStatus,
)
from proto.states import TaskState
from proto.v1 import dispatcher_pb2 as pb
from proto.v1 import dispatcher_pb2_grpc

pytestmark = pytest.mark.integration

ESCAPE = "\x1b]0;owned\x07"


VERSION = ServiceSpecVersion(id="svc.1", service_id="svc", spec_version=1, spec=ServiceSpec())


async def say(manager, dial, authority, *messages):
    """Open a session as worker w1, say something, and return the answers until it ends."""
    channel = dial(manager, authority.issue("w1"))
    call = dispatcher_pb2_grpc.DispatcherStub(channel).Session()
    for message in messages:
        await call.write(message)
    return call


def hello(description=None, address=""):
    """Make a hello."""
    return wire.hello(description or NodeDescription(hostname="w1"), address, "one")


def task(name, node_id):
    """Make a task that a node has."""
    return Task(
        id=name,
        service_id="svc",
        spec_version=1,
        node_id=node_id,
        status=TaskStatus(state=TaskState.ASSIGNED),
    )


async def test_a_hostile_report_harms_nobody_else(manager, client, dial, authority):
    """Its times, numbers and texts are put right or ignored; the session of another goes on."""
    rows = (VERSION, task("t1", "w1"), task("t2", "w1"), task("t3", "w2"))
    await manager.store.batch(rows, lambda tx, row: tx.create(row))
    other = client("w2", manager)
    await other.register("w2", NodeDescription(hostname="w2"))
    failed = TaskStatus(state=TaskState.FAILED, timestamp=1e300, running_at=1e300, err=ESCAPE)
    huge = TaskStatus(state=TaskState.FAILED, host_ports=(PortConfig(name="x" * 200),) * 10_000)
    report = [StatusUpdate("t1", failed), StatusUpdate("t2", huge)]
    report += [StatusUpdate("t3", failed)] * 7_000

    with structlog.testing.capture_logs() as lines:
        call = await say(manager, dial, authority, hello(), wire.status_report(1, report))
        while isinstance(message := await call.read(), pb.ToAgent):
            if message.HasField("ack"):
                break
        call.cancel()
    running = TaskStatus(state=TaskState.RUNNING, timestamp=5.0)
    await other.update_statuses("w2", [StatusUpdate("t3", running)])

    tasks = manager.store.view().tasks
    assert tasks.get("t1").status.timestamp <= tasks.get("t1").updated_at
    assert ESCAPE not in tasks.get("t1").status.err
    assert tasks.get("t2").status.state is TaskState.ASSIGNED
    assert tasks.get("t3").status.state is TaskState.RUNNING
    assert len([line for line in lines if line["log_level"] == "warning"]) == 1
    for row in tasks:
        msgspec.json.encode(task_to_json(row, ServiceSpec()))


@pytest.mark.parametrize("address", ["1" * 1_400_000, "10.0.0.1" + ESCAPE, "0.0.0.0"])
async def test_an_address_that_is_none_is_not_believed(
    manager, dial, authority, address, eventually
):
    """The manager takes that of the connection; a text is shown as it can be."""
    description = NodeDescription(hostname=ESCAPE)
    call = await say(manager, dial, authority, hello(description, address))
    await eventually(lambda: manager.state("w1") is NodeState.READY)

    node = manager.store.view().nodes.get("w1")
    assert node.status.addr == "127.0.0.1"
    assert node_to_json(node)["Description"]["Hostname"] == "\\x1b]0;owned\\x07"
    call.cancel()

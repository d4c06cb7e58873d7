"""The dispatcher's pure parts: what a report may change, what a node is told."""

import msgspec
import pytest

from manager.dispatcher.local import assignment_changes, merge_status, numbered_ports
from manager.store import Created, Deleted, Updated
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import (
    PortConfig,
    PortMode,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskStatus,
)
from proto.states import TaskState


def task(name="t", *, node="me", state=TaskState.ASSIGNED, desired=TaskState.RUNNING):
    """Make a task of this node."""
    return Task(
        id=TaskID(name),
        service_id=ServiceID("svc"),
        spec_version=1,
        node_id=NodeID(node),
        desired_state=desired,
        status=TaskStatus(state=state, timestamp=1.0),
    )


class _Table:
    def __init__(self, rows):
        self._rows = {row.id: row for row in rows}

    def get(self, row_id):
        return self._rows.get(row_id)


class _View:
    """The tables that the function reads, as plain dicts."""

    def __init__(self, *tasks):
        self.tasks = _Table(tasks)
        self.services = _Table([])
        row = ServiceSpecVersion(id="svc.1", spec_version=1, spec=ServiceSpec(name="web"))
        self.spec_versions = _Table([row])


@pytest.mark.parametrize(
    ("stored", "reported", "is_taken"),
    [
        (TaskState.ASSIGNED, TaskState.RUNNING, True),
        (TaskState.RUNNING, TaskState.RUNNING, True),
        (TaskState.RUNNING, TaskState.FAILED, True),
        (TaskState.RUNNING, TaskState.STARTING, False),
        (TaskState.FAILED, TaskState.RUNNING, False),
        (TaskState.RUNNING, TaskState.REJECTED, False),
        (TaskState.ORPHANED, TaskState.RUNNING, False),
    ],
)
def test_a_report_never_moves_a_task_backwards(stored, reported, is_taken):
    """Only the agent's transitions are taken; what is refused changes nothing."""
    merged = merge_status(TaskStatus(state=stored), TaskStatus(state=reported, timestamp=2.0))

    assert is_taken is (merged is not None)


def test_the_time_of_running_is_kept():
    """`running_at` is set with RUNNING and survives the states after it."""
    ran = merge_status(TaskStatus(), TaskStatus(state=TaskState.RUNNING, timestamp=5.0))
    assert ran is None  # NEW is not the agent's to leave

    ran = merge_status(
        TaskStatus(state=TaskState.READY), TaskStatus(state=TaskState.RUNNING, timestamp=5.0)
    )
    failed = merge_status(ran, TaskStatus(state=TaskState.FAILED, timestamp=9.0))

    assert (failed.running_at, failed.timestamp) == (5.0, 9.0)


def test_a_node_is_told_of_its_own_tasks_only():
    """Another node's task is none of its business, a new one comes with its spec."""
    mine, other = task("mine"), task("other", node="else")

    changes = assignment_changes(
        [Created(new=mine), Created(new=other)], _View(mine, other), NodeID("me")
    )

    assert [(a.task.id, a.spec.name) for a in changes.updated] == [("mine", "web")]
    assert changes.removed == ()


def test_a_status_is_no_news_to_the_node_that_sent_it():
    """Only the desired state makes a change of a known task an assignment."""
    old = task()
    running = msgspec.structs.replace(old, status=TaskStatus(state=TaskState.RUNNING))
    stopping = msgspec.structs.replace(running, desired_state=TaskState.SHUTDOWN)

    silent = assignment_changes([Updated(old, running)], _View(running), NodeID("me"))
    told = assignment_changes([Updated(running, stopping)], _View(stopping), NodeID("me"))

    assert silent.updated == ()
    assert [a.task.desired_state for a in told.updated] == [TaskState.SHUTDOWN]


def test_a_deleted_task_is_removed():
    """A row that is gone is told as removed, also when it came and went between two looks."""
    gone = task()

    changes = assignment_changes([Created(new=gone), Deleted(old=gone)], _View(), NodeID("me"))

    assert (gone.id,) == changes.removed


@pytest.mark.parametrize(
    ("asked", "allocated", "numbers"),
    [
        ([(80, 0)], [(80, 30000)], [30000]),
        ([(80, 8080)], [(8080, 8080)], [8080]),  # the older task keeps its own target port
        ([(80, 0)], [(8080, 30000)], [30000]),  # the only one of its kind that is left
        ([(80, 0), (81, 0)], [(81, 30001), (80, 30000)], [30000, 30001]),
        ([(80, 0)], [], [0]),
        ([(80, 0), (81, 30000)], [(80, 30000)], [0, 30000]),
        ([], [(80, 8080)], []),  # an update that adds a port does not give it to older tasks
    ],
)
def test_a_task_has_the_ports_of_its_own_spec(asked, allocated, numbers):
    """A service's present numbers are matched with the ports that the task was made with."""

    def ports(pairs):
        return tuple(PortConfig(target_port=t, published_port=p) for t, p in pairs)

    numbered = numbered_ports(ports(asked), ports(allocated))

    assert numbers == [port.published_port for port in numbered]
    assert [target for target, _ in asked] == [port.target_port for port in numbered]


def test_an_open_host_port_is_left_to_the_node():
    """Each node draws the number of a port of mode host itself."""
    port = PortConfig(target_port=80, publish_mode=PortMode.HOST)

    assert (port,) == numbered_ports((port,), (PortConfig(target_port=80, published_port=30000),))

"""What a node is told of its tasks."""

import pytest

from manager.dispatcher.assignments import (
    CHANGES_MAX,
    GATHER_SECONDS_MAX,
    GATHER_SECONDS_PER_NODE,
    Chain,
    assignment_changes,
    complete_assignments,
    flush_at,
    numbered_ports,
    touched_nodes,
)
from manager.store import Created, Deleted, Updated
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import PortConfig, PortMode, ServiceSpec, ServiceSpecVersion, Task, TaskStatus
from proto.states import TaskState

ME = NodeID("me")


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


def view_of(*tasks):
    """Make a state with these tasks and their service's spec."""
    tx = Transaction(View.empty(), 1.0)
    spec = ServiceSpec(name="web")
    tx.create(ServiceSpecVersion(id="svc.1", service_id="svc", spec_version=1, spec=spec))
    for each in tasks:
        tx.create(each)
    return tx.to_view()


def test_a_node_has_its_own_assigned_tasks_only():
    """Another node's task, one not assigned yet and one given up are none of its business."""
    view = view_of(
        task("b"),
        task("a"),
        task("early", state=TaskState.PENDING),
        task("orphan", state=TaskState.ORPHANED),
        task("ended", state=TaskState.FAILED),
        task("other", node="else"),
    )

    complete = complete_assignments(view, ME)

    assert [a.task.id for a in complete.assignments] == ["a", "b", "ended"]
    assert {a.spec.name for a in complete.assignments} == {"web"}


@pytest.mark.parametrize(
    ("old", "new", "touched"),
    [
        (None, task(), [("me", "t")]),
        (None, task(state=TaskState.PENDING), []),
        (task(state=TaskState.PENDING), task(), [("me", "t")]),
        (task(), task(state=TaskState.RUNNING), []),  # its own news
        (task(), task(desired=TaskState.SHUTDOWN), [("me", "t")]),
        (task(state=TaskState.RUNNING), task(state=TaskState.ORPHANED), [("me", "t")]),
        (task(state=TaskState.ORPHANED), task(state=TaskState.ORPHANED), []),
        (task(), None, [("me", "t")]),
        (task(state=TaskState.ORPHANED), None, []),
        (task(node=""), task(), [("me", "t")]),
    ],
)
def test_who_is_told_of_a_change(old, new, touched):
    """A node is told of a task that is new, gone or wanted otherwise, not of what it reported."""
    if old is None:
        change = Created(new=new)
    elif new is None:
        change = Deleted(old=old)
    else:
        change = Updated(old=old, new=new)

    assert touched == [pair for pair in touched_nodes(change) if pair[0] != ""]


def test_touched_tasks_are_told_as_they_are_now():
    """What is gone by the time it is told is told as removed."""
    stopping = task("stopping", desired=TaskState.SHUTDOWN)
    changes = assignment_changes(view_of(stopping), ME, ["stopping", "gone"])

    assert [a.task.desired_state for a in changes.updated] == [TaskState.SHUTDOWN]
    assert changes.removed == ("gone",)


def test_the_first_change_goes_at_once_and_the_next_gather():
    """A lone change waits for nothing; a hundred wait no longer either."""
    assert flush_at(10.0, 5.0, 1000, 1) == 10.0
    assert flush_at(10.0, 9.99, 1000, 1) == 9.99 + GATHER_SECONDS_MAX
    assert flush_at(10.0, 9.999, 4, 1) == 9.999 + 4 * GATHER_SECONDS_PER_NODE
    assert flush_at(10.0, 9.999, 1, 1) == 10.0
    assert flush_at(10.0, 9.99, 1000, CHANGES_MAX) == 10.0


def test_a_gap_in_the_chain_ends_it():
    """After a missing message nothing counts until everything is told anew."""
    chain = Chain()

    assert not chain.accept(is_complete=False, applies_to=0, results_in=1)
    assert chain.accept(is_complete=True, applies_to=0, results_in=1)
    assert chain.accept(is_complete=False, applies_to=1, results_in=2)
    assert not chain.accept(is_complete=False, applies_to=3, results_in=4)
    assert not chain.accept(is_complete=False, applies_to=2, results_in=3)
    assert chain.accept(is_complete=True, applies_to=3, results_in=4)


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

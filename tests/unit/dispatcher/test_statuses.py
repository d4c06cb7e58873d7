"""What a node's report may change."""

import msgspec
import pytest

from manager.dispatcher.statuses import Ignored, IgnoredStatuses, merge_status, orphan, write_status
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.assignments import StatusUpdate
from proto.objects import Task, TaskStatus
from proto.states import TaskState


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


def test_ignored_statuses_make_one_line_of_a_burst():
    """Ten thousand are told of once a minute, with their number."""
    bursts, ignored = IgnoredStatuses(), Ignored("t", "why")

    first = bursts.note("n1", [None] + [ignored] * 3, 0.0)
    assert (first.count, first.first) == (3, ignored)
    assert [bursts.note("n1", [ignored] * 10, float(at)) for at in range(1, 60)] == [None] * 59
    assert bursts.note("n1", [None], 61.0) is None
    assert bursts.note("n2", [ignored], 61.0).count == 1
    assert bursts.note("n1", [ignored], 61.0).count == 591


@pytest.fixture
def tx():
    """Give a transaction on a store with one running task of node "mine"."""
    made = Transaction(View.empty(), 50.0)
    made.create(Task(id="t", node_id="mine", status=TaskStatus(state=TaskState.RUNNING)))
    return made


def test_a_status_is_written(tx):
    """The node that has the task may say what became of it."""
    failed = TaskStatus(state=TaskState.FAILED, timestamp=50.0, exit_code=3)

    assert write_status(tx, "mine", StatusUpdate("t", failed)) is None
    assert failed == tx.tasks.get("t").status


def test_what_may_not_be_said_changes_nothing(tx):
    """A foreign report and one that goes back are ignored, with a reason; a late one silently."""
    before = tx.tasks.get("t")
    starting = TaskStatus(state=TaskState.STARTING)

    foreign = write_status(tx, "other", StatusUpdate("t", TaskStatus(state=TaskState.FAILED)))
    back = write_status(tx, "mine", StatusUpdate("t", starting))
    late = write_status(tx, "mine", StatusUpdate("gone", starting))

    assert foreign.reason == "the task is not assigned to this node"
    assert back.reason == "a task does not go from RUNNING to STARTING"
    assert late is None
    assert before == tx.tasks.get("t")


@pytest.mark.parametrize(
    ("state", "is_orphaned"),
    [
        (TaskState.PENDING, False),
        (TaskState.ASSIGNED, True),
        (TaskState.RUNNING, True),
        (TaskState.FAILED, False),
        (TaskState.ORPHANED, False),
    ],
)
def test_only_what_may_still_run_is_orphaned(tx, state, is_orphaned):
    """A task that has ended keeps its end; one that never was assigned is not the node's."""
    task = tx.tasks.get("t")
    tx.update(msgspec.structs.replace(task, status=TaskStatus(state=state)))

    assert is_orphaned is orphan(tx, "t", "mine")
    assert (TaskState.ORPHANED if is_orphaned else state) is tx.tasks.get("t").status.state


def test_a_task_of_another_node_is_not_orphaned(tx):
    """Between the decision and the transaction the task may have gone."""
    assert not orphan(tx, "t", "other")
    assert not orphan(tx, "gone", "mine")


@pytest.mark.parametrize("timestamp", [1e300, float("inf"), float("nan"), 51.0])
def test_what_a_node_says_is_to_come_is_now(tx, timestamp):
    """A clock that is ahead, or a lie, holds up nothing that waits for the task's end."""
    status = TaskStatus(state=TaskState.FAILED, timestamp=timestamp, running_at=timestamp)

    assert write_status(tx, "mine", StatusUpdate("t", status)) is None
    assert tx.tasks.get("t").status.timestamp == 50.0
    assert tx.tasks.get("t").status.running_at == 50.0


def test_a_status_that_no_honest_node_sends_is_ignored(tx):
    """It is told of with its reason, and the task stays as it is."""
    before = tx.tasks.get("t")
    status = TaskStatus(state=TaskState.FAILED, pid=2**63)

    ignored = write_status(tx, "mine", StatusUpdate("t", status))
    assert ignored == Ignored("t", "its process ID is out of range")
    assert before == tx.tasks.get("t")

"""The node as a whole: assignments, strays, host ports, one set of published ports."""

from __future__ import annotations

from collections.abc import Callable

from proto.ids import ContainerID, TaskID, container_id_of
from proto.objects import PortConfig, PortMode, TaskStatus
from proto.states import TaskState
from worker.api import Assignment, AssignmentChanges, CompleteAssignments
from worker.ports import DYNAMIC_PORT_MIN
from worker.runtime.api import ContainerState, ExitStatus
from worker.task.events import (
    Detach,
    Detached,
    Exited,
    Forget,
    Kill,
    PortsApplied,
    PortsFailed,
    Prepare,
    Prepared,
    PrepareDone,
    PublishPorts,
    Remove,
    Removed,
    RemoveStray,
    Report,
    ReportBug,
    Start,
    Started,
    StrayKept,
    Wait,
)
from worker.task.table import (
    ABANDONED,
    PORTS_RETRY_SECONDS,
    STRAY_RETRY_SECONDS,
    Remains,
    TaskTable,
)

Make = Callable[..., Assignment]
S = TaskState
T1, T2 = TaskID("t1"), TaskID("t2")
INGRESS = (PortConfig(target_port=80, published_port=8080),)
HOST = (PortConfig(target_port=80, published_port=8080, publish_mode=PortMode.HOST),)
OPEN = (PortConfig(target_port=80, publish_mode=PortMode.HOST),)


def table() -> TaskTable:
    """Make a node that publishes nothing and has nothing."""
    one = TaskTable()
    assert one.adopt([], {}, 0) == [PublishPorts(())]
    assert one.handle(PortsApplied(), 0) == []
    return one


def prepare(one: TaskTable, assignment: Assignment, last: int) -> list:
    """Assign a task and prepare it; the address ends in `last`."""
    task_id = assignment.task.id
    one.handle(AssignmentChanges(updated=(assignment,)), 0)
    return one.handle(PrepareDone(task_id, Prepared(address=f"172.18.0.{last}")), 0)


def said(instructions) -> list:
    """Write reports as (task, state), all else as it is."""
    return [(i.task_id, i.status.state) if isinstance(i, Report) else i for i in instructions]


def remains(task_id: TaskID) -> dict[ContainerID, Remains]:
    """Make what an earlier daemon left running."""
    container_id = container_id_of(task_id)
    state = ContainerState(id=container_id, name="n", state="running", pid=4)
    return {container_id: Remains(container=state, prepared=Prepared(address="172.18.0.9"))}


def test_ports_are_published_as_one_set(assigned: Make) -> None:
    """One request at a time; what changed meanwhile is asked for next; then tasks are RUNNING."""
    one = table()
    prepare(one, assigned("t1", ports=INGRESS), 2)
    prepare(one, assigned("t2", ports=INGRESS, slot=2), 3)
    wait, first = one.handle(Started(T1, 4), 0)
    assert wait == Wait(T1)
    assert first.ports[0].backends == ("172.18.0.2",)
    assert one.handle(Started(T2, 5), 0) == [Wait(T2)]
    running, second = one.handle(PortsApplied(), 1)
    assert said([running]) == [(T1, S.RUNNING)]
    assert second.ports[0].backends == ("172.18.0.2", "172.18.0.3")
    assert said(one.handle(PortsApplied(), 2)) == [(T2, S.RUNNING)]
    one.check()


def test_signal_waits_until_the_port_is_closed(assigned: Make) -> None:
    """The signal goes out when the kernel has the set without the task."""
    one = table()
    prepare(one, assigned("t1", ports=INGRESS), 2)
    one.handle(Started(T1, 4), 0)
    one.handle(PortsApplied(), 0)
    stop = assigned("t1", ports=INGRESS, desired=S.SHUTDOWN)
    assert one.handle(AssignmentChanges(updated=(stop,)), 1) == [PublishPorts(())]
    assert one.handle(PortsApplied(), 2) == [Kill(T1, "SIGTERM")]


def test_taken_host_port_fails_the_second_task(assigned: Make) -> None:
    """The second task that wants a host port is FAILED in Docker's words, before its start."""
    one = table()
    assert prepare(one, assigned("t1", ports=HOST), 2)[-1] == Start(T1)
    out = prepare(one, assigned("t2", ports=HOST, slot=2), 3)
    assert Start(T2) not in out
    assert said(out)[-2:] == [(T2, S.FAILED), Remove(T2)]
    assert out[-2].status.err.endswith("port is already allocated")


def test_host_port_is_free_when_it_is_withdrawn(assigned: Make) -> None:
    """After the first task has ended the port can be had again."""
    one = table()
    prepare(one, assigned("t1", ports=HOST), 2)
    one.handle(Started(T1, 4), 0)
    one.handle(PortsApplied(), 0)
    one.handle(Exited(T1, ExitStatus(exit_code=0, finished_at=1)), 1)
    one.handle(PortsApplied(), 1)
    assert prepare(one, assigned("t2", ports=HOST, slot=2), 3)[-1] == Start(T2)


def test_open_host_port_is_given_and_reported(assigned: Make) -> None:
    """A host port without a number gets one, tells the manager, and survives a restart."""
    one = table()
    prepare(one, assigned("t1", ports=OPEN), 2)
    _, publish = one.handle(Started(T1, 4), 0)
    assert publish.ports[0].published_port == DYNAMIC_PORT_MIN
    (report,) = one.handle(PortsApplied(), 0)
    assert report.status.host_ports[0].published_port == DYNAMIC_PORT_MIN
    again = TaskTable()
    out = again.adopt([(assigned("t1", ports=OPEN), report.status)], remains(T1), 0)
    assert out[-1].ports[0].published_port == DYNAMIC_PORT_MIN


def test_failed_publishing_is_tried_again(assigned: Make) -> None:
    """A task whose port cannot be opened fails; the set is asked for again after a pause."""
    one = table()
    prepare(one, assigned("t1", ports=INGRESS), 2)
    one.handle(Started(T1, 4), 0)
    assert one.handle(PortsFailed("no"), 10) == []
    assert one.next_timer() == 10 + PORTS_RETRY_SECONDS
    assert one.tick(12) == [PublishPorts(())]
    assert one.handle(PortsApplied(), 12) == [Kill(T1, "SIGTERM")]


def test_strays_go_only_after_the_first_complete_set() -> None:
    """Containers of unknown tasks, and the ports, stay until the manager has spoken."""
    one = TaskTable()
    assert one.adopt([], remains(T1), 0) == []
    assert one.handle(AssignmentChanges(), 0) == []
    assert one.handle(CompleteAssignments(()), 1) == [PublishPorts(())]
    assert one.handle(PortsApplied(), 1) == [RemoveStray(container_id_of(T1))]


def test_stray_that_could_not_be_removed_is_tried_again() -> None:
    """A container that nobody wants does not run on because its removal failed once."""
    one = TaskTable()
    one.adopt([], remains(T1), 0)
    one.handle(CompleteAssignments(()), 1)
    one.handle(PortsApplied(), 1)
    stray = container_id_of(T1)

    assert one.handle(StrayKept(stray, "busy"), 2) == []
    assert one.next_timer() == 2 + STRAY_RETRY_SECONDS
    assert one.tick(2 + STRAY_RETRY_SECONDS) == [RemoveStray(stray)]
    assert one.next_timer() is None


def test_task_whose_stray_was_kept_is_made_anew(assigned: Make) -> None:
    """What could not be removed is out of the way before the same task's container is made."""
    one = TaskTable()
    one.adopt([], remains(T1), 0)
    one.handle(CompleteAssignments(()), 1)
    one.handle(PortsApplied(), 1)
    one.handle(StrayKept(container_id_of(T1), "busy"), 2)

    out = one.handle(AssignmentChanges(updated=(assigned("t1"),)), 3)

    assert out[-1] == Prepare(T1, assigned("t1"), is_anew=True)
    assert one.next_timer() is None


def test_adopted_host_ports_keep_their_numbers(assigned: Make) -> None:
    """A task that never reported its open host port is not given another's number."""
    starting = assigned("t1", ports=OPEN, status=TaskStatus(state=S.STARTING))
    number = (
        PortConfig(target_port=80, published_port=DYNAMIC_PORT_MIN, publish_mode=PortMode.HOST),
    )
    status = TaskStatus(state=S.RUNNING, host_ports=number)
    running = assigned("t2", slot=2, ports=OPEN, status=status)

    for stored in ([(starting, None), (running, None)], []):
        one = TaskTable()
        one.adopt(stored, {**remains(T1), **remains(T2)}, 0)
        one.handle(CompleteAssignments((starting, running)), 1)
        one.check()
        assert one.machines[T2].host_ports == number


def test_container_without_a_database_is_adopted(assigned: Make) -> None:
    """With the database lost, the manager's word and the runtime's container are enough."""
    one = TaskTable()
    one.adopt([], remains(T1), 0)
    status = TaskStatus(state=S.RUNNING)
    known = assigned("t1", ports=INGRESS, status=status)
    out = one.handle(CompleteAssignments((known,)), 1)
    assert out[0] == Wait(T1)
    assert out[1].ports[0].backends == ("172.18.0.9",)
    assert len(out) == 2


def test_new_session_hears_what_it_does_not_know(assigned: Make) -> None:
    """A status that the manager missed is reported again, one that it has is not."""
    one = table()
    prepare(one, assigned("t1"), 2)
    one.handle(Started(T1, 4), 0)
    stale = assigned("t1", status=TaskStatus(state=S.PREPARING))
    assert said(one.handle(CompleteAssignments((stale,)), 1)) == [(T1, S.RUNNING)]
    fresh = assigned("t1", status=TaskStatus(state=S.RUNNING))
    assert one.handle(CompleteAssignments((fresh,)), 1) == []


def test_task_that_comes_back_is_begun_after_its_removal(assigned: Make) -> None:
    """An assignment that returns while its container is removed starts anew afterwards."""
    one = table()
    prepare(one, assigned("t1"), 2)
    one.handle(Started(T1, 4), 0)
    assert one.handle(AssignmentChanges(removed=(T1,)), 1) == [Kill(T1, "SIGTERM")]
    assert one.handle(AssignmentChanges(updated=(assigned("t1"),)), 2) == []
    assert one.handle(Exited(T1, ExitStatus(exit_code=0, finished_at=1)), 3) == [Detach(T1)]
    assert one.handle(Detached(T1), 3) == [Remove(T1)]
    out = one.handle(Removed(T1), 4)
    assert out[0] == Forget(T1)
    assert isinstance(out[-1], Prepare)
    one.check()


def test_bug_in_one_task_fails_that_task_alone(assigned: Make) -> None:
    """An impossible event gives its task up, with its story for the log; the other goes on."""
    one = table()
    prepare(one, assigned("t1"), 2)
    prepare(one, assigned("t2", slot=2), 3)
    bug, report, stray = one.handle(Removed(T1), 1)
    assert isinstance(bug, ReportBug)
    assert "Removed" in bug.story
    assert (report.status.state, report.status.err) == (S.FAILED, ABANDONED)
    assert stray == RemoveStray(container_id_of(T1))
    assert said(one.handle(Started(T2, 5), 2)) == [Wait(T2), (T2, S.RUNNING)]
    assert one.handle(Started(T1, 4), 2) == []
    one.check()

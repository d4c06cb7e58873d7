"""A task's life as lists of events and the instructions that answer them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proto.errors import InvariantViolationError
from proto.ids import TaskID, container_id_of
from proto.objects import NANOSECONDS, HealthConfig, PortConfig, TaskStatus
from proto.states import TaskState
from worker.api import Assignment
from worker.runtime.api import ContainerState, ExitStatus
from worker.task.events import (
    Assigned,
    CancelPrepare,
    Detach,
    Detached,
    Exited,
    Forget,
    Found,
    HealthcheckDone,
    Kill,
    Prepare,
    PrepareCancelled,
    Prepared,
    PrepareDone,
    PrepareFailed,
    Publish,
    Published,
    PublishFailed,
    Remove,
    Removed,
    RemoveFailed,
    Report,
    RunHealthcheck,
    Start,
    Started,
    StartFailed,
    Tick,
    Unassigned,
    Wait,
    WaitFailed,
    Withdraw,
    Withdrawn,
)
from worker.task.machine import (
    KILL_REPEAT_SECONDS,
    NETWORK_LOST,
    UNHEALTHY,
    UNSEEN,
    VANISHED,
    TaskMachine,
)
from worker.task.phases import PHASES_AFTER, Phase

T = TaskID("t1")
C = container_id_of(T)
S = TaskState
PREPARED = Prepared(address="172.18.0.2", stop_signal="SIGINT", grace_seconds=7)
PORTS = (PortConfig(target_port=80, published_port=8080),)
Make = Callable[..., Assignment]


def said(instructions) -> list:
    """Write reports as (state, err), all else as it is."""
    return [(i.status.state, i.status.err) if isinstance(i, Report) else i for i in instructions]


def running(assigned: Make, prepared: Prepared = PREPARED, **options: object) -> TaskMachine:
    """Bring a task to RUNNING (or as far as it gets without more events)."""
    machine = TaskMachine(assigned(**options))
    for event in (Found(T), PrepareDone(T, prepared), Started(T, 4)):
        machine.handle(event, 0)
    if machine.phase is Phase.PUBLISHING:
        machine.handle(Published(T), 0)
    return machine


def found(state: str, code: int = 0) -> ContainerState:
    """Make what the runtime lists."""
    exit_status = ExitStatus(exit_code=code, finished_at=9.0) if state == "exited" else None
    return ContainerState(id=C, name="n", state=state, pid=4, exit=exit_status)


def test_the_way_to_complete(assigned: Make) -> None:
    """Each step reports once, then acts; an exit with 0 is COMPLETE and frees the network."""
    machine = TaskMachine(assigned())
    assert said(machine.handle(Found(T), 0)) == [
        (S.ACCEPTED, ""),
        (S.PREPARING, ""),
        Prepare(T, machine.assignment),
    ]
    assert said(machine.handle(PrepareDone(T, PREPARED), 1)) == [
        (S.READY, ""),
        (S.STARTING, ""),
        Start(T),
    ]
    assert said(machine.handle(Started(T, 4), 2)) == [Wait(T), (S.RUNNING, "")]
    assert machine.status.pid == 4
    assert machine.status.container_id == C
    assert said(machine.handle(Exited(T, ExitStatus(exit_code=0, finished_at=9)), 3)) == [
        (S.COMPLETE, ""),
        Detach(T),
    ]
    assert machine.status.timestamp == 9
    assert machine.handle(Detached(T), 4) == []
    assert machine.phase is Phase.ENDED


def test_ready_waits_for_the_wish_to_run(assigned: Make) -> None:
    """A task whose desired state is READY is prepared and held until it shall run."""
    machine = TaskMachine(assigned(desired=S.READY))
    machine.handle(Found(T), 0)
    assert said(machine.handle(PrepareDone(T, PREPARED), 1)) == [(S.READY, "")]
    assert said(machine.handle(Assigned(T, assigned()), 2)) == [(S.STARTING, ""), Start(T)]


def test_desired_state_does_not_go_back(assigned: Make) -> None:
    """A stale wish to run does not undo the wish to stop."""
    machine = running(assigned)
    assert machine.handle(Assigned(T, assigned(desired=S.SHUTDOWN)), 1) == [Kill(T, "SIGINT")]
    assert machine.handle(Assigned(T, assigned()), 2) == []
    exit_status = ExitStatus(exit_code=130, finished_at=3)
    assert said(machine.handle(Exited(T, exit_status), 3)) == [(S.SHUTDOWN, ""), Detach(T)]


@pytest.mark.parametrize("exit_code", [1, 137])
def test_non_zero_exit_fails(assigned: Make, exit_code: int) -> None:
    """Any other exit code is FAILED, in Docker's words."""
    machine = running(assigned)
    status = ExitStatus(exit_code=exit_code, finished_at=3)
    err = f"task: non-zero exit ({exit_code})"
    assert said(machine.handle(Exited(T, status), 3)) == [(S.FAILED, err), Detach(T)]
    assert machine.status.exit_code == exit_code


def test_out_of_memory_is_named(assigned: Make) -> None:
    """A container that its memory limit killed says so."""
    machine = running(assigned)
    machine.handle(Exited(T, ExitStatus(exit_code=137, finished_at=3, oom_killed=True)), 3)
    assert machine.status.err == "task: non-zero exit (137): its memory limit was reached"


def test_an_end_that_nobody_could_write_down_is_named(assigned: Make) -> None:
    """The number is not the program's own, and the reason is told beside it."""
    machine = running(assigned)
    status = ExitStatus(exit_code=137, finished_at=3, cause="the disk is full")
    machine.handle(Exited(T, status), 3)
    assert machine.status.err == "task: non-zero exit (137): the disk is full"


def test_failed_preparation_rejects(assigned: Make) -> None:
    """What cannot be prepared is REJECTED and cleaned up."""
    machine = TaskMachine(assigned())
    machine.handle(Found(T), 0)
    assert said(machine.handle(PrepareFailed(T, "No such image: x"), 1)) == [
        (S.REJECTED, "No such image: x"),
        Remove(T),
    ]
    assert machine.handle(Removed(T), 2) == []
    assert machine.handle(Unassigned(T), 3) == [Remove(T)]
    assert machine.handle(Removed(T), 4) == [Forget(T)]


def test_failed_start_fails(assigned: Make) -> None:
    """What cannot be started is FAILED; without a process there are no logs to keep."""
    machine = TaskMachine(assigned())
    machine.handle(Found(T), 0)
    machine.handle(PrepareDone(T, PREPARED), 0)
    assert said(machine.handle(StartFailed(T, "exec: not found"), 1)) == [
        (S.FAILED, "exec: not found"),
        Remove(T),
    ]


def test_shutdown_before_anything(assigned: Make) -> None:
    """A task that shall not run any more when it arrives is SHUTDOWN without work."""
    machine = TaskMachine(assigned(desired=S.SHUTDOWN))
    assert said(machine.handle(Found(T), 0)) == [(S.SHUTDOWN, ""), Remove(T)]


def test_shutdown_cancels_the_preparation(assigned: Make) -> None:
    """A stop during preparation cancels it, and reports when nothing is under way any more."""
    for outcome in (PrepareCancelled(T), PrepareDone(T, PREPARED), PrepareFailed(T, "x")):
        machine = TaskMachine(assigned())
        machine.handle(Found(T), 0)
        shutdown = Assigned(T, assigned(desired=S.SHUTDOWN))
        assert machine.handle(shutdown, 1) == [CancelPrepare(T)]
        assert said(machine.handle(outcome, 2)) == [(S.SHUTDOWN, ""), Remove(T)]


def test_shutdown_during_start_waits_for_it(assigned: Make) -> None:
    """A stop while the process is being started signals it as soon as it runs, never RUNNING."""
    machine = TaskMachine(assigned())
    machine.handle(Found(T), 0)
    machine.handle(PrepareDone(T, PREPARED), 0)
    assert machine.handle(Assigned(T, assigned(desired=S.SHUTDOWN)), 1) == []
    assert machine.handle(Started(T, 4), 2) == [Wait(T), Kill(T, "SIGINT")]


def test_grace_then_kill_again_and_again(assigned: Make) -> None:
    """After the grace period comes SIGKILL, and again until the process has gone."""
    machine = running(assigned)
    machine.handle(Assigned(T, assigned(desired=S.SHUTDOWN)), 100)
    assert machine.next_timer() == 107
    assert machine.handle(Tick(T), 106) == []
    assert machine.handle(Tick(T), 107) == [Kill(T, "SIGKILL")]
    assert machine.next_timer() == 107 + KILL_REPEAT_SECONDS
    assert machine.handle(Tick(T), 112) == [Kill(T, "SIGKILL")]
    status = ExitStatus(exit_code=137, finished_at=3)
    assert said(machine.handle(Exited(T, status), 113)) == [(S.SHUTDOWN, ""), Detach(T)]
    assert machine.next_timer() is None


def test_ports_open_before_running_and_close_before_the_signal(assigned: Make) -> None:
    """RUNNING is said when connections can come; the signal is sent when none can."""
    machine = TaskMachine(assigned(ports=PORTS))
    machine.handle(Found(T), 0)
    machine.handle(PrepareDone(T, PREPARED), 0)
    assert machine.handle(Started(T, 4), 0) == [Wait(T), Publish(T)]
    assert machine.is_published
    assert said(machine.handle(Published(T), 1)) == [(S.RUNNING, "")]
    stop = Assigned(T, assigned(desired=S.SHUTDOWN, ports=PORTS))
    assert machine.handle(stop, 2) == [Withdraw(T)]
    assert not machine.is_published
    assert machine.is_holding_ports
    assert machine.handle(Withdrawn(T), 3) == [Kill(T, "SIGINT")]
    assert not machine.is_holding_ports


def test_address_stays_until_the_ports_are_closed(assigned: Make) -> None:
    """A process that dies keeps its address until no port leads there."""
    machine = running(assigned, ports=PORTS)
    status = ExitStatus(exit_code=1, finished_at=3)
    assert said(machine.handle(Exited(T, status), 1))[1:] == [Withdraw(T)]
    assert machine.handle(Withdrawn(T), 2) == [Detach(T)]


def test_process_that_ends_while_its_ports_close(assigned: Make) -> None:
    """Then it is SHUTDOWN, and its address goes after the ports."""
    machine = running(assigned, ports=PORTS)
    machine.handle(Assigned(T, assigned(desired=S.SHUTDOWN, ports=PORTS)), 1)
    status = ExitStatus(exit_code=1, finished_at=3)
    assert said(machine.handle(Exited(T, status), 2)) == [(S.SHUTDOWN, "")]
    assert machine.handle(Withdrawn(T), 2) == [Detach(T)]


def test_ports_that_cannot_open_fail_the_task(assigned: Make) -> None:
    """A task that nobody can reach is stopped, and FAILED with the reason."""
    machine = TaskMachine(assigned(ports=PORTS))
    for event in (Found(T), PrepareDone(T, PREPARED), Started(T, 4)):
        machine.handle(event, 0)
    assert machine.handle(PublishFailed(T, "netlink says no"), 1) == [Withdraw(T)]
    assert machine.handle(Withdrawn(T), 2) == [Kill(T, "SIGINT")]
    machine.handle(Exited(T, ExitStatus(exit_code=130, finished_at=3)), 3)
    assert machine.status.state is S.FAILED
    assert machine.status.err == "task: cannot publish its ports: netlink says no"


def test_forgotten_task_is_stopped_then_removed_without_a_report(assigned: Make) -> None:
    """A task that the manager forgot still gets its grace, but nobody hears of it."""
    machine = running(assigned)
    assert machine.handle(Unassigned(T), 1) == [Kill(T, "SIGINT")]
    assert machine.handle(Exited(T, ExitStatus(exit_code=0, finished_at=3)), 2) == [Detach(T)]
    assert machine.handle(Detached(T), 3) == [Remove(T)]
    assert machine.handle(RemoveFailed(T, "busy"), 4) == []
    assert machine.next_timer() == 5
    assert machine.handle(Tick(T), 5) == [Remove(T)]
    assert machine.handle(Removed(T), 6) == [Forget(T)]
    assert machine.phase is Phase.GONE


def test_lost_container_is_killed_and_failed(assigned: Make) -> None:
    """A process that nobody can watch is made sure to end."""
    machine = running(assigned)
    assert said(machine.handle(WaitFailed(T, "its monitor died"), 1)) == [
        Kill(T, "SIGKILL"),
        (S.FAILED, "task: lost sight of its container: its monitor died"),
        Detach(T),
    ]


# --- health ---


def health(**options: float) -> Prepared:
    """Prepare with a health check every 10 s, 2 retries."""
    values = {"interval_ns": 10, "start_period_ns": 0, "start_interval_ns": 2, **options}
    config = HealthConfig(
        test=("CMD", "check"),
        retries=2,
        timeout_ns=3 * NANOSECONDS,
        **{key: int(value * NANOSECONDS) for key, value in values.items()},
    )
    return Prepared(address="172.18.0.2", healthcheck=config)


def test_starting_until_healthy(assigned: Make) -> None:
    """With a health check the task is STARTING until the first success."""
    machine = running(assigned, health())
    assert (machine.phase, machine.status.state) == (Phase.PROBING, S.STARTING)
    assert machine.next_timer() == 10
    assert machine.handle(Tick(T), 10) == [RunHealthcheck(T, ("check",), 3.0)]
    assert machine.next_timer() is None
    assert machine.handle(HealthcheckDone(T, 1), 11) == []
    assert machine.next_timer() == 21
    machine.handle(Tick(T), 21)
    assert said(machine.handle(HealthcheckDone(T, 0), 22)) == [(S.RUNNING, "")]
    assert machine.next_timer() == 32


def test_unhealthy_container_is_stopped_and_failed(assigned: Make) -> None:
    """After `retries` failures in a row the container is stopped and the task FAILED."""
    machine = running(assigned, health())
    for now in (10, 20):
        machine.handle(Tick(T), now)
        out = machine.handle(HealthcheckDone(T, 1), now)
    assert out == [Kill(T, "SIGTERM")]
    machine.handle(Exited(T, ExitStatus(exit_code=143, finished_at=3)), 31)
    assert (machine.status.state, machine.status.err) == (S.FAILED, UNHEALTHY)


def test_running_container_that_turns_unhealthy(assigned: Make) -> None:
    """Health goes on being checked; ports close first."""
    machine = running(assigned, health(), ports=PORTS)
    machine.handle(Tick(T), 10)
    assert machine.handle(HealthcheckDone(T, 0), 10) == [Publish(T)]
    machine.handle(Published(T), 10)
    for now in (20, 30):
        machine.handle(Tick(T), now)
        out = machine.handle(HealthcheckDone(T, 1), now)
    assert out == [Withdraw(T)]


def test_failures_in_the_start_period_do_not_count(assigned: Make) -> None:
    """Within the start period checks come faster, and their failures are free."""
    machine = running(assigned, health(start_period_ns=7))
    for now in (2, 4, 6):
        assert machine.next_timer() == now
        machine.handle(Tick(T), now)
        assert machine.handle(HealthcheckDone(T, 1), now) == []
    assert machine.next_timer() == 8
    assert machine.phase is Phase.PROBING


def test_a_check_that_ends_after_the_stop_is_ignored(assigned: Make) -> None:
    """A late result of a stopped container changes nothing."""
    machine = running(assigned, health())
    machine.handle(Tick(T), 10)
    machine.handle(Assigned(T, assigned(desired=S.SHUTDOWN)), 11)
    assert machine.handle(HealthcheckDone(T, 1), 12) == []
    assert machine.next_timer() == 21


# --- adoption ---


def adopted(
    assigned: Make, state: TaskState, container: ContainerState | None, **options: object
) -> tuple[TaskMachine, list]:
    """Begin a task that an earlier daemon brought to `state`."""
    machine = TaskMachine(assigned(**options), status=TaskStatus(state=state, timestamp=5.0))
    prepared = PREPARED if container is not None else None
    return machine, said(machine.handle(Found(T, container, prepared), 0))


def test_running_container_is_only_watched(assigned: Make) -> None:
    """A running task goes on with neither report nor restart, its ports where they were."""
    machine, out = adopted(assigned, S.RUNNING, found("running"), ports=PORTS)
    assert out == [Wait(T)]
    assert machine.phase is Phase.RUNNING
    assert machine.is_published


@pytest.mark.parametrize(
    ("code", "expected"), [(0, (S.COMPLETE, "")), (2, (S.FAILED, "task: non-zero exit (2)"))]
)
def test_exit_in_the_meantime_is_reported(assigned: Make, code: int, expected: object) -> None:
    """A container that ended while nobody watched tells how."""
    machine, out = adopted(assigned, S.RUNNING, found("exited", code))
    assert out == [expected, Detach(T)]
    assert machine.status.timestamp == 9.0


def test_started_but_not_reported(assigned: Make) -> None:
    """A crash between start and report: the task becomes RUNNING now."""
    _, out = adopted(assigned, S.STARTING, found("running"))
    assert out == [Wait(T), (S.RUNNING, "")]
    _, out = adopted(assigned, S.STARTING, found("running"), ports=PORTS)
    assert out == [Wait(T), Publish(T)]


def test_created_container_is_started_or_removed(assigned: Make) -> None:
    """A container that waits for its start is started if the task shall run, else removed."""
    for state in (S.READY, S.STARTING):
        _, out = adopted(assigned, state, found("created"))
        assert out[-1] == Start(T)
        _, out = adopted(assigned, state, found("created"), desired=S.SHUTDOWN)
        assert out == [(S.SHUTDOWN, ""), Remove(T)]


@pytest.mark.parametrize("container", [None, found("created"), found("broken")])
def test_interrupted_preparation_is_redone(
    assigned: Make, container: ContainerState | None
) -> None:
    """A task in the middle of its preparation is prepared again, without a new report."""
    machine, out = adopted(assigned, S.PREPARING, container)
    assert out == [Prepare(T, machine.assignment, is_anew=container is not None)]


@pytest.mark.parametrize("container", [None, found("broken")])
@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING])
def test_vanished_container_fails_the_task(
    assigned: Make, state: TaskState, container: ContainerState | None
) -> None:
    """A task that had started, and whose container is gone, is FAILED."""
    _, out = adopted(assigned, state, container)
    assert out == [(S.FAILED, VANISHED), Remove(T)]


LOST = ContainerState(C, "", "exited", exit=ExitStatus(137, 5.0, is_lost=True))


def test_a_container_whose_end_nobody_saw_is_kept_for_its_logs(assigned: Make) -> None:
    """After a restart of the machine a started task is FAILED, and its container stays."""
    for state in (S.STARTING, S.RUNNING):
        machine, out = adopted(assigned, state, LOST)
        assert out == [(S.FAILED, UNSEEN), Detach(T)]
        assert machine.status.exit_code == 137
    _, out = adopted(assigned, S.RUNNING, LOST, desired=S.SHUTDOWN)
    assert out[0] == (S.SHUTDOWN, "")


def test_a_container_that_was_lost_before_its_start_is_made_again(assigned: Make) -> None:
    """It has no logs to keep, and its task has not failed."""
    machine, out = adopted(assigned, S.READY, LOST)
    assert out == [Prepare(T, machine.assignment, is_anew=True)]


def test_running_container_without_network_is_replaced(assigned: Make) -> None:
    """A container that nobody can reach is stopped and its task FAILED."""
    machine = TaskMachine(assigned(), status=TaskStatus(state=S.RUNNING))
    out = machine.handle(Found(T, found("running"), Prepared()), 0)
    assert out == [Wait(T), Kill(T, "SIGTERM")]
    machine.handle(Exited(T, ExitStatus(exit_code=143, finished_at=3)), 1)
    assert machine.status.err == NETWORK_LOST


def test_ended_task_is_not_brought_back(assigned: Make) -> None:
    """A task that had ended stays so; a process left over is killed."""
    machine, out = adopted(assigned, S.FAILED, found("running"))
    assert out == [Wait(T), Kill(T, "SIGKILL")]
    assert said(machine.handle(Exited(T, ExitStatus(exit_code=1, finished_at=3)), 1)) == [Detach(T)]
    _, out = adopted(assigned, S.COMPLETE, found("exited"))
    assert out == [Detach(T)]


# --- the machine itself ---


def test_impossible_event_tells_the_story(assigned: Make) -> None:
    """An event that cannot be raises with the task's last events, and changes nothing."""
    machine = running(assigned)
    with pytest.raises(InvariantViolationError, match=r"t1.*Found.*PrepareDone.*Removed"):
        machine.handle(Removed(T), 1)
    assert machine.phase is Phase.RUNNING


def test_table_covers_every_phase() -> None:
    """The table of phases has a row for each, and each but NEW can be reached."""
    assert set(PHASES_AFTER) == set(Phase)
    assert set().union(*PHASES_AFTER.values()) == set(Phase) - {Phase.NEW}


def test_stamp_dates_a_report_once(assigned: Make) -> None:
    """The date of RUNNING is kept through later states."""
    machine = running(assigned)
    assert machine.stamp(50.0).timestamp == 50.0
    assert machine.stamp(60.0).timestamp == 50.0
    machine.handle(Exited(T, ExitStatus(exit_code=0, finished_at=70.0)), 1)
    assert (machine.stamp(99.0).timestamp, machine.status.running_at) == (70.0, 50.0)

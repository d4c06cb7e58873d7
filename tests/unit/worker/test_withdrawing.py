"""Ports of containers that an earlier daemon may have published just before its end."""

from __future__ import annotations

from collections.abc import Callable

from proto.ids import TaskID, container_id_of
from proto.objects import NANOSECONDS, HealthConfig, PortConfig, TaskStatus
from proto.states import TaskState
from worker.api import Assignment
from worker.runtime.api import ContainerState, ExitStatus
from worker.task.events import (
    Assigned,
    Detach,
    Exited,
    Found,
    Kill,
    Prepared,
    Report,
    Wait,
    Withdraw,
    Withdrawn,
)
from worker.task.machine import TaskMachine

T = TaskID("t1")
PORTS = (PortConfig(target_port=80, published_port=8080),)
CHECK = HealthConfig(test=("CMD", "true"), interval_ns=NANOSECONDS)


def found(healthcheck: HealthConfig | None = None) -> Found:
    """Say that the container runs."""
    state = ContainerState(id=container_id_of(T), name="", state="running", pid=4)
    return Found(T, state, Prepared(address="172.18.0.2", healthcheck=healthcheck))


def begun(assigned: Callable[..., Assignment], **options: object) -> TaskMachine:
    """Begin a task that an earlier daemon left while it started."""
    assignment = assigned("t1", ports=PORTS, **options)
    return TaskMachine(assignment, status=TaskStatus(state=TaskState.STARTING, timestamp=5.0))


def test_stop_signal_waits_until_no_port_leads_to_an_adopted_container(assigned) -> None:
    """RUNNING was never reported, but the ports may lead to it: they are withdrawn first."""
    machine = begun(assigned, desired=TaskState.SHUTDOWN)
    assert machine.handle(found(), 0) == [Wait(T), Withdraw(T)]
    assert machine.handle(Withdrawn(T), 1) == [Kill(T, "SIGTERM")]


def test_a_stop_while_probing_withdraws_too(assigned) -> None:
    """The earlier daemon's check may have succeeded already."""
    machine = begun(assigned)
    assert machine.handle(found(CHECK), 0) == [Wait(T)]
    stop = assigned("t1", ports=PORTS, desired=TaskState.SHUTDOWN)
    assert machine.handle(Assigned(T, stop), 1) == [Withdraw(T)]


def test_the_address_is_freed_only_when_no_port_leads_to_it(assigned) -> None:
    """A process that ends while it is probed is withdrawn before its network goes."""
    machine = begun(assigned)
    machine.handle(found(CHECK), 0)
    out = machine.handle(Exited(T, ExitStatus(exit_code=1, finished_at=2.0)), 1)
    assert [i for i in out if not isinstance(i, Report)] == [Withdraw(T)]
    assert machine.handle(Withdrawn(T), 2) == [Detach(T)]

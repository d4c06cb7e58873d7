"""The agent of a node whose disk is full: it works on, says so, and writes once there is room."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from proto.errors import ResourceExhaustedError
from proto.ids import TaskID
from proto.objects import ContainerSpec, HealthConfig
from proto.states import TaskState
from worker.api import Assignment
from worker.db import WorkerDB

Assigned = Callable[..., Assignment]
T1, T2 = TaskID("t1"), TaskID("t2")
SECOND = 1_000_000_000


class Full:
    """A database on a full disk."""

    def __init__(self, monkeypatch) -> None:
        self.monkeypatch = monkeypatch
        self.opened = WorkerDB._opened

    def fill(self, agent=None) -> None:
        """Let every write fail from now on."""

        def refuse(*_args):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        self.monkeypatch.setattr(WorkerDB, "_opened", refuse)
        if agent is not None:
            agent._db._put = refuse
            agent._db._write_all = refuse

    def empty(self, agent) -> None:
        """Make room."""
        del agent._db._put, agent._db._write_all
        self.monkeypatch.setattr(WorkerDB, "_opened", self.opened)


def test_a_full_disk_ends_no_session_and_no_task(play, assigned: Assigned, monkeypatch) -> None:
    """New tasks run, statuses are reported, nothing is moved; the reason is told meanwhile."""

    async def scenario(world) -> None:
        disk = Full(monkeypatch)
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        disk.fill(agent)
        world.manager.assign(assigned("t2", slot=2))
        await world.until(T2, TaskState.RUNNING)
        assert (world.manager.sessions, agent.container_counts()) == (1, (2, 0))
        (trouble,) = agent.troubles()
        assert "worker.db" in trouble
        assert "full" in trouble
        world.manager.want(T1, TaskState.SHUTDOWN)
        await world.until(T1, TaskState.SHUTDOWN)
        disk.empty(agent)
        await world.eventually(lambda: not agent.troubles())
        await world.stop(agent)
        agent = await world.start()
        assert world.manager.sessions <= 2
        await world.eventually(lambda: agent.container_counts() == (1, 1))
        await world.stop(agent)

    play(scenario)


def test_an_agent_begins_on_a_full_disk(play, assigned: Assigned, monkeypatch) -> None:
    """What runs is adopted by what the manager says; no container is touched."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        await world.stop(agent)
        calls = len(world.runtime.calls)
        Full(monkeypatch).fill()
        agent = await world.start()
        await world.eventually(lambda: agent.container_counts() == (1, 0))
        assert world.runtime.calls[calls:] == []
        assert "worker.db" in agent.troubles()[0]
        await world.stop(agent)

    play(scenario)


def test_a_check_that_cannot_be_made_says_nothing_of_health(play, assigned: Assigned) -> None:
    """A node without room for its checks does not take its tasks for unhealthy."""

    async def scenario(world) -> None:
        checks = []

        async def refuse(*_args, **_more):
            checks.append(1)
            raise ResourceExhaustedError("no space left on device: /run is full")

        check = HealthConfig(test=("CMD", "true"), interval_ns=SECOND, retries=1)
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="web", healthcheck=check))
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        make, world.runtime.exec = world.runtime.exec, refuse
        await world.eventually(lambda: len(checks) > 5)
        world.runtime.exec = make
        assert world.manager.reported[T1].state is TaskState.RUNNING
        await world.stop(agent)

    play(scenario)

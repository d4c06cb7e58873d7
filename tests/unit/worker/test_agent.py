"""The agent as a whole, with a virtual runtime and a scripted manager, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from proto.errors import InvalidError, NotFoundError
from proto.ids import ContainerID, ImageID, TaskID, container_id_of
from proto.logs import LogOptions
from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    HealthConfig,
    Mount,
    PortConfig,
    PortMode,
)
from proto.states import TaskState
from worker.api import Assignment
from worker.runner import PREPARATIONS_MAX
from worker.runtime.api import ContainerConfig
from worker.runtime.sim import SimScript
from worker.task.events import PortsApplied
from worker.volumes import VolumeStore

Assigned = Callable[..., Assignment]
T1, T2 = TaskID("t1"), TaskID("t2")
C1 = container_id_of(T1)


def test_task_runs_to_completion(play, assigned: Assigned) -> None:
    """A task is prepared, started, and COMPLETE when its process exits with 0."""

    async def scenario(world) -> None:
        world.scripts["t1"] = SimScript(run_seconds=30)
        agent = await world.start()
        world.manager.tasks[T1] = assigned()
        running = await world.until(T1, TaskState.RUNNING)
        assert running.container_id == C1
        assert running.pid > 0
        done = await world.until(T1, TaskState.COMPLETE)
        assert done.exit_code == 0
        await world.stop(agent)

    play(scenario)


def test_failed_task_says_its_exit_code(play, assigned: Assigned) -> None:
    """A process that exits with 3 makes its task FAILED with Docker's sentence."""

    async def scenario(world) -> None:
        world.scripts["t1"] = SimScript(run_seconds=1, exit_code=3)
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        failed = await world.until(T1, TaskState.FAILED)
        assert failed.err == "task: non-zero exit (3)"
        assert failed.exit_code == 3
        await world.stop(agent)

    play(scenario)


def test_restart_of_the_agent_is_not_noticed_by_containers(play, assigned: Assigned) -> None:
    """A running container goes on through an agent's restart, with no report and no restart."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        await world.stop(agent)
        history, calls = len(world.manager.history), len(world.runtime.calls)
        agent = await world.start()
        await world.eventually(lambda: world.manager.sessions == 2)
        world.manager.assign(assigned("t2"))
        await world.until(T2, TaskState.RUNNING)
        assert {i for i, _ in world.manager.history[history:]} == {T2}
        assert {i for _, i in world.runtime.calls[calls:]} == {container_id_of(T2)}
        await world.stop(agent)

    play(scenario)


def test_missing_image_rejects_the_task(play, assigned: Assigned) -> None:
    """A task whose image cannot be had is REJECTED with the store's sentence, once."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="nope"))
        agent = await world.start()
        rejected = await world.until(T1, TaskState.REJECTED)
        assert rejected.err == "No such image: nope"
        await world.stop(agent)
        assert world.network.attachments == {}

    play(scenario)


def test_ports_open_after_the_start_and_close_before_the_signal(play, assigned: Assigned) -> None:
    """A published port leads to a task only between its start and its stop signal."""

    async def scenario(world) -> None:
        port = PortConfig(target_port=80, published_port=8080, publish_mode=PortMode.INGRESS)
        world.manager.tasks[T1] = assigned(ports=(port,))
        world.scripts["t1"] = SimScript(term_seconds=3)
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        (published,) = world.network.published[-1]
        assert published.published_port == 8080
        assert published.backends == (world.network.attachments[C1].address,)
        world.manager.want(T1, TaskState.SHUTDOWN)
        await world.eventually(lambda: bool(world.runtime.signals(C1)))
        assert world.network.published[-1] == ()
        assert C1 in world.network.attachments
        await world.until(T1, TaskState.SHUTDOWN)
        await world.eventually(lambda: C1 not in world.network.attachments)
        assert C1 in world.runtime.configs()
        world.manager.forget(T1)
        await world.eventually(lambda: C1 not in world.runtime.configs())
        await world.stop(agent)

    play(scenario)


def test_lost_manager_does_not_stop_work(play, assigned: Assigned) -> None:
    """Without a manager containers go on; an exit is reported when it is back."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        world.manager.cut()
        world.runtime.end(C1, 7)
        await asyncio.sleep(100)
        assert world.manager.reported[T1].state is TaskState.RUNNING
        world.manager.is_up = True
        failed = await world.until(T1, TaskState.FAILED)
        assert failed.exit_code == 7
        assert world.manager.sessions == 2
        await world.stop(agent)

    play(scenario)


def test_exit_while_no_agent_runs(play, assigned: Assigned) -> None:
    """A container that ends between two agents is reported by the second, with its own time."""

    async def scenario(world) -> None:
        world.scripts["t1"] = SimScript(run_seconds=30, exit_code=4)
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        await world.stop(agent)
        await asyncio.sleep(50)
        ended = (await world.runtime.list_containers())[0].exit.finished_at
        agent = await world.start()
        failed = await world.until(T1, TaskState.FAILED)
        assert (failed.exit_code, failed.timestamp) == (4, ended)
        assert failed.running_at == world.manager.reported[T1].running_at > 0
        await world.stop(agent)

    play(scenario)


def test_damaged_database_costs_no_container(play, assigned: Assigned) -> None:
    """With its database damaged the agent adopts by the runtime and the manager."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        await world.stop(agent)
        (world.state_dir / "worker.db").write_bytes(b"nonsense" * 1000)
        calls = len(world.runtime.calls)
        agent = await world.start()
        await world.eventually(lambda: agent.container_counts() == (1, 0))
        world.manager.want(T1, TaskState.SHUTDOWN)
        await world.until(T1, TaskState.SHUTDOWN)
        assert [name for name, _ in world.runtime.calls[calls:]] == ["kill SIGTERM"]
        await world.stop(agent)

    play(scenario)


def test_shutdown_cancels_a_pull(play, assigned: Assigned) -> None:
    """A task that is stopped while its image is pulled is SHUTDOWN at once."""

    async def scenario(world) -> None:
        world.images.seconds = 3600
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="far"))
        agent = await world.start()
        await world.eventually(lambda: world.images.pulls == ["far"])
        world.manager.want(T1, TaskState.SHUTDOWN)
        before = asyncio.get_running_loop().time()
        await world.until(T1, TaskState.SHUTDOWN)
        assert asyncio.get_running_loop().time() - before < 1
        await world.stop(agent)

    play(scenario)


def test_one_pull_serves_all(play, assigned: Assigned) -> None:
    """Tasks that miss the same image wait for one pull, also when the first of them gives up."""

    async def scenario(world) -> None:
        world.images.seconds = 20
        spec = ContainerSpec(image="far")
        for n in range(1, 6):
            world.manager.tasks[TaskID(f"t{n}")] = assigned(f"t{n}", container=spec, slot=n)
        agent = await world.start()
        await world.eventually(lambda: bool(world.images.pulls))
        world.manager.want(T1, TaskState.SHUTDOWN)
        for n in range(2, 6):
            await world.until(TaskID(f"t{n}"), TaskState.RUNNING)
        assert world.images.pulls == ["far"]
        in_use = agent.images_in_use()
        assert {image: len(ids) for image, ids in in_use.items()} == {"sha256:far": 4}
        await world.stop(agent)

    play(scenario)


def test_removed_containers_use_no_image_when_it_is_told(play, assigned: Assigned) -> None:
    """The owner of the images hears of every removed container, when its image is free."""

    async def scenario(world) -> None:
        for n in (1, 2):
            world.manager.tasks[TaskID(f"t{n}")] = assigned(f"t{n}", slot=n)
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        await world.until(T2, TaskState.RUNNING)
        for task_id in (T1, T2):
            world.manager.want(task_id, TaskState.SHUTDOWN)
            await world.until(task_id, TaskState.SHUTDOWN)
            world.manager.forget(task_id)
            count = int(task_id[1:])
            await world.eventually(lambda count=count: len(world.uses_after_removal) == count)
        left = (container_id_of(T2),)
        assert world.uses_after_removal == [{ImageID("sha256:web"): left}, {}]
        await world.stop(agent)

    play(scenario)


def test_statuses_are_batched_while_one_is_under_way(play, assigned: Assigned) -> None:
    """Idle, a status goes at once; a slow manager gets the rest together, newest only."""

    async def scenario(world) -> None:
        world.manager.update_seconds = 1
        for n in range(50):
            world.manager.tasks[TaskID(f"t{n}")] = assigned(f"t{n}", slot=n + 1)
        agent = await world.start()
        for n in range(50):
            await world.until(TaskID(f"t{n}"), TaskState.RUNNING)
        assert len(world.manager.batches) <= 4
        await world.stop(agent)

    play(scenario)


def test_hundred_tasks_start_a_few_at_a_time(play, assigned: Assigned) -> None:
    """With 50 ms for each container, 100 are running in the time of 100 / PREPARATIONS_MAX."""

    async def scenario(world) -> None:
        for n in range(100):
            task_id = f"t{n}"
            world.scripts[task_id] = SimScript(create_seconds=0.05)
            world.manager.tasks[TaskID(task_id)] = assigned(task_id, slot=n + 1)
        before = asyncio.get_running_loop().time()
        agent = await world.start()
        for n in range(100):
            await world.until(TaskID(f"t{n}"), TaskState.RUNNING)
        elapsed = asyncio.get_running_loop().time() - before
        assert elapsed == pytest.approx(100 / PREPARATIONS_MAX * 0.05, abs=0.2)
        await world.stop(agent)

    play(scenario)


def test_unhealthy_task_is_replaced(play, assigned: Assigned) -> None:
    """A container whose checks fail never becomes RUNNING and ends FAILED."""

    async def scenario(world) -> None:
        check = HealthConfig(test=("CMD", "x"), interval_ns=NANOSECONDS, retries=3)
        spec = ContainerSpec(image="web", healthcheck=check)
        world.scripts["t1"] = SimScript(health=(1,))
        world.scripts["t2"] = SimScript(health=(1, 1, 0))
        world.manager.tasks[T1] = assigned("t1", container=spec)
        world.manager.tasks[T2] = assigned("t2", container=spec, slot=2)
        agent = await world.start()
        failed = await world.until(T1, TaskState.FAILED)
        assert failed.err == "task: unhealthy container"
        assert TaskState.RUNNING not in world.manager.states(T1)
        await world.until(T2, TaskState.RUNNING)
        await world.stop(agent)

    play(scenario)


def test_stubborn_process_is_killed_after_its_grace(play, assigned: Assigned) -> None:
    """A process that ignores its stop signal gets SIGKILL after the grace period."""

    async def scenario(world) -> None:
        world.scripts["t1"] = SimScript(term_seconds=None)
        spec = ContainerSpec(
            image="web", stop_signal="SIGQUIT", stop_grace_period_ns=3 * NANOSECONDS
        )
        world.manager.tasks[T1] = assigned(container=spec)
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        world.manager.want(T1, TaskState.SHUTDOWN)
        before = asyncio.get_running_loop().time()
        done = await world.until(T1, TaskState.SHUTDOWN)
        assert world.runtime.signals(C1) == ("SIGQUIT", "SIGKILL")
        assert asyncio.get_running_loop().time() - before == pytest.approx(3, abs=0.2)
        assert done.exit_code == 137
        await world.stop(agent)

    play(scenario)


def test_leave_removes_everything_of_ours(play, assigned: Assigned) -> None:
    """Leaving removes our containers, their volumes, ports and records; `run` returns last."""

    async def scenario(world) -> None:
        mounts = (Mount(target="/scratch"), Mount(source="named", target="/data"))
        ports = (PortConfig(target_port=80, published_port=8080),)
        spec = ContainerSpec(image="web", mounts=mounts)
        world.manager.tasks[T1] = assigned(container=spec, ports=ports)
        foreign = ContainerConfig(id=ContainerID("f" * 64), argv=("x",))
        world.runtime.script_of = lambda _: SimScript()
        await world.runtime.create(foreign)
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        assert len(agent.volumes.all()) == 2
        await agent.leave()
        assert set(world.runtime.configs()) == {foreign.id}
        assert [volume.name for volume in agent.volumes.all()] == ["named"]
        assert world.network.published[-1] == ()
        assert world.network.attachments == {}
        await world.stop(agent)
        world.manager.tasks.clear()
        agent = await world.start()
        await world.eventually(lambda: world.manager.sessions == 2)
        assert agent.container_counts() == (0, 0)
        await world.stop(agent)

    play(scenario)


def test_logs_of_a_task(play, assigned: Assigned) -> None:
    """A task's output can be read, also after its end; another node's task is not found."""

    async def scenario(world) -> None:
        world.scripts["t1"] = SimScript(run_seconds=1, output=(b"a\n", b"b\n"))
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.COMPLETE)
        lines = [record.data async for record in agent.logs(T1, LogOptions(tail=1))]
        assert lines == [b"b\n"]
        with pytest.raises(NotFoundError, match="task t2"):
            await anext(agent.logs(T2, LogOptions()))
        await world.stop(agent)

    play(scenario)


def test_logs_of_a_task_without_a_container(play, assigned: Assigned) -> None:
    """A follower waits for a container that is being made; a rejected task has no output."""

    async def scenario(world) -> None:
        world.images.seconds = 5
        world.scripts["t1"] = SimScript(run_seconds=1, output=(b"a\n",))
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="far"))
        world.manager.tasks[T2] = assigned("t2", container=ContainerSpec(image="nope"), slot=2)
        agent = await world.start()
        await world.eventually(lambda: len(world.images.pulls) == 2)
        assert [r async for r in agent.logs(T1, LogOptions())] == []
        record = await anext(agent.logs(T1, LogOptions(follow=True)))
        assert record.data == b"a\n"
        assert [r async for r in agent.logs(T2, LogOptions(follow=True))] == []
        assert world.manager.reported[T2].state is TaskState.REJECTED
        await world.stop(agent)

    play(scenario)


def test_half_made_container_is_made_anew(play, assigned: Assigned) -> None:
    """What a killed agent left of a preparation is removed before it is prepared again."""

    async def scenario(world) -> None:
        ready = assigned(desired=TaskState.READY)
        world.manager.tasks[T1] = ready
        agent = await world.start()
        await world.until(T1, TaskState.READY)
        await world.stop(agent)
        world.network.attachments.clear()
        calls = len(world.runtime.calls)
        agent = await world.start()
        await world.eventually(lambda: len(world.runtime.calls) >= calls + 2)
        assert [name for name, _ in world.runtime.calls[calls:]] == ["remove", "create"]
        await world.eventually(lambda: C1 in world.network.attachments)
        world.manager.want(T1, TaskState.RUNNING)
        await world.until(T1, TaskState.RUNNING)
        assert world.manager.states(T1).count(TaskState.READY) == 1
        await world.stop(agent)

    play(scenario)


def test_crash_in_the_work_of_one_task_is_its_own(play, assigned: Assigned) -> None:
    """An unexpected exception while preparing rejects that task; the others run."""

    async def scenario(world) -> None:
        def script(config: ContainerConfig) -> SimScript:
            if config.labels["com.docker.swarm.task.id"] == "t1":
                raise KeyError("a bug")
            return SimScript()

        world.runtime.script_of = script
        world.manager.tasks[T1] = assigned("t1")
        world.manager.tasks[T2] = assigned("t2", slot=2)
        agent = await world.start()
        rejected = await world.until(T1, TaskState.REJECTED)
        assert rejected.err == "internal error while preparing it: KeyError; see this node's log"
        await world.until(T2, TaskState.RUNNING)
        await world.stop(agent)

    play(scenario)


def test_bug_of_the_whole_agent_ends_run(play) -> None:
    """A bug beyond one task makes `run` raise, for its supervisor to restart."""

    async def scenario(world) -> None:
        agent = await world.start()
        await world.eventually(lambda: world.manager.sessions == 1)
        agent._take(PortsApplied())
        agent._take(PortsApplied())
        with pytest.raises(AssertionError):
            await world.stop(agent)

    play(scenario)


def test_refused_statuses_do_not_block_the_next(play, assigned: Assigned) -> None:
    """A batch that the manager refuses is dropped; the next one is sent."""

    async def scenario(world) -> None:
        refusals = [InvalidError("no")]
        accept = world.manager.update_statuses

        async def update(node_id, updates) -> None:
            if refusals:
                raise refusals.pop()
            await accept(node_id, updates)

        world.manager.update_statuses = update
        world.scripts["t1"] = SimScript(create_seconds=1)
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        assert refusals == []
        await world.stop(agent)

    play(scenario)


def test_leave_without_a_running_agent(play, assigned: Assigned) -> None:
    """A node whose agent has ended can leave all the same."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        await world.stop(agent)
        await agent.leave()
        assert world.runtime.configs() == {}
        assert world.network.attachments == {}

    play(scenario)


def test_anonymous_volumes_of_no_container_are_removed_at_the_start(play) -> None:
    """A daemon killed between a container's removal and its volumes' left them to nobody."""

    async def scenario(world) -> None:
        volumes = VolumeStore(world.state_dir)
        volumes.create("named", now=1.0)
        volumes.create("left", now=1.0, owner=C1)
        labels = {"com.docker.swarm.task.id": T2}
        config = ContainerConfig(id=container_id_of(T2), argv=("/web",), labels=labels)
        await world.runtime.create(config)
        volumes.create("kept", now=1.0, owner=container_id_of(T2))
        agent = await world.start()
        await world.eventually(lambda: world.manager.sessions == 1)
        assert [volume.name for volume in volumes.all()] == ["kept", "named"]
        await world.stop(agent)

    play(scenario)

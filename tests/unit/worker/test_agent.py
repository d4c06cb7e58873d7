"""The agent as a whole, with a virtual runtime and a scripted manager, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

from proto.ids import TaskID, container_id_of
from proto.objects import ContainerSpec, PortConfig, PortMode
from proto.states import TaskState
from worker.api import Assignment
from worker.runtime.sim import SimScript

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

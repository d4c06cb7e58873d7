"""What a node waits for: it holds nobody else, and is told to whoever asks.

One test for each row of the table in `worker/DESIGN.md` whose other side can be pretended; those
with real programs and sockets are in `tests/integration`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from proto.errors import RuntimeFailedError
from proto.ids import ContainerID, TaskID
from proto.objects import ContainerSpec
from proto.states import TaskState
from worker import room as rooms
from worker.agent import REGISTER_SECONDS_MAX
from worker.api import Assignment
from worker.images.api import Image, Progress
from worker.pulls import PULLS_MAX, SharedPulls
from worker.room import Room
from worker.runner import PREPARATIONS_MAX
from worker.runtime import threads
from worker.waits import SHOWN_SECONDS

Assigned = Callable[..., Assignment]
T1, T2 = TaskID("t1"), TaskID("t2")
HOUR = 3600.0
C1, C2 = ContainerID("c1"), ContainerID("c2")


def message(world, task_id=T1) -> str:
    """Return what the manager knows of a task's doing."""
    status = world.manager.reported.get(task_id)
    return "" if status is None else status.message


def test_a_pull_is_shown_in_its_task(play, assigned: Assigned) -> None:
    """A task whose image does not come says which registry it waits for, and since when."""

    async def scenario(world) -> None:
        world.images.seconds = HOUR
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="far"))
        agent = await world.start()
        await world.eventually(lambda: "waiting for" in message(world))
        assert world.manager.reported[T1].state is TaskState.PREPARING
        said = message(world)
        assert said.startswith(
            "preparing: waiting for the registry docker.io to send image far since "
        )
        assert said.endswith(" UTC")
        await world.stop(agent)

    play(scenario)


def test_a_quick_step_is_not_shown(play, assigned: Assigned) -> None:
    """Nothing is reported beyond the states while nothing takes long."""

    async def scenario(world) -> None:
        world.images.seconds = SHOWN_SECONDS / 2
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="far"))
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        assert world.manager.states(T1) == sorted(set(world.manager.states(T1)))
        assert message(world) == "started"
        await world.stop(agent)

    play(scenario)


def test_why_a_pull_is_tried_again_is_shown(play, assigned: Assigned) -> None:
    """The reason of the last attempt stands in the task's message."""

    async def scenario(world) -> None:
        async def pull(_ref, *, progress) -> Image:
            progress(Progress(status="Retrying in 4 seconds: the registry answered 503"))
            await asyncio.sleep(HOUR)
            raise AssertionError

        world.images.pull = pull
        world.manager.tasks[T1] = assigned(container=ContainerSpec(image="reg.example/far"))
        agent = await world.start()
        await world.eventually(lambda: "503" in message(world))
        assert "the registry reg.example" in message(world)
        await world.stop(agent)

    play(scenario)


def test_stalled_pulls_hold_only_their_registry(play) -> None:
    """Other registries' images come while all places of one registry are taken."""

    async def scenario(_world) -> None:
        async def pull(ref: str, _note: Callable[[Progress], None]) -> Image:
            if ref.startswith("hung.example/"):
                await asyncio.sleep(HOUR)
            return Image(id=ref)

        pulls = SharedPulls(pull)
        hung = [asyncio.create_task(pulls.pull(f"hung.example/i{n}")) for n in range(PULLS_MAX + 1)]
        await asyncio.sleep(1)
        async with asyncio.timeout(10):
            assert (await pulls.pull("well.example/web")).id == "well.example/web"
            assert (await pulls.pull("web")).id == "web"
        assert "to send image" in pulls.awaited("hung.example/i0")
        assert "other images of hung.example" in pulls.awaited(f"hung.example/i{PULLS_MAX}")
        for one in hung:
            one.cancel()
        await asyncio.gather(*hung, return_exceptions=True)

    play(scenario)


@pytest.mark.parametrize("step", ["create", "start"])
def test_a_hung_runtime_is_shown_and_holds_nobody(play, assigned: Assigned, step: str) -> None:
    """However many containers hang in the runtime, those that it can make are made."""

    async def scenario(world) -> None:
        works = getattr(world.runtime, step)

        async def hang(what):
            key = what if isinstance(what, str) else what.id
            if not key.startswith(world.well):
                await asyncio.sleep(HOUR)
            return await works(what)

        from proto.ids import container_id_of  # noqa: PLC0415 -- only here

        world.well = container_id_of(TaskID("well"))
        setattr(world.runtime, step, hang)
        for number in range(PREPARATIONS_MAX):
            name = f"h{number}"
            world.manager.tasks[TaskID(name)] = assigned(name, slot=number + 1)
        agent = await world.start()
        await asyncio.sleep(1)
        world.manager.assign(assigned("well", slot=99))
        await world.until(TaskID("well"), TaskState.RUNNING)
        await world.eventually(lambda: "waiting for the container runtime" in message(world, "h0"))
        setattr(world.runtime, step, works)
        for task in asyncio.all_tasks():
            if task.get_coro().__name__ in {"_prepare", "_start"}:
                task.cancel()
        await world.stop(agent)

    play(scenario)


def test_a_removal_that_hangs_is_shown_by_the_node(play, assigned: Assigned) -> None:
    """What is for no task any more stands among what hampers the node."""

    async def scenario(world) -> None:
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        remove, gate = world.runtime.remove, asyncio.Event()

        async def hang(container_id):
            await gate.wait()
            await remove(container_id)

        world.runtime.remove = hang
        world.manager.forget(T1)
        await world.eventually(lambda: bool(agent.troubles()))
        (trouble,) = agent.troubles()
        assert trouble.startswith("waiting for container ")
        assert " to be removed since " in trouble
        gate.set()
        await world.eventually(lambda: not agent.troubles())
        await world.stop(agent)

    play(scenario)


def test_a_room_makes_place_for_those_behind_a_slow_one(play) -> None:
    """A place is lent while its holder waits; there are not endlessly many."""

    async def scenario(_world) -> None:
        room, entered = Room(1), []

        async def enter(seconds: float) -> None:
            async with room.entered():
                entered.append(seconds)
                await asyncio.sleep(seconds)

        jobs = [asyncio.create_task(enter(HOUR)) for _ in range(rooms.SLOW_MAX + 5)]
        await asyncio.sleep(rooms.SLOW_SECONDS * (rooms.SLOW_MAX + 5))
        assert len(entered) == rooms.SLOW_MAX + 1
        await asyncio.gather(*jobs)
        assert len(entered) == rooms.SLOW_MAX + 5

    play(scenario)


async def test_a_step_that_hangs_in_a_thread_holds_only_its_container(monkeypatch) -> None:
    """It is given up, others are served, and its own container waits until it has returned."""
    monkeypatch.setattr(threads, "STEP_SECONDS_MAX", 0.2)
    monkeypatch.setattr(threads, "FORMER_SECONDS_MAX", 0.1)
    monkeypatch.setattr(rooms, "SLOW_SECONDS", 0.05)
    gate, pool = threading.Event(), threads.Threads(1)
    hung = asyncio.create_task(pool.run(C1, gate.wait))
    assert await pool.run(C2, lambda: "done") == "done"
    with pytest.raises(
        RuntimeFailedError, match=r"did not answer within 0\.2 s while container c1"
    ):
        await hung
    with pytest.raises(RuntimeFailedError, match="former step for container c1 still waits"):
        await pool.run(C1, lambda: "raced")
    gate.set()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await pool.run(C1, lambda: "undone") == "undone"
                break
            except RuntimeFailedError:
                await asyncio.sleep(0.05)
    with pytest.raises(ZeroDivisionError):
        await pool.run(C1, lambda: 1 // 0)
    await pool.close()


def test_managers_that_do_not_answer_are_shown(play, assigned: Assigned) -> None:
    """A node without a session says since when and why; attempts end, and the next one succeeds."""

    async def scenario(world) -> None:
        register = world.manager.register

        async def hang(*_args):
            await asyncio.sleep(HOUR)

        world.manager.register = hang
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.eventually(lambda: bool(agent.troubles()))
        assert agent.troubles()[0].startswith("waiting for a manager to let this node in since ")
        await asyncio.sleep(REGISTER_SECONDS_MAX)
        assert "(no manager answered)" in agent.troubles()[0]
        world.manager.register = register
        await world.eventually(lambda: world.manager.sessions == 1, within=2 * REGISTER_SECONDS_MAX)
        await world.until(T1, TaskState.RUNNING)
        assert agent.troubles() == ()
        await world.stop(agent)

    play(scenario)


def test_a_manager_that_stores_nothing_is_shown(play, assigned: Assigned) -> None:
    """A report without an answer is given up, tried again, and named with its reason."""

    async def scenario(world) -> None:
        update = world.manager.update_statuses
        calls = []

        async def hang(*_args):
            calls.append(1)
            await asyncio.sleep(HOUR)

        world.manager.update_statuses = hang
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.eventually(lambda: len(calls) > 1)
        (trouble,) = agent.troubles()
        assert trouble.startswith("waiting for the manager to store statuses since ")
        assert trouble.endswith("(it took too long)")
        world.manager.update_statuses = update
        await world.until(T1, TaskState.RUNNING)
        await world.eventually(lambda: agent.troubles() == ())
        await world.stop(agent)

    play(scenario)

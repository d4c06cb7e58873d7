"""The reporter: what is sent again, and what is not."""

from __future__ import annotations

from collections.abc import Callable

from proto.errors import ResourceExhaustedError
from proto.ids import TaskID
from proto.states import TaskState
from worker.api import Assignment

T1 = TaskID("t1")


def test_statuses_survive_a_full_disk_of_the_manager(
    play, assigned: Callable[..., Assignment]
) -> None:
    """What the manager could not store for want of room is sent again in the same session."""

    async def scenario(world) -> None:
        refusals = [ResourceExhaustedError("no room"), ResourceExhaustedError("no room")]
        accept = world.manager.update_statuses

        async def update(node_id, updates) -> None:
            if refusals and updates[-1].status.state is TaskState.RUNNING:
                raise refusals.pop()
            await accept(node_id, updates)

        world.manager.update_statuses = update
        world.manager.tasks[T1] = assigned()
        agent = await world.start()
        await world.until(T1, TaskState.RUNNING)
        assert (refusals, world.manager.sessions) == ([], 1)
        await world.stop(agent)

    play(scenario)

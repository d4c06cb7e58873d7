"""Virtual time, a scripted manager, and short ways to write specs."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proto.errors import NotFoundError, UnavailableError
from proto.ids import ContainerID, ImageID, NodeID, ServiceID, TaskID
from proto.objects import (
    ContainerSpec,
    EndpointSpec,
    Node,
    NodeDescription,
    PortConfig,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from proto.states import Actor, TaskState, check_transition
from worker.agent import Agent
from worker.api import (
    Assignment,
    AssignmentChanges,
    AssignmentMessage,
    CompleteAssignments,
    StatusUpdate,
)
from worker.images.api import Image, ImageConfig, Progress
from worker.runtime.api import ContainerConfig
from worker.runtime.sim import SimNetwork, SimRuntime, SimScript

NODE = NodeID("node1")


class _VirtualSelector(selectors.SelectSelector):
    """Never waits: what it would have waited is added to the loop's time."""

    elapsed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            ready = super().select(10.0)  # for threads
            assert ready, "the test waits for something that never comes"
        elif not ready and timeout:
            self.elapsed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing else is to do."""

    def __init__(self) -> None:
        self.virtual = _VirtualSelector()
        super().__init__(self.virtual)

    def time(self) -> float:
        """Return the virtual time."""
        return 1000.0 + self.virtual.elapsed


class LoopClock:
    """The running loop's time, as both clocks."""

    def wall(self) -> float:
        """Return some date."""
        return 1_700_000_000.0 + self.monotonic()

    def monotonic(self) -> float:
        """Return the loop's time."""
        return asyncio.get_running_loop().time()


class FakeImages:
    """An image store that has what it is told, after a while."""

    def __init__(self) -> None:
        self.images = {"web": Image(id=ImageID("sha256:web"), config=ImageConfig(cmd=("/web",)))}
        self.seconds = 0.0
        self.pulls: list[str] = []
        self.registry = {"far": Image(id=ImageID("sha256:far"), config=ImageConfig(cmd=("/far",)))}

    def resolve(self, ref: str) -> Image:
        """Return an image of this node."""
        if ref not in self.images:
            raise NotFoundError("image", ref)
        return self.images[ref]

    async def pull(self, ref: str, *, progress: Callable[[Progress], None]) -> Image:
        """Return an image of the registry after `seconds`."""
        progress(Progress(status=f"Pulling from {ref}", id="latest"))
        self.pulls.append(ref)
        await asyncio.sleep(self.seconds)
        if ref not in self.registry:
            raise NotFoundError("image", ref, f"No such image: {ref}")
        self.images[ref] = self.registry[ref]
        return self.images[ref]


class Manager:
    """A dispatcher whose messages the test writes; it checks that states only go forward."""

    def __init__(self) -> None:
        self.tasks: dict[TaskID, Assignment] = {}
        self.reported: dict[TaskID, TaskStatus] = {}
        self.history: list[tuple[TaskID, TaskState]] = []
        self.batches: list[int] = []
        self.sessions = 0
        self.is_up = True
        self.update_seconds = 0.0
        self._queue: asyncio.Queue[AssignmentMessage | None] = asyncio.Queue()

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session."""
        if not self.is_up:
            raise UnavailableError("no manager is reached")
        self.sessions += 1
        return Node(id=node_id, description=description)

    async def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield what the test assigns."""
        assert node_id == NODE
        self._queue = asyncio.Queue()
        yield CompleteAssignments(tuple(self._known(a) for a in self.tasks.values()))
        while (message := await self._queue.get()) is not None:
            yield message
        raise UnavailableError("the manager went away")

    def _known(self, assignment: Assignment) -> Assignment:
        """Put the manager's view of the status in."""
        status = self.reported.get(assignment.task.id, assignment.task.status)
        task = msgspec.structs.replace(assignment.task, status=status)
        return msgspec.structs.replace(assignment, task=task)

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Keep the statuses; refuse a step back."""
        assert node_id == NODE
        await asyncio.sleep(self.update_seconds)
        if not self.is_up:
            raise UnavailableError("no manager is reached")
        self.batches.append(len(updates))
        for update in updates:
            old = self.reported.get(update.task_id)
            before = TaskState.ASSIGNED if old is None else old.state
            if update.status.state != before:
                check_transition(Actor.AGENT, before, update.status.state, update.task_id)
            self.reported[update.task_id] = update.status
            self.history.append((update.task_id, update.status.state))

    def assign(self, *assignments: Assignment) -> None:
        """Send new or changed tasks."""
        for assignment in assignments:
            self.tasks[assignment.task.id] = assignment
        self._queue.put_nowait(AssignmentChanges(updated=assignments))

    def want(self, task_id: TaskID, desired: TaskState) -> None:
        """Change the desired state."""
        old = self.tasks[task_id]
        task = msgspec.structs.replace(old.task, desired_state=desired)
        self.assign(msgspec.structs.replace(old, task=task))

    def forget(self, *task_ids: TaskID) -> None:
        """Take tasks away."""
        for task_id in task_ids:
            del self.tasks[task_id]
        self._queue.put_nowait(AssignmentChanges(removed=task_ids))

    def cut(self) -> None:
        """End the session."""
        self.is_up = False
        self._queue.put_nowait(None)

    def states(self, task_id: TaskID) -> list[TaskState]:
        """Return all reported states of a task."""
        return [state for i, state in self.history if i == task_id]


class World:
    """A node that outlives its agents, and its manager."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.scripts: dict[str, SimScript] = {}
        self.runtime = SimRuntime(LoopClock(), self._script)
        self.network = SimNetwork()
        self.images = FakeImages()
        self.manager = Manager()
        self.uses_after_removal: list[dict[ImageID, tuple[ContainerID, ...]]] = []
        self._runs: dict[int, asyncio.Task[None]] = {}

    def _script(self, config: ContainerConfig) -> SimScript:
        task_id = config.labels["com.docker.swarm.task.id"]
        return self.scripts.get(task_id, SimScript())

    async def start(self) -> Agent:
        """Start an agent on this node."""
        agent = Agent(
            self.state_dir,
            NODE,
            NodeDescription(hostname="host1"),
            runtime=self.runtime,
            images=self.images,
            network=self.network,
            dispatcher=self.manager,
            clock=LoopClock(),
            rng=random.Random(1),
            removed=lambda: self.uses_after_removal.append(dict(agent.images_in_use())),
        )
        self._runs[id(agent)] = asyncio.create_task(agent.run())
        return agent

    async def stop(self, agent: Agent) -> None:
        """Stop it; containers go on."""
        await agent.close()
        await self._runs.pop(id(agent))

    async def eventually(self, condition: Callable[[], bool], within: float = 60.0) -> None:
        """Let (virtual) time pass until the condition holds."""
        deadline = asyncio.get_running_loop().time() + within
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "it never came"
            for run in self._runs.values():
                if run.done():
                    run.result()
            await asyncio.sleep(0.01)

    async def until(self, task_id: TaskID, state: TaskState) -> TaskStatus:
        """Wait until the manager knows that the task is in this state."""

        def is_there() -> bool:
            status = self.manager.reported.get(task_id)
            return status is not None and status.state >= state

        await self.eventually(is_there)
        status = self.manager.reported[task_id]
        assert state == status.state, status
        return status


def assignment(
    name: str = "t1",
    *,
    desired: TaskState = TaskState.RUNNING,
    status: TaskStatus | None = None,
    container: ContainerSpec | None = None,
    ports: tuple[PortConfig, ...] = (),
    service: str = "s1",
    slot: int = 1,
    spec_version: int = 1,
) -> Assignment:
    """Make an assignment of a small service."""
    spec = ServiceSpec(
        name=service,
        task=TaskSpec(container=container or ContainerSpec(image="web")),
        endpoint=EndpointSpec(ports=ports),
    )
    task = Task(
        id=TaskID(name),
        service_id=ServiceID(service),
        spec_version=spec_version,
        slot=slot,
        node_id=NODE,
        desired_state=desired,
        status=status or TaskStatus(state=TaskState.ASSIGNED),
    )
    return Assignment(task=task, spec=spec)


@pytest.fixture
def assigned() -> Callable[..., Assignment]:
    """Make assignments."""
    return assignment


Scenario = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario in virtual time."""

    def play_it(scenario: Scenario) -> None:
        async def main() -> None:
            world = World(tmp_path)
            await scenario(world)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())

    return play_it

"""A real node without a manager: runtime, network, images, and a scripted dispatcher."""

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from overlay.node import BridgeNetwork
from proto.clock import SystemClock
from proto.ids import NodeID, ServiceID, TaskID
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
from proto.states import TaskState
from worker.agent import Agent
from worker.api import Assignment, AssignmentChanges, CompleteAssignments
from worker.images.store import ImageStore
from worker.runtime.conmon import Binaries
from worker.runtime.oci import OciRuntime

NODE = NodeID("node1")


@pytest.fixture
def cgroup_parent() -> Iterator[str]:
    """A cgroup of our own; it must be empty in the end."""
    name = f"swarm-worker-test-{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}"
    yield f"/{name}"
    left = []
    for directory in [*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup", name)]:
        if directory.is_dir():
            left += [child.name for child in directory.iterdir() if child.is_dir()]
            with contextlib.suppress(OSError):
                directory.rmdir()
    assert left == []


class Manager:
    """Assigns what the test says, and remembers what was reported."""

    def __init__(self) -> None:
        self.tasks: dict[TaskID, Assignment] = {}
        self.reported: dict[TaskID, TaskStatus] = {}
        self.sessions = 0
        self._queue: asyncio.Queue[AssignmentChanges] = asyncio.Queue()

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session."""
        self.sessions += 1
        return Node(id=node_id, description=description)

    async def assignments(self, node_id: NodeID) -> AsyncIterator:
        """Yield all, then changes."""
        assert node_id == NODE
        self._queue = asyncio.Queue()
        yield CompleteAssignments(
            tuple(
                msgspec.structs.replace(
                    one,
                    task=msgspec.structs.replace(
                        one.task, status=self.reported.get(i, one.task.status)
                    ),
                )
                for i, one in self.tasks.items()
            )
        )
        while True:
            yield await self._queue.get()

    async def update_statuses(self, node_id: NodeID, updates) -> None:
        """Remember."""
        assert node_id == NODE
        self.reported.update({u.task_id: u.status for u in updates})

    def assign(self, *assignments: Assignment) -> None:
        """Send tasks."""
        self.tasks.update({one.task.id: one for one in assignments})
        self._queue.put_nowait(AssignmentChanges(updated=assignments))

    def want(self, desired: TaskState, *task_ids: TaskID) -> None:
        """Change desired states."""
        self.assign(
            *(
                msgspec.structs.replace(
                    self.tasks[i],
                    task=msgspec.structs.replace(self.tasks[i].task, desired_state=desired),
                )
                for i in task_ids
            )
        )

    def forget(self, *task_ids: TaskID) -> None:
        """Take tasks away."""
        for task_id in task_ids:
            del self.tasks[task_id]
        self._queue.put_nowait(AssignmentChanges(removed=task_ids))

    def state(self, task_id: TaskID) -> TaskState:
        """Return what was last heard."""
        status = self.reported.get(task_id)
        return TaskState.ASSIGNED if status is None else status.state


class RealNode:
    """One node; `agent()` starts its worker, as a new daemon would."""

    def __init__(self, directory: Path, cgroup_parent: str) -> None:
        self.directory = directory
        self.cgroup_parent = cgroup_parent
        self.manager = Manager()

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """Run a worker with all its parts; containers outlive it."""
        clock = SystemClock()
        crun, conmon = shutil.which("crun"), shutil.which("conmon")
        assert crun is not None
        assert conmon is not None
        images = await ImageStore.open(self.directory / "i", clock)
        runtime = OciRuntime(
            self.directory / "c",
            self.directory / "r",
            Binaries("crun", crun, conmon),
            cgroup_parent=self.cgroup_parent,
        )
        network = BridgeNetwork(self.directory / "n", "10.203.0.0/16")
        await self._import(images)
        agent = Agent(
            self.directory / "w",
            NODE,
            NodeDescription(hostname="host1"),
            runtime=runtime,
            images=images,
            network=network,
            dispatcher=self.manager,
            clock=clock,
            rng=random.Random(1),
        )
        self.runtime, self.network = runtime, network
        run = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            await agent.close()
            await run
            await network.close()
            await runtime.close()
            await images.close()

    async def _import(self, images: ImageStore) -> None:
        if images.images():
            return
        tree = self.directory / "tree"
        (tree / "bin").mkdir(parents=True)
        (tree / "data").mkdir()
        (tree / "data" / "first").write_text("from the image")
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, tree / "bin" / "busybox")
        for name in ("sh", "sleep", "cat", "httpd", "env", "test", "trap", "echo"):
            (tree / "bin" / name).symlink_to("busybox")
        with tarfile.open(self.directory / "tree.tar", "w") as tar:
            tar.add(tree, ".")

        async def stream() -> AsyncIterator[bytes]:
            yield (self.directory / "tree.tar").read_bytes()

        await images.import_rootfs(stream(), "box:latest")


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 20.0) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + within
    while True:
        holds = condition()
        if not isinstance(holds, bool):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.02)


@pytest.fixture
def until():
    """Wait for a condition with a deadline."""
    return eventually


@pytest.fixture
def node(tmp_path: Path, cgroup_parent: str) -> RealNode:
    """Make a node."""
    return RealNode(tmp_path, cgroup_parent)


@pytest.fixture
def assigned():
    """Make assignments of a busybox service."""

    def make(
        name: str, *, container: ContainerSpec, ports: tuple[PortConfig, ...] = (), slot: int = 1
    ) -> Assignment:
        spec = ServiceSpec(
            name="s1",
            task=TaskSpec(container=msgspec.structs.replace(container, image="box:latest")),
            endpoint=EndpointSpec(ports=ports),
        )
        task = Task(
            id=TaskID(name),
            service_id=ServiceID("s1"),
            spec_version=1,
            slot=slot,
            node_id=NODE,
            status=TaskStatus(state=TaskState.ASSIGNED),
        )
        return Assignment(task=task, spec=spec)

    return make

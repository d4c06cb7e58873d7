"""The API in front of a real store, control and image store, and the stock clients for it.

No container runs: `Pretender` makes each service's tasks as an orchestrator and workers would.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from manager.controlapi.control import Control
from manager.httpapi.backend import InitRequest, NodeFacts, RemoteManager, SwarmFacts
from manager.httpapi.server import make_app, serve_unix
from manager.store import Entry, Store, Transaction, Watch
from proto.clock import SystemClock
from proto.errors import LockedError, UnavailableError
from proto.ids import ClusterID, ContainerID, ImageID, NodeID, TaskID, container_id_of, new_id
from proto.logs import LogOptions, LogRecord
from proto.objects import (
    Cluster,
    EngineDescription,
    JoinTokens,
    ManagerStatus,
    Node,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Object,
    Platform,
    Reachability,
    ReplicatedMode,
    Resources,
    Service,
    Task,
    TaskStatus,
)
from proto.states import TaskState
from tests import needs
from worker.images.removal import ImageUse
from worker.images.store import ImageStore
from worker.volumes import VolumeStore

DEADLINE_SECONDS = 30.0
NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
    "this node to swarm and try again."
)
ROOT = create_root(time.time())
CERTIFICATE = ROOT.certificate_pem


class MemoryLog:
    """A log that commits in the next turn of the loop and forgets at the end."""

    snapshot_index = 0

    def __init__(self) -> None:
        self.last_index = 0

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Commit soon."""
        del data
        self.last_index += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        loop.call_soon(future.set_result, self.last_index)
        return future

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Nothing."""
        return iter(()), iter(())

    def attach(self, listener) -> None:
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return self.last_index

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class Backend:
    """A daemon without containers."""

    def __init__(self, images: ImageStore) -> None:
        self.images = images
        self.store: Store | None = None
        self.is_locked = False
        self.node_id = NodeID("")
        self.rng = random.Random(7)
        self.clock = SystemClock()
        self.init_request: InitRequest | None = None
        self.log_options: list[LogOptions] = []
        self.open_logs = 0
        self.logs_idle = asyncio.Event()
        self.watched = asyncio.Event()
        self.uses: dict[ImageID, ImageUse] = {}
        self.pretender: asyncio.Task[None] | None = None

    def facts(self) -> NodeFacts:
        """Describe the node."""
        swarm = SwarmFacts(local_node_state="locked" if self.is_locked else "inactive")
        if self.store is not None and not self.is_locked:
            (cluster,) = self.store.view().clusters
            swarm = SwarmFacts(
                local_node_state="active",
                control_available=True,
                node_addr="192.0.2.1",
                remote_managers=(RemoteManager(self.node_id, "192.0.2.1:2377"),),
                nodes=len(self.store.view().nodes),
                managers=1,
                cluster=cluster,
            )
        return NodeFacts(
            node_id=self.node_id,
            name="wkr01",
            version="0.1.0",
            operating_system="Linux",
            kernel="6.1.0",
            architecture="x86_64",
            go_arch="amd64",
            ncpu=2,
            mem_bytes=2 * 1024**3,
            runtimes={"crun": "/usr/bin/crun"},
            default_runtime="crun",
            data_root="/var/lib/swarm",
            security_options=("name=seccomp,profile=builtin",),
            images=len(self.images.images()),
            swarm=swarm,
        )

    def _open_store(self) -> Store:
        if self.is_locked:
            raise LockedError
        if self.store is None:
            raise UnavailableError(NOT_A_MANAGER)
        return self.store

    def control(self) -> Control:
        """Operate the store."""
        return Control(self._open_store(), self.clock, self.rng)

    def watch(self, *kinds: type[Object]) -> Watch:
        """Watch the store."""
        self.watched.set()
        return self._open_store().watch(*kinds)

    async def swarm_init(self, request: InitRequest) -> str:
        """Make a cluster of one node."""
        self.init_request = request
        if self.store is not None:
            raise UnavailableError("This node is already part of a swarm.")
        self.node_id = NodeID(new_id(self.rng))
        store = Store.open(MemoryLog(), self.clock)
        tokens = JoinTokens(
            worker=new_join_token(CERTIFICATE, self.rng),
            manager=new_join_token(CERTIFICATE, self.rng),
        )

        def create(tx: Transaction) -> None:
            tx.create(
                Cluster(
                    id=ClusterID(new_id(self.rng)),
                    spec=msgspec.structs.replace(request.spec, auto_lock_managers=False),
                    root_ca_certificate_pem=CERTIFICATE,
                    root_ca_key_pem=ROOT.key_pem,
                    join_tokens=tokens,
                )
            )
            tx.create(_node(self.node_id))

        await store.update(create)
        self.store = store
        if request.auto_lock:
            cluster = self.control().cluster()
            await self.control().update_cluster(cluster.version, request.spec)
        self.pretender = asyncio.create_task(pretend(store, self.node_id, self.rng))
        return self.node_id

    async def read_barrier(self) -> None:
        """Wait as a manager does."""
        if self.store is not None:
            await self.store.read_barrier()

    async def swarm_leave(self, *, force: bool) -> None:
        """Forget the cluster."""
        if self.store is None:
            raise UnavailableError("This node is not part of a swarm")
        if not force:
            raise UnavailableError("You are attempting to leave the swarm on a manager: --force")
        await self.close()
        self.store, self.node_id = None, NodeID("")

    async def swarm_unlock(self, key: str) -> None:
        """Compare the key."""
        assert self.store is not None
        (cluster,) = self.store.view().clusters
        if key != cluster.unlock_key:
            raise UnavailableError("swarm could not be unlocked: invalid key provided")
        self.is_locked = False

    def swarm_unlock_key(self) -> str:
        """Read the key."""
        return self.control().cluster().unlock_key

    async def task_logs(
        self, task_ids: Sequence[TaskID], options: LogOptions
    ) -> AsyncIterator[tuple[Task, LogRecord]]:
        """Yield two lines of each task; with `follow`, go on until closed."""
        self.log_options.append(options)
        self.open_logs += 1
        self.logs_idle.clear()
        try:
            for task_id in task_ids:
                task = self.control().task(task_id)
                for number, stream in enumerate(("stdout", "stderr")):
                    text = f"{stream} of {task.slot}\n".encode()
                    record = LogRecord(time_ns=10**18 + number, stream=stream, data=text)  # type: ignore[arg-type]
                    yield task, record
            if options.follow:
                await asyncio.Event().wait()
        finally:
            self.open_logs -= 1
            if not self.open_logs:
                self.logs_idle.set()

    @property
    def volumes(self) -> VolumeStore:
        """None."""
        return VolumeStore(Path("/nowhere"))

    def volumes_in_use(self) -> Mapping[str, tuple[ContainerID, ...]]:
        """None."""
        return {}

    def container_bytes(self) -> Mapping[ContainerID, int]:
        """None."""
        return {}

    def images_in_use(self) -> Mapping[ImageID, ImageUse]:
        """Tell what the test says."""
        return self.uses

    async def close(self) -> None:
        """Stop pretending."""
        if self.pretender is not None:
            self.pretender.cancel()
            with suppress(asyncio.CancelledError):
                await self.pretender
        if self.store is not None:
            await self.store.close()


def _node(node_id: NodeID) -> Node:
    return Node(
        id=node_id,
        role=NodeRole.MANAGER,
        spec=NodeSpec(role=NodeRole.MANAGER),
        description=NodeDescription(
            hostname="wkr01",
            platform=Platform(os="linux", architecture="x86_64"),
            resources=Resources(nano_cpus=2 * 10**9, memory_bytes=2 * 1024**3),
            engine=EngineDescription(version="0.1.0", plugins=(("Log", "json-file"),)),
        ),
        status=NodeStatus(state=NodeState.READY, addr="192.0.2.1"),
        manager_status=ManagerStatus(
            is_leader=True, reachability=Reachability.REACHABLE, addr="192.0.2.1:2377"
        ),
    )


async def pretend(store: Store, node_id: NodeID, rng: random.Random) -> None:
    """Keep as many running tasks of each service's present spec as it asks for."""
    async with store.watch(Service) as watch:
        while True:
            await store.update(lambda tx: _reconcile(tx, node_id, rng))
            await anext(watch)


def _reconcile(tx: Transaction, node_id: NodeID, rng: random.Random) -> None:
    for task in list(tx.tasks):
        service = tx.services.get(task.service_id)
        slots = _slots(service) if service is not None else 0
        is_wanted = service is not None and task.slot <= slots
        if not is_wanted or (service and task.spec_version != service.spec_version):
            status = msgspec.structs.replace(task.status, state=TaskState.SHUTDOWN)
            tx.update(
                msgspec.structs.replace(task, desired_state=TaskState.SHUTDOWN, status=status)
            )
    for service in list(tx.services):
        taken = {
            task.slot
            for task in tx.tasks.find("service_id", service.id)
            if task.desired_state is TaskState.RUNNING
        }
        for slot in range(1, _slots(service) + 1):
            if slot not in taken:
                tx.create(_task(service, slot, node_id, TaskID(new_id(rng)), tx.now))


def _slots(service: Service) -> int:
    mode = service.spec.mode
    return mode.replicas if isinstance(mode, ReplicatedMode) else 1


def _task(service: Service, slot: int, node_id: NodeID, task_id: TaskID, now: float) -> Task:
    status = TaskStatus(
        state=TaskState.RUNNING,
        timestamp=now,
        message="started",
        container_id=container_id_of(task_id),
        pid=4242,
    )
    return Task(
        id=task_id,
        service_id=service.id,
        spec_version=service.spec_version,
        slot=slot,
        node_id=node_id,
        status=status,
    )


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Docker:
    """The stock client against the served socket."""

    def __init__(self, backend: Backend, path: Path, config: Path) -> None:
        self.backend = backend
        self.path = path
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(config),
            "DOCKER_HOST": f"unix://{path}",
            "DOCKER_CONFIG": str(config),
        }

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command; it can be interrupted even if the tests cannot."""
        return await asyncio.create_subprocess_exec(
            *("env", "--default-signal=INT", "docker"),
            *words,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *words: str, stdin: bytes = b"") -> Ran:
        """Run a command to its end."""
        process = await self.start(*words)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                out, err = await process.communicate(stdin)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Run a command that must succeed; return what it printed."""
        ran = await self.run(*words, stdin=stdin)
        assert ran.code == 0, ran
        return ran.out.strip()

    async def json(self, *words: str) -> Any:
        """Run a command that prints JSON."""
        return msgspec.json.decode(await self.ok(*words))


@pytest.fixture
async def docker(tmp_path: Path) -> AsyncIterator[Docker]:
    """Serve a node that is in no swarm."""
    needs.program("docker")
    images = await ImageStore.open(tmp_path / "images", SystemClock())
    backend = Backend(images)
    config = tmp_path / "config"
    config.mkdir()
    listener = await serve_unix(make_app(backend), tmp_path / "docker.sock")
    try:
        yield Docker(backend, listener.path, config)
    finally:
        await listener.close()
        await backend.close()
        await images.close()


@pytest.fixture
async def swarm(docker: Docker) -> Docker:
    """Serve a node that has a swarm."""
    await docker.ok("swarm", "init", "--advertise-addr", "192.0.2.1")
    return docker


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[str]:
    """Run a registry on loopback; yield its address."""
    program = needs.program("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        program,
        "serve",
        str(config),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                with suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()

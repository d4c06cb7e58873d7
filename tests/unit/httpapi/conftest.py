"""A small daemon behind the API: a few objects in memory, and a client on the socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from manager.httpapi.backend import (
    InitRequest,
    JoinRequest,
    NodeFacts,
    ShowProgress,
    SwarmFacts,
)
from manager.httpapi.server import Listener, make_app, serve_unix
from manager.store import Watch
from proto.errors import NotFoundError, UnavailableError
from proto.ids import ContainerID, ImageID, NodeID, ServiceID, TaskID
from proto.logs import LogOptions, LogRecord
from proto.objects import Cluster, ClusterSpec, Node, NodeSpec, Object, Service, ServiceSpec, Task
from worker.images.api import Deleted, Image, Progress, RegistryAuth
from worker.volumes import VolumeStore

NOT_A_MANAGER = "This node is not a swarm manager."


class FakeControl:
    """Objects in dictionaries; keeps what it was asked to change."""

    def __init__(self) -> None:
        self.by_id: dict[str, Service] = {}
        self.all_tasks: dict[str, Task] = {}
        self.calls: list[tuple[Any, ...]] = []

    def cluster(self) -> Cluster:
        """Nothing."""
        raise AssertionError

    async def update_cluster(self, version: int, spec: ClusterSpec, **rotate: bool) -> None:
        """Record."""
        self.calls.append(("update_cluster", version, spec, rotate))

    def nodes(self) -> Iterable[Node]:
        """List."""
        return ()

    def node(self, ref: str) -> Node:
        """Find."""
        raise NotFoundError("node", ref)

    async def update_node(self, ref: str, version: int, spec: NodeSpec) -> None:
        """Record."""
        self.calls.append(("update_node", ref, version, spec))

    async def remove_node(self, ref: str, *, force: bool) -> None:
        """Record."""
        self.calls.append(("remove_node", ref, force))

    def services(self) -> Iterable[Service]:
        """List."""
        return self.by_id.values()

    def service(self, ref: str) -> Service:
        """Find."""
        if ref not in self.by_id:
            raise NotFoundError("service", ref)
        return self.by_id[ref]

    async def create_service(self, spec: ServiceSpec, *, service_id: str = "") -> ServiceID:
        """Keep."""
        assert not service_id, "no ID is drawn without other managers"
        service_id = ServiceID(f"id-{spec.name}")
        self.by_id[service_id] = Service(id=service_id, spec=spec)
        return service_id

    async def update_service(
        self, ref: str, version: int, spec: ServiceSpec, *, rollback: bool = False
    ) -> None:
        """Record."""
        self.calls.append(("update_service", ref, version, spec, rollback))

    async def remove_service(self, ref: str) -> None:
        """Remove."""
        del self.by_id[ref]

    def tasks_of(self, service_id: str) -> Iterable[Task]:
        """Return a service's tasks."""
        return [task for task in self.tasks() if task.service_id == service_id]

    def tasks(self) -> Iterable[Task]:
        """List."""
        return self.all_tasks.values()

    def task(self, ref: str) -> Task:
        """Find."""
        return self.all_tasks[ref]

    def task_name(self, task: Task) -> str:
        """Name."""
        return f"web.{task.slot}.{task.id}"

    def service_status(self, service: Service) -> Any:
        """Fail like a bug would."""
        raise RuntimeError(f"secret-looking detail of {service.id}")

    def spec_of(self, task: Task) -> ServiceSpec:
        """Look up."""
        return self.by_id[task.service_id].spec


class FakeImages:
    """No images; pulls that the test steers."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.auth: RegistryAuth | None = None
        self.failure: Exception | None = None
        self.steps: list[Progress] = []
        self.uploaded = 0
        self.present: tuple[Image, ...] = ()
        self.layers: dict[str, int] = {}

    def resolve(self, ref: str) -> Image:
        """Find."""
        raise NotFoundError("image", ref, f"No such image: {ref}")

    def images(self) -> Iterable[Image]:
        """List."""
        return self.present

    def layer_bytes(self) -> Mapping[str, int]:
        """Tell what the test says."""
        return self.layers

    async def load(
        self, stream: AsyncIterator[bytes], *, progress: ShowProgress | None = None
    ) -> Sequence[str]:
        """Count the bytes."""
        del progress
        async for piece in stream:
            self.uploaded += len(piece)
        return ["web:1"]

    async def pull(
        self,
        ref: str,
        *,
        auth: RegistryAuth | None = None,
        platform: str = "",
        progress: ShowProgress | None = None,
    ) -> Image:
        """Show the steps, then fail, or hang until cancelled."""
        del ref, platform
        self.auth = auth
        assert progress is not None
        for step in self.steps:
            progress(step)
        if self.failure is not None:
            await asyncio.sleep(0)
            raise self.failure
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError

    def import_rootfs(self, *_: Any, **__: Any) -> Awaitable[ImageID]:
        """Nothing."""
        raise AssertionError

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Nothing."""
        raise AssertionError(refs)

    def push(self, *_: Any, **__: Any) -> Awaitable[object]:
        """Nothing."""
        raise AssertionError

    def tag(self, src: str, dst: str) -> Awaitable[object]:
        """Nothing."""
        raise AssertionError(src, dst)

    def remove(self, *_: Any, **__: Any) -> Awaitable[Sequence[Deleted]]:
        """Nothing."""
        raise AssertionError


class FakeBackend:
    """The daemon; `logs_closed` tells that nobody reads the logs any more."""

    def __init__(self) -> None:
        self.images = FakeImages()
        self.barriers = 0
        self.barrier_error: Exception | None = None
        self.volumes = VolumeStore(Path("/nowhere"))
        self.volume_users: dict[str, tuple[ContainerID, ...]] = {}
        self.fake_control = FakeControl()
        self.is_manager = True
        self.records: list[tuple[Task, LogRecord]] = []
        self.logs_closed = asyncio.Event()
        self.log_options: LogOptions | None = None
        self.init_request: InitRequest | None = None
        self.join_request: JoinRequest | None = None

    def facts(self) -> NodeFacts:
        """Describe."""
        state = SwarmFacts(
            local_node_state="active" if self.is_manager else "inactive",
            control_available=self.is_manager,
        )
        return NodeFacts(node_id=NodeID("n1"), version="1.2.3", swarm=state)

    def control(self) -> FakeControl:
        """Return it on a manager."""
        if not self.is_manager:
            raise UnavailableError(NOT_A_MANAGER)
        return self.fake_control

    def watch(self, *kinds: type[Object]) -> Watch:
        """Nothing."""
        del kinds
        raise UnavailableError(NOT_A_MANAGER)

    async def swarm_init(self, request: InitRequest) -> str:
        """Record."""
        self.init_request = request
        return "n1"

    async def swarm_join(self, request: JoinRequest) -> None:
        """Record."""
        self.join_request = request

    async def read_barrier(self) -> None:
        """Count, and fail when a test says so."""
        self.barriers += 1
        if self.barrier_error is not None:
            raise self.barrier_error

    async def swarm_leave(self, *, force: bool) -> None:
        """Nothing."""
        del force

    async def swarm_unlock(self, key: str) -> None:
        """Nothing."""
        raise AssertionError(key)

    def swarm_unlock_key(self) -> str:
        """Nothing."""
        return ""

    async def task_logs(
        self, task_ids: Sequence[TaskID], options: LogOptions
    ) -> AsyncIterator[tuple[Task, LogRecord]]:
        """Yield the records; with `follow`, hang until closed."""
        self.log_options = options
        try:
            for task, record in self.records:
                if task.id in task_ids:
                    yield task, record
            if options.follow:
                await asyncio.Event().wait()
        finally:
            self.logs_closed.set()

    def volumes_in_use(self) -> Mapping[str, tuple[ContainerID, ...]]:
        """Tell what the test says."""
        return self.volume_users

    def container_bytes(self) -> Mapping[ContainerID, int]:
        """None."""
        return {}

    def images_in_use(self) -> Mapping[ImageID, tuple[str, ...]]:
        """None."""
        return {}


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body."""
        return msgspec.json.decode(self.body)


class Served:
    """A served backend and a bare client for it."""

    def __init__(self, backend: FakeBackend, listener: Listener) -> None:
        self.backend = backend
        self.listener = listener

    async def open(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request and leave the connection open."""
        reader, writer = await asyncio.open_unix_connection(str(self.listener.path))
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        return reader, writer

    async def ask(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and read the whole answer."""
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with asyncio.timeout(5):
            reader, writer = await self.open(method, path, raw, headers)
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
        return parse_answer(data)


def parse_answer(data: bytes) -> Answer:
    """Take a response apart; chunked bodies are joined."""
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        joined = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            joined += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        body = joined
    return Answer(int(status_line.split()[1]), headers, body)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Serve a fake daemon."""
    backend = FakeBackend()
    listener = await serve_unix(make_app(backend), tmp_path / "docker.sock")
    try:
        yield Served(backend, listener)
    finally:
        await listener.close()


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Awaitable[Listener]]:
    """Serve a fake daemon on demand, with options."""

    async def start(name: str = "docker.sock", **options: Any) -> Listener:
        return await serve_unix(make_app(FakeBackend()), tmp_path / name, **options)

    return start

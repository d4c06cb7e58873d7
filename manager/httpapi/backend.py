"""What this package needs of the daemon: facts of the node, and the parts that act.

The composition root implements `Backend`; nothing here knows how. The cluster's part may be
absent: `control` and `watch` then raise the error that says why, and its sentence is what the
client shows. Protocols are structural: `manager.controlapi.Control` and
`worker.images.store.ImageStore` fit as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from typing_extensions import override

from manager.ca.rootchange import NewRoot
from manager.store.watch import Watch
from proto.ids import ClusterID, ContainerID, ImageID, NodeID, ServiceID, TaskID
from proto.logs import LogOptions, LogRecord
from proto.objects import (
    Cluster,
    ClusterSpec,
    Node,
    NodeAvailability,
    NodeRole,
    NodeSpec,
    Object,
    Service,
    ServiceSpec,
    Task,
)
from raft.transport.identity import Credentials
from worker.images.api import Deleted, Image, Progress, RegistryAuth
from worker.images.removal import ImageUse
from worker.volumes import Volume

LocalNodeState = Literal["inactive", "pending", "active", "error", "locked"]
ShowProgress = Callable[[Progress], None]
InUse = Mapping[ImageID, ImageUse]


class InitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `swarm init` asks; "" and 0 leave it to the daemon."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0
    force_new_cluster: bool = False
    auto_lock: bool = False
    availability: NodeAvailability = NodeAvailability.ACTIVE
    spec: ClusterSpec = ClusterSpec()


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `swarm join` asks; "" leaves an address to the daemon. The token is never logged."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    availability: NodeAvailability = NodeAvailability.ACTIVE

    @override
    def __repr__(self) -> str:
        """Hide the token."""
        return f"JoinRequest(remote_addrs={self.remote_addrs!r})"


class RemoteManager(msgspec.Struct, frozen=True):
    """Another manager; `addr` is host:port."""

    node_id: NodeID
    addr: str


class LeaderInfo(msgspec.Struct, frozen=True):
    """The manager that leads; `address` is host:port of its API."""

    node_id: NodeID
    address: str


class Quorum(msgspec.Struct, frozen=True):
    """How many managers there are, how many of them this one reaches (itself too), and a leader."""

    reachable: int
    total: int
    has_leader: bool

    @property
    def majority(self) -> int:
        """How many it takes."""
        return self.total // 2 + 1

    @property
    def is_reachable(self) -> bool:
        """Whether enough are reached to elect a leader."""
        return self.reachable >= self.majority


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """What a node that joins is given; nothing of it is secret.

    Attributes:
        certificate_pem: the node's, then intermediate ones if there are.
        roots_pem: whom the node has to trust.
        managers: with the addresses of their node ports (gRPC).
        api_managers: the same with the addresses of their API ports.
    """

    node_id: NodeID
    cluster_id: ClusterID
    role: NodeRole
    certificate_pem: bytes
    roots_pem: bytes
    managers: tuple[RemoteManager, ...] = ()
    api_managers: tuple[RemoteManager, ...] = ()


class SwarmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where this node is in the cluster.

    `nodes` and `managers` count and `cluster` is set only on a manager that is not locked.
    """

    local_node_state: LocalNodeState = "inactive"
    control_available: bool = False
    error: str = ""
    node_addr: str = ""
    remote_managers: tuple[RemoteManager, ...] = ()
    nodes: int = 0
    managers: int = 0
    cluster: Cluster | None = None


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `docker info` and `docker version` show of a node.

    Attributes:
        node_id: "" while the node is in no cluster.
        name: the hostname.
        version: ours, as `ServerVersion`.
        architecture: in the kernel's words (x86_64); `go_arch` in Go's (amd64).
        runtimes: names to paths, such as `crun` to `/usr/bin/crun`.
        security_options: as the Engine writes them, `name=seccomp,profile=builtin`.
        labels: of the engine, `key=value`.
    """

    node_id: NodeID = NodeID("")
    name: str = ""
    version: str = ""
    git_commit: str = ""
    build_time: str = ""
    operating_system: str = ""
    os_version: str = ""
    kernel: str = ""
    os: str = "linux"
    architecture: str = ""
    go_arch: str = ""
    ncpu: int = 0
    mem_bytes: int = 0
    driver: str = "overlay2"
    driver_status: tuple[tuple[str, str], ...] = ()
    cgroup_driver: str = "cgroupfs"
    cgroup_version: str = "1"
    logging_driver: str = "json-file"
    log_drivers: tuple[str, ...] = ("json-file", "none")
    volume_drivers: tuple[str, ...] = ("local",)
    network_drivers: tuple[str, ...] = ("host", "null", "overlay")
    runtimes: Mapping[str, str] = {}
    default_runtime: str = ""
    init_binary: str = ""
    data_root: str = ""
    security_options: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    containers_running: int = 0
    containers_paused: int = 0
    containers_stopped: int = 0
    images: int = 0
    swarm: SwarmFacts = SwarmFacts()
    warnings: tuple[str, ...] = ()


class Counts(Protocol):
    """How many tasks a service has."""

    @property
    def running_tasks(self) -> int:
        """Tasks that run."""

    @property
    def desired_tasks(self) -> int:
        """Tasks that shall run."""

    @property
    def completed_tasks(self) -> int:
        """Tasks of a job that ended well."""


class Control(Protocol):
    """The cluster's objects. References are a full ID, a name, or an ID's unique beginning."""

    def cluster(self) -> Cluster:
        """Return the cluster's row."""

    def update_cluster(
        self,
        version: int,
        spec: ClusterSpec,
        *,
        rotate_worker_token: bool = False,
        rotate_manager_token: bool = False,
        rotate_unlock_key: bool = False,
        new_root: NewRoot = NewRoot(),  # noqa: B008 -- frozen
    ) -> Awaitable[object]:
        """Change the cluster's spec, and draw new secrets or begin another root where asked."""

    def nodes(self) -> Iterable[Node]:
        """Return all nodes."""

    def node(self, ref: str) -> Node:
        """Return one node."""

    def update_node(self, ref: str, version: int, spec: NodeSpec) -> Awaitable[object]:
        """Change a node's spec."""

    def remove_node(self, ref: str, *, force: bool) -> Awaitable[object]:
        """Remove a node."""

    def services(self) -> Iterable[Service]:
        """Return all services."""

    def service(self, ref: str) -> Service:
        """Return one service."""

    def create_service(self, spec: ServiceSpec, *, service_id: str = "") -> Awaitable[ServiceID]:
        """Create a service; with an ID that exists already, an earlier attempt had done it."""

    def update_service(
        self, ref: str, version: int, spec: ServiceSpec, *, rollback: bool = False
    ) -> Awaitable[object]:
        """Change a service's spec, or go back to the previous one and ignore `spec`."""

    def remove_service(self, ref: str) -> Awaitable[object]:
        """Remove a service and its tasks."""

    def tasks(self) -> Iterable[Task]:
        """Return all tasks."""

    def tasks_of(self, service_id: ServiceID) -> Iterable[Task]:
        """Return the tasks of one service; costs nothing for the others'."""

    def task(self, ref: str) -> Task:
        """Return one task."""

    def task_name(self, task: Task) -> str:
        """Return `<service>.<slot or node>.<id>`."""

    def service_status(self, service: Service) -> Counts:
        """Count a service's tasks."""

    def spec_of(self, task: Task) -> ServiceSpec:
        """Return the version of the spec that the task was made from."""


class Images(Protocol):
    """The node's images."""

    def resolve(self, ref: str) -> Image:
        """Return one image, by reference, ID or an ID's beginning."""

    def images(self) -> Iterable[Image]:
        """Return all images."""

    def layer_bytes(self) -> Mapping[str, int]:
        """Map the digests of all layers to their sizes on the disk."""

    def load(
        self, stream: AsyncIterator[bytes], *, progress: ShowProgress = ...
    ) -> Awaitable[Sequence[str]]:
        """Read images from a tar stream; return the references or IDs that it held."""

    def import_rootfs(
        self,
        stream: AsyncIterator[bytes],
        ref: str = "",
        *,
        changes: Sequence[str] = (),
        message: str = "",
        progress: ShowProgress = ...,
    ) -> Awaitable[Image]:
        """Make an image of a tar of a root file system; `ref` may be ""."""

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Stream images as a tar; one that is missing raises at the call."""

    def pull(
        self,
        ref: str,
        *,
        auth: RegistryAuth | None = None,
        platform: str = "",
        progress: ShowProgress = ...,
    ) -> Awaitable[Image]:
        """Fetch an image; those who ask for the same at once share the work."""

    def push(
        self, ref: str, *, auth: RegistryAuth | None = None, progress: ShowProgress = ...
    ) -> Awaitable[str]:
        """Send an image to its registry; return its digest there."""

    def tag(self, source: str, target: str) -> Awaitable[object]:
        """Name an image."""

    def remove(
        self, ref: str, *, force: bool = False, prune: bool = True, in_use: InUse = ...
    ) -> Awaitable[Sequence[Deleted]]:
        """Remove a name, and the image with the last one."""

    def prune(
        self,
        *,
        all: bool = False,  # noqa: A002 -- the option's name
        in_use: InUse = ...,
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> Awaitable[tuple[Sequence[Deleted], int]]:
        """Remove images that nobody needs; return also how many bytes that freed."""


class Volumes(Protocol):
    """The node's volumes."""

    def all(self) -> Sequence[Volume]:
        """Return all, sorted by name."""

    def inspect(self, name: str) -> Volume:
        """Return one volume, or raise `NotFoundError`."""

    def create(
        self,
        name: str,
        *,
        now: float,
        driver: str = ...,
        labels: Mapping[str, str] | None = ...,
        options: Mapping[str, str] | None = ...,
    ) -> Volume:
        """Return the volume, made if it does not exist."""

    def set_aside(self, name: str) -> Path:
        """Take a volume away in one quick step, its content for `delete`."""

    def delete(self, aside: Path) -> None:
        """Delete the content of a volume that was set aside; blocks."""


class Backend(Protocol):
    """The daemon, as the API sees it."""

    @property
    def volumes(self) -> Volumes:
        """The node's volumes."""

    def volumes_in_use(self) -> Mapping[str, Sequence[ContainerID]]:
        """Map each volume that containers of this node have, or will have, to them."""

    def container_bytes(self) -> Mapping[ContainerID, int]:
        """Measure what containers have written into their own layers; blocks."""

    @property
    def images(self) -> Images:
        """The node's images."""

    def facts(self) -> NodeFacts:
        """Describe this node now."""

    def control(self) -> Control:
        """Return the cluster's objects.

        Raises:
            UnavailableError: this node is no manager, with the sentence that Docker has for it.
            LockedError: the manager's keys are sealed.
        """

    def watch(self, *kinds: type[Object]) -> Watch:
        """Watch the committed objects of these types; raises as `control` does."""

    async def swarm_init(self, request: InitRequest) -> str:
        """Begin a cluster; return this node's ID."""

    async def read_barrier(self) -> None:
        """Wait until what this manager shows holds everything that was committed before the call.

        Nothing to wait for on a node that is no manager.

        Raises:
            NotLeaderError: no leader is known.
            UnavailableError: no majority of the managers answers.
        """

    async def swarm_join(self, request: JoinRequest) -> None:
        """Make this node a member of a cluster that exists; returns when it is one."""

    async def swarm_leave(self, *, force: bool) -> None:
        """Leave the cluster."""

    async def swarm_unlock(self, key: str) -> None:
        """Open the manager's sealed keys."""

    def swarm_unlock_key(self) -> str:
        """Return the key; "" when managers are not locked."""

    def task_logs(
        self, task_ids: Sequence[TaskID], options: LogOptions
    ) -> AsyncIterator[tuple[Task, LogRecord]]:
        """Yield the output of tasks on any node, each task's oldest first.

        With `follow` it waits for tasks that have not started yet, and ends when all have ended.
        Closing the iterator ends the work on every node.
        """

    def images_in_use(self) -> InUse:
        """Map each image that a container of this node has to the container."""


class Peers(Protocol):
    """The other managers, as the API of a manager sees them; `make_app` takes it beside `Backend`.

    Without it every request is served here: right for a node that has no cluster's other managers
    to ask, and for tests.
    """

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads."""

    def leader(self) -> LeaderInfo | None:
        """Name the manager that leads, this one too; None while none is known. Must be quick."""

    @property
    def is_majority_lost(self) -> bool:
        """Whether this manager knows that it cannot reach a majority of them. Must be quick."""

    def quorum(self) -> Quorum:
        """Count the managers, for the sentence that says why a write has to wait."""

    def credentials(self) -> Credentials:
        """Return what this node shows to others, as of now. Must be quick."""

    async def withdraw(self, node_id: NodeID) -> None:
        """Forget a node that was let in and could not begin; called where this manager leads.

        Raises:
            ConflictError: it has begun to work: it leaves, and is removed.
            NotLeaderError: another manager leads; nothing was done.
        """

    async def issue_for_join(
        self,
        token: str,
        csr_pem: bytes,
        *,
        hostname: str,
        availability: NodeAvailability,
        address: str,
    ) -> Joined:
        """Take a node into the cluster; called where this manager leads.

        Raises:
            DeniedError: the token is none of the cluster's.
            InvalidError: the request for a certificate is none.
            NotLeaderError: another manager leads; nothing was done.
            UnavailableError: it is not known whether the node was taken in.
        """

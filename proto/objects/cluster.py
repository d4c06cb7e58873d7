"""Objects: what the store keeps. Each has an `id`, a `version`, two times and mostly a Spec.

`version` is the store's transaction counter at the object's last change; a caller that updates an
object names the version it read. Times are seconds since the epoch (UTC). A task does not carry
its spec: it names a service and the `spec_version`, and each version of a service's spec is
stored once, as a `ServiceSpecVersion`. The same rule as for specs holds: fields are only ever
added, at the end, with a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from typing_extensions import override

from proto.ids import ClusterID, NodeID, ServiceID, TaskID
from proto.objects.spec import (
    ClusterSpec,
    GenericResource,
    NodeRole,
    NodeSpec,
    Platform,
    PortConfig,
    Resources,
    ServiceSpec,
    Stored,
)
from proto.states import TaskState


class NodeState(IntEnum):
    """What the manager observes of a node."""

    UNKNOWN = 0
    DOWN = 1
    READY = 2
    DISCONNECTED = 3


class Reachability(IntEnum):
    """What the leader observes of a manager."""

    UNKNOWN = 0
    UNREACHABLE = 1
    REACHABLE = 2


class EngineDescription(Stored, frozen=True):
    """What a node says of its engine."""

    version: str = ""
    labels: Mapping[str, str] = {}
    plugins: tuple[tuple[str, str], ...] = ()


class NodeDescription(Stored, frozen=True):
    """What a node says of itself.

    Attributes:
        trouble: what hampers the node's work, in sentences; its status's message while it is ready.
    """

    hostname: str = ""
    platform: Platform = Platform()
    resources: Resources = Resources()
    engine: EngineDescription = EngineDescription()
    generic: tuple[GenericResource, ...] = ()
    trouble: str = ""


class TLSInfo(Stored, frozen=True):
    """Which authority issued what a node shows: by it a change of the root is followed.

    Attributes:
        trust_root_digest: hexadecimal SHA-256 of the root certificate's PEM that the node trusts.
        issuer_subject: DER of the issuer's name, in base 64.
        issuer_public_key: DER (SubjectPublicKeyInfo) of the issuer's key, in base 64.
    """

    trust_root_digest: str = ""
    issuer_subject: str = ""
    issuer_public_key: str = ""


class NodeStatus(Stored, frozen=True):
    """What the manager knows of a node now."""

    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""


class ManagerStatus(Stored, frozen=True):
    """A manager's place in the Raft group; `addr` is host:port."""

    is_leader: bool = False
    reachability: Reachability = Reachability.UNKNOWN
    addr: str = ""


class Node(Stored, frozen=True):
    """A member of the cluster."""

    id: NodeID
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    spec: NodeSpec = NodeSpec()
    description: NodeDescription = NodeDescription()
    status: NodeStatus = NodeStatus()
    manager_status: ManagerStatus | None = None
    role: NodeRole = NodeRole.WORKER
    # Of the newest certificate that was issued to the node; `None` before the first, and while the
    # root is being changed until the node has shown it.
    tls_info: TLSInfo | None = None
    # When that certificate ends, seconds since the epoch; 0 before the first.
    certificate_until: float = 0.0
    # When the node was last seen to go DOWN; 0 while it is not. After a day its tasks are ORPHANED.
    down_since: float = 0.0


class UpdateStatus(Stored, frozen=True):
    """Where a rolling update is; `state` is updating, paused, completed, rollback_started, …."""

    state: str = ""
    started_at: float | None = None
    completed_at: float | None = None
    message: str = ""


class Endpoint(Stored, frozen=True):
    """How a service is reached, after allocation: each port has its published number."""

    ports: tuple[PortConfig, ...] = ()


class Service(Stored, frozen=True):
    """A service. `spec_version` is `version` at the last change of `spec`: tasks name it."""

    id: ServiceID
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    spec: ServiceSpec = ServiceSpec()
    spec_version: int = 0
    previous_spec: ServiceSpec | None = None
    previous_spec_version: int = 0
    endpoint: Endpoint = Endpoint()
    update_status: UpdateStatus | None = None


class ServiceSpecVersion(Stored, frozen=True):
    """One version of a service's spec, kept while a task names it.

    `id` is `<service id>.<spec version>`.
    """

    id: str
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    service_id: ServiceID = ServiceID("")
    spec_version: int = 0
    spec: ServiceSpec = ServiceSpec()


class TaskStatus(Stored, frozen=True):
    """What is observed of a task. `timestamp` is when `state` was reached."""

    state: TaskState = TaskState.NEW
    timestamp: float = 0.0
    message: str = ""
    err: str = ""
    container_id: str = ""
    pid: int = 0
    exit_code: int | None = None
    host_ports: tuple[PortConfig, ...] = ()
    # When RUNNING was reached; kept by the dispatcher through later states. 0 before.
    running_at: float = 0.0


class Task(Stored, frozen=True):
    """One attempt to run a slot of a service; never restarted, only replaced."""

    id: TaskID
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    service_id: ServiceID = ServiceID("")
    spec_version: int = 0
    slot: int = 0
    node_id: NodeID = NodeID("")
    desired_state: TaskState = TaskState.RUNNING
    status: TaskStatus = TaskStatus()
    # Not started before this time (seconds since the epoch): the restart delay, kept in the store
    # so that a fail-over does not forget it. 0 means at once.
    not_before: float = 0.0


class JoinTokens(Stored, frozen=True):
    """The secrets that let a node join; never logged."""

    worker: str = ""
    manager: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the tokens."""
        return "JoinTokens(hidden)"


class RootRotation(Stored, frozen=True):
    """A root certificate that is to take the place of the present one; never logged.

    Attributes:
        certificate_pem: the new root.
        key_pem: its key; "" when an external authority has it.
        cross_signed_pem: the new root's key signed by the old root, so that nodes which trust
            only the old one accept certificates of the new one.
    """

    certificate_pem: str = ""
    key_pem: str = ""
    cross_signed_pem: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return "RootRotation(hidden)"


class RemovedNode(Stored, frozen=True):
    """A node that was removed, kept until no certificate of it can be valid any more."""

    id: NodeID
    certificate_until: float = 0.0


class Cluster(Stored, frozen=True):
    """The one row that holds what belongs to the whole cluster."""

    id: ClusterID
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    spec: ClusterSpec = ClusterSpec()
    root_ca_certificate_pem: str = ""
    root_ca_key_pem: str = ""
    join_tokens: JoinTokens = JoinTokens()
    unlock_key: str = ""
    default_address_pool: tuple[str, ...] = ("10.0.0.0/8",)
    subnet_size: int = 24
    data_path_port: int = 4789
    root_rotation: RootRotation | None = None
    # `ClusterSpec.ca_force_rotate` of the last rotation that was begun.
    last_forced_rotation: int = 0
    removed_nodes: tuple[RemovedNode, ...] = ()

    @override
    def __repr__(self) -> str:
        """Name the cluster, show no key."""
        return f"Cluster(id={self.id!r}, version={self.version})"


def root_certificates_pem(cluster: Cluster) -> str:
    """Return what nodes have to trust now: the root, and during a rotation the new one too."""
    if cluster.root_rotation is None:
        return cluster.root_ca_certificate_pem
    roots = (cluster.root_ca_certificate_pem, cluster.root_rotation.certificate_pem)
    return "".join(root.rstrip("\n") + "\n" for root in roots)


Object = Cluster | Node | Service | ServiceSpecVersion | Task


def spec_version_id(service_id: ServiceID, spec_version: int) -> str:
    """Name the row that holds this version of the service's spec."""
    return f"{service_id}.{spec_version}"

"""Specs: what a user asked for, never modified by the system.

Field names follow the Engine API's in snake case. Every struct is frozen and written to the log
as a msgpack array, so **fields are only ever added, at the end, with a default**. Durations are
integer nanoseconds (`_ns`), memory is bytes, CPU is billionths of a core (`nano_cpus`), as in the
Engine API. Tuples and mappings inside keep a snapshot a mere reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Literal

import msgspec

from proto.ids import ConfigID, SecretID

NANOSECONDS = 1_000_000_000


class Stored(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """Base of all that is written to the log: acyclic, so the collector need not track it."""


class NodeRole(IntEnum):
    """What a node is in the cluster."""

    WORKER = 0
    MANAGER = 1


class NodeAvailability(IntEnum):
    """What an operator lets a node do."""

    ACTIVE = 0
    PAUSE = 1
    DRAIN = 2


class RestartCondition(IntEnum):
    """When a task that ended is replaced."""

    NONE = 0
    ON_FAILURE = 1
    ANY = 2


class PortMode(IntEnum):
    """Where a published port answers: on every node, or only where a task runs."""

    INGRESS = 0
    HOST = 1


class EndpointMode(IntEnum):
    """How a service's name resolves."""

    VIP = 0
    DNSRR = 1


class Driver(Stored, frozen=True):
    """A named driver and its options (logging, volumes)."""

    name: str = ""
    options: Mapping[str, str] = {}


class Mount(Stored, frozen=True):
    """A mount in the container; `type` is bind, volume or tmpfs."""

    type: Literal["bind", "volume", "tmpfs"] = "volume"
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_propagation: str = ""
    bind_non_recursive: bool = False
    bind_create_mountpoint: bool = False
    volume_no_copy: bool = False
    volume_labels: Mapping[str, str] = {}
    volume_driver: Driver = Driver()
    volume_subpath: str = ""
    tmpfs_size_bytes: int = 0
    tmpfs_mode: int = 0
    tmpfs_options: tuple[tuple[str, ...], ...] = ()


HEALTH_NS_MIN = 1_000_000
"""The shortest time that a health check may have; 0 means the default.

Source: Docker's Dockerfile reference and API.
"""


class HealthConfig(Stored, frozen=True):
    """A health check; an empty `test` means the image's own, ("NONE",) none."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    retries: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0


class DNSConfig(Stored, frozen=True):
    """Resolver settings of a container."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Ulimit(Stored, frozen=True):
    """A resource limit of the container's processes (setrlimit(2))."""

    name: str = ""
    soft: int = 0
    hard: int = 0


class FileTarget(Stored, frozen=True):
    """Where and how a secret or config appears in the container."""

    name: str = ""
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444


class SecretReference(Stored, frozen=True):
    """A secret that a container uses."""

    secret_id: SecretID = SecretID("")
    secret_name: str = ""
    file: FileTarget = FileTarget()


class ConfigReference(Stored, frozen=True):
    """A config that a container uses."""

    config_id: ConfigID = ConfigID("")
    config_name: str = ""
    file: FileTarget = FileTarget()


class Privileges(Stored, frozen=True):
    """Security options of a container; `seccomp_mode` is "", default, unconfined or custom."""

    no_new_privileges: bool = False
    seccomp_mode: str = ""
    seccomp_profile: bytes = b""
    apparmor_mode: str = ""
    selinux_disable: bool = False
    selinux_user: str = ""
    selinux_role: str = ""
    selinux_type: str = ""
    selinux_level: str = ""


class ContainerSpec(Stored, frozen=True):
    """What runs: the image and how its process is set up.

    `command` replaces the image's ENTRYPOINT, `args` its CMD.
    """

    image: str = ""
    labels: Mapping[str, str] = {}
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    privileges: Privileges = Privileges()
    init: bool | None = None
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    stop_signal: str = ""
    stop_grace_period_ns: int | None = None
    healthcheck: HealthConfig | None = None
    hosts: tuple[str, ...] = ()
    dns_config: DNSConfig = DNSConfig()
    secrets: tuple[SecretReference, ...] = ()
    configs: tuple[ConfigReference, ...] = ()
    isolation: str = ""
    sysctls: Mapping[str, str] = {}
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0


class GenericResource(Stored, frozen=True):
    """A user-defined resource: a count (`value` is digits) or one named member of a set."""

    kind: str = ""
    value: str = ""
    is_named: bool = False


class Resources(Stored, frozen=True):
    """Amounts; 0 means none asked or no limit; of `pids` the node's own, and -1 no limit."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0
    generic: tuple[GenericResource, ...] = ()


class ResourceRequirements(Stored, frozen=True):
    """Limits (enforced by cgroups) and reservations (used to place)."""

    limits: Resources = Resources()
    reservations: Resources = Resources()
    swap_bytes: int | None = None
    memory_swappiness: int | None = None


class RestartPolicy(Stored, frozen=True):
    """When and how fast ended tasks are replaced; `max_attempts` 0 means unlimited.

    Source: swarmkit api/defaults/service.go (any, 5 s, 0, 0).
    """

    condition: RestartCondition = RestartCondition.ANY
    delay_ns: int = 5 * NANOSECONDS
    max_attempts: int = 0
    window_ns: int = 0


class Platform(Stored, frozen=True):
    """An operating system and an architecture, in Go's words (linux, amd64)."""

    os: str = ""
    architecture: str = ""


class Placement(Stored, frozen=True):
    """Which nodes may run the tasks, and how they are spread over them."""

    constraints: tuple[str, ...] = ()
    spread_preferences: tuple[str, ...] = ()
    max_replicas_per_node: int = 0
    platforms: tuple[Platform, ...] = ()


class NetworkAttachmentConfig(Stored, frozen=True):
    """A network that each task joins; `target` is its name or ID."""

    target: str = ""
    aliases: tuple[str, ...] = ()
    driver_options: Mapping[str, str] = {}


class TaskSpec(Stored, frozen=True):
    """The template that a service's tasks are made from."""

    container: ContainerSpec = ContainerSpec()
    resources: ResourceRequirements = ResourceRequirements()
    restart: RestartPolicy = RestartPolicy()
    placement: Placement = Placement()
    log_driver: Driver | None = None
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    force_update: int = 0
    runtime: str = "container"


class ReplicatedMode(Stored, frozen=True, tag="replicated"):
    """A fixed number of tasks."""

    replicas: int = 1


class GlobalMode(Stored, frozen=True, tag="global"):
    """One task on each node."""


class ReplicatedJobMode(Stored, frozen=True, tag="replicated-job"):
    """Tasks that run to completion, `max_concurrent` at a time."""

    max_concurrent: int = 1
    total_completions: int = 1


class GlobalJobMode(Stored, frozen=True, tag="global-job"):
    """One task on each node, run to completion once."""


ServiceMode = ReplicatedMode | GlobalMode | ReplicatedJobMode | GlobalJobMode


class UpdateConfig(Stored, frozen=True):
    """How a new spec is rolled out. Source: swarmkit api/defaults/service.go."""

    parallelism: int = 1
    delay_ns: int = 0
    failure_action: Literal["pause", "continue", "rollback"] = "pause"
    monitor_ns: int = 5 * NANOSECONDS
    max_failure_ratio: float = 0.0
    order: Literal["stop-first", "start-first"] = "stop-first"


class PortConfig(Stored, frozen=True):
    """A published port; `published_port` 0 asks for one of 30000-32767."""

    name: str = ""
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    target_port: int = 0
    published_port: int = 0
    publish_mode: PortMode = PortMode.INGRESS


class EndpointSpec(Stored, frozen=True):
    """How a service is reached."""

    mode: EndpointMode = EndpointMode.VIP
    ports: tuple[PortConfig, ...] = ()


class ServiceSpec(Stored, frozen=True):
    """A service as asked for."""

    name: str = ""
    labels: Mapping[str, str] = {}
    task: TaskSpec = TaskSpec()
    mode: ServiceMode = ReplicatedMode()
    update: UpdateConfig | None = None
    rollback: UpdateConfig | None = None
    endpoint: EndpointSpec | None = None


class NodeSpec(Stored, frozen=True):
    """A node as asked for."""

    name: str = ""
    labels: Mapping[str, str] = {}
    role: NodeRole = NodeRole.WORKER
    availability: NodeAvailability = NodeAvailability.ACTIVE


class ExternalCA(Stored, frozen=True):
    """A certificate authority outside the cluster (CFSSL's protocol)."""

    protocol: str = "cfssl"
    url: str = ""
    options: Mapping[str, str] = {}
    ca_cert: str = ""


class ClusterSpec(Stored, frozen=True):
    """The cluster's settings; where a default differs from Docker Swarm's, README.md says so."""

    name: str = "default"
    labels: Mapping[str, str] = {}
    task_history_retention_limit: int = 5
    raft_snapshot_interval: int = 10_000
    raft_keep_old_snapshots: int = 0
    raft_log_entries_for_slow_followers: int = 500
    raft_election_tick: int = 10
    raft_heartbeat_tick: int = 1
    dispatcher_heartbeat_ns: int = 1 * NANOSECONDS
    node_cert_expiry_ns: int = 7_776_000 * NANOSECONDS
    external_cas: tuple[ExternalCA, ...] = ()
    auto_lock_managers: bool = False
    task_log_driver: Driver | None = None
    # Counts the forced rotations of the root certificate that were asked for.
    ca_force_rotate: int = 0
    # A node is dead when it was not heard for so many heartbeats.
    dispatcher_heartbeats_missed_max: int = 3

"""The Engine API's JSON as it may arrive, typed. Pure.

msgspec checks types and ranges while decoding and names the path of what is wrong. A field of the
API that this version cannot honour is here too, as `Unsupported`, so that the converters refuse it
by name instead of dropping it silently; a field that the API does not know is ignored, as the
Engine does. `null` is the same as absent and names are read in any case, as in Go.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from typing_extensions import override

from proto.errors import InvalidError

INT64_MAX = 2**63 - 1
Int64 = Annotated[int, msgspec.Meta(ge=-INT64_MAX, le=INT64_MAX)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
Pids = Annotated[int, msgspec.Meta(ge=-1, le=INT64_MAX)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Unsupported = Any
Strings = tuple[str, ...]
StringMap = Mapping[str, str]

# Words that Go's field names write in another way than a capital and small letters.
_WORDS = {
    "ca": "CA",
    "cas": "CAs",
    "cpus": "CPUs",
    "dns": "DNS",
    "gid": "GID",
    "id": "ID",
    "os": "OS",
    "selinux": "SELinux",
    "apparmor": "AppArmor",
    "tls": "TLS",
    "tty": "TTY",
    "uid": "UID",
    "url": "URL",
}


def engine_name(name: str) -> str:
    """Write a field's name as the Engine API does (`nano_cpus` is `NanoCPUs`)."""
    return "".join(_WORDS.get(word, word.capitalize()) for word in name.split("_"))


class Wire(msgspec.Struct, frozen=True, kw_only=True, rename=engine_name):
    """Base of the typed JSON objects."""


W = TypeVar("W", bound=Wire)


@cache
def _members(kind: type[Wire]) -> Mapping[str, tuple[str, type[Wire] | None]]:
    """Map each member's name in small letters to its name and the object type in it, if any."""
    return {
        field.encode_name.lower(): (field.encode_name, _object_in(field.type))
        for field in msgspec.structs.fields(kind)
    }


def _object_in(annotation: Any) -> type[Wire] | None:
    """Find the object type of a member, also as a tuple's item or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, Wire):
        return annotation
    return next((found for part in get_args(annotation) if (found := _object_in(part))), None)


def _normal(value: Any, kind: type[Wire] | None) -> Any:
    """Name members as they are written here, and drop those that are null.

    Go reads names in any case, and docker-py relies on it (`{"replicated": {"Replicas": 2}}`).
    """
    if isinstance(value, list):
        return [_normal(item, kind) for item in value]
    if not isinstance(value, dict):
        return value
    if kind is None:
        return {key: _normal(item, None) for key, item in value.items() if item is not None}
    members = _members(kind)
    normal = {}
    for key, item in value.items():
        name, inner = members.get(key.lower(), (key, None))
        if item is not None and (name == key or name not in value):
            normal[name] = _normal(item, inner)
    return normal


def decoded(value: Any, wanted: type[W]) -> W:
    """Check decoded JSON against a wire type.

    Raises:
        InvalidError: with the path of the member that is wrong.
    """
    try:
        return msgspec.convert(_normal(value, wanted), wanted)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the request body is not valid: {error}") from None
    except RecursionError:
        raise InvalidError("the request body is nested too deeply") from None


def refuse(value: Unsupported, what: str, remedy: str) -> None:
    """Refuse a member that was set and cannot be honoured.

    Raises:
        InvalidError: `value` is anything but absent, false, 0 or empty.
    """
    if value:
        raise InvalidError(f"{what} is not supported: {remedy}")


class WireDriver(Wire, frozen=True):
    """A driver and its options."""

    name: str = ""
    options: StringMap = {}


class BindOptions(Wire, frozen=True):
    """Options of a bind mount."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: Unsupported = None
    read_only_force_recursive: Unsupported = None


class VolumeOptions(Wire, frozen=True):
    """Options of a volume mount."""

    no_copy: bool = False
    labels: StringMap = {}
    driver_config: WireDriver = WireDriver()
    subpath: str = ""


class TmpfsOptions(Wire, frozen=True):
    """Options of a tmpfs mount."""

    size_bytes: Whole = 0
    mode: Whole = 0
    options: tuple[Strings, ...] = ()


class WireMount(Wire, frozen=True):
    """A mount."""

    type: str = "volume"
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: Unsupported = None
    cluster_options: Unsupported = None


class SELinuxContext(Wire, frozen=True):
    """SELinux labels."""

    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class SeccompOptions(Wire, frozen=True):
    """A seccomp mode, and for `custom` a profile; bytes are base64 in JSON."""

    mode: str = ""
    profile: bytes = b""


class AppArmorOptions(Wire, frozen=True):
    """An AppArmor mode."""

    mode: str = ""


class WirePrivileges(Wire, frozen=True):
    """Security options."""

    credential_spec: Unsupported = None
    selinux_context: SELinuxContext = SELinuxContext()
    seccomp: SeccompOptions = SeccompOptions()
    apparmor: AppArmorOptions = AppArmorOptions()
    no_new_privileges: bool = False


class WireHealth(Wire, frozen=True):
    """A health check; durations in nanoseconds."""

    test: Strings = ()
    interval: Whole = 0
    timeout: Whole = 0
    retries: Whole = 0
    start_period: Whole = 0
    start_interval: Whole = 0


class WireDNS(Wire, frozen=True):
    """Resolver settings."""

    nameservers: Strings = ()
    search: Strings = ()
    options: Strings = ()


class WireFile(Wire, frozen=True):
    """Where a secret or config appears."""

    name: str = ""
    uid: str = "0"
    gid: str = "0"
    mode: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] = 0o444


class WireSecret(Wire, frozen=True):
    """A secret in use."""

    file: WireFile | None = None
    secret_id: str = ""
    secret_name: str = ""


class WireConfig(Wire, frozen=True):
    """A config in use."""

    file: WireFile | None = None
    runtime: Unsupported = None
    config_id: str = ""
    config_name: str = ""


class WireUlimit(Wire, frozen=True):
    """A limit of setrlimit(2); -1 is unlimited."""

    name: str = ""
    soft: Int64 = 0
    hard: Int64 = 0


class WireContainer(Wire, frozen=True):
    """What runs."""

    image: str = ""
    labels: StringMap = {}
    command: Strings = ()
    args: Strings = ()
    hostname: str = ""
    env: Strings = ()
    dir: str = ""
    user: str = ""
    groups: Strings = ()
    privileges: WirePrivileges = WirePrivileges()
    init: bool | None = None
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[WireMount, ...] = ()
    stop_signal: str = ""
    stop_grace_period: Whole | None = None
    healthcheck: WireHealth | None = None
    hosts: Strings = ()
    dns_config: WireDNS = WireDNS()
    secrets: tuple[WireSecret, ...] = ()
    configs: tuple[WireConfig, ...] = ()
    isolation: str = ""
    sysctls: StringMap = {}
    capability_add: Strings = ()
    capability_drop: Strings = ()
    ulimits: tuple[WireUlimit, ...] = ()
    oom_score_adj: Int64 = 0


class DiscreteResource(Wire, frozen=True):
    """So many of a kind."""

    kind: str
    value: Whole


class NamedResource(Wire, frozen=True):
    """One member of a set."""

    kind: str
    value: str


class WireGeneric(Wire, frozen=True):
    """A user-defined resource, of either form."""

    named_resource_spec: NamedResource | None = None
    discrete_resource_spec: DiscreteResource | None = None


class WireAmounts(Wire, frozen=True):
    """Limits or reservations."""

    nano_cpus: Whole = 0
    memory_bytes: Whole = 0
    pids: Pids = 0
    generic_resources: tuple[WireGeneric, ...] = ()


class WireResources(Wire, frozen=True):
    """Limits and reservations."""

    limits: WireAmounts = WireAmounts()
    reservations: WireAmounts = WireAmounts()
    swap_bytes: Int64 | None = None
    memory_swappiness: Int64 | None = None


class WireRestart(Wire, frozen=True):
    """A restart policy."""

    condition: str = ""
    delay: Whole | None = None
    max_attempts: Whole = 0
    window: Whole = 0


class WirePlatform(Wire, frozen=True):
    """An operating system and an architecture."""

    architecture: str = ""
    os: str = ""


class WireSpread(Wire, frozen=True):
    """What to spread over."""

    spread_descriptor: str = ""


class WirePreference(Wire, frozen=True):
    """A placement preference; Docker knows `Spread` only."""

    spread: WireSpread | None = None


class WirePlacement(Wire, frozen=True):
    """Where tasks may run."""

    constraints: Strings = ()
    preferences: tuple[WirePreference, ...] = ()
    max_replicas: Whole = 0
    platforms: tuple[WirePlatform, ...] = ()


class WireAttachment(Wire, frozen=True):
    """A network that tasks join."""

    target: str = ""
    aliases: Strings = ()
    driver_opts: StringMap = {}


class WireTask(Wire, frozen=True):
    """The template of a service's tasks."""

    container_spec: WireContainer = WireContainer()
    plugin_spec: Unsupported = None
    network_attachment_spec: Unsupported = None
    resources: WireResources = WireResources()
    restart_policy: WireRestart = WireRestart()
    placement: WirePlacement = WirePlacement()
    log_driver: WireDriver | None = None
    networks: tuple[WireAttachment, ...] = ()
    force_update: Whole = 0
    runtime: str = ""


class WireReplicated(Wire, frozen=True):
    """So many tasks."""

    replicas: Whole | None = None


class WireReplicatedJob(Wire, frozen=True):
    """So many completions."""

    max_concurrent: Whole | None = None
    total_completions: Whole | None = None


class WireEmpty(Wire, frozen=True):
    """An object without members."""


class WireMode(Wire, frozen=True):
    """A service's mode: one of these."""

    replicated: WireReplicated | None = None
    replicated_job: WireReplicatedJob | None = None
    global_job: WireEmpty | None = None
    global_: WireEmpty | None = msgspec.field(default=None, name="Global")


class WireUpdate(Wire, frozen=True):
    """How a new spec is rolled out. An absent `Parallelism` is 0, everything at once."""

    parallelism: Whole = 0
    delay: Whole = 0
    failure_action: str = ""
    monitor: Whole = 0
    max_failure_ratio: float = 0.0
    order: str = ""


class WirePort(Wire, frozen=True):
    """A published port."""

    name: str = ""
    protocol: str = ""
    target_port: Port = 0
    published_port: Port = 0
    publish_mode: str = ""


class WireEndpoint(Wire, frozen=True):
    """How a service is reached."""

    mode: str = ""
    ports: tuple[WirePort, ...] = ()


class WireService(Wire, frozen=True):
    """A service's spec."""

    name: str = ""
    labels: StringMap = {}
    task_template: WireTask = WireTask()
    mode: WireMode = WireMode()
    update_config: WireUpdate | None = None
    rollback_config: WireUpdate | None = None
    networks: tuple[WireAttachment, ...] = ()
    endpoint_spec: WireEndpoint | None = None


class WireNodeSpec(Wire, frozen=True):
    """A node's spec."""

    name: str = ""
    labels: StringMap = {}
    role: str = ""
    availability: str = ""


class WireOrchestration(Wire, frozen=True):
    """How many dead tasks are kept."""

    task_history_retention_limit: Int64 | None = None


class WireRaft(Wire, frozen=True):
    """Settings of the replicated log."""

    snapshot_interval: Whole = 0
    keep_old_snapshots: Whole | None = None
    log_entries_for_slow_followers: Whole = 0
    election_tick: Whole = 0
    heartbeat_tick: Whole = 0


class WireDispatcher(Wire, frozen=True):
    """How often nodes report."""

    heartbeat_period: Whole = 0


class WireExternalCA(Wire, frozen=True):
    """A certificate authority outside."""

    protocol: str = "cfssl"
    url: str = ""
    options: StringMap = {}
    ca_cert: str = ""


class WireCA(Wire, frozen=True):
    """Settings of the certificate authority."""

    node_cert_expiry: Whole = 0
    external_cas: tuple[WireExternalCA, ...] | None = None
    signing_ca_cert: str = ""
    signing_ca_key: str = ""
    force_rotate: Whole = 0

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return f"WireCA(external_cas={self.external_cas!r})"


class WireEncryption(Wire, frozen=True):
    """Whether managers are locked."""

    auto_lock_managers: bool | None = None


class WireTaskDefaults(Wire, frozen=True):
    """Defaults of tasks."""

    log_driver: WireDriver | None = None


class WireCluster(Wire, frozen=True):
    """The cluster's spec."""

    name: str = ""
    labels: StringMap | None = None
    orchestration: WireOrchestration = WireOrchestration()
    raft: WireRaft = WireRaft()
    dispatcher: WireDispatcher = WireDispatcher()
    ca_config: WireCA = WireCA()
    encryption_config: WireEncryption = WireEncryption()
    task_defaults: WireTaskDefaults = WireTaskDefaults()


class WireInit(Wire, frozen=True):
    """The body of /swarm/init."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: Whole = 0
    default_addr_pool: Strings = ()
    subnet_size: Whole = 0
    force_new_cluster: bool = False
    auto_lock_managers: bool = False
    availability: str = ""
    spec: WireCluster = WireCluster()


class WireJoin(Wire, frozen=True):
    """The body of /swarm/join."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: Strings = ()
    join_token: str = ""
    availability: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the token."""
        return f"WireJoin(remote_addrs={self.remote_addrs!r})"


class WireUnlock(Wire, frozen=True):
    """The body of /swarm/unlock."""

    unlock_key: str = ""

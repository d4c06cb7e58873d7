"""Engine JSON and domain objects: what goes out comes back the same."""

from __future__ import annotations

import string
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from manager.httpapi.convert.node import node_spec_of, node_spec_to_json
from manager.httpapi.convert.service import service_spec_of, service_spec_to_json
from manager.httpapi.convert.swarm import cluster_spec_of, cluster_spec_to_json
from manager.httpapi.filters import SERVICE_FILTERS, parse_filters
from manager.httpapi.timestamps import parse_moment, rfc3339_fixed, rfc3339_nano
from proto.errors import SwarmError
from proto.ids import ConfigID, SecretID
from proto.objects import (
    ClusterSpec,
    ConfigReference,
    ContainerSpec,
    DNSConfig,
    Driver,
    EndpointMode,
    EndpointSpec,
    ExternalCA,
    FileTarget,
    GenericResource,
    GlobalJobMode,
    GlobalMode,
    HealthConfig,
    Mount,
    NetworkAttachmentConfig,
    NodeAvailability,
    NodeRole,
    NodeSpec,
    Placement,
    Platform,
    PortConfig,
    PortMode,
    Privileges,
    ReplicatedJobMode,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartCondition,
    RestartPolicy,
    SecretReference,
    ServiceSpec,
    TaskSpec,
    Ulimit,
    UpdateConfig,
)

TEXT = st.text(string.ascii_letters + string.digits + "._-/ é{}=", max_size=12)
WORD = st.text(string.ascii_lowercase, min_size=1, max_size=8)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
MAP = st.dictionaries(WORD, TEXT, max_size=3)
WHOLE = st.integers(0, 2**63 - 1)
SIGNED = st.integers(-(2**63) + 1, 2**63 - 1)
POSITIVE = st.integers(1, 2**63 - 1)
DRIVER = st.builds(Driver, name=TEXT, options=MAP)


def _mounts() -> st.SearchStrategy[Mount]:
    common: dict[str, Any] = {
        "source": TEXT,
        "target": TEXT,
        "read_only": st.booleans(),
        "consistency": TEXT,
    }
    return st.one_of(
        st.builds(
            Mount,
            type=st.just("bind"),
            **common,
            bind_propagation=TEXT,
            bind_non_recursive=st.booleans(),
            bind_create_mountpoint=st.booleans(),
        ),
        st.builds(
            Mount,
            type=st.just("volume"),
            **common,
            volume_no_copy=st.booleans(),
            volume_labels=MAP,
            volume_driver=DRIVER,
            volume_subpath=TEXT,
        ),
        st.builds(
            Mount,
            type=st.just("tmpfs"),
            **common,
            tmpfs_size_bytes=WHOLE,
            tmpfs_mode=WHOLE,
            tmpfs_options=st.lists(st.lists(TEXT, min_size=1, max_size=2).map(tuple)).map(tuple),
        ),
    )


def _some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=2).map(tuple)


FILE = st.builds(FileTarget, name=TEXT, uid=TEXT, gid=TEXT, mode=st.integers(0, 0o7777))
CONTAINER = st.builds(
    ContainerSpec,
    image=TEXT,
    labels=MAP,
    command=TEXTS,
    args=TEXTS,
    hostname=TEXT,
    env=TEXTS,
    dir=TEXT,
    user=TEXT,
    groups=TEXTS,
    privileges=st.builds(
        Privileges,
        no_new_privileges=st.booleans(),
        seccomp_mode=TEXT,
        seccomp_profile=st.binary(max_size=20),
        apparmor_mode=TEXT,
        selinux_disable=st.booleans(),
        selinux_user=TEXT,
        selinux_role=TEXT,
        selinux_type=TEXT,
        selinux_level=TEXT,
    ),
    init=st.none() | st.booleans(),
    tty=st.booleans(),
    open_stdin=st.booleans(),
    read_only=st.booleans(),
    mounts=_some(_mounts()),
    stop_signal=TEXT,
    stop_grace_period_ns=st.none() | WHOLE,
    healthcheck=st.none()
    | st.builds(
        HealthConfig,
        test=TEXTS,
        interval_ns=WHOLE,
        timeout_ns=WHOLE,
        retries=WHOLE,
        start_period_ns=WHOLE,
        start_interval_ns=WHOLE,
    ),
    hosts=TEXTS,
    dns_config=st.builds(DNSConfig, nameservers=TEXTS, search=TEXTS, options=TEXTS),
    secrets=_some(
        st.builds(SecretReference, secret_id=TEXT.map(SecretID), secret_name=TEXT, file=FILE)
    ),
    configs=_some(
        st.builds(ConfigReference, config_id=TEXT.map(ConfigID), config_name=TEXT, file=FILE)
    ),
    isolation=st.sampled_from(["", "default"]),
    sysctls=MAP,
    capability_add=TEXTS,
    capability_drop=TEXTS,
    ulimits=_some(st.builds(Ulimit, name=TEXT, soft=SIGNED, hard=SIGNED)),
    oom_score_adj=SIGNED,
)
GENERIC = st.builds(
    GenericResource, kind=TEXT, value=WHOLE.map(str), is_named=st.just(value=False)
) | st.builds(GenericResource, kind=TEXT, value=TEXT, is_named=st.just(value=True))
AMOUNTS = st.builds(
    Resources, nano_cpus=WHOLE, memory_bytes=WHOLE, pids=WHOLE, generic=_some(GENERIC)
)
UPDATE = st.builds(
    UpdateConfig,
    parallelism=WHOLE,
    delay_ns=WHOLE,
    failure_action=st.sampled_from(["pause", "continue", "rollback"]),
    monitor_ns=POSITIVE,
    max_failure_ratio=st.floats(0, 1),
    order=st.sampled_from(["stop-first", "start-first"]),
)
PORT = st.builds(
    PortConfig,
    name=TEXT,
    protocol=st.sampled_from(["tcp", "udp", "sctp"]),
    target_port=st.integers(0, 65535),
    published_port=st.integers(0, 65535),
    publish_mode=st.sampled_from(PortMode),
)
TASK = st.builds(
    TaskSpec,
    container=CONTAINER,
    resources=st.builds(
        ResourceRequirements,
        limits=AMOUNTS,
        reservations=AMOUNTS,
        swap_bytes=st.none() | SIGNED,
        memory_swappiness=st.none() | SIGNED,
    ),
    restart=st.builds(
        RestartPolicy,
        condition=st.sampled_from(RestartCondition),
        delay_ns=WHOLE,
        max_attempts=WHOLE,
        window_ns=WHOLE,
    ),
    placement=st.builds(
        Placement,
        constraints=TEXTS,
        spread_preferences=_some(WORD),
        max_replicas_per_node=WHOLE,
        platforms=_some(st.builds(Platform, os=TEXT, architecture=TEXT)),
    ),
    log_driver=st.none() | DRIVER,
    networks=_some(
        st.builds(NetworkAttachmentConfig, target=TEXT, aliases=TEXTS, driver_options=MAP)
    ),
    force_update=WHOLE,
    runtime=st.just("container"),
)
SERVICE = st.builds(
    ServiceSpec,
    name=TEXT,
    labels=MAP,
    task=TASK,
    mode=st.one_of(
        st.builds(ReplicatedMode, replicas=WHOLE),
        st.just(GlobalMode()),
        st.builds(ReplicatedJobMode, max_concurrent=WHOLE, total_completions=WHOLE),
        st.just(GlobalJobMode()),
    ),
    update=st.none() | UPDATE,
    rollback=st.none() | UPDATE,
    endpoint=st.none()
    | st.builds(EndpointSpec, mode=st.sampled_from(EndpointMode), ports=_some(PORT)),
)
NODE = st.builds(
    NodeSpec,
    name=TEXT,
    labels=MAP,
    role=st.sampled_from(NodeRole),
    availability=st.sampled_from(NodeAvailability),
)
CLUSTER = st.builds(
    ClusterSpec,
    name=WORD,
    labels=MAP,
    task_history_retention_limit=SIGNED,
    raft_snapshot_interval=POSITIVE,
    raft_keep_old_snapshots=WHOLE,
    raft_log_entries_for_slow_followers=POSITIVE,
    raft_election_tick=POSITIVE,
    raft_heartbeat_tick=POSITIVE,
    dispatcher_heartbeat_ns=POSITIVE,
    node_cert_expiry_ns=POSITIVE,
    external_cas=_some(st.builds(ExternalCA, protocol=WORD, url=TEXT, options=MAP, ca_cert=TEXT)),
    ca_force_rotate=WHOLE,
    auto_lock_managers=st.booleans(),
    task_log_driver=st.none() | DRIVER,
)


def _through_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@given(SERVICE)
def test_a_service_comes_back_from_its_json(spec: ServiceSpec) -> None:
    """No member of a spec is lost or changed, so that an update changes only what it says."""
    assert spec == service_spec_of(_through_json(service_spec_to_json(spec)))


@given(NODE)
def test_a_node_comes_back_from_its_json(spec: NodeSpec) -> None:
    """`docker node update` sends back what it read."""
    assert spec == node_spec_of(_through_json(node_spec_to_json(spec)))


@given(CLUSTER)
def test_a_cluster_comes_back_from_its_json_if_its_base_is_its_own(spec: ClusterSpec) -> None:
    """What is empty is left as it was, so the base is the spec itself."""
    assert spec == cluster_spec_of(_through_json(cluster_spec_to_json(spec)), spec)


def test_the_strategies_name_every_field() -> None:
    """A field added to a spec must come with its conversion: this test then fails first."""
    covered = {
        ServiceSpec: 7,
        TaskSpec: 8,
        ContainerSpec: 28,
        Mount: 15,
        Privileges: 9,
        ResourceRequirements: 4,
        Resources: 4,
        Placement: 4,
        UpdateConfig: 6,
        PortConfig: 5,
        NodeSpec: 4,
        # One of them, how many heartbeats may be missed, is not in the Engine's JSON.
        ClusterSpec: 15,
    }
    assert covered == {kind: len(msgspec.structs.fields(kind)) for kind in covered}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Name", "Labels", "TaskTemplate", "ContainerSpec", "Mode", "Replicated", "Mounts"]
            )
            | WORD,
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused_with_a_sentence(value: Any) -> None:
    """Nothing a client sends makes the converter fail in another way."""
    try:
        spec = service_spec_of(value)
    except SwarmError:
        return
    assert spec == service_spec_of(service_spec_to_json(spec))


@given(st.dictionaries(st.sampled_from(sorted(SERVICE_FILTERS)), st.lists(TEXT), max_size=3))
def test_filters_read_the_same_in_both_encodings(wanted: dict[str, list[str]]) -> None:
    """A list and a map of the same values select the same."""
    as_map = {name: dict.fromkeys(values, True) for name, values in wanted.items()}
    listed = parse_filters(msgspec.json.encode(wanted).decode(), SERVICE_FILTERS)
    assert listed == parse_filters(msgspec.json.encode(as_map).decode(), SERVICE_FILTERS)


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_a_written_moment_is_read_back(time_ns: int) -> None:
    """To the nanosecond, in both widths."""
    assert time_ns == parse_moment(rfc3339_nano(time_ns), "since")
    assert time_ns == parse_moment(rfc3339_fixed(time_ns), "since")
    assert time_ns == parse_moment(f"{time_ns // 10**9}.{time_ns % 10**9:09d}", "since")

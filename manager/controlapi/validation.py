"""The rules for specifications of services, nodes and the cluster. Pure.

Each function returns nothing or raises an `InvalidError` that names the value and the remedy. The
container's own rules are in `container`, those of ports across services in `ports`, and what is
valid but not built yet in `support`.

Source of the rules and limits: swarmkit manager/controlapi (service.go, cluster.go, node.go).
"""

from __future__ import annotations

import msgspec

from manager.controlapi.container import check_container
from manager.controlapi.names import check_name
from proto.errors import InvalidError
from proto.objects import (
    NANOSECONDS,
    ClusterSpec,
    EndpointMode,
    EndpointSpec,
    NodeSpec,
    Placement,
    PortMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    UpdateConfig,
)
from scheduler import parse_constraint

NANO_CPUS_MIN = 1_000_000
MEMORY_BYTES_MIN = 4 * 1024 * 1024
SWAPPINESS_MAX = 100
# The number of tasks that the store and the loops are measured with; a typing error such as
# 1000000000 must not become as many rows.
REPLICAS_MAX = 100_000
# A transaction holds a new spec, the previous one and the row of its version.
SPEC_BYTES_MAX = 450 * 1024
PORT_MAX = 65_535
CERTIFICATE_SECONDS_MIN = 3_600
HEARTBEAT_SECONDS_MIN = 0.1
SNAPSHOT_INTERVAL_MIN = 1
_INT64_MAX = 2**63 - 1

_Spec = ServiceSpec | NodeSpec | ClusterSpec


def check_service_spec(spec: ServiceSpec) -> None:
    """Refuse a service's spec that breaks a rule."""
    check_storable(spec, f"the specification of service {spec.name[:100]!r}")
    check_name("service", spec.name)
    _check_mode(spec.mode)
    check_container(spec)
    _check_resources(spec.task.resources)
    _check_restart(spec.task.restart)
    _check_placement(spec.task.placement)
    _check_not_negative("force update counter", spec.task.force_update)
    for word, config in (("update", spec.update), ("rollback", spec.rollback)):
        if config is not None:
            _check_update(word, config)
    if spec.endpoint is not None:
        _check_endpoint(spec.endpoint)


def check_storable(spec: _Spec, what: str) -> None:
    """Refuse a spec that is too large for the log, or that could not be read back from it."""
    try:
        data = msgspec.msgpack.encode(spec)
        restored = msgspec.msgpack.decode(data, type=type(spec))
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError) as error:
        raise InvalidError(f"{what} cannot be stored: {error}") from error
    if restored != spec:
        raise InvalidError(f"{what} cannot be stored: it would be read back changed")
    if len(data) > SPEC_BYTES_MAX:
        raise InvalidError(
            f"{what} takes {len(data)} bytes, the limit is {SPEC_BYTES_MAX}; make it smaller"
        )


def _check_not_negative(what: str, value: int) -> None:
    if value < 0:
        raise InvalidError(f"{what} is {value}: it cannot be negative")


def _check_count(what: str, value: int) -> None:
    _check_not_negative(what, value)
    if value > REPLICAS_MAX:
        raise InvalidError(
            f"{what} is {value}: a service can have at most {REPLICAS_MAX} tasks; ask for fewer"
        )


def _check_mode(mode: ServiceMode) -> None:
    if isinstance(mode, ReplicatedMode):
        _check_count("the number of replicas", mode.replicas)
    elif isinstance(mode, ReplicatedJobMode):
        _check_count("the number of completions", mode.total_completions)
        _check_count("the number of concurrent tasks", mode.max_concurrent)


def _check_resources(resources: ResourceRequirements) -> None:
    limits, reservations = resources.limits, resources.reservations
    _check_amounts("limit", limits)
    _check_amounts("reservation", reservations)
    if limits.pids < -1:
        raise InvalidError(
            f"the pids limit is {limits.pids}: give a number, -1 for no limit, 0 for the node's"
        )
    _check_not_negative("pids reservation", reservations.pids)
    for noun, limit, reserved in (
        ("CPU", limits.nano_cpus, reservations.nano_cpus),
        ("memory", limits.memory_bytes, reservations.memory_bytes),
    ):
        if limit and reserved > limit:
            raise InvalidError(
                f"{noun} reservation {reserved} is above the {noun} limit {limit}: "
                "reserve at most what the limit allows"
            )
    swap, swappiness = resources.swap_bytes, resources.memory_swappiness
    if swap is not None and swap < -1:
        raise InvalidError(f"swap is {swap} bytes: it must be -1 (no limit), 0 or more")
    if swap is not None and swap > 0 and not limits.memory_bytes:
        raise InvalidError("a swap limit needs a memory limit; set both")
    if swappiness is not None and not -1 <= swappiness <= SWAPPINESS_MAX:
        raise InvalidError(f"memory swappiness is {swappiness}: it must be 0 to {SWAPPINESS_MAX}")


def _check_amounts(noun: str, amounts: Resources) -> None:
    if amounts.nano_cpus and amounts.nano_cpus < NANO_CPUS_MIN:
        raise InvalidError(
            f"invalid cpu value {amounts.nano_cpus / NANOSECONDS:g} of a {noun}: "
            f"must be at least {NANO_CPUS_MIN / NANOSECONDS:g}"
        )
    if amounts.memory_bytes and amounts.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidError(
            f"invalid memory value {amounts.memory_bytes} of a {noun}: must be at least 4MiB"
        )


def _check_restart(policy: RestartPolicy) -> None:
    _check_not_negative("restart delay", policy.delay_ns)
    _check_not_negative("restart window", policy.window_ns)
    _check_not_negative("maximum of restart attempts", policy.max_attempts)


def _check_placement(placement: Placement) -> None:
    _check_not_negative("maximum of replicas per node", placement.max_replicas_per_node)
    for constraint in placement.constraints:
        parse_constraint(constraint)
    for preference in placement.spread_preferences:
        if not preference:
            raise InvalidError(
                "a placement preference is empty: write for example spread=node.labels.zone"
            )


def _check_update(word: str, config: UpdateConfig) -> None:
    _check_not_negative(f"{word} parallelism", config.parallelism)
    _check_not_negative(f"{word} delay", config.delay_ns)
    _check_not_negative(f"{word} monitor time", config.monitor_ns)
    if not 0 <= config.max_failure_ratio <= 1:
        raise InvalidError(
            f"{word} failure ratio is {config.max_failure_ratio:g}: it must be from 0 to 1"
        )
    if word == "rollback" and config.failure_action == "rollback":
        raise InvalidError(
            "a rollback cannot be rolled back: its failure action is pause or continue"
        )


def _check_endpoint(endpoint: EndpointSpec) -> None:
    taken: set[tuple[str, int]] = set()
    for port in endpoint.ports:
        if not 1 <= port.target_port <= PORT_MAX:
            raise InvalidError(f"target port {port.target_port} must be from 1 to {PORT_MAX}")
        if not 0 <= port.published_port <= PORT_MAX:
            raise InvalidError(
                f"published port {port.published_port} must be from 1 to {PORT_MAX}, "
                "or 0 to have one chosen"
            )
        key = (port.protocol, port.published_port)
        if port.published_port and key in taken:
            raise InvalidError(
                f"duplicate published ports provided: "
                f"{port.published_port}/{port.protocol} is there twice"
            )
        taken.add(key)
        if endpoint.mode is EndpointMode.DNSRR and port.publish_mode is PortMode.INGRESS:
            raise InvalidError(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode; "
                f"publish port {port.target_port} with mode=host or use endpoint mode vip"
            )


def check_node_spec(spec: NodeSpec) -> None:
    """Refuse a node's spec that breaks a rule; a node need not have a name."""
    check_storable(spec, "the specification of the node")
    if spec.name:
        check_name("node", spec.name)


def check_cluster_spec(spec: ClusterSpec) -> None:
    """Refuse a cluster's spec that breaks a rule."""
    check_storable(spec, "the specification of the cluster")
    if spec.task_history_retention_limit < 0:
        raise InvalidError(
            f"task history limit is {spec.task_history_retention_limit}: it cannot be negative"
        )
    if spec.raft_snapshot_interval < SNAPSHOT_INTERVAL_MIN:
        raise InvalidError(
            f"snapshot interval is {spec.raft_snapshot_interval}: it must be at least 1 log entry"
        )
    _check_not_negative("number of old snapshots", spec.raft_keep_old_snapshots)
    _check_not_negative(
        "number of log entries for slow followers", spec.raft_log_entries_for_slow_followers
    )
    if not 1 <= spec.raft_heartbeat_tick < spec.raft_election_tick:
        raise InvalidError(
            f"election tick is {spec.raft_election_tick}, heartbeat tick "
            f"{spec.raft_heartbeat_tick}: the first must be greater, the second at least 1"
        )
    if spec.dispatcher_heartbeat_ns < HEARTBEAT_SECONDS_MIN * NANOSECONDS:
        raise InvalidError(
            f"heartbeat period is {spec.dispatcher_heartbeat_ns / NANOSECONDS:g} s: "
            f"it must be at least {HEARTBEAT_SECONDS_MIN:g} s"
        )
    if spec.node_cert_expiry_ns < CERTIFICATE_SECONDS_MIN * NANOSECONDS:
        raise InvalidError(
            f"certificate expiry is {spec.node_cert_expiry_ns / NANOSECONDS:g} s: "
            "minimum certificate expiry time is 1h"
        )

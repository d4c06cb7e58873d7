"""ServiceSpec and Service: Engine JSON to domain and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args

import msgspec

from manager.httpapi.convert.common import (
    Json,
    choices,
    compact,
    driver_of,
    driver_to_json,
    int64,
    member_of,
    meta,
    word_of,
)
from manager.httpapi.convert.container import container_of, container_to_json
from manager.httpapi.convert.wire import (
    WireAmounts,
    WireAttachment,
    WireEndpoint,
    WireGeneric,
    WireMode,
    WirePlacement,
    WirePort,
    WirePreference,
    WireResources,
    WireRestart,
    WireService,
    WireTask,
    WireUpdate,
    decoded,
    refuse,
)
from manager.httpapi.timestamps import rfc3339
from proto.errors import InvalidError
from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    EndpointMode,
    EndpointSpec,
    GenericResource,
    GlobalJobMode,
    GlobalMode,
    NetworkAttachmentConfig,
    Placement,
    Platform,
    PortConfig,
    PortMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartCondition,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
    UpdateStatus,
)

Protocol = Literal["tcp", "udp", "sctp"]
FailureAction = Literal["pause", "continue", "rollback"]
Order = Literal["stop-first", "start-first"]
W = TypeVar("W", bound=str)

STOP_GRACE_PERIOD_NS_DEFAULT = 10 * NANOSECONDS

_COUNT = re.compile(r"[0-9]{1,19}")


def service_spec_of(value: Any) -> ServiceSpec:
    """Read the spec of a service from decoded JSON.

    Raises:
        InvalidError: it has a wrong type, or a member that cannot be honoured; it is named.
    """
    wire = decoded(value, WireService)
    return ServiceSpec(
        name=wire.name,
        labels=dict(wire.labels),
        task=_task_of(wire.task_template, wire.networks),
        mode=_mode_of(wire.mode),
        update=_update_of(wire.update_config, "UpdateConfig"),
        rollback=_update_of(wire.rollback_config, "RollbackConfig"),
        endpoint=_endpoint_of(wire.endpoint_spec),
    )


def _literal(words: Iterable[W], word: str, default: W, what: str) -> W:
    known = tuple(words)
    if not word:
        return default
    for candidate in known:
        if candidate == word:
            return candidate
    raise InvalidError(f"{what} {word!r} is not known: use {choices(known)}")


def _task_of(wire: WireTask, service_networks: tuple[WireAttachment, ...]) -> TaskSpec:
    if wire.runtime not in {"", "container"}:
        raise InvalidError(
            f"task runtime {wire.runtime!r} is not supported: services run containers"
        )
    refuse(wire.plugin_spec, "a PluginSpec", "services run containers")
    refuse(wire.network_attachment_spec, "a NetworkAttachmentSpec", "services run containers")
    # The service's own list is the older place; the task's wins, as in the Engine.
    networks = wire.networks or service_networks
    return TaskSpec(
        container=container_of(wire.container_spec),
        resources=_resources_of(wire.resources),
        restart=_restart_of(wire.restart_policy),
        placement=_placement_of(wire.placement),
        log_driver=driver_of(wire.log_driver),
        networks=tuple(
            NetworkAttachmentConfig(
                target=network.target,
                aliases=network.aliases,
                driver_options=dict(network.driver_opts),
            )
            for network in networks
        ),
        force_update=wire.force_update,
    )


def _resources_of(wire: WireResources) -> ResourceRequirements:
    return ResourceRequirements(
        limits=_amounts_of(wire.limits),
        reservations=_amounts_of(wire.reservations),
        swap_bytes=wire.swap_bytes,
        memory_swappiness=wire.memory_swappiness,
    )


def _amounts_of(wire: WireAmounts) -> Resources:
    return Resources(
        nano_cpus=wire.nano_cpus,
        memory_bytes=wire.memory_bytes,
        pids=wire.pids,
        generic=tuple(_generic_of(resource) for resource in wire.generic_resources),
    )


def _generic_of(wire: WireGeneric) -> GenericResource:
    named, counted = wire.named_resource_spec, wire.discrete_resource_spec
    if named is not None and counted is None:
        return GenericResource(kind=named.kind, value=named.value, is_named=True)
    if counted is not None and named is None:
        return GenericResource(kind=counted.kind, value=str(counted.value))
    raise InvalidError(
        "a generic resource has exactly one of NamedResourceSpec and DiscreteResourceSpec"
    )


def _restart_of(wire: WireRestart) -> RestartPolicy:
    default = RestartPolicy()
    return RestartPolicy(
        condition=member_of(
            RestartCondition, wire.condition, default.condition, "restart condition"
        ),
        delay_ns=default.delay_ns if wire.delay is None else wire.delay,
        max_attempts=wire.max_attempts,
        window_ns=wire.window,
    )


def _placement_of(wire: WirePlacement) -> Placement:
    return Placement(
        constraints=wire.constraints,
        spread_preferences=tuple(_spread_of(preference) for preference in wire.preferences),
        max_replicas_per_node=wire.max_replicas,
        platforms=tuple(Platform(os=p.os, architecture=p.architecture) for p in wire.platforms),
    )


def _spread_of(wire: WirePreference) -> str:
    if wire.spread is None or not wire.spread.spread_descriptor:
        raise InvalidError("a placement preference needs a Spread with a SpreadDescriptor")
    return wire.spread.spread_descriptor


def _mode_of(wire: WireMode) -> ServiceMode:
    given = [
        mode
        for mode in (wire.replicated, wire.global_, wire.replicated_job, wire.global_job)
        if mode is not None
    ]
    if len(given) > 1:
        raise InvalidError("must specify only one service mode")
    if wire.global_ is not None:
        return GlobalMode()
    if wire.global_job is not None:
        return GlobalJobMode()
    if wire.replicated_job is not None:
        concurrent = wire.replicated_job.max_concurrent
        total = wire.replicated_job.total_completions
        if total is None:
            total = 1 if concurrent is None else concurrent
        return ReplicatedJobMode(
            max_concurrent=total if concurrent is None else concurrent, total_completions=total
        )
    if wire.replicated is not None and wire.replicated.replicas is not None:
        return ReplicatedMode(replicas=wire.replicated.replicas)
    return ReplicatedMode()


def _update_of(wire: WireUpdate | None, what: str) -> UpdateConfig | None:
    if wire is None:
        return None
    return UpdateConfig(
        parallelism=wire.parallelism,
        delay_ns=wire.delay,
        failure_action=_literal(
            get_args(FailureAction), wire.failure_action, "pause", f"{what}.FailureAction"
        ),
        monitor_ns=wire.monitor or UpdateConfig().monitor_ns,
        max_failure_ratio=wire.max_failure_ratio,
        order=_literal(get_args(Order), wire.order, "stop-first", f"{what}.Order"),
    )


def _endpoint_of(wire: WireEndpoint | None) -> EndpointSpec | None:
    if wire is None:
        return None
    return EndpointSpec(
        mode=member_of(EndpointMode, wire.mode, EndpointMode.VIP, "endpoint mode"),
        ports=tuple(_port_of(port) for port in wire.ports),
    )


def _port_of(wire: WirePort) -> PortConfig:
    return PortConfig(
        name=wire.name,
        protocol=_literal(get_args(Protocol), wire.protocol, "tcp", "port protocol"),
        target_port=wire.target_port,
        published_port=wire.published_port,
        publish_mode=member_of(
            PortMode, wire.publish_mode, PortMode.INGRESS, "publish mode of a port"
        ),
    )


def service_spec_to_json(spec: ServiceSpec) -> Json:
    """Write the spec of a service."""
    members: Json = compact({"Name": spec.name})
    members["Labels"] = dict(spec.labels)
    members["TaskTemplate"] = task_spec_to_json(spec.task)
    members["Mode"] = mode_to_json(spec.mode)
    if spec.update is not None:
        members["UpdateConfig"] = _update_to_json(spec.update)
    if spec.rollback is not None:
        members["RollbackConfig"] = _update_to_json(spec.rollback)
    if spec.endpoint is not None:
        members["EndpointSpec"] = endpoint_to_json(spec.endpoint)
    return members


def task_spec_to_json(spec: TaskSpec) -> Json:
    """Write the template of tasks."""
    members: Json = {
        "ContainerSpec": container_to_json(spec.container),
        "Resources": _resources_to_json(spec.resources),
        "RestartPolicy": _restart_to_json(spec.restart),
        "Placement": _placement_to_json(spec.placement),
    }
    if spec.networks:
        members["Networks"] = [_attachment_to_json(network) for network in spec.networks]
    if spec.log_driver is not None:
        members["LogDriver"] = driver_to_json(spec.log_driver)
    members["ForceUpdate"] = spec.force_update
    members["Runtime"] = spec.runtime
    return members


def mode_to_json(mode: ServiceMode) -> Json:
    """Write a service's mode."""
    match mode:
        case ReplicatedMode(replicas=replicas):
            return {"Replicated": {"Replicas": replicas}}
        case GlobalMode():
            return {"Global": {}}
        case ReplicatedJobMode(max_concurrent=concurrent, total_completions=total):
            return {"ReplicatedJob": {"MaxConcurrent": concurrent, "TotalCompletions": total}}
        case GlobalJobMode():
            return {"GlobalJob": {}}


def resources_to_json(resources: Resources) -> Json:
    """Write amounts of resources."""
    return compact(
        {
            "NanoCPUs": int64(resources.nano_cpus),
            "MemoryBytes": int64(resources.memory_bytes),
            "Pids": int64(resources.pids),
            "GenericResources": generic_to_json(resources.generic),
        }
    )


def generic_to_json(resources: Iterable[GenericResource]) -> list[Json]:
    """Write user-defined resources."""
    return [_one_generic_to_json(resource) for resource in resources]


def _one_generic_to_json(resource: GenericResource) -> Json:
    """Write one; a count that is no number, of a damaged row, is shown as the word that it is."""
    if resource.is_named or not _COUNT.fullmatch(resource.value):
        return {"NamedResourceSpec": {"Kind": resource.kind, "Value": resource.value}}
    return {"DiscreteResourceSpec": {"Kind": resource.kind, "Value": int64(int(resource.value))}}


def _resources_to_json(resources: ResourceRequirements) -> Json:
    members: Json = {
        "Limits": resources_to_json(resources.limits),
        "Reservations": resources_to_json(resources.reservations),
    }
    if resources.swap_bytes is not None:
        members["SwapBytes"] = resources.swap_bytes
    if resources.memory_swappiness is not None:
        members["MemorySwappiness"] = resources.memory_swappiness
    return members


def _restart_to_json(policy: RestartPolicy) -> Json:
    members: Json = {
        "Condition": word_of(policy.condition),
        "Delay": policy.delay_ns,
        "MaxAttempts": policy.max_attempts,
    }
    if policy.window_ns:
        members["Window"] = policy.window_ns
    return members


def _placement_to_json(placement: Placement) -> Json:
    return compact(
        {
            "Constraints": list(placement.constraints),
            "Preferences": [
                {"Spread": {"SpreadDescriptor": spread}} for spread in placement.spread_preferences
            ],
            "MaxReplicas": placement.max_replicas_per_node,
            "Platforms": [
                compact({"Architecture": platform.architecture, "OS": platform.os})
                for platform in placement.platforms
            ],
        }
    )


def _attachment_to_json(network: NetworkAttachmentConfig) -> Json:
    return compact(
        {
            "Target": network.target,
            "Aliases": list(network.aliases),
            "DriverOpts": dict(network.driver_options),
        }
    )


def _update_to_json(config: UpdateConfig) -> Json:
    members: Json = {"Parallelism": config.parallelism}
    if config.delay_ns:
        members["Delay"] = config.delay_ns
    members["FailureAction"] = config.failure_action
    members["Monitor"] = config.monitor_ns
    members["MaxFailureRatio"] = config.max_failure_ratio
    members["Order"] = config.order
    return members


def endpoint_to_json(endpoint: EndpointSpec) -> Json:
    """Write how a service is to be reached."""
    ports = [port_to_json(port) for port in endpoint.ports]
    return compact({"Mode": word_of(endpoint.mode), "Ports": ports})


def port_to_json(port: PortConfig) -> Json:
    """Write a published port."""
    return compact(
        {
            "Name": port.name,
            "Protocol": port.protocol,
            "TargetPort": int64(port.target_port),
            "PublishedPort": int64(port.published_port),
            "PublishMode": word_of(port.publish_mode),
        }
    )


class ServiceStatus(msgspec.Struct, frozen=True):
    """How many tasks a service has, as `service ls` shows them."""

    running_tasks: int = 0
    desired_tasks: int = 0
    completed_tasks: int = 0


def service_to_json(
    service: Service, *, status: ServiceStatus | None = None, insert_defaults: bool = False
) -> Json:
    """Write a service.

    Args:
        service: as stored.
        status: counts of its tasks, when they were asked for.
        insert_defaults: fill members of the spec that were not given.
    """
    spec = with_defaults(service.spec) if insert_defaults else service.spec
    members: Json = {"ID": service.id}
    members.update(meta(service.version, service.created_at, service.updated_at))
    members["Spec"] = service_spec_to_json(spec)
    if service.previous_spec is not None:
        members["PreviousSpec"] = service_spec_to_json(service.previous_spec)
    members["Endpoint"] = _endpoint_state(service)
    if service.update_status is not None:
        members["UpdateStatus"] = _update_status_to_json(service.update_status)
    if status is not None:
        members["ServiceStatus"] = {
            "RunningTasks": status.running_tasks,
            "DesiredTasks": status.desired_tasks,
            "CompletedTasks": status.completed_tasks,
        }
    if is_job(service.spec.mode):
        members["JobStatus"] = {
            "JobIteration": {"Index": service.spec_version},
            "LastExecution": rfc3339(service.updated_at),
        }
    return members


def is_job(mode: ServiceMode) -> bool:
    """Tell whether a service's tasks are to end."""
    return isinstance(mode, ReplicatedJobMode | GlobalJobMode)


def with_defaults(spec: ServiceSpec) -> ServiceSpec:
    """Fill what the user left to the defaults, for people to read."""
    container = spec.task.container
    if container.stop_grace_period_ns is None:
        container = _replaced_container(container)
    return msgspec.structs.replace(
        spec,
        task=msgspec.structs.replace(spec.task, container=container),
        update=spec.update or UpdateConfig(),
        rollback=spec.rollback or UpdateConfig(),
        endpoint=spec.endpoint or EndpointSpec(),
    )


def _replaced_container(container: ContainerSpec) -> ContainerSpec:
    return msgspec.structs.replace(container, stop_grace_period_ns=STOP_GRACE_PERIOD_NS_DEFAULT)


def _endpoint_state(service: Service) -> Json:
    members: Json = {}
    spec = service.spec.endpoint
    members["Spec"] = {} if spec is None else endpoint_to_json(spec)
    if service.endpoint.ports:
        members["Ports"] = [port_to_json(port) for port in service.endpoint.ports]
    return members


def _update_status_to_json(status: UpdateStatus) -> Json:
    members: Json = {"State": status.state}
    if status.started_at is not None:
        members["StartedAt"] = rfc3339(status.started_at)
    if status.completed_at is not None:
        members["CompletedAt"] = rfc3339(status.completed_at)
    members["Message"] = status.message
    return compact(members)

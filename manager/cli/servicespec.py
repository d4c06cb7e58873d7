"""Turns the flags of `service create` into the Engine's ServiceSpec.

Pure. Names of networks, secrets and configs are resolved by the caller (`References`), who also
reads env files. What a user did not ask for is left out, so that the manager's defaults hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from manager.cli.flags import Flags
from manager.cli.keyvalues import as_mapping
from manager.cli.parse_ports import Port
from manager.cli.parse_values import (
    CAPABILITY_ALL,
    CAPABILITY_RESET,
    FileReference,
    NetworkAttachment,
    capability,
    generic_resources,
    hosts_line,
    merged_environment,
)
from proto.errors import InvalidError

Spec: TypeAlias = dict[str, Any]

SECOND = 1_000_000_000
REPLICATED_ONLY = "can only be used with replicated or replicated-job mode"

UPDATE_DEFAULTS: Mapping[str, object] = {
    "Parallelism": 1,
    "FailureAction": "pause",
    "Monitor": 5 * SECOND,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}
RESTART_DEFAULTS: Mapping[str, object] = {
    "Condition": "any",
    "Delay": 5 * SECOND,
    "MaxAttempts": 0,
}
_CONTAINER = ("TaskTemplate", "ContainerSpec")
_LIMITS = ("TaskTemplate", "Resources", "Limits")
_RESERVATIONS = ("TaskTemplate", "Resources", "Reservations")

SCALARS: Mapping[str, tuple[str, ...]] = {
    "image": (*_CONTAINER, "Image"),
    "args": (*_CONTAINER, "Args"),
    "entrypoint": (*_CONTAINER, "Command"),
    "hostname": (*_CONTAINER, "Hostname"),
    "workdir": (*_CONTAINER, "Dir"),
    "user": (*_CONTAINER, "User"),
    "init": (*_CONTAINER, "Init"),
    "isolation": (*_CONTAINER, "Isolation"),
    "tty": (*_CONTAINER, "TTY"),
    "read-only": (*_CONTAINER, "ReadOnly"),
    "stop-signal": (*_CONTAINER, "StopSignal"),
    "stop-grace-period": (*_CONTAINER, "StopGracePeriod"),
    "oom-score-adj": (*_CONTAINER, "OomScoreAdj"),
    "limit-cpu": (*_LIMITS, "NanoCPUs"),
    "limit-memory": (*_LIMITS, "MemoryBytes"),
    "limit-pids": (*_LIMITS, "Pids"),
    "reserve-cpu": (*_RESERVATIONS, "NanoCPUs"),
    "reserve-memory": (*_RESERVATIONS, "MemoryBytes"),
    "replicas-max-per-node": ("TaskTemplate", "Placement", "MaxReplicas"),
    "endpoint-mode": ("EndpointSpec", "Mode"),
}
"""Flags whose value goes to one place of the spec, for `create` and `update` alike."""

_POLICIES: Sequence[tuple[str, tuple[str, ...], Mapping[str, object], Mapping[str, str]]] = (
    (
        "restart",
        ("TaskTemplate", "RestartPolicy"),
        RESTART_DEFAULTS,
        {
            "restart-condition": "Condition",
            "restart-delay": "Delay",
            "restart-max-attempts": "MaxAttempts",
            "restart-window": "Window",
        },
    ),
    *(
        (
            name,
            (field,),
            UPDATE_DEFAULTS,
            {
                f"{name}-parallelism": "Parallelism",
                f"{name}-delay": "Delay",
                f"{name}-failure-action": "FailureAction",
                f"{name}-monitor": "Monitor",
                f"{name}-max-failure-ratio": "MaxFailureRatio",
                f"{name}-order": "Order",
            },
        )
        for name, field in (("update", "UpdateConfig"), ("rollback", "RollbackConfig"))
    ),
)
HEALTH_FIELDS: Mapping[str, str] = {
    "health-interval": "Interval",
    "health-timeout": "Timeout",
    "health-retries": "Retries",
    "health-start-period": "StartPeriod",
    "health-start-interval": "StartInterval",
}


class References(NamedTuple):
    """The IDs of what the flags name, by the name as the user gave it."""

    networks: Mapping[str, str] = {}
    secrets: Mapping[str, str] = {}
    configs: Mapping[str, str] = {}


def at(spec: Spec, *path: str) -> Spec:
    """Find an object inside a spec, making it (and its parents) when it is not there."""
    for name in path:
        if spec.get(name) is None:
            spec[name] = {}
        spec = spec[name]
    return spec


def put(spec: Spec, path: Sequence[str], value: object) -> None:
    """Set one place of a spec."""
    at(spec, *path[:-1])[path[-1]] = value


def apply_scalars(spec: Spec, flags: Flags) -> None:
    """Set the places of all flags in `SCALARS` that were given."""
    for name, path in SCALARS.items():
        if name in flags:
            put(spec, path, flags[name])


def apply_policies(spec: Spec, flags: Flags) -> None:
    """Set restart, update and rollback policies; one that was not there starts from defaults."""
    for _, path, defaults, fields in _POLICIES:
        given = {field: flags[name] for name, field in fields.items() if name in flags}
        if given:
            parent = at(spec, *path[:-1])
            parent[path[-1]] = {**(parent.get(path[-1]) or defaults), **given}


def health_command(command: str) -> list[str]:
    """Make the test of a health check; an empty command falls back to the image's."""
    return ["CMD-SHELL", command] if command else []


def effective_capabilities(
    added: Iterable[str], dropped: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Normalise capabilities: sorted, `ALL` alone, and adding wins over dropping."""
    adds = set(map(capability, added)) - {CAPABILITY_RESET}
    drops = set(map(capability, dropped)) - {CAPABILITY_RESET} - adds
    return (
        [CAPABILITY_ALL] if CAPABILITY_ALL in adds else sorted(adds),
        [CAPABILITY_ALL] if CAPABILITY_ALL in drops else sorted(drops),
    )


def attachments(
    networks: Iterable[NetworkAttachment], identifiers: Mapping[str, str]
) -> list[Spec]:
    """Make network attachments of what the user named."""
    found = []
    for network in networks:
        attachment: Spec = {"Target": identifiers[network.target]}
        if network.aliases:
            attachment["Aliases"] = list(network.aliases)
        if network.driver_options:
            attachment["DriverOpts"] = dict(network.driver_options)
        found.append(attachment)
    return found


def file_references(
    kind: str, references: Sequence[FileReference], identifiers: Mapping[str, str]
) -> list[Spec]:
    """Make references to secrets or configs; `kind` is "Secret" or "Config".

    Raises:
        InvalidError: one does not exist, or two have the same target.
    """
    targets: set[str] = set()
    for reference in references:
        if reference.target in targets:
            lower = kind.lower()
            raise InvalidError(f"duplicate {lower} target for {reference.source} not allowed")
        targets.add(reference.target)
        if reference.source not in identifiers:
            raise InvalidError(f"{kind.lower()} not found: {reference.source}")
    return [item.engine(kind, identifiers[item.source]) for item in references]


def create_spec(
    flags: Flags,
    image: str,
    arguments: Sequence[str],
    references: References,
    file_environment: Sequence[str] = (),
) -> Spec:
    """Make the spec of a new service.

    Args:
        flags: of `service create`.
        image: the image, already with a tag.
        arguments: the container's command line after its entry point.
        references: the IDs of networks, secrets and configs.
        file_environment: the variables from env files.

    Raises:
        InvalidError: flags contradict each other.
    """
    health = _health(flags)
    mode = _mode(flags)
    is_job = "ReplicatedJob" in mode or "GlobalJob" in mode
    container: Spec = {"Image": image, "Init": False, "DNSConfig": _dns(flags)}
    container |= given(
        {
            "Args": list(arguments),
            "Env": merged_environment(file_environment, flags.many("env")),
            "Labels": as_mapping(flags.many("container-label")),
            "Groups": flags.many("group"),
            "Mounts": flags.many("mount"),
            "Hosts": list(map(hosts_line, flags.many("host"))),
            "Healthcheck": health,
            "Sysctls": as_mapping(flags.many("sysctl")),
            "Ulimits": [limit.engine() for limit in flags.many("ulimit")],
            "Secrets": file_references("Secret", flags.many("secret"), references.secrets),
            "Configs": file_references("Config", flags.many("config"), references.configs),
        }
    )
    adds, drops = effective_capabilities(flags.many("cap-add"), flags.many("cap-drop"))
    container |= given({"CapabilityAdd": adds, "CapabilityDrop": drops})
    networks = attachments(flags.many("network"), references.networks)
    preferences = [
        {"Spread": {"SpreadDescriptor": label}} for label in flags.many("placement-pref")
    ]
    task: Spec = {
        "ContainerSpec": container,
        "Resources": {"Limits": {}, "Reservations": {}},
        "Placement": given({"Constraints": flags.many("constraint"), "Preferences": preferences}),
        "ForceUpdate": 0,
    }
    task |= given({"Networks": sorted(networks, key=lambda network: str(network["Target"]))})
    resources = generic_resources(flags.many("generic-resource"))
    if resources:
        task["Resources"]["Reservations"]["GenericResources"] = resources
    if flags.text("log-driver"):
        task["LogDriver"] = log_driver(flags)
    spec: Spec = {
        **given({"Name": flags.text("name")}),
        "Labels": as_mapping(flags.many("label")),
        "TaskTemplate": task,
        "Mode": mode,
        "EndpointSpec": {"Mode": "vip"},
    }
    apply_scalars(spec, flags)
    apply_policies(spec, flags)
    if is_job and ("UpdateConfig" in spec or "RollbackConfig" in spec):
        raise InvalidError("update and rollback configuration is not supported for jobs")
    spec["EndpointSpec"]["Mode"] = spec["EndpointSpec"]["Mode"].lower()
    spec["EndpointSpec"] |= given({"Ports": [port.engine() for port in ports(flags, "publish")]})
    return spec


def given(fields: Mapping[str, object]) -> Spec:
    """Drop what is empty: the Engine's JSON leaves it out."""
    return {name: value for name, value in fields.items() if value}


def ports(flags: Flags, name: str) -> list[Port]:
    """Give the ports of a repeatable flag, each of which may name a range."""
    return [port for several in flags.many(name) for port in several]


def log_driver(flags: Flags) -> Spec:
    """Make the log driver of the flags."""
    options = as_mapping(flags.many("log-opt"))
    return {"Name": flags.text("log-driver"), **given({"Options": options})}


def _dns(flags: Flags) -> Spec:
    return given(
        {
            "Nameservers": flags.many("dns"),
            "Search": flags.many("dns-search"),
            "Options": flags.many("dns-option"),
        }
    )


def _health(flags: Flags) -> Spec:
    fields = {field: flags[name] for name, field in HEALTH_FIELDS.items() if name in flags}
    command = flags.text("health-cmd")
    if flags.is_on("no-healthcheck"):
        if command or any(fields.values()):
            raise InvalidError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    return given({"Test": health_command(command), **fields})


def _mode(flags: Flags) -> Spec:
    mode = flags.get("mode", "replicated")
    replicas = {"Replicas": flags["replicas"]} if "replicas" in flags else {}
    if mode in {"global", "global-job"}:
        if "replicas" in flags:
            raise InvalidError(f"replicas {REPLICATED_ONLY}")
        if flags.get("replicas-max-per-node"):
            raise InvalidError(f"replicas-max-per-node {REPLICATED_ONLY}")
    if mode != "replicated-job" and "max-concurrent" in flags:
        raise InvalidError("max-concurrent can only be used with replicated-job mode")
    match mode:
        case "replicated":
            return {"Replicated": replicas}
        case "global":
            return {"Global": {}}
        case "global-job":
            return {"GlobalJob": {}}
        case "replicated-job":
            total = flags.get("replicas")
            concurrent = flags.get("max-concurrent", total)
            fields = {"MaxConcurrent": concurrent, "TotalCompletions": total}
            return {"ReplicatedJob": {k: v for k, v in fields.items() if v is not None}}
        case _:
            raise InvalidError(
                f"unknown mode: {mode}, only replicated, global, replicated-job and global-job "
                "are supported"
            )

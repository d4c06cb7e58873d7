"""Services as `service ls` and `service inspect --pretty` show them.

Pure: Engine JSON in, rows or text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from manager.cli.durations import format_duration, human_duration, parse_instant
from manager.cli.references import shown_image
from manager.cli.units import NANO, binary_size
from manager.cli.views import Row, View

ID_WIDTH = 12

VIEW = View(
    headers={
        "ID": "ID",
        "Name": "NAME",
        "Mode": "MODE",
        "Replicas": "REPLICAS",
        "Image": "IMAGE",
        "Ports": "PORTS",
    },
    columns=("ID", "Name", "Mode", "Replicas", "Image", "Ports"),
    raw=(
        ("id", "ID"),
        ("name", "Name"),
        ("mode", "Mode"),
        ("replicas", "Replicas"),
        ("image", "Image"),
        ("ports", "Ports"),
    ),
)
_MODES = {
    "Global": "global",
    "Replicated": "replicated",
    "ReplicatedJob": "replicated job",
    "GlobalJob": "global job",
}


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which web2 comes before web10."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def service_rows(services: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Make the rows of `service ls`, by name."""
    ordered = sorted(services, key=lambda service: natural_key(service["Spec"].get("Name", "")))
    return [
        {
            "ID": service["ID"][:ID_WIDTH],
            "Name": service["Spec"].get("Name", ""),
            "Mode": mode(service),
            "Replicas": replicas(service),
            "Image": shown_image(_container(service).get("Image", "")),
            "Ports": published(_list(service.get("Endpoint"), "Ports")),
        }
        for service in ordered
    ]


def _container(service: Mapping[str, Any]) -> Mapping[str, Any]:
    return service["Spec"]["TaskTemplate"].get("ContainerSpec") or {}


def _list(owner: Mapping[str, Any] | None, field: str) -> list[Any]:
    return (owner or {}).get(field) or []


def mode(service: Mapping[str, Any]) -> str:
    """Name the mode of a service."""
    modes = service["Spec"].get("Mode") or {}
    return next((name for key, name in _MODES.items() if modes.get(key) is not None), "")


def replicas(service: Mapping[str, Any]) -> str:
    """Tell how many tasks run and should: "2/5 (max 2 per node)", "1/3 (7/10 completed)"."""
    status = service.get("ServiceStatus") or {}
    running, desired = status.get("RunningTasks", 0), status.get("DesiredTasks", 0)
    completed = status.get("CompletedTasks", 0)
    modes = service["Spec"].get("Mode") or {}
    text = f"{running}/{desired}"
    if modes.get("ReplicatedJob") is not None:
        total = modes["ReplicatedJob"].get("TotalCompletions", 0)
        return f"{text} ({completed}/{total} completed)"
    if modes.get("GlobalJob") is not None:
        return f"{text} ({completed}/{desired + completed} completed)"
    most = (service["Spec"]["TaskTemplate"].get("Placement") or {}).get("MaxReplicas", 0)
    if most and modes.get("Replicated") is not None:
        return f"{text} (max {most} per node)"
    return text


def published(ports: Sequence[Mapping[str, Any]]) -> str:
    """Write the ingress ports, neighbours joined: "*:8080-8081->80-81/tcp"."""
    wanted = sorted(
        (port["Protocol"], port.get("PublishedPort", 0), port["TargetPort"])
        for port in ports
        if port.get("PublishMode", "ingress") == "ingress"
    )
    ranges: list[list[Any]] = []
    for protocol, outer, inner in wanted:
        last = ranges[-1] if ranges else None
        # Either both sides count up together, or several outer ports lead to one inner port.
        if last and last[0] == protocol and outer == last[2] + 1:
            together = inner == last[4] + 1 and last[2] - last[1] == last[4] - last[3]
            same = inner == last[3] == last[4]
            if together or same:
                last[2], last[4] = outer, inner
                continue
        ranges.append([protocol, outer, outer, inner, inner])
    return ", ".join(
        f"*:{_range(first, last)}->{_range(inner, end)}/{protocol}"
        for protocol, first, last, inner, end in ranges
    )


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


# --- inspect --pretty -----------------------------------------------------------------------------


def pretty_service(service: Mapping[str, Any], networks: Mapping[str, str], now: float) -> str:
    """Write a service for people.

    Args:
        service: Engine JSON.
        networks: the names of networks by ID.
        now: seconds since 1970.
    """
    spec = service["Spec"]
    task = spec["TaskTemplate"]
    lines = ["", f"ID:\t\t{service['ID']}", f"Name:\t\t{spec.get('Name', '')}"]
    if spec.get("Labels"):
        lines += ["Labels:", *_pairs(spec["Labels"], " ", "=")]
    lines += _mode_lines(spec.get("Mode") or {})
    lines += _update_status(service.get("UpdateStatus") or {}, now)
    lines += _placement(task.get("Placement") or {})
    lines += _policy("UpdateConfig", "Update", spec.get("UpdateConfig"))
    lines += _policy("RollbackConfig", "Rollback", spec.get("RollbackConfig"))
    lines += _container_lines(_container(service))
    lines += _log_driver(task.get("LogDriver"))
    lines += _resources(task.get("Resources"))
    if task.get("Networks"):
        names = [networks.get(item["Target"], item["Target"]) for item in task["Networks"]]
        lines.append("Networks:" + "".join(f" {name}" for name in names) + " ")
    lines.append(f"Endpoint Mode:\t{(spec.get('EndpointSpec') or {}).get('Mode', '')}")
    text = "\n".join(lines)
    text += _ports_text(_list(service.get("Endpoint"), "Ports"))
    return text + _health_text(_container(service).get("Healthcheck")) + "\n\n"


def _pairs(values: Mapping[str, str], indent: str, separator: str) -> list[str]:
    return [
        f"{indent}{key}{separator}{values[key]}" if values[key] else f"{indent}{key}"
        for key in sorted(values)
    ]


def _mode_lines(modes: Mapping[str, Any]) -> list[str]:
    if modes.get("Global") is not None:
        return ["Service Mode:\tGlobal"]
    if modes.get("Replicated") is None:
        return ["Service Mode:"]
    count = modes["Replicated"].get("Replicas")
    return ["Service Mode:\tReplicated", *([] if count is None else [f" Replicas:\t{count}"])]


def _update_status(status: Mapping[str, Any], now: float) -> list[str]:
    if not status.get("State"):
        return []
    lines = ["UpdateStatus:", f" State:\t\t{status['State']}"]
    started = parse_instant(status.get("StartedAt", ""))
    if started is not None:
        lines.append(f" Started:\t{human_duration(now - started)} ago")
    completed = parse_instant(status.get("CompletedAt", ""))
    if completed is not None and status["State"] == "completed":
        lines.append(f" Completed:\t{human_duration(now - completed)} ago")
    return [*lines, f" Message:\t{status.get('Message', '')}"]


def _placement(placement: Mapping[str, Any]) -> list[str]:
    lines = ["Placement:"]
    if placement.get("Constraints"):
        lines.append(f" Constraints:\t[{' '.join(placement['Constraints'])}]")
    if placement.get("Preferences"):
        spreads = [
            f"spread={preference['Spread']['SpreadDescriptor']}"
            for preference in placement["Preferences"]
            if preference.get("Spread")
        ]
        lines.append(f" Preferences:   [{' '.join(spreads)}]")
    if placement.get("MaxReplicas"):
        lines.append(f" Max Replicas Per Node:   {placement['MaxReplicas']}")
    return lines


def _policy(title: str, noun: str, policy: Mapping[str, Any] | None) -> list[str]:
    if policy is None:
        return []
    lines = [f"{title}:", f" Parallelism:\t{policy.get('Parallelism', 0)}"]
    if policy.get("Delay"):
        lines.append(f" Delay:\t\t{format_duration(policy['Delay'])}")
    lines.append(f" On failure:\t{policy.get('FailureAction', '')}")
    if policy.get("Monitor"):
        lines.append(f" Monitoring Period: {format_duration(policy['Monitor'])}")
    lines.append(f" Max failure ratio: {policy.get('MaxFailureRatio', 0):g}")
    return [*lines, f" {noun + ' order:':<18} {policy.get('Order', '')}"]


def _container_lines(container: Mapping[str, Any]) -> list[str]:
    lines = ["ContainerSpec:", f" Image:\t\t{container.get('Image', '')}"]
    for field, label in (("Args", "Args"), ("Env", "Env")):
        if container.get(field):
            lines.append(f" {label}:\t\t" + "".join(f"{item} " for item in container[field]))
    if container.get("Dir"):
        lines.append(f" Dir:\t\t{container['Dir']}")
    if container.get("Init") is not None:
        lines.append(f" Init:\t\t{str(container['Init']).lower()}")
    if container.get("User"):
        lines.append(f" User: {container['User']}")
    adds, drops = _list(container, "CapabilityAdd"), _list(container, "CapabilityDrop")
    if adds or drops:
        lines.append("Capabilities:")
        lines += [f" Add: {', '.join(adds)}"] if adds else []
        lines += [f" Drop: {', '.join(drops)}"] if drops else []
    if container.get("Sysctls"):
        lines += ["SysCtls:", *_pairs(container["Sysctls"], " ", ": ")]
    if container.get("Ulimits"):
        limits = sorted(
            f" {limit['Name']}: {limit.get('Soft', 0)}:{limit.get('Hard', 0)}"
            for limit in container["Ulimits"]
        )
        lines += ["Ulimits:", *limits]
    return lines + _mounted(container)


def _mounted(container: Mapping[str, Any]) -> list[str]:
    lines = ["Mounts:"] if container.get("Mounts") else []
    for mount in _list(container, "Mounts"):
        lines += [
            f" Target:\t{mount.get('Target', '')}",
            f"  Source:\t{mount.get('Source', '')}",
            f"  ReadOnly:\t{str(mount.get('ReadOnly', False)).lower()}",
            f"  Type:\t\t{mount.get('Type', '')}",
        ]
    for kind in ("Config", "Secret"):
        references = _list(container, f"{kind}s")
        lines += [f"{kind}s:"] if references else []
        for reference in references:
            target = (reference.get("File") or {}).get("Name", "")
            lines += [f" Target:\t{target}", f"  Source:\t{reference[f'{kind}Name']}"]
    return lines


def _log_driver(driver: Mapping[str, Any] | None) -> list[str]:
    if driver is None:
        return []
    lines = ["Log Driver:"]
    lines += [f" Name:\t\t{driver['Name']}"] if driver.get("Name") else []
    if driver.get("Options"):
        lines += [" LogOpts:", *_pairs(driver["Options"], "  ", ":       ")]
    return [*lines, ""]


def _resources(resources: Mapping[str, Any] | None) -> list[str]:
    if resources is None:
        return []
    lines = ["Resources:"]
    limits = resources.get("Limits") or {}
    for title, part in (("Reservations", resources.get("Reservations") or {}), ("Limits", limits)):
        if not any(part.get(field) for field in ("NanoCPUs", "MemoryBytes", "Pids")):
            continue
        lines.append(f" {title}:")
        if part.get("NanoCPUs"):
            lines.append(f"  CPU:\t\t{part['NanoCPUs'] / NANO:g}")
        if part.get("MemoryBytes"):
            lines.append(f"  Memory:\t{binary_size(part['MemoryBytes'])}")
    return [*lines, *([f"  PIDs:\t\t{limits['Pids']}"] if limits.get("Pids") else [])]


def _ports_text(ports: Sequence[Mapping[str, Any]]) -> str:
    if not ports:
        return ""
    ordered = [
        f"\n PublishedPort = {port.get('PublishedPort', 0)}\n  Protocol = {port['Protocol']}"
        f"\n  TargetPort = {port['TargetPort']}\n  PublishMode = {port.get('PublishMode', '')}"
        for port in ports
    ]
    return "\nPorts:" + "".join(ordered) + " "


def _health_text(health: Mapping[str, Any] | None) -> str:
    if health is None:
        return ""
    text = (
        f"\n Healthcheck:\n  Interval = {format_duration(health.get('Interval', 0))}"
        f"\n  Retries = {health.get('Retries', 0)}"
        f"\n  StartPeriod =\t{format_duration(health.get('StartPeriod', 0))}"
        f"\n  Timeout =\t{format_duration(health.get('Timeout', 0))}"
    )
    if health.get("Test"):
        text += "\n  Tests:" + "".join(f"\n\t Test = {part}" for part in health["Test"]) + " "
    return text

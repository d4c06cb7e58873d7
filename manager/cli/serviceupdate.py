"""Turns a ServiceSpec and the flags of `service update` into the new ServiceSpec.

Pure. The `-add` and `-rm` flags follow Docker: removal is by key (name, target, mapping), adding
replaces what has the same key, and lists whose order has no meaning are sorted, so that an update
that changes nothing sends an equal spec and restarts no task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from manager.cli.flags import Flags
from manager.cli.keyvalues import as_mapping
from manager.cli.parse_ports import Port
from manager.cli.parse_values import (
    CAPABILITY_ALL,
    CAPABILITY_RESET,
    capability,
    generic_resources,
    hosts_line,
    merged_environment,
)
from manager.cli.servicespec import (
    HEALTH_FIELDS,
    References,
    Spec,
    apply_policies,
    apply_scalars,
    at,
    attachments,
    file_references,
    health_command,
    log_driver,
    ports,
)
from proto.errors import InvalidError

NOT_AN_UPDATE = frozenset({"rollback", "detach", "quiet"})
"""The flags that go with `--rollback`; no other does."""


def update_spec(spec: Spec, flags: Flags, references: References) -> Spec:
    """Apply flags to a spec.

    Args:
        spec: the service's present spec; it is not changed.
        flags: of `service update`.
        references: the IDs of the networks (added and removed), secrets and configs named.

    Raises:
        InvalidError: flags contradict each other or the service.
    """
    new: Spec = _copied(spec)
    container = at(new, "TaskTemplate", "ContainerSpec")
    apply_scalars(new, flags)
    apply_policies(new, flags)
    _replicas(new, flags)
    _mappings(new, container, flags)
    _lists(new, container, flags)
    _networks(new, flags, references)
    _files(container, flags, references)
    _generic_resources(new, flags)
    _health(container, flags)
    if flags.has_any("cap-add", "cap-drop"):
        _capabilities(container, flags)
    if flags.has_any("publish-add", "publish-rm"):
        _ports(new, flags)
    if flags.text("log-driver"):
        new["TaskTemplate"]["LogDriver"] = log_driver(flags)
    if flags.is_on("force"):
        new["TaskTemplate"]["ForceUpdate"] = new["TaskTemplate"].get("ForceUpdate", 0) + 1
    return new


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _replicas(new: Spec, flags: Flags) -> None:
    mode = new.get("Mode") or {}
    job = mode.get("ReplicatedJob")
    if "replicas" in flags:
        if mode.get("Replicated") is None and job is None:
            raise InvalidError("replicas can only be used with replicated mode")
        if job is None:
            mode["Replicated"]["Replicas"] = flags["replicas"]
        else:
            job["TotalCompletions"] = flags["replicas"]
    if "max-concurrent" in flags:
        if job is None:
            raise InvalidError("max-concurrent can only be used with replicated-job mode")
        job["MaxConcurrent"] = flags["max-concurrent"]


def _mappings(new: Spec, container: Spec, flags: Flags) -> None:
    """Labels and sysctls: removal by key first, then adding."""
    for owner, field, name in (
        (new, "Labels", "label"),
        (container, "Labels", "container-label"),
        (container, "Sysctls", "sysctl"),
    ):
        if not flags.has_any(f"{name}-add", f"{name}-rm"):
            continue
        values = dict(owner.get(field) or {})
        for key in as_mapping(flags.many(f"{name}-rm")):
            values.pop(key, None)
        owner[field] = values | as_mapping(flags.many(f"{name}-add"))


def _lists(new: Spec, container: Spec, flags: Flags) -> None:
    """The lists with a key, and the plain ones."""
    if flags.has_any("env-add", "env-rm"):
        removed = set(flags.many("env-rm"))
        kept = [
            variable
            for variable in container.get("Env") or []
            if variable.partition("=")[0] not in removed
        ]
        container["Env"] = _replaced(kept, flags.many("env-add"))
    if flags.has_any("host-add", "host-rm"):
        container["Hosts"] = _hosts(container.get("Hosts") or [], flags)
    if flags.has_any("mount-add", "mount-rm"):
        container["Mounts"] = _mounts(container.get("Mounts") or [], flags)
    if flags.has_any("ulimit-add", "ulimit-rm"):
        limits = {limit["Name"]: limit for limit in container.get("Ulimits") or []}
        for name in as_mapping(flags.many("ulimit-rm")):
            limits.pop(name, None)
        limits |= {limit.name: limit.engine() for limit in flags.many("ulimit-add")}
        container["Ulimits"] = [limits[name] for name in sorted(limits)]
    _sorted_list(container, "Groups", "group", flags)
    for field, name in (
        ("Nameservers", "dns"),
        ("Search", "dns-search"),
        ("Options", "dns-option"),
    ):
        if flags.has_any(f"{name}-add", f"{name}-rm"):
            _sorted_list(at(container, "DNSConfig"), field, name, flags)
    if flags.has_any("constraint-add", "constraint-rm"):
        placement = at(new, "TaskTemplate", "Placement")
        _sorted_list(placement, "Constraints", "constraint", flags)
    if flags.has_any("placement-pref-add", "placement-pref-rm"):
        _preferences(at(new, "TaskTemplate", "Placement"), flags)


def _sorted_list(owner: Spec, field: str, name: str, flags: Flags) -> None:
    if flags.has_any(f"{name}-add", f"{name}-rm"):
        values = {*(owner.get(field) or []), *flags.many(f"{name}-add")}
        owner[field] = sorted(values - set(flags.many(f"{name}-rm")))


def _replaced(old: list[str], added: list[str]) -> list[str]:
    """Replace variables in their place; new ones come last."""
    latest = {variable.partition("=")[0]: variable for variable in merged_environment(old, added)}
    order = dict.fromkeys(variable.partition("=")[0] for variable in [*old, *added])
    return [latest[name] for name in order]


def _hosts(lines: list[str], flags: Flags) -> list[str]:
    """Remove names from lines `ADDRESS NAME…`, drop empty lines, add new ones."""
    kept = []
    removals = [removal.partition(":") for removal in flags.many("host-rm")]
    for line in lines:
        where, *names = line.split()
        for name, _, only_at in removals:
            if only_at in {"", where}:
                names = [other for other in names if other != name]
        if names:
            kept.append(" ".join([where, *names]))
    return list(dict.fromkeys([*kept, *map(hosts_line, flags.many("host-add"))]))


def _mounts(mounts: list[Spec], flags: Flags) -> list[Spec]:
    added: dict[str, Spec] = {}
    for mount in flags.many("mount-add"):
        if mount["Target"] in added:
            raise InvalidError("duplicate mount target")
        added[mount["Target"]] = mount
    by_target = {mount["Target"]: mount for mount in mounts} | added
    for target in flags.many("mount-rm"):
        by_target.pop(target, None)
    return sorted(by_target.values(), key=lambda m: (m.get("Source", ""), m["Target"]))


def _preferences(placement: Spec, flags: Flags) -> None:
    removed = set(flags.many("placement-pref-rm"))
    kept = [
        preference
        for preference in placement.get("Preferences") or []
        if (preference.get("Spread") or {}).get("SpreadDescriptor") not in removed
    ]
    added = [{"Spread": {"SpreadDescriptor": name}} for name in flags.many("placement-pref-add")]
    placement["Preferences"] = kept + added


def _networks(new: Spec, flags: Flags, references: References) -> None:
    if not flags.has_any("network-add", "network-rm"):
        return
    removed = {references.networks[name] for name in flags.many("network-rm")}
    task = new["TaskTemplate"]
    kept = [item for item in task.get("Networks") or [] if item["Target"] not in removed]
    present = {item["Target"] for item in kept}
    for network in flags.many("network-add"):
        identifier = references.networks[network.target]
        if identifier in present:
            raise InvalidError(f"service is already attached to network {network.target}")
        present.add(identifier)
        kept += attachments([network], references.networks)
    task["Networks"] = sorted(kept, key=lambda item: str(item["Target"]))


def _files(container: Spec, flags: Flags, references: References) -> None:
    for kind, identifiers in (("Secret", references.secrets), ("Config", references.configs)):
        name = kind.lower()
        if not flags.has_any(f"{name}-add", f"{name}-rm"):
            continue
        removed = set(flags.many(f"{name}-rm"))
        kept = [
            item for item in container.get(f"{kind}s") or [] if item[f"{kind}Name"] not in removed
        ]
        added = file_references(kind, flags.many(f"{name}-add"), identifiers)
        container[f"{kind}s"] = kept + added


def _generic_resources(new: Spec, flags: Flags) -> None:
    if not flags.has_any("generic-resource-add", "generic-resource-rm"):
        return
    reservations = at(new, "TaskTemplate", "Resources", "Reservations")
    by_kind: dict[str, Spec] = {}
    listed = reservations.get("GenericResources") or []
    for resource in [*listed, *generic_resources(flags.many("generic-resource-add"))]:
        discrete = resource.get("DiscreteResourceSpec") or resource.get("NamedResourceSpec") or {}
        by_kind[str(discrete.get("Kind"))] = resource
    for kind in flags.many("generic-resource-rm"):
        if by_kind.pop(kind, None) is None:
            raise InvalidError(f"could not find generic-resource `{kind}` to remove it")
    reservations["GenericResources"] = [by_kind[kind] for kind in sorted(by_kind)]


def _health(container: Spec, flags: Flags) -> None:
    names = ("health-cmd", *HEALTH_FIELDS)
    if not flags.has_any("no-healthcheck", *names):
        return
    if flags.is_on("no-healthcheck"):
        if flags.has_any(*names):
            raise InvalidError("--no-healthcheck conflicts with --health-* options")
        container["Healthcheck"] = {"Test": ["NONE"]}
        return
    health = at(container, "Healthcheck")
    if health.get("Test") == ["NONE"]:
        health["Test"] = []
    health |= {field: flags[name] for name, field in HEALTH_FIELDS.items() if name in flags}
    if "health-cmd" in flags:
        health["Test"] = health_command(flags.text("health-cmd"))


def _capabilities(container: Spec, flags: Flags) -> None:
    """Move capabilities between the lists.

    Adding one that was dropped only ends the dropping, and the other way round; `RESET` empties
    the list first; adding wins when both are asked for.
    """
    added = set(map(capability, container.get("CapabilityAdd") or []))
    dropped = set(map(capability, container.get("CapabilityDrop") or []))
    to_add = set(map(capability, flags.many("cap-add")))
    to_drop = set(map(capability, flags.many("cap-drop")))
    if CAPABILITY_RESET in to_add:
        added.clear()
    if CAPABILITY_RESET in to_drop:
        dropped.clear()
    to_add.discard(CAPABILITY_RESET)
    to_drop -= {CAPABILITY_RESET, *to_add}
    new_added = (added - to_drop) | (to_add - dropped)
    new_dropped = (dropped - to_add) | (to_drop - added)
    for field, values in (("CapabilityAdd", new_added), ("CapabilityDrop", new_dropped)):
        container[field] = [CAPABILITY_ALL] if CAPABILITY_ALL in values else sorted(values)


def _ports(new: Spec, flags: Flags) -> None:
    endpoint = at(new, "EndpointSpec")
    removed = ports(flags, "publish-rm")
    kept = [
        port
        for port in map(_port, endpoint.get("Ports") or [])
        if not any(
            (port.target, port.protocol, port.mode) == (gone.target, gone.protocol, gone.mode)
            for gone in removed
        )
    ]
    wanted = dict.fromkeys([*kept, *ports(flags, "publish-add")])
    order: Callable[[Port], str] = _port_key
    endpoint["Ports"] = [port.engine() for port in sorted(wanted, key=order)]


def _port(port: Mapping[str, Any]) -> Port:
    return Port(
        port["TargetPort"],
        port.get("PublishedPort", 0),
        port.get("Protocol") or "tcp",
        port.get("PublishMode") or "ingress",
    )


def _port_key(port: Port) -> str:
    return f"{port.published}:{port.target}/{port.protocol}/{port.mode}"

"""Nodes as `node ls` and `node inspect --pretty` show them. Pure: Engine JSON in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manager.cli.durations import format_instant
from manager.cli.format_service import natural_key
from manager.cli.tables import capitalised
from manager.cli.units import NANO, binary_size
from manager.cli.views import Row, View

VIEW = View(
    headers={
        "ID": "ID",
        "_ID": "ID  ",
        "Self": "",
        "Hostname": "HOSTNAME",
        "Status": "STATUS",
        "Availability": "AVAILABILITY",
        "ManagerStatus": "MANAGER STATUS",
        "EngineVersion": "ENGINE VERSION",
        "TLSStatus": "TLS STATUS",
    },
    columns=("_ID", "Hostname", "Status", "Availability", "ManagerStatus", "EngineVersion"),
    raw=(
        ("node_id", "ID"),
        ("hostname", "Hostname"),
        ("status", "Status"),
        ("availability", "Availability"),
        ("manager_status", "ManagerStatus"),
    ),
    raw_quiet="node_id",
)


def node_rows(nodes: Iterable[Mapping[str, Any]], swarm: Mapping[str, Any]) -> list[Row]:
    """Make the rows of `node ls`, by host name.

    Args:
        nodes: Engine JSON.
        swarm: the `Swarm` of `/info`, which says what this node is.
    """
    own = swarm.get("NodeID", "")
    trusted = (swarm.get("Cluster") or {}).get("TLSInfo")
    ordered = sorted(nodes, key=lambda node: natural_key(_hostname(node)))
    return [
        {
            "ID": node["ID"],
            "_ID": f"{node['ID']} {'*' if node['ID'] == own else ' '}",
            "Self": node["ID"] == own,
            "Hostname": _hostname(node),
            "Status": capitalised((node.get("Status") or {}).get("State", "")),
            "Availability": capitalised(node["Spec"].get("Availability", "")),
            "ManagerStatus": _manager(node),
            "EngineVersion": _engine(node).get("EngineVersion", ""),
            "TLSStatus": _tls(node, trusted),
        }
        for node in ordered
    ]


def _hostname(node: Mapping[str, Any]) -> str:
    return str((node.get("Description") or {}).get("Hostname", ""))


def _engine(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return (node.get("Description") or {}).get("Engine") or {}


def _manager(node: Mapping[str, Any]) -> str:
    status = node.get("ManagerStatus") or {}
    return "Leader" if status.get("Leader") else capitalised(status.get("Reachability", ""))


def _tls(node: Mapping[str, Any], trusted: object) -> str:
    own = (node.get("Description") or {}).get("TLSInfo")
    if not trusted or not own:
        return "Unknown"
    return "Ready" if own == trusted else "Needs Rotation"


def _labels(title: str, labels: Mapping[str, str]) -> list[str]:
    if not labels:
        return []
    return [f"{title}:"] + [
        f" - {key}={labels[key]}" if labels[key] else f" - {key}" for key in sorted(labels)
    ]


def pretty_node(node: Mapping[str, Any]) -> str:
    """Write a node for people."""
    spec, status = node["Spec"], node.get("Status") or {}
    description = node.get("Description") or {}
    lines = [f"ID:\t\t\t{node['ID']}"]
    lines += [f"Name:\t\t\t{spec['Name']}"] if spec.get("Name") else []
    lines += _labels("Labels", spec.get("Labels") or {})
    lines += [
        f"Hostname:              \t{description.get('Hostname', '')}",
        f"Joined at:             \t{format_instant(node.get('CreatedAt', '')).lower()}",
        "Status:",
        f" State:\t\t\t{capitalised(status.get('State', ''))}",
    ]
    if status.get("Message"):
        lines.append(f" Message:              \t{capitalised(status['Message'])}")
    lines.append(f" Availability:         \t{capitalised(spec.get('Availability', ''))}")
    if status.get("Addr"):
        lines.append(f" Address:\t\t{status['Addr']}")
    manager = node.get("ManagerStatus")
    if manager is not None:
        lines += [
            "Manager Status:",
            f" Address:\t\t{manager.get('Addr', '')}",
            f" Raft Status:\t\t{capitalised(manager.get('Reachability', ''))}",
            f" Leader:\t\t{'Yes' if manager.get('Leader') else 'No'}",
        ]
    return "\n".join([*lines, *_machine(description)]) + "\n"


def _machine(description: Mapping[str, Any]) -> list[str]:
    platform = description.get("Platform") or {}
    resources = description.get("Resources") or {}
    engine = description.get("Engine") or {}
    memory = resources.get("MemoryBytes", 0)
    lines = [
        "Platform:",
        f" Operating System:\t{platform.get('OS', '')}",
        f" Architecture:\t\t{platform.get('Architecture', '')}",
        "Resources:",
        f" CPUs:\t\t\t{resources.get('NanoCPUs', 0) // NANO}",
        f" Memory:\t\t{binary_size(memory) if memory else ''}",
    ]
    plugins: dict[str, list[str]] = {}
    for plugin in engine.get("Plugins") or []:
        plugins.setdefault(plugin["Type"], []).append(plugin["Name"])
    if plugins:
        lines.append("Plugins:")
        lines += [f" {kind}:\t\t{', '.join(plugins[kind])}" for kind in sorted(plugins)]
    lines.append(f"Engine Version:\t\t{engine.get('EngineVersion', '')}")
    lines += _labels("Engine Labels", engine.get("Labels") or {})
    tls = description.get("TLSInfo") or {}
    if tls.get("TrustRoot") or tls.get("CertIssuerSubject"):
        lines += [
            "TLS Info:",
            " TrustRoot:",
            tls.get("TrustRoot", ""),
            f" Issuer Subject:\t{tls.get('CertIssuerSubject', '')}",
            f" Issuer Public Key:\t{tls.get('CertIssuerPublicKey', '')}",
        ]
    return lines

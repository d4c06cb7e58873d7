"""`swarm info` and `swarm version` as text. Pure: Engine JSON in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manager.cli.durations import SECOND, human_duration
from manager.cli.units import binary_size

_COMPONENT = (
    ("Version", "Version"),
    ("ApiVersion", "API version"),
    ("GoVersion", "Go version"),
    ("GitCommit", "Git commit"),
    ("BuildTime", "Built"),
)


def version_text(client: Mapping[str, str], server: Mapping[str, Any] | None) -> str:
    """Write the versions of client and server.

    Args:
        client: Version, ApiVersion, PythonVersion, Os, Arch.
        server: the answer of `/version`; None when the daemon was not reached.
    """
    lines = [
        "Client:",
        f" Version:           {client['Version']}",
        f" API version:       {client['ApiVersion']}",
        f" Python version:    {client['PythonVersion']}",
        f" OS/Arch:           {client['Os']}/{client['Arch']}",
    ]
    if server is not None:
        name = (server.get("Platform") or {}).get("Name", "")
        lines += ["", f"Server: {name}".rstrip()]
        for component in server.get("Components") or [_engine(server)]:
            lines += _component(component)
    return "\n".join(lines) + "\n"


def _engine(server: Mapping[str, Any]) -> dict[str, Any]:
    names = ("ApiVersion", "MinAPIVersion", "GitCommit", "BuildTime", "Os", "Arch")
    details = {name: str(server.get(name, "")) for name in names}
    return {"Name": "Engine", "Version": server.get("Version", ""), "Details": details}


def _component(component: Mapping[str, Any]) -> list[str]:
    details = dict(component.get("Details") or {})
    lines = [f" {component['Name']}:", f"  Version:          {component['Version']}"]
    if component["Name"] != "Engine":
        return lines + [f"  {key + ':':<17} {details[key]}" for key in sorted(details)]
    for key, label in _COMPONENT[1:]:
        if details.get(key):
            text = details[key]
            if key == "ApiVersion" and details.get("MinAPIVersion"):
                text += f" (minimum version {details['MinAPIVersion']})"
            lines.append(f"  {label + ':':<17} {text}")
    lines.append(f"  OS/Arch:          {details.get('Os', '')}/{details.get('Arch', '')}")
    return lines


def info_text(client: Mapping[str, str], info: Mapping[str, Any]) -> str:
    """Write what `/info` tells about the node and its cluster."""
    lines = ["Client:", f" Version:    {client['Version']}", "", "Server:"]
    lines += [
        f" Containers: {info.get('Containers', 0)}",
        f"  Running: {info.get('ContainersRunning', 0)}",
        f"  Paused: {info.get('ContainersPaused', 0)}",
        f"  Stopped: {info.get('ContainersStopped', 0)}",
        f" Images: {info.get('Images', 0)}",
    ]
    lines += _fields(info, (("ServerVersion", "Server Version"), ("Driver", "Storage Driver")))
    lines += [f"  {name}: {value}" for name, value in info.get("DriverStatus") or []]
    lines += _fields(
        info,
        (
            ("LoggingDriver", "Logging Driver"),
            ("CgroupDriver", "Cgroup Driver"),
            ("CgroupVersion", "Cgroup Version"),
        ),
    )
    plugins = info.get("Plugins") or {}
    if any(plugins.values()):
        lines.append(" Plugins:")
        lines += [
            f"  {kind}: {' '.join(plugins[kind])}"
            for kind in ("Volume", "Network", "Authorization", "Log")
            if plugins.get(kind)
        ]
    lines += _swarm(info.get("Swarm") or {})
    if info.get("Runtimes"):
        lines.append(f" Runtimes: {' '.join(sorted(info['Runtimes']))}")
    lines += _fields(info, (("DefaultRuntime", "Default Runtime"),))
    lines += _security(info.get("SecurityOptions") or [])
    lines += _fields(
        info,
        (
            ("KernelVersion", "Kernel Version"),
            ("OperatingSystem", "Operating System"),
            ("OSType", "OSType"),
            ("Architecture", "Architecture"),
            ("NCPU", "CPUs"),
        ),
    )
    lines.append(f" Total Memory: {binary_size(info.get('MemTotal', 0))}")
    lines += _fields(info, (("Name", "Name"), ("ID", "ID"), ("DockerRootDir", "Root Dir")))
    lines.append(f" Debug Mode: {str(info.get('Debug', False)).lower()}")
    for label in info.get("Labels") or []:
        lines += [] if " Labels:" in lines else [" Labels:"]
        lines.append(f"  {label}")
    lines += [
        f" Live Restore Enabled: {str(info.get('LiveRestoreEnabled', False)).lower()}",
    ]
    return "\n".join(lines) + "\n"


def _fields(info: Mapping[str, Any], wanted: tuple[tuple[str, str], ...]) -> list[str]:
    return [f" {label}: {info[key]}" for key, label in wanted if info.get(key) not in {None, ""}]


def _security(options: list[str]) -> list[str]:
    lines = [" Security Options:"] if options else []
    for option in options:
        pairs = [pair.partition("=") for pair in option.split(",")]
        for key, _, value in pairs:
            lines.append(f"  {value}" if key == "name" else f"   {key.title()}: {value}")
    return lines


def _swarm(swarm: Mapping[str, Any]) -> list[str]:
    state = swarm.get("LocalNodeState") or "inactive"
    lines = [f" Swarm: {state}"]
    if state in {"inactive", "locked"}:
        return lines
    lines.append(f"  NodeID: {swarm.get('NodeID', '')}")
    if swarm.get("Error"):
        lines.append(f"  Error: {swarm['Error']}")
    is_manager = bool(swarm.get("ControlAvailable"))
    lines.append(f"  Is Manager: {str(is_manager).lower()}")
    cluster = swarm.get("Cluster")
    if is_manager and cluster and not swarm.get("Error"):
        lines += [
            f"  ClusterID: {cluster.get('ID', '')}",
            f"  Managers: {swarm.get('Managers', 0)}",
            f"  Nodes: {swarm.get('Nodes', 0)}",
            *_cluster(cluster),
        ]
    lines.append(f"  Node Address: {swarm.get('NodeAddr', '')}")
    remotes = sorted(remote["Addr"] for remote in swarm.get("RemoteManagers") or [])
    if remotes:
        lines += ["  Manager Addresses:", *(f"   {address}" for address in remotes)]
    return lines


def _cluster(cluster: Mapping[str, Any]) -> list[str]:
    spec = cluster.get("Spec") or {}
    raft, ca = spec.get("Raft") or {}, spec.get("CAConfig") or {}
    expiry = ca.get("NodeCertExpiry", 0) / SECOND
    heartbeat = (spec.get("Dispatcher") or {}).get("HeartbeatPeriod", 0) / SECOND
    history = (spec.get("Orchestration") or {}).get("TaskHistoryRetentionLimit", 0)
    autolock = (spec.get("EncryptionConfig") or {}).get("AutoLockManagers", False)
    authorities = ca.get("ExternalCAs") or []
    lines = []
    if cluster.get("DefaultAddrPool"):
        lines += [f"  Default Address Pool: {' '.join(cluster['DefaultAddrPool'])}"]
        lines += [f"  SubnetSize: {cluster.get('SubnetSize', 0)}"]
    if cluster.get("DataPathPort"):
        lines.append(f"  Data Path Port: {cluster['DataPathPort']}")
    return [
        *lines,
        "  Orchestration:",
        f"   Task History Retention Limit: {history}",
        "  Raft:",
        f"   Snapshot Interval: {raft.get('SnapshotInterval', 0)}",
        f"   Number of Old Snapshots to Retain: {raft.get('KeepOldSnapshots', 0)}",
        f"   Heartbeat Tick: {raft.get('HeartbeatTick', 0)}",
        f"   Election Tick: {raft.get('ElectionTick', 0)}",
        "  Dispatcher:",
        f"   Heartbeat Period: {human_duration(heartbeat)}",
        "  CA Configuration:",
        f"   Expiry Duration: {human_duration(expiry)}",
        f"   Force Rotate: {ca.get('ForceRotate', 0)}",
        *(["   External CAs:"] if authorities else []),
        *(f"     {one.get('Protocol', '')}: {one.get('URL', '')}" for one in authorities),
        f"  Autolock Managers: {str(autolock).lower()}",
        f"  Root Rotation In Progress: {str(cluster.get('RootRotationInProgress', False)).lower()}",
    ]

"""The node's facts as /info and /version show them. Pure."""

from __future__ import annotations

from manager.httpapi.backend import NodeFacts, SwarmFacts
from manager.httpapi.convert.common import Json, compact
from manager.httpapi.convert.swarm import cluster_to_json
from manager.httpapi.timestamps import rfc3339_nano
from manager.httpapi.versions import API_VERSION, API_VERSION_MIN, text_of

PLATFORM_NAME = "Swarm"


def ping_swarm_header(swarm: SwarmFacts) -> str:
    """Write the `Swarm` header of /_ping (`active/manager`, `inactive`, …)."""
    if swarm.local_node_state != "active":
        return swarm.local_node_state
    return "active/manager" if swarm.control_available else "active/worker"


def version_to_json(facts: NodeFacts) -> Json:
    """Write what `docker version` shows of the server."""
    common = {
        "ApiVersion": text_of(API_VERSION),
        "MinAPIVersion": text_of(API_VERSION_MIN),
        "GitCommit": facts.git_commit,
        "GoVersion": "",
        "Os": facts.os,
        "Arch": facts.go_arch,
        "KernelVersion": facts.kernel,
        "BuildTime": facts.build_time,
    }
    details = {**common, "Experimental": "false"}
    return {
        "Platform": {"Name": PLATFORM_NAME},
        "Components": [{"Name": "Engine", "Version": facts.version, "Details": details}],
        "Version": facts.version,
        **common,
    }


def info_to_json(facts: NodeFacts, *, now_ns: int, listener_count: int) -> Json:
    """Write what `docker info` shows of the server."""
    containers = facts.containers_running + facts.containers_paused + facts.containers_stopped
    members: Json = {
        "ID": facts.node_id,
        "Containers": containers,
        "ContainersRunning": facts.containers_running,
        "ContainersPaused": facts.containers_paused,
        "ContainersStopped": facts.containers_stopped,
        "Images": facts.images,
        "Driver": facts.driver,
        "DriverStatus": [list(pair) for pair in facts.driver_status],
        "Plugins": {
            "Volume": list(facts.volume_drivers),
            "Network": list(facts.network_drivers),
            "Authorization": None,
            "Log": list(facts.log_drivers),
        },
        "NEventsListener": listener_count,
        "SystemTime": rfc3339_nano(now_ns),
        "LoggingDriver": facts.logging_driver,
        "CgroupDriver": facts.cgroup_driver,
        "CgroupVersion": facts.cgroup_version,
        "KernelVersion": facts.kernel,
        "OperatingSystem": facts.operating_system,
        "OSVersion": facts.os_version,
        "OSType": facts.os,
        "Architecture": facts.architecture,
        "NCPU": facts.ncpu,
        "MemTotal": facts.mem_bytes,
        "DockerRootDir": facts.data_root,
        "Name": facts.name,
        "Labels": list(facts.labels),
        "ServerVersion": facts.version,
        "Runtimes": {name: {"path": path} for name, path in sorted(facts.runtimes.items())},
        "DefaultRuntime": facts.default_runtime,
        "InitBinary": facts.init_binary,
        "SecurityOptions": list(facts.security_options),
        "Swarm": swarm_info_to_json(facts),
        "Warnings": list(facts.warnings) or None,
    }
    members.update(_constants())
    return members


def _constants() -> Json:
    """Write the members that are the same on every node of ours."""
    commit = {"ID": ""}
    return {
        "MemoryLimit": True,
        "SwapLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "OomKillDisable": False,
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": 0,
        "NGoroutines": 0,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": []},
        "GenericResources": None,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "ExperimentalBuild": False,
        # Containers outlive the daemon here, which is what the Engine calls live restore.
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "ContainerdCommit": commit,
        "RuncCommit": commit,
        "InitCommit": commit,
        "CDISpecDirs": [],
    }


def swarm_info_to_json(facts: NodeFacts) -> Json:
    """Write where the node is in the cluster."""
    swarm = facts.swarm
    managers = [{"NodeID": m.node_id, "Addr": m.addr} for m in swarm.remote_managers]
    members: Json = {
        "NodeID": facts.node_id,
        "NodeAddr": swarm.node_addr,
        "LocalNodeState": swarm.local_node_state,
        "ControlAvailable": swarm.control_available,
        "Error": swarm.error,
        "RemoteManagers": managers or None,
    }
    members.update(compact({"Nodes": swarm.nodes, "Managers": swarm.managers}))
    if swarm.cluster is not None:
        members["Cluster"] = cluster_to_json(swarm.cluster)
    return members

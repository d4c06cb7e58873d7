"""What `docker info` and `docker version` show, put together from the node's parts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from manager.daemon.config import DaemonConfig
from manager.daemon.identity import Identity
from manager.daemon.machine import Machine, RuntimeFacts
from manager.httpapi.backend import LocalNodeState, NodeFacts, RemoteManager, SwarmFacts
from manager.nodeport.remotes import ManagerPeer
from manager.store import View
from proto.ids import NodeID

_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def facts_of(
    machine: Machine,
    config: DaemonConfig,
    *,
    identity: Identity | None,
    state: LocalNodeState,
    error: str,
    view: View | None,
    remotes: Sequence[ManagerPeer],
    runtime: RuntimeFacts,
    counts: tuple[int, int],
    images: int,
    warnings: tuple[str, ...] = (),
) -> NodeFacts:
    """Describe the node.

    Args:
        machine: what the machine is.
        config: where things lie.
        identity: this node's place in its cluster, if it has one.
        state: of the membership.
        error: why the state is "error".
        view: the store's committed view, on a manager that is not locked.
        remotes: the managers that a worker knows.
        runtime: what runs containers.
        counts: containers that run, and that ended and are kept.
        images: how many images the node has.
        warnings: what its operator should know.
    """
    running, stopped = counts
    return NodeFacts(
        node_id=identity.node_id if identity is not None else NodeID(""),
        name=machine.hostname,
        version=machine.version,
        operating_system=machine.operating_system,
        kernel=machine.kernel,
        architecture=machine.architecture,
        go_arch=_GO_ARCHITECTURES.get(machine.architecture, machine.architecture),
        ncpu=machine.cpus,
        mem_bytes=machine.memory_bytes,
        cgroup_version=runtime.cgroup_version,
        runtimes={runtime.name: runtime.path},
        default_runtime=runtime.name,
        data_root=str(config.state_dir),
        security_options=("name=seccomp,profile=builtin",),
        containers_running=running,
        containers_stopped=stopped,
        images=images,
        warnings=warnings,
        swarm=_swarm_facts(identity, state, error, view, remotes),
    )


def _swarm_facts(
    identity: Identity | None,
    state: LocalNodeState,
    error: str,
    view: View | None,
    remotes: Sequence[ManagerPeer],
) -> SwarmFacts:
    node_addr = identity.advertise_addr.rpartition(":")[0].strip("[]") if identity else ""
    if view is None:
        return SwarmFacts(
            local_node_state=state,
            error=error,
            node_addr=node_addr,
            remote_managers=tuple(RemoteManager(peer.node_id, peer.address) for peer in remotes),
        )
    managers = [node for node in view.nodes if node.manager_status is not None]
    return SwarmFacts(
        local_node_state=state,
        control_available=True,
        error=error,
        node_addr=node_addr,
        remote_managers=tuple(
            RemoteManager(node.id, node.manager_status.addr)
            for node in sorted(managers, key=lambda node: node.id)
            if node.manager_status is not None
        ),
        nodes=len(view.nodes),
        managers=len(managers),
        cluster=next(iter(view.clusters), None),
    )

"""What `swarmd` is told at its start, and where it keeps things."""

from __future__ import annotations

from pathlib import Path

import msgspec

from worker.runtime.spec import PIDS_DEFAULT


class DaemonConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one daemon.

    Attributes:
        state_dir: everything that must outlive a reboot.
        run_dir: sockets, namespaces and runtime state; may be a tmpfs.
        socket: where the Engine API is served.
        group: the group that may use the socket, if it exists.
        runtime: "auto", "crun" or "runc".
        cgroup_parent: the control group below which every container has its own.
        pool: the subnet of the node's bridge, or "" to choose a free one.
        pids_default: processes of a container whose service sets no limit; 0 gives it none.
        opens_ports_to_containers: whether containers may connect to managers' ports.
        raft_tick_seconds: an election takes 10 to 20 of them.
        has_lease_reads: the leading manager answers reads by its lease, without asking others.
    """

    state_dir: Path = Path("/var/lib/swarm")
    run_dir: Path = Path("/run/swarm")
    socket: Path = Path("/run/swarm/docker.sock")
    group: str = "swarm"
    runtime: str = "auto"
    cgroup_parent: str = "/swarm"
    pool: str = ""
    pids_default: int = PIDS_DEFAULT
    opens_ports_to_containers: bool = False
    raft_tick_seconds: float = 0.1
    has_lease_reads: bool = False

    @property
    def identity_file(self) -> Path:
        """Who this node is in which cluster; absent on a node that is in none."""
        return self.state_dir / "node.json"

    @property
    def raft_dir(self) -> Path:
        """The manager's log, snapshots and keys."""
        return self.state_dir / "raft"

    @property
    def certificates_dir(self) -> Path:
        """The node's certificate, its key, and the roots that it trusts."""
        return self.state_dir / "certificates"

    @property
    def managers_file(self) -> Path:
        """The managers that the node knows."""
        return self.state_dir / "managers.json"

    @property
    def worker_dir(self) -> Path:
        """The worker's database and volumes."""
        return self.state_dir / "worker"

    @property
    def images_dir(self) -> Path:
        """Images and their unpacked layers."""
        return self.state_dir / "images"

    @property
    def containers_dir(self) -> Path:
        """The containers' own layers, bundles and logs."""
        return self.state_dir / "containers"

    @property
    def pid_file(self) -> Path:
        """The daemon's process ID; locked while it runs."""
        return self.run_dir / "swarmd.pid"

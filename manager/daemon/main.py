"""The program `swarmd`: reads options, composes the node, serves the API until told to end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import grp
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import structlog

from manager.daemon.config import DaemonConfig
from manager.daemon.logging import configure_logging
from manager.daemon.machine import RuntimeFacts, read_machine
from manager.daemon.node import SwarmNode
from manager.httpapi.app import make_app
from manager.httpapi.server import serve_tls, serve_unix
from overlay.firewall import HostFirewall
from overlay.node import BridgeNetwork
from proto.clock import Clock, SystemClock
from proto.errors import InUseError, RuntimeFailedError, SwarmError, reason_of
from worker.images.store import ImageStore
from worker.runtime import cgroups
from worker.runtime.oci import OciRuntime
from worker.runtime.probe import CANDIDATES, probe

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

TICK_SECONDS_MIN, TICK_SECONDS_MAX = 0.01, 10.0


def parse_options(arguments: Sequence[str]) -> tuple[DaemonConfig, bool]:
    """Read the command line; returns the settings and whether to log at debug level."""
    parser = argparse.ArgumentParser(
        prog="swarmd", description="The daemon of a Swarm node.", allow_abbrev=False
    )
    default = DaemonConfig()
    add = parser.add_argument
    add("--state-dir", type=Path, default=default.state_dir, help="state that outlives a reboot")
    add("--run-dir", type=Path, default=default.run_dir, help="sockets and runtime state")
    add("-H", "--host", default="", help="where to serve the API: unix:///path")
    add("-G", "--group", default=default.group, help="group that may use the socket")
    add("--runtime", choices=("auto", "crun", "runc"), default="auto", help="OCI runtime")
    add("--cgroup-parent", default=default.cgroup_parent, help="parent of containers' cgroups")
    add("--bip", default="", metavar="CIDR", help="subnet of the bridge gwbr")
    add(
        "--lease-reads",
        action="store_true",
        help="while it leads, answer reads without asking the other managers first; saves a round "
        "trip, and answers may be out of date on a machine that can be paused from outside "
        "(a virtual machine that is suspended, moved or stopped by its host)",
    )
    add(
        "--raft-tick",
        type=float,
        default=default.raft_tick_seconds,
        metavar="SECONDS",
        help="an election takes 10 to 20 of them (default: %(default)s)",
    )
    add(
        "--default-pids-limit",
        type=int,
        default=default.pids_default,
        metavar="N",
        help="processes of a container whose service sets none (default: %(default)s; 0: no limit)",
    )
    add(
        "--open-ports-to-containers",
        action="store_true",
        help="let containers connect to the ports of swarm managers, this node's and others'",
    )
    add("-D", "--debug", action="store_true", help="log every step")
    options = parser.parse_args(arguments)
    scheme, _, path = options.host.rpartition("://")
    if options.host and scheme != "unix":
        parser.error(f"--host {options.host}: only unix:///path is served")
    socket_path = Path(path) if options.host else options.run_dir / "docker.sock"
    for name, value in (("--state-dir", options.state_dir), ("--run-dir", options.run_dir)):
        if not value.is_absolute():
            parser.error(f"{name} {value}: must be an absolute path")
    if not options.cgroup_parent.startswith("/"):
        parser.error(f"--cgroup-parent {options.cgroup_parent}: must begin with /")
    if options.default_pids_limit < 0:
        parser.error(f"--default-pids-limit {options.default_pids_limit}: must be 0 or more")
    if not TICK_SECONDS_MIN <= options.raft_tick <= TICK_SECONDS_MAX:
        parser.error(
            f"--raft-tick {options.raft_tick}: must be {TICK_SECONDS_MIN} to {TICK_SECONDS_MAX} s"
        )
    config = DaemonConfig(
        state_dir=options.state_dir,
        run_dir=options.run_dir,
        socket=socket_path,
        group=options.group,
        runtime=options.runtime,
        cgroup_parent=options.cgroup_parent,
        pool=options.bip,
        pids_default=options.default_pids_limit,
        opens_ports_to_containers=options.open_ports_to_containers,
        raft_tick_seconds=options.raft_tick,
        has_lease_reads=options.lease_reads,
    )
    return config, options.debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the daemon; exit code 0 when told to end, 1 when it cannot start."""
    config, is_debug = parse_options(sys.argv[1:] if arguments is None else arguments)
    configure_logging(is_debug=is_debug)
    try:
        asyncio.run(run(config))
    except SwarmError as error:
        print(f"swarmd: {error.message}", file=sys.stderr)  # noqa: T201 -- for whoever started it
        sys.exit(1)


async def run(config: DaemonConfig) -> None:
    """Compose the node, serve until SIGTERM or SIGINT, and leave the containers running."""
    if os.geteuid() != 0:
        raise RuntimeFailedError("only root can run containers; start swarmd as root")
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Containers' files and environment are in it; a directory made by somebody else may be open.
    config.state_dir.chmod(0o700)
    config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    pid_file = lock_pid_file(config.pid_file)
    state_file = lock_pid_file(config.state_dir / "swarmd.lock")
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    node = await compose(config, SystemClock())
    node.serve_tls = lambda address, credentials: serve_tls(
        make_app(node, peers=node), address, credentials
    )
    node.protection.use(HostFirewall(), is_open_to_containers=config.opens_ports_to_containers)
    await node.start()
    try:
        listener = await serve_unix(make_app(node, peers=node), config.socket, gid_of(config.group))
        log.info("daemon_started", socket=str(config.socket), version=node.version)
        notify("READY=1")
        await ended.wait()
        notify("STOPPING=1")
        await listener.close()
    finally:
        await node.close()
        state_file.close()
        pid_file.close()
        log.info("daemon_stopped")


async def compose(config: DaemonConfig, clock: Clock) -> SwarmNode:
    """Make the node's parts, each from what the machine has."""
    candidates = CANDIDATES if config.runtime == "auto" else (config.runtime,)
    binaries, _ = await probe(
        config.state_dir,
        spare_dir=config.run_dir,
        candidates=candidates,
        cgroup_parent=config.cgroup_parent,
        clock=clock,
    )
    return SwarmNode(
        config,
        read_machine(),
        images=await ImageStore.open(config.images_dir, clock),
        runtime=OciRuntime(
            config.containers_dir,
            config.run_dir,
            binaries,
            cgroup_parent=config.cgroup_parent,
            pids_default=config.pids_default,
            clock=clock,
        ),
        runtime_facts=RuntimeFacts(
            name=binaries.name,
            path=binaries.runtime,
            cgroup_version=str(cgroups.detect().version),
        ),
        network=BridgeNetwork(config.run_dir / "netns", config.pool),
        clock=clock,
        rng=random.SystemRandom(),
    )


def gid_of(group: str) -> int | None:
    """Return the ID of the group that may use the socket, or None: then only root may."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        log.info("group_missing", group=group, remedy=f"groupadd --system {group}")
        return None


def lock_pid_file(path: Path) -> TextIO:
    """Take a directory for this process; the lock ends with the process, however it ends.

    Raises:
        InUseError: another swarmd has it.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise InUseError(
            f"another swarmd (process {owner}) runs with {path.parent}; "
            "stop it, or give this one another --run-dir and --state-dir"
        ) from error
    try:
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except OSError as error:
        # The lock is what counts. What is left in the buffer is not to be written at the end.
        log.warning("pid_not_written", path=str(path), error=reason_of(error))
        lock = os.dup(file.fileno())
        with contextlib.suppress(OSError):
            file.close()
        return os.fdopen(lock, "a+")
    return file


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())

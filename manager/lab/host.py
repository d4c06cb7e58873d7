"""A host of the lab: network, mount, PID, UTS and IPC namespaces of its own, and a place for state.

A host is held by an init process (tini) that adopts orphans, so that containers outlive a killed
`swarmd` as they do on a real machine. Everything of a host dies with that process: its PID
namespace's processes, its mounts and its links; `Host.stop` then removes what the kernel leaves,
the control groups and the directory. The machine's own links, rules and mounts are never touched.

A host alone has a switch of its own, whose namespace stands for the world outside; the hosts of a
lab share one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from manager.lab.cgroups import CGROUP_PREFIX, remove_cgroup, remove_stale_cgroups
from manager.lab.processes import (
    ProcessRef,
    bearing,
    command_name,
    first_child,
    outer,
    spawn,
    wait_for,
)
from manager.lab.switch import CLIENT_ADDRESS, Switch
from proto.errors import RuntimeFailedError
from worker.files import tree

__all__ = ["CLIENT_ADDRESS", "HOST_ADDRESS", "Host"]

HOST_ADDRESS = "10.77.0.1"
_INIT = "tini"
_PING_SECONDS_MAX = 5.0
# What a user's shell says about other daemons has no meaning inside.
_OTHER_DAEMONS = frozenset(
    {"SWARM_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}
)

# Runs inside the new namespaces. The unified hierarchy of a hybrid machine is hidden, because crun
# refuses to work beside it; the network's switches (/proc/sys/net) belong to the namespace. The
# socket is found at its usual place, too.
_SETUP = f"""
set -e
hostname "$1"
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/swarm
ln -s "$2" /run/swarm/docker.sock
if [ -n "$3" ]; then mount --bind "$3" /etc/hosts; fi
ip link set lo up
exec {_INIT} -s -- sleep infinity
"""


class Host:
    """One host. Its directories, and so its socket, can be reached from outside too.

    Args:
        name: its host name.
        root: a directory for state and logs; made if missing, removed by `stop`.
        address: on the switch.
        switch: shared with others; without one the host gets its own.
        init: its init process, if the host runs already.
        cgroup_parent: of its containers; one that names this process if not given.
        hosts_file: what /etc/hosts shall say inside, if not what the machine's says.
        mark: for finding its processes when whoever started them is gone.
        dies_with_us: whether it ends with this program.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        address: str = HOST_ADDRESS,
        switch: Switch | None = None,
        init: ProcessRef | None = None,
        cgroup_parent: str = "",
        hosts_file: Path | None = None,
        mark: str = "",
        dies_with_us: bool = True,
    ) -> None:
        self.name = name
        self.root = root
        self.address = address
        self.state = root / "state"
        self.run = root / "run"
        self.log = root / "swarmd.log"
        self.cgroup_parent = cgroup_parent or f"/{CGROUP_PREFIX}{name}-{os.getpid()}"
        self.init = init
        self._owns_switch = switch is None
        self._switch = switch or Switch()
        self._hosts_file = hosts_file
        self._mark = mark
        self._dies_with_us = dies_with_us
        self._holder: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The path of the Engine API's socket, the same inside and outside of the host."""
        return self.run / "docker.sock"

    # ---------------------------------------------------------------- the machine

    def start(self) -> None:
        """Make the namespaces and the link to the switch."""
        remove_stale_cgroups()
        self.begin()
        self.connect()

    def begin(self) -> None:
        """Begin to make the namespaces; `connect` waits for them."""
        for directory in (self.state, self.run):
            directory.mkdir(parents=True, exist_ok=True)
        if self._owns_switch:
            self._switch.start(self._own_log)
        with self._own_log.open("ab") as output:
            self._holder = spawn(
                [
                    *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork"),
                    *("--kill-child", "--propagation", "private", "--mount-proc"),
                    *("sh", "-c", _SETUP, "setup", self.name, str(self.socket)),
                    str(self._hosts_file or ""),
                ],
                mark=self._mark,
                dies_with_us=self._dies_with_us,
                output=output,
            )

    @property
    def _own_log(self) -> Path:
        return self.root / "host.log"

    def connect(self) -> None:
        """Wait for the namespaces and connect them to the switch."""
        holder = self._holder
        assert holder is not None, "begin was called"

        def is_ready() -> bool:
            if holder.poll() is not None:
                said = self._own_log.read_text(errors="replace").strip()
                raise RuntimeFailedError(f"host {self.name} did not start: {said[-1000:]}")
            pid = first_child(holder.pid)
            return pid is not None and command_name(pid) == _INIT

        wait_for(is_ready, f"host {self.name} did not start in time")
        pid = first_child(holder.pid)
        assert pid is not None, "init runs until it is told to end"
        self.init = ProcessRef.of(pid)
        self._switch.attach(self.name, pid, self.address)

    @property
    def is_up(self) -> bool:
        """Tell whether the host runs, with or without a daemon."""
        return self.init is not None and self.init.is_alive

    @property
    def init_pid(self) -> int:
        """The PID of the host's init process, as the machine sees it."""
        assert self.init is not None, "the host runs"
        return self.init.pid

    def restart(self) -> None:
        """End everything in the host at once and start it again, as a machine without power."""
        self.cut_power()
        self.start()

    def cut_power(self) -> None:
        """End everything in the host at once; what is on its disk stays."""
        # Whoever entered the host waits outside for what it started, and the kernel for both: one
        # that was stopped, as `nsenter` is when its daemon is, would wait for ever.
        for process in bearing(self._mark) if self._mark else ():
            process.kill()
        if self._daemon is not None:
            self._daemon.kill()
        if self.init is not None:
            init = self.init
            init.kill()
            wait_for(lambda: not init.is_alive, f"host {self.name} does not end")
        elif self._holder is not None:
            self._holder.kill()  # its child goes with it
        for ours in (self._holder, self._daemon):
            if ours is not None:
                ours.wait(30)
        self.init = self._holder = self._daemon = None
        if self._owns_switch:
            self._switch.stop()
        elif self._switch.holder is not None and self._switch.holder.is_alive:
            self._switch.detach(self.name)
        wait_for(lambda: remove_cgroup(self.cgroup_parent), "the host's cgroups are in use")
        # A machine's /run is in its memory.
        with contextlib.suppress(OSError):
            tree.remove(self.run)

    def stop(self) -> None:
        """End everything in the host and remove what it leaves."""
        self.cut_power()
        with contextlib.suppress(OSError):
            tree.remove(self.root)

    # ---------------------------------------------------------------- commands in it

    def enter(self, command: Sequence[str], *options: str) -> list[str]:
        """Return the command line that runs `command` inside the host."""
        enter = ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p"]
        return [*enter, *options, "--", *command]

    def enter_client(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in the client's network."""
        return self._switch.enter(command)

    @property
    def environment(self) -> dict[str, str]:
        """The environment for commands inside the host: both clients find the socket."""
        kept = {key: value for key, value in os.environ.items() if key not in _OTHER_DAEMONS}
        return {**kept, "DOCKER_HOST": f"unix://{self.socket}", "PATH": path_inside()}

    def exec(
        self, *command: str, timeout: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host and return what it printed.

        Raises:
            RuntimeFailedError: it failed and `check` is set, or took longer than `timeout` seconds.
        """
        try:
            done = subprocess.run(
                self.enter(command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            text = f"{' '.join(command)} took longer than {timeout:.0f} s"
            raise RuntimeFailedError(text) from error
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise RuntimeFailedError(f"{' '.join(command)} failed ({done.returncode}): {said}")
        return done

    # ---------------------------------------------------------------- the daemon

    def start_daemon(self, *options: str) -> None:
        """Start `swarmd` in the host and wait until it answers."""
        self.begin_daemon(*options)
        self.wait_daemon()

    def begin_daemon(self, *options: str) -> None:
        """Begin to start `swarmd`."""
        daemon = str(Path(sys.executable).parent / "swarmd")
        with self.log.open("ab") as log:
            self._daemon = spawn(
                self.enter(
                    [
                        *(daemon, "--state-dir", str(self.state), "--run-dir", str(self.run)),
                        *("--cgroup-parent", self.cgroup_parent, *options),
                    ]
                ),
                mark=self._mark,
                environment=self.environment,
                dies_with_us=False,  # it ends with the host
                output=log,
            )

    def wait_daemon(self) -> None:
        """Wait until `swarmd` answers."""
        message = f"swarmd of {self.name} did not start; its log is {self.log}"
        wait_for(self._answers, message, seconds=30.0, poll_seconds=0.02)

    def _answers(self) -> bool:
        if self._daemon is not None and self._daemon.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeFailedError(
                f"swarmd of {self.name} ended with {self._daemon.returncode}:\n{tail}"
            )
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_PING_SECONDS_MAX)
                connection.connect(str(self.socket))
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, TimeoutError):
            # Reset: a child that a killed daemon was just starting had its socket for a moment.
            return False

    @property
    def daemon_pid(self) -> int:
        """The PID of `swarmd` inside the host."""
        return int((self.run / "swarmd.pid").read_text())

    @property
    def daemon(self) -> ProcessRef | None:
        """The process `swarmd` as the machine sees it, if it runs."""
        try:
            inner = self.daemon_pid
        except (FileNotFoundError, ValueError):
            return None
        return outer(self.init_pid, inner, "swarmd")

    def kill_daemon(self, signal_name: str = "KILL") -> None:
        """Send a signal to `swarmd` and wait for its end."""
        daemon = self.daemon
        if daemon is None:
            raise RuntimeFailedError(f"swarmd does not run on {self.name}")
        daemon.kill(signal.Signals[f"SIG{signal_name}"])
        wait_for(lambda: not daemon.is_alive, f"swarmd of {self.name} does not end", seconds=30.0)
        if self._daemon is not None:
            self._daemon.wait(30)
            self._daemon = None


def path_inside() -> str:
    """Return where a host looks for programs: ours first, and always where Debian keeps root's."""
    ours = Path(sys.executable).parent
    return f"{ours}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

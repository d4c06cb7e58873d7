"""A host of the lab: network, mount, PID, UTS and IPC namespaces of its own, and a place for state.

A host is held by an init process (tini) that adopts orphans, so that containers outlive a killed
`swarmd` as they do on a real machine. Everything of a host dies with that process: its PID
namespace's processes, its mounts and its links; `Host.stop` then removes what the kernel leaves,
the control groups and the directory. The machine's own links, rules and mounts are never touched.

A host's network reaches a *client* namespace, which stands for the world outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from proto.errors import RuntimeFailedError

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "swarm-lab-"
HOST_ADDRESS = "10.77.0.1"
CLIENT_ADDRESS = "10.77.0.254"
_PR_SET_PDEATHSIG = 1
_START_SECONDS_MAX = 20.0

# Runs inside the new namespaces. The unified hierarchy of a hybrid machine is hidden, because crun
# refuses to work beside it; the network's switches (/proc/sys/net) belong to the namespace.
_SETUP = """
set -e
hostname "$1"
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
touch "$2"
exec tini -s -- sleep infinity
"""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """One host. Its directories, and so its socket, can be reached from outside too.

    Args:
        name: its host name.
        root: a directory for state and logs; made if missing, removed by `stop`.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.state = root / "state"
        self.run = root / "run"
        self.log = root / "swarmd.log"
        self.cgroup_parent = f"/{CGROUP_PREFIX}{name}-{os.getpid()}"
        self._init: subprocess.Popen[bytes] | None = None
        self._client: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The path of the Engine API's socket, the same inside and outside of the host."""
        return self.run / "docker.sock"

    def start(self) -> None:
        """Make the namespaces and the link to the client namespace."""
        remove_stale_cgroups()
        for directory in (self.state, self.run):
            directory.mkdir(parents=True, exist_ok=True)
        ready = self.root / "ready"
        ready.unlink(missing_ok=True)
        self._init = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork"),
                *("--kill-child", "--propagation", "private", "--mount-proc"),
                *("sh", "-c", _SETUP, "setup", self.name, str(ready)),
            ],
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 -- this program has one thread here
        )
        self._client = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 -- this program has one thread here
        )
        _wait_for(ready.exists, f"host {self.name} did not start")
        own_net = Path("/proc/self/ns/net").readlink()
        client = self._client.pid
        _wait_for(
            lambda: Path(f"/proc/{client}/ns/net").readlink() != own_net, "no client namespace"
        )
        self._connect()

    def _connect(self) -> None:
        assert self._client is not None
        link = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0"]
        self._check(
            ["nsenter", "-t", str(self.init_pid), "-n", *link, "netns", str(self._client.pid)]
        )
        for pid, address in ((self.init_pid, HOST_ADDRESS), (self._client.pid, CLIENT_ADDRESS)):
            enter = ["nsenter", "-t", str(pid), "-n", "ip"]
            self._check([*enter, "addr", "add", f"{address}/24", "dev", "eth0"])
            self._check([*enter, "link", "set", "eth0", "up"])
            self._check([*enter, "link", "set", "lo", "up"])
        gateway = ["nsenter", "-t", str(self.init_pid), "-n", "ip", "route", "add", "default"]
        self._check([*gateway, "via", CLIENT_ADDRESS])

    @staticmethod
    def _check(command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeFailedError(f"{' '.join(command)} failed: {done.stderr.strip()}")

    @property
    def init_pid(self) -> int:
        """The PID of the host's init process, as the machine sees it."""
        assert self._init is not None
        outer = self._init.pid
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        assert children, "unshare has forked"
        return int(children[0])

    def enter(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` inside the host."""
        return ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "--", *command]

    def enter_client(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in the client's network."""
        assert self._client is not None
        return ["nsenter", "-t", str(self._client.pid), "-n", "--", *command]

    @property
    def environment(self) -> dict[str, str]:
        """The environment for commands inside the host: both clients find the socket."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        return {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "PATH": path}

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

    def start_daemon(self, *options: str) -> None:
        """Start `swarmd` in the host and wait until it answers."""
        daemon = str(Path(sys.executable).parent / "swarmd")
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(
                self.enter(
                    [
                        *(daemon, "--state-dir", str(self.state), "--run-dir", str(self.run)),
                        *("--cgroup-parent", self.cgroup_parent, *options),
                    ]
                ),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait_for(self._answers, f"swarmd did not start; its log is {self.log}")

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeFailedError(f"swarmd ended with {self._daemon.returncode}:\n{tail}")
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket))
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
            # Reset: a child that a killed daemon was just starting had its socket for a moment.
            return False

    @property
    def daemon_pid(self) -> int:
        """The PID of `swarmd` inside the host."""
        return int(self.exec("cat", str(self.run / "swarmd.pid")).stdout)

    def kill_daemon(self, signal_name: str = "KILL") -> None:
        """Send a signal to `swarmd` and wait for its end."""
        assert self._daemon is not None
        self.exec("kill", f"-{signal_name}", str(self.daemon_pid))
        self._daemon.wait(30)
        self._daemon = None

    def restart(self) -> None:
        """End everything in the host at once and start it again, as a machine without power."""
        self._end()
        self.start()

    def _end(self) -> None:
        for process in (self._client, self._init):
            if process is not None:
                process.kill()
                process.wait()
        self._init = self._client = None
        if self._daemon is not None:
            self._daemon.wait(30)
            self._daemon = None

    def stop(self) -> None:
        """End everything in the host and remove what it leaves."""
        self._end()
        _wait_for(lambda: remove_cgroup(self.cgroup_parent), "the host's cgroups are in use")
        shutil.rmtree(self.root, ignore_errors=True)


def _wait_for(condition: object, message: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + _START_SECONDS_MAX  # noqa: TID251 -- a shell
    while not condition():
        if time.monotonic() > deadline:  # noqa: TID251 -- a shell
            raise RuntimeFailedError(message)
        time.sleep(0.02)


def remove_cgroup(parent: str) -> bool:
    """Remove a control group and its children from every hierarchy; False while one is in use."""
    is_gone = True
    hierarchies = [CGROUP_ROOT]
    if not (CGROUP_ROOT / "cgroup.procs").exists():
        hierarchies = [path for path in CGROUP_ROOT.iterdir() if not path.is_symlink()]
    for hierarchy in hierarchies:
        top = hierarchy / parent.lstrip("/")
        if not top.is_dir():
            continue
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.rmdir(path)  # noqa: PTH106 -- os.walk gives strings
                except OSError:
                    is_gone = False
    return is_gone


def remove_stale_cgroups() -> None:
    """Remove the control groups of hosts whose program ended without `Host.stop`."""
    hierarchies = [CGROUP_ROOT, *(p for p in CGROUP_ROOT.iterdir() if p.is_dir())]
    names = {p.name for h in hierarchies for p in h.glob(f"{CGROUP_PREFIX}*")}
    for name in sorted(names):
        owner = name.rpartition("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove_cgroup(f"/{name}")

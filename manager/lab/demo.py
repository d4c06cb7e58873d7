"""`make demo`: one node, end to end. Every step says what it proves, and is checked.

The node lives in network, mount, PID, UTS and IPC namespaces of its own, so that the machine is
afterwards as it was; the last step proves that too. A step that fails ends the demo with exit
code 1 and says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from manager.lab.footprint import Footprint, read_host_footprint, read_machine_footprint
from manager.lab.host import HOST_ADDRESS, Host
from manager.lab.image import make_rootfs_tar
from proto.errors import RuntimeFailedError, SwarmError

_CONVERGE_SECONDS_MAX = 30.0
_FETCH = (
    "import sys,urllib.request as r;"
    "sys.stdout.write(r.urlopen(sys.argv[1],timeout=5).read().decode())"
)
_GET = (
    "import http.client,socket,sys;"
    "c=http.client.HTTPConnection('swarm');c.sock=socket.socket(socket.AF_UNIX);"
    "c.sock.connect(sys.argv[1]);c.request('GET',sys.argv[2]);"
    "sys.stdout.write(c.getresponse().read().decode())"
)
_FILTERS = quote('{"service":["web"],"desired-state":["running"]}')
_CMD = 'CMD ["sh","-c","echo web $HOSTNAME is up; exec httpd -f -p 80 -h /www"]'


class Demo:
    """The walk through one node."""

    def __init__(self, host: Host) -> None:
        """Show things on this host."""
        self._host = host
        self._started = time.monotonic()  # noqa: TID251 -- a person watches

    def say(self, what: str, proves: str) -> None:
        """Head a step."""
        elapsed = time.monotonic() - self._started  # noqa: TID251 -- a person watches
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        print(f"\n{bold}[{elapsed:5.1f} s] {what}{plain}\n         proves: {proves}", flush=True)

    def swarm(self, *arguments: str, show: bool = True) -> str:
        """Run `swarm …` in the host as a person would, and show what it prints."""
        printed = self._host.exec("swarm", *arguments).stdout
        if show:
            print(f"  $ swarm {' '.join(_shorten(a) for a in arguments)}")
            print("".join(f"  {line}\n" for line in printed.splitlines()), end="", flush=True)
        return printed

    def fetch(self, address: str) -> str:
        """Fetch the page as a client outside of the node."""
        command = self._host.enter_client(
            [sys.executable, "-c", _FETCH, f"http://{address}/index.html"]
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            raise RuntimeFailedError(f"no answer from {address}: {done.stderr.strip()[-200:]}")
        return done.stdout

    def running(self) -> dict[str, int]:
        """Return the running tasks of the service: names to the PIDs of their containers."""
        said = self._host.exec(
            sys.executable, "-c", _GET, str(self._host.socket), f"/tasks?filters={_FILTERS}"
        )
        return {
            task["ID"]: task["Status"]["ContainerStatus"]["PID"]
            for task in json.loads(said.stdout)
            if task["Status"]["State"] == "running"
        }

    def wait_for_replicas(self, replicas: int, *, other_than: str = "") -> dict[str, int]:
        """Wait until this many tasks run, none of them `other_than`."""
        deadline = time.monotonic() + _CONVERGE_SECONDS_MAX  # noqa: TID251 -- a shell
        while True:
            running = self.running()
            if len(running) == replicas and other_than not in running:
                return running
            if time.monotonic() > deadline:  # noqa: TID251 -- a shell
                raise RuntimeFailedError(f"{len(running)} of {replicas} tasks run")
            time.sleep(0.1)

    def check(self, is_true: bool, claim: str) -> None:  # noqa: FBT001 -- reads as an assertion
        """Say that a claim was checked, or end the demo."""
        if not is_true:
            raise RuntimeFailedError(f"not true: {claim}")
        print(f"  ok: {claim}", flush=True)


def show(demo: Demo, host: Host) -> None:
    """Go through the steps."""
    demo.say("An image from the machine's busybox", "no registry is needed, and no dockerd")
    archive = host.root / "rootfs.tar"
    make_rootfs_tar(archive)
    demo.swarm("image", "import", "--change", _CMD, str(archive), "web:1")
    demo.swarm("image", "ls")

    demo.say("swarm init", "one daemon is a manager with encrypted state, and a worker")
    demo.swarm("init", "--advertise-addr", HOST_ADDRESS)
    demo.swarm("node", "ls")
    clean = look(host)

    demo.say("A service of three replicas", "real containers, scheduled, watched and published")
    demo.swarm(
        *("service", "create", "--name", "web", "--replicas", "3", "--publish", "8080:80"),
        *("--restart-delay", "1s", "--init", "--detach", "web:1"),
    )
    three = demo.wait_for_replicas(3)
    demo.swarm("service", "ls")
    demo.swarm("service", "ps", "web")
    logs = demo.swarm("service", "logs", "web")
    demo.check(logs.count(" is up") == len(three), "each of the three has logged its line")

    demo.say("The published port", "a client outside of the node gets an answer from a container")
    page = demo.fetch(f"{HOST_ADDRESS}:8080")
    demo.check(page == "hello from swarm\n", f"http://{HOST_ADDRESS}:8080 says {page!r}")

    demo.say("Scale to 7 and back to 5", "tasks are added and removed, the others are left alone")
    demo.swarm("service", "scale", "--detach", "web=7")
    seven = demo.wait_for_replicas(7)
    demo.swarm("service", "scale", "--detach", "web=5")
    five = demo.wait_for_replicas(5)
    demo.check(five.items() <= seven.items(), "the five that stay were not restarted")

    demo.say("A killed container", "its slot gets another task, and the old one says what happened")
    victim, pid = next(iter(five.items()))
    host.exec("kill", "-9", str(pid))
    five = demo.wait_for_replicas(5, other_than=victim)
    demo.swarm("service", "ps", "web")

    demo.say("kill -9 of swarmd", "containers do not need their daemon")
    host.kill_daemon("KILL")
    for pid in five.values():
        host.exec("kill", "-0", str(pid))
    demo.check(is_true=True, claim="all five containers still run")
    demo.check(demo.fetch(f"{HOST_ADDRESS}:8080") == page, "the published port still answers")

    demo.say("swarmd again", "state is restored from its log, and the containers are adopted")
    host.start_daemon()
    demo.check(demo.wait_for_replicas(5) == five, "the same five tasks with the same processes")
    demo.swarm("service", "ls")

    demo.say("Remove the service", "no process, mount, cgroup, namespace or link is left behind")
    demo.swarm("service", "rm", "web")
    _wait_until(lambda: not look(host).difference(clean))
    demo.check(is_true=True, claim="the node looks as it did before the service")
    demo.swarm("leave", "--force")


def look(host: Host) -> Footprint:
    """List what is on the host now."""
    return read_host_footprint(host.init_pid, host.cgroup_parent)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _CONVERGE_SECONDS_MAX  # noqa: TID251 -- a shell
    while not condition():
        if time.monotonic() > deadline:  # noqa: TID251 -- a shell
            raise RuntimeFailedError("something of the service is left on the node")
        time.sleep(0.1)


def _shorten(argument: str) -> str:
    quoted = f"'{argument}'" if " " in argument else argument
    return quoted.replace(f"{tempfile.gettempdir()}/", "…/")


def main() -> int:
    """Run the demo; returns the exit code."""
    if os.geteuid() != 0:
        print("demo: only root can make namespaces and containers; run it as root")
        return 1
    before = read_machine_footprint()
    root = Path(tempfile.mkdtemp(prefix="swarm-demo-"))
    host = Host("demo", root)
    demo = Demo(host)
    failure = ""
    try:
        host.start()
        host.start_daemon()
        show(demo, host)
    except SwarmError as error:
        failure = error.message
        if host.log.exists():
            print("\nThe end of swarmd's log:\n" + host.log.read_text(errors="replace")[-4000:])
    finally:
        host.stop()
        shutil.rmtree(root, ignore_errors=True)
    if failure:
        print(f"\ndemo: failed: {failure}")
        return 1
    demo.say("The machine afterwards", "the node was in namespaces of its own")
    changes = read_machine_footprint().difference(before)
    print("".join(f"  {change}\n" for change in changes), end="")
    if changes:
        print("demo: failed: the machine is not as it was")
        return 1
    print("  ok: links, mounts, tables of rules and cgroups are as before")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make demo`: three managers and two workers on this machine, and what they survive.

The hosts are a lab (`swarm lab`), in namespaces of their own, so that the machine is afterwards as
it was; the last step proves that too. Every step says what it proves, and is checked. A step that
fails ends the demo with exit code 1 and says why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from manager.lab.engine import Engine
from manager.lab.footprint import Footprint, read_host_footprint, read_machine_footprint
from manager.lab.host import Host
from manager.lab.image import make_rootfs_tar
from manager.lab.lab import Lab
from proto.errors import NotFoundError, RuntimeFailedError, SwarmError

_CONVERGE_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.05
_PORT = 8080
_FETCH = (
    "import sys,urllib.request as r;"
    "sys.stdout.write(r.urlopen(sys.argv[1],timeout=5).read().decode())"
)
_CMD = 'CMD ["sh","-c","echo web $VERSION is up; exec httpd -f -p 80 -h /www"]'
_LOCKED = "Swarm is encrypted and needs to be unlocked"
_LOG_LINES_MAX = 10


def _now() -> float:
    return time.monotonic()  # noqa: TID251 -- a person watches


class Demo:
    """What the walk is made of."""

    def __init__(self, name: str) -> None:
        """Show things in a lab of this name."""
        self.lab = Lab(name)
        self._started = _now()

    # ------------------------------------------------------------ telling

    def say(self, what: str, proves: str) -> None:
        """Head a step."""
        elapsed = _now() - self._started
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        print(f"\n{bold}[{elapsed:5.1f} s] {what}{plain}\n         proves: {proves}", flush=True)

    def check(self, is_true: bool, claim: str) -> None:  # noqa: FBT001 -- reads as an assertion
        """Say that a claim was checked, or end the demo."""
        if not is_true:
            raise RuntimeFailedError(f"not true: {claim}")
        print(f"  ok: {claim}", flush=True)

    # ------------------------------------------------------------ doing

    def machine(self, *arguments: str) -> None:
        """Run `swarm lab …` on the machine, and show it."""
        command = ["lab", *arguments, "--name", self.lab.name]
        self._show("$", command, _run([str(Path(sys.executable).parent / "swarm"), *command]))
        # The command is a program of its own: what this one remembers of the hosts is old.
        self.lab = Lab(self.lab.name)

    def swarm(self, on: str, *arguments: str, check: bool = True, stdin: str = "") -> str:
        """Run `swarm …` on a host as a person would, and show what it prints."""
        host = self.lab.running(on)
        done = _run(
            host.enter(["swarm", *arguments]), check=check, stdin=stdin, env=host.environment
        )
        self._show(f"{on}$", list(arguments), done)
        return done

    def _show(self, prompt: str, arguments: list[str], printed: str) -> None:
        said = " ".join(f"'{word}'" if " " in word else word for word in arguments)
        print(f"  {prompt} swarm {said.replace(str(self.lab.data), '…')}")
        print("".join(f"  {line}\n" for line in printed.splitlines()), end="", flush=True)

    def api(self, on: str, url: str) -> Any:
        """Ask a host's daemon."""
        return Engine(self.lab.host(on).socket)("GET", url)

    def running(self, on: str, service: str = "web") -> dict[str, tuple[str, int]]:
        """Return a service's running tasks: their IDs to host and process there."""
        names = {n["ID"]: n["Description"].get("Hostname", "") for n in self.api(on, "/nodes")}
        wanted = quote(json.dumps({"service": [service], "desired-state": ["running"]}))
        return {
            task["ID"]: (names[task["NodeID"]], task["Status"]["ContainerStatus"]["PID"])
            for task in self.api(on, f"/tasks?filters={wanted}")
            if task["Status"]["State"] == "running"
        }

    def wait_for(self, what: str, condition: Callable[[], bool]) -> float:
        """Wait until something holds; returns the seconds that it took."""
        started = _now()
        while True:
            try:
                if condition():
                    return _now() - started
            except SwarmError as error:
                what = f"{what} ({error.message})"
            if _now() - started > _CONVERGE_SECONDS_MAX:
                raise RuntimeFailedError(f"not within {_CONVERGE_SECONDS_MAX:.0f} s: {what}")
            time.sleep(_POLL_SECONDS)

    def wait_for_replicas(self, on: str, replicas: int, *, not_on: str = "") -> float:
        """Wait until this many tasks run, none on `not_on`; returns the seconds it took."""

        def is_so() -> bool:
            running = self.running(on).values()
            return len(running) == replicas and not_on not in dict(running)

        return self.wait_for(f"{replicas} tasks run", is_so)

    def wait_until_ready(self, on: str, name: str) -> None:
        """Wait until a node is ready, and reachable if it is a manager."""

        def is_so() -> bool:
            nodes = {node["Description"].get("Hostname"): node for node in self.api(on, "/nodes")}
            manager = nodes[name].get("ManagerStatus") or {"Reachability": "reachable"}
            return (nodes[name]["Status"]["State"], manager["Reachability"]) == (
                "ready",
                "reachable",
            )

        self.wait_for(f"{name} is back", is_so)

    def spread(self, on: str) -> dict[str, int]:
        """Count the running tasks by host."""
        return dict(sorted(Counter(host for host, _ in self.running(on).values()).items()))

    def fetch(self, address: str) -> str:
        """Fetch the page as a client outside of the nodes."""
        return _run(
            self.lab.switch().enter([sys.executable, "-c", _FETCH, f"http://{address}/index.html"])
        )


def _run(
    command: list[str], *, check: bool = True, stdin: str = "", env: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        command, input=stdin, env=env, capture_output=True, text=True, timeout=90, check=False
    )
    if check and done.returncode:
        raise RuntimeFailedError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


# ---------------------------------------------------------------- the walk


def form(demo: Demo) -> dict[str, Footprint]:
    """Make the cluster and give it an image; returns what is on the hosts then."""
    demo.say("Three managers and two workers", "hosts of namespaces, each with its own swarmd")
    demo.machine("up", "--managers", "3", "--workers", "2")
    demo.swarm("m1", "node", "ls")

    demo.say("An image from the machine's busybox", "no registry is needed, and no dockerd")
    archive = demo.lab.data / "rootfs.tar"
    make_rootfs_tar(archive)
    command = ("image", "import", "--change", _CMD, str(archive), "web:1")
    hosts = [member.host for member in demo.lab.members()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda host: host.exec("swarm", *command), hosts[1:]))
    demo.swarm("m1", *command)
    return {host.name: look(host) for host in hosts}


def serve(demo: Demo) -> None:
    """A service over all hosts, its port, its output, an update."""
    demo.say("A service of ten replicas", "containers are spread over all nodes, managers too")
    demo.swarm(
        *("m1", "service", "create", "--name", "web", "--replicas", "10", "--publish"),
        *(f"{_PORT}:80", "--env", "VERSION=1", "--init", "--stop-grace-period", "1s"),
        *("--restart-delay", "1s", "--update-parallelism", "5", "--detach", "web:1"),
    )
    demo.wait_for_replicas("m1", 10)
    demo.swarm("m1", "service", "ps", "web")
    spread = demo.spread("m1")
    demo.check(set(spread.values()) == {2} and len(spread) == 5, f"two on each: {spread}")  # noqa: PLR2004 -- 10 on 5

    demo.say("The published port and the output", "clients outside of the nodes get an answer")
    for member in demo.lab.members():
        page = demo.fetch(f"{member.host.address}:{_PORT}")
        demo.check(page == "hello from swarm\n", f"{member.host.address}:{_PORT} says {page!r}")
    said = demo.swarm("w1", "node", "ls", check=False)
    demo.check("not a swarm manager" in said, "a worker says that managers are to be asked")
    logs = demo.swarm("m2", "service", "logs", "web").splitlines()
    hosts = Counter(line.partition("|")[0].strip().rpartition("@")[2] for line in logs)
    said_all = all(line.endswith("web 1 is up") for line in logs)
    demo.check(said_all and hosts == spread, "m2 shows the output of all tasks on all nodes")

    demo.say("An update of the service", "five at a time are replaced by the new version")
    old = set(demo.running("m1"))
    demo.swarm("m1", "service", "update", "--env-add", "VERSION=2", "--detach", "web")
    took = demo.wait_for(
        "ten new tasks",
        lambda: len(new := demo.running("m1")) == 10 and not old & set(new),  # noqa: PLR2004 -- all
    )
    demo.check(is_true=True, claim=f"ten new tasks run, {took:.1f} s after the update")


def lose_the_leader(demo: Demo) -> None:
    """Cut the leader's power."""
    demo.say("The leader loses its power", "another leads, writes go on, its tasks run elsewhere")
    demo.machine("kill", "m1")
    started = _now()
    demo.swarm("m2", "service", "create", "--name", "after", "--detach", "web:1")
    took = _now() - started
    demo.check(is_true=True, claim=f"the first write succeeded {took:.1f} s after the kill")
    more = demo.wait_for_replicas("m2", 10, not_on="m1")
    demo.check(is_true=True, claim=f"ten run without m1, {took + more:.1f} s after the kill")
    demo.swarm("m2", "node", "ls")
    demo.swarm("m2", "service", "rm", "after")

    demo.say("Its power is back", "it follows the new leader; tasks do not move back")
    demo.machine("start", "m1")
    demo.wait_until_ready("m2", "m1")
    demo.check("m1" not in demo.spread("m2"), f"ten run where they ran: {demo.spread('m2')}")


def lose_a_worker(demo: Demo) -> None:
    """Cut a worker's power."""
    demo.say("A worker loses its power", "its tasks are replaced on the other nodes")
    lost = demo.spread("m1")["w1"]
    started = _now()
    demo.machine("kill", "w1")
    demo.wait_for_replicas("m1", 10, not_on="w1")
    took = _now() - started
    demo.check(is_true=True, claim=f"its {lost} tasks run elsewhere, {took:.1f} s after the kill")
    demo.machine("start", "w1")
    demo.wait_until_ready("m1", "w1")
    demo.swarm("m1", "node", "ls")


def lose_a_daemon(demo: Demo) -> None:
    """End a worker's daemon; its containers must not notice."""
    demo.say("kill -9 of a swarmd", "containers need no daemon, and the next one adopts them")
    # Three heartbeats missed, and a node counts as dead: a busy machine starts no Python in 3 s.
    demo.swarm("m1", "update", "--dispatcher-heartbeat", "5s")
    before = {task: where for task, where in demo.running("m1").items() if where[0] == "w2"}
    host = demo.lab.running("w2")
    demo.machine("kill", "--daemon", "w2")
    for _, pid in before.values():
        host.exec("kill", "-0", str(pid))
    page = demo.fetch(f"{host.address}:{_PORT}")
    demo.check(page == "hello from swarm\n", f"its {len(before)} containers run and answer")
    demo.machine("start", "w2")
    demo.wait_for(
        "w2 has adopted its containers",
        lambda: demo.api("w2", "/info")["ContainersRunning"] == len(before),
    )
    demo.check(
        before.items() <= demo.running("m1").items(), "the same tasks with the same processes"
    )
    demo.swarm("m1", "update", "--dispatcher-heartbeat", "1s")


def drain(demo: Demo) -> None:
    """Take a node out of service."""
    demo.say("Drain a node", "its tasks move at once; an active node gets new ones only")
    started = _now()
    demo.swarm("m1", "node", "update", "--availability", "drain", "m3")
    demo.wait_for_replicas("m1", 10, not_on="m3")
    took = _now() - started
    demo.check(is_true=True, claim=f"ten run without m3, after {took:.1f} s")
    demo.swarm("m1", "node", "update", "--availability", "active", "m3")
    demo.swarm("m1", "service", "scale", "--detach", "web=12")
    demo.wait_for_replicas("m1", 12)
    demo.check("m3" in demo.spread("m1"), f"new tasks run on m3 again: {demo.spread('m1')}")


def lock(demo: Demo) -> None:
    """Lock the managers, restart one, unlock it."""
    demo.say("Lock the managers", "a restarted manager knows nothing without the key")
    printed = demo.swarm("m1", "update", "--autolock=true")
    key = next(word for word in printed.split() if word.startswith("SWMKEY-"))
    demo.machine("kill", "--daemon", "m2")
    demo.machine("start", "m2")
    said = demo.swarm("m2", "node", "ls", check=False)
    demo.check(_LOCKED in said, "the locked manager says what to do")
    demo.swarm("m2", "unlock", stdin=f"{key}\n")
    demo.wait_until_ready("m1", "m2")
    demo.swarm("m2", "node", "ls")


def clear(demo: Demo, clean: dict[str, Footprint]) -> None:
    """Remove the service and see that nothing of it is left."""
    demo.say("Remove the service", "no process, mount, cgroup, namespace or link is left behind")
    demo.swarm("m1", "service", "rm", "web")
    left: list[str] = []

    def is_clean() -> bool:
        left[:] = [
            f"{member.host.name}: {change}"
            for member in demo.lab.members()
            for change in look(member.host).difference(clean[member.host.name])
        ]
        return not left

    try:
        demo.wait_for("the nodes are as they were", is_clean)
    except RuntimeFailedError as error:
        raise RuntimeFailedError(f"{error.message}: {'; '.join(left)}") from error
    demo.check(is_true=True, claim="all five nodes look as they did before the service")
    demo.machine("down")


def look(host: Host) -> Footprint:
    """List what is on the host now."""
    return read_host_footprint(host.init_pid, host.cgroup_parent)


def show(demo: Demo) -> None:
    """Go through the steps."""
    clean = form(demo)
    serve(demo)
    lose_the_leader(demo)
    lose_a_worker(demo)
    lose_a_daemon(demo)
    drain(demo)
    lock(demo)
    clear(demo, clean)


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description="What several nodes survive.")
    parser.add_argument("--name", default="demo", help="of the lab (default demo)")
    name = parser.parse_args().name
    if os.geteuid() != 0:
        print("demo: only root can make namespaces and containers; run it as root")
        return 1
    ours = (f"swarm-lab.{name}.*", "swarm", "swarm/*")
    before = read_machine_footprint(ours)
    demo = Demo(name)
    failure = ""
    try:
        show(demo)
    except SwarmError as error:
        failure = error.message
        # A lab that was there before is somebody else's, and stays.
        if "is up already" not in failure:
            _tell_logs(demo)
            _end(demo)
    except BaseException:
        _end(demo)
        raise
    if failure:
        print(f"\ndemo: failed: {failure}")
        return 1
    demo.say("The machine afterwards", "the nodes were in namespaces of their own")
    changes = read_machine_footprint(ours).difference(before)
    print("".join(f"  {change}\n" for change in changes), end="")
    if changes:
        print("demo: failed: the machine is not as it was")
        return 1
    print("  ok: links, mounts, routes, rules, switches and cgroups are as before")
    return 0


def _tell_logs(demo: Demo) -> None:
    for log in sorted(demo.lab.data.glob("*/swarmd.log")):
        lines = log.read_text(errors="replace").splitlines()
        odd = [line for line in lines if '"level": "info"' not in line][-_LOG_LINES_MAX:]
        if odd:
            print("\n".join([f"\nWhat {log.parent.name} complained of last:", *odd]))


def _end(demo: Demo) -> None:
    try:
        Lab(demo.lab.name).down()
    except NotFoundError:
        return  # it failed before there was one


if __name__ == "__main__":
    sys.exit(main())

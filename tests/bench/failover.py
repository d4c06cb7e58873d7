"""How quickly a cluster forms, and goes on without a leader or a worker: `[--peer DIR]`.

Prints one JSON line. `init_s`, `worker_join_s`, `manager_join_s`: from the call to the node being
Ready, and a voter if it is a manager; medians. `leader_s`: from kill -9 of the leader's daemon to
the first `service create` that another manager answers with success. `worker_s`: from a worker
host's loss of power to its 4 of 20 tasks RUNNING elsewhere. p50, max and how many; all is measured
over HTTP at the daemons' sockets, as the peer's measure.py does. `swarm_timeouts` has the last two
with Docker Swarm's own settings: heartbeats of 5 s, three of them; elections of 10 to 20 ticks of
1 s. `docker_swarm` has what Docker Swarm 20.10.24 took on this kind of machine; with --peer, DIR
has its up.sh, measure.py and down.sh, and it is measured in the same run. REPS, SLOW_REPS.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from manager.lab.engine import Engine, EngineRefusedError
from manager.lab.formation import Member, begin, join
from manager.lab.image import make_rootfs_tar
from manager.lab.lab import Lab
from proto.errors import SwarmError

REPS = int(os.environ.get("REPS", "10"))
SLOW_REPS = int(os.environ.get("SLOW_REPS", "3"))
FORM_REPS = 3
REPLICAS = 20
POLL_SECONDS = 0.05
WAIT_SECONDS_MAX = 120.0
CREATE_SECONDS_MAX = 30.0
# Source: medians, minima and maxima that the peer's measure.py found, two shared cores.
DOCKER_SWARM = {
    "init_s": 0.58,
    "manager_join_s": 0.55,
    "worker_join_s": 0.39,
    "leader_s": {"p50": 15.0, "min": 9.5, "max": 25.5},
    "worker_s": {"p50": 18.6, "min": 15.7, "max": 20.3},
}
SWARM_SPEC = {"Dispatcher": {"HeartbeatPeriod": 5 * 10**9}}
SWARM_OPTIONS = ("--raft-tick", "1")


def now():
    return time.perf_counter()


def wait(condition, *, poll_seconds=POLL_SECONDS):
    """Return the seconds until a condition holds; a limit is never reported as a figure."""
    started = now()
    while now() - started < WAIT_SECONDS_MAX:
        with contextlib.suppress(SwarmError):
            if condition():
                return now() - started
        time.sleep(poll_seconds)
    raise SystemExit(f"not within {WAIT_SECONDS_MAX:.0f} s: {condition}")


def spec(name, replicas):
    container = {"Image": "bb:latest", "Command": ["sleep", "100000"], "StopGracePeriod": 0}
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {**container, "Init": False}},
        "Mode": {"Replicated": {"Replicas": replicas}},
    }


class Cluster:
    """A formed lab."""

    def __init__(self, lab):
        self.lab = lab
        self.members = lab.members()
        self.managers = [m.host for m in self.members if m.role == "manager"]

    def give_image(self):
        archive = self.lab.data / "rootfs.tar"
        make_rootfs_tar(archive)
        command = ("swarm", "image", "import", str(archive), "bb:latest")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda member: member.host.exec(*command), self.members))

    def engine(self, host, seconds=CREATE_SECONDS_MAX):
        return Engine(host.socket, seconds=seconds)

    def leader(self):
        """Return the host that leads now, and another manager."""
        found = []

        def is_known():
            for node in self.engine(self.managers[0])("GET", "/nodes"):
                if (node.get("ManagerStatus") or {}).get("Leader"):
                    found[:] = [h for h in self.managers if h.name == hostname(node)]
            return found

        wait(is_known)
        return found[0], next(host for host in self.managers if host is not found[0])

    def all_well(self, engine):
        nodes = engine("GET", "/nodes")
        return all(
            node["Status"]["State"] == "ready"
            and (node.get("ManagerStatus") or {"Reachability": "reachable"})["Reachability"]
            == "reachable"
            for node in nodes
        )


def hostname(node):
    return node["Description"].get("Hostname")


def running(engine, name):
    """Return the nodes of the running tasks that are wanted."""
    wanted = quote(json.dumps({"service": [name], "desired-state": ["running"]}))
    return [
        task["NodeID"]
        for task in engine("GET", f"/tasks?filters={wanted}")
        if task["Status"]["State"] == "running"
    ]


def formation():
    """Time the beginning and each joining of a cluster of 3 managers and 2 workers."""
    figures = {"init_s": [], "manager_join_s": [], "worker_join_s": []}
    for _ in range(FORM_REPS):
        lab = Lab(f"bench{os.getpid()}")
        lab.up(3, 2, is_formed=False)
        try:
            first, *others = lab.members()
            started = now()
            tokens = begin(first.host)
            figures["init_s"].append(now() - started)
            for member in others:
                figures[f"{member.role}_join_s"].append(timed_join(member, first.host, tokens))
        finally:
            lab.down()
    return {name: round(statistics.median(times), 3) for name, times in figures.items()}


def timed_join(member: Member, first, tokens):
    engine = Engine(first.socket)
    started = now()
    # A manager's call returns when it votes; one that gave up waiting has said so in its log.
    join(member, first, tokens)

    def is_ready():
        states = {hostname(n): n["Status"]["State"] for n in engine("GET", "/nodes")}
        return states.get(member.host.name) == "ready"

    wait(is_ready, poll_seconds=0.01)
    elapsed = now() - started
    if "join_not_settled" in member.host.log.read_text():
        raise SystemExit(f"{member.host.name} was not let in in time")
    return elapsed


def lose_leader(cluster, number, rng):
    """Kill the leader's daemon; return the seconds to the first create elsewhere."""
    leader, other = cluster.leader()
    time.sleep(rng.uniform(1.5, 3.5))
    engine = cluster.engine(other)
    daemon = leader.daemon
    daemon.kill()
    started = now()

    def is_created():
        try:
            engine("POST", "/services/create", spec(f"kl{number}", 1))
        except EngineRefusedError as error:
            return "already exists" in error.message
        return True

    wait(is_created)
    elapsed = now() - started
    wait(lambda: not daemon.is_alive)
    cluster.lab.start(leader.name)
    wait(lambda: cluster.all_well(engine))
    engine("DELETE", f"/services/kl{number}")
    return elapsed


def lose_worker(cluster, number, rng):
    """Cut a worker's power; return the seconds to its tasks RUNNING elsewhere."""
    leader, _ = cluster.leader()
    engine = cluster.engine(leader)
    worker = next(m.host for m in reversed(cluster.members) if m.role == "worker")
    node = next(n["ID"] for n in engine("GET", "/nodes") if hostname(n) == worker.name)
    name = f"kw{number}"
    engine("POST", "/services/create", spec(name, REPLICAS))
    wait(lambda: len(running(engine, name)) == REPLICAS)
    lost = running(engine, name).count(node)
    if lost != REPLICAS // len(cluster.members):
        raise SystemExit(f"{lost} tasks on {worker.name}: not spread evenly")
    time.sleep(rng.uniform(2, 6))  # at different points of the heartbeat's period
    worker.init.kill()
    started = now()

    def is_replaced():
        nodes = running(engine, name)
        return len(nodes) == REPLICAS and node not in nodes

    wait(is_replaced)
    elapsed = now() - started
    cluster.lab.start(worker.name)
    wait(lambda: cluster.all_well(engine))
    engine("DELETE", f"/services/{name}")
    wait(lambda: not engine("GET", "/tasks"))
    return elapsed


def losses(reps, *, cluster_spec=None, options=()):
    rng = random.Random(20)
    lab = Lab(f"bench{os.getpid()}")
    lab.up(3, 2, spec=cluster_spec, daemon_options=options)
    try:
        cluster = Cluster(lab)
        cluster.give_image()
        leaders = [lose_leader(cluster, number, rng) for number in range(reps)]
        workers = [lose_worker(cluster, number, rng) for number in range((reps + 1) // 2)]
    finally:
        lab.down()
    return {"leader_s": summary(leaders), "worker_s": summary(workers)}


def summary(times):
    return {
        "p50": round(statistics.median(times), 2),
        "max": round(max(times), 2),
        "n": len(times),
    }


def measure_peer(directory):
    """Run Docker Swarm on this machine, with the programs in the directory."""
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as scratch:
        environment = {**os.environ, "TMPDIR": scratch}
        out = Path(scratch, "out.json")
        cluster = Path(scratch, "docker-swarm-peer/swarm/cluster.json")
        try:
            for command in (
                [directory / "up.sh", "3", "2"],
                [
                    *(sys.executable, directory / "measure.py", cluster, "--reps", str(SLOW_REPS)),
                    *("--only", "kill_leader,kill_worker,formation", "--out", out),
                ],
            ):
                subprocess.run(
                    [str(word) for word in command],
                    env=environment,
                    stdout=sys.stderr,
                    check=True,
                    timeout=900,
                )
        finally:
            subprocess.run(
                [str(directory / "down.sh")], env=environment, stdout=sys.stderr, check=False
            )
        return json.loads(out.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, metavar="DIR")
    parser.add_argument("--only", choices=("formation", "losses", "swarm_timeouts"))
    options = parser.parse_args()
    figures = {"name": "failover"}
    parts = {
        "formation": lambda: figures.update(formation()),
        "losses": lambda: figures.update(losses(REPS)),
        "swarm_timeouts": lambda: figures.update(
            swarm_timeouts=losses(SLOW_REPS, cluster_spec=SWARM_SPEC, options=SWARM_OPTIONS)
        ),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            part()
    figures["docker_swarm"] = DOCKER_SWARM
    if options.peer:
        figures["docker_swarm_now"] = measure_peer(options.peer.resolve())
    figures["load"] = round(os.getloadavg()[0], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

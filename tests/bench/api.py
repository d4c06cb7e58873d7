"""How many writes a second the API takes: `api.py [--peer DIR]`.

Prints one JSON line. `w3_c1`, `w3_c32`: `service create` (no replicas) a second at the leader of
three managers, with 1 and 32 callers, each on one connection to the daemon's socket;
`w3_c32_p99_ms` how long one of them waits. `w1_c32`: the same with one manager. Besides:
`w3_follower_c32` through a manager that does not lead, and `w3_update_c32` updates, for each of
which the service is read first. Each is the median of ROUNDS runs of TOTAL requests; after each run
the services are removed. Callers are threads of a process of its own on the same cores, as those of
the peer's measure.py are. `docker_swarm` has what Docker Swarm 20.10.24 did on such a machine; with
--peer, DIR has its up.sh, measure.py and down.sh, and it is measured in the same run.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TOTAL = int(os.environ.get("TOTAL", "1000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
API = "/v1.41"
# Source: what the peer's measure.py found, two shared cores.
DOCKER_SWARM = {
    "w3_c1": 286,
    "w3_c32": 359,
    "w3_c32_p99_ms": 108,
    "w3_secret_c32": 317,
    "w1_c32": "846-1146",
}


class Caller:
    """One kept connection; says no more HTTP than it must, so that it costs the server no core."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")

    def __call__(self, method, url, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {API}{url} HTTP/1.1\r\nHost: swarm\r\nContent-Length: {len(data)}\r\n"
        if data:
            head += "Content-Type: application/json\r\n"
        self._socket.sendall(head.encode() + b"\r\n" + data)
        status = int(self._file.readline().split()[1])
        length, is_chunked = 0, False
        while (line := self._file.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line[15:])
            is_chunked |= line == b"transfer-encoding: chunked"
        answer = self._chunks() if is_chunked else self._file.read(length)
        if status >= 300:
            raise SystemExit(f"{method} {url}: {status} {answer!r}")
        return json.loads(answer) if answer.strip() else None

    def _chunks(self):
        parts = []
        while (size := int(self._file.readline(), 16)) > 0:
            parts.append(self._file.read(size))
            self._file.readline()
        self._file.readline()
        return b"".join(parts)

    def close(self):
        self._file.close()
        self._socket.close()


def spec(name):
    container = {"Image": "bb:latest", "Command": ["sleep", "100000"], "StopGracePeriod": 0}
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {**container, "Init": False}},
        "Mode": {"Replicated": {"Replicas": 0}},
    }


def pound(path, callers, work, items=range(TOTAL)):
    """Do the work for each item by so many callers; return how many a second and the p99."""
    waits = []
    numbers = iter(items)
    lock = threading.Lock()

    def call():
        caller = Caller(path)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                caller.close()
                return
            started = time.perf_counter()
            work(caller, number)
            waits.append(time.perf_counter() - started)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if len(waits) != len(items):
        raise SystemExit("some requests failed")
    return len(items) / elapsed, statistics.quantiles(waits, n=100, method="inclusive")[98]


def create(caller, number):
    caller("POST", "/services/create", spec(f"z{number}"))


def update(caller, number):
    found = caller("GET", f"/services/z{number}")
    found["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] = [f"N={number}"]
    version = found["Version"]["Index"]
    caller("POST", f"/services/{found['ID']}/update?version={version}", found["Spec"])


def delete(caller, service_id):
    caller("DELETE", f"/services/{service_id}")


def clear(path):
    caller = Caller(path)
    services = [service["ID"] for service in caller("GET", "/services")]
    caller.close()
    pound(path, 32, delete, services)


def rounds(path, callers, work=create):
    """Return the medians: a second's, and the 99th percentile of the waits in ms."""
    rates, p99s = [], []
    for _ in range(ROUNDS):
        if work is update:
            pound(path, 8, create)
        rate, p99 = pound(path, callers, work)
        rates.append(rate)
        p99s.append(1000 * p99)
        clear(path)
    return round(statistics.median(rates)), round(statistics.median(p99s), 1)


def inside(leader, follower):
    """Print what callers of these sockets see; `follower` may be ""."""
    pound(leader, 8, create)  # warm
    clear(leader)
    c1, c1_p99 = rounds(leader, 1)
    c32, p99 = rounds(leader, 32)
    figures = {"c1": c1, "c1_p99_ms": c1_p99, "c32": c32, "c32_p99_ms": p99}
    if follower:
        figures["follower_c32"], figures["follower_c32_p99_ms"] = rounds(follower, 32)
        figures["update_c32"], figures["update_c32_p99_ms"] = rounds(leader, 32, update)
    print(json.dumps(figures))


def measure(managers):
    """Form a cluster and pound on it from another process."""
    from manager.lab.engine import Engine
    from manager.lab.lab import Lab

    lab = Lab(f"bench{os.getpid()}")
    lab.up(managers, 0)
    try:
        hosts = [member.host for member in lab.members()]
        nodes = Engine(hosts[0].socket)("GET", "/nodes")
        names = [n["Description"]["Hostname"] for n in nodes if n["ManagerStatus"].get("Leader")]
        leader = next(host for host in hosts if host.name in names)
        followers = [host for host in hosts if host is not leader]
        sockets = [str(leader.socket), str(followers[0].socket) if followers else ""]
        done = subprocess.run(
            [sys.executable, __file__, "--inside", *sockets],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=900,
        )
    finally:
        lab.down()
    return {f"w{managers}_{name}": figure for name, figure in json.loads(done.stdout).items()}


def measure_peer(directory):
    """Pound on Docker Swarm's leader in the same way."""
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as scratch:
        environment = {**os.environ, "TMPDIR": scratch}
        figures = {}
        for managers in (3, 1):
            try:
                subprocess.run(
                    [str(directory / "up.sh"), str(managers), "0"],
                    env=environment,
                    stdout=sys.stderr,
                    check=True,
                    timeout=300,
                )
                cluster = json.loads(
                    Path(scratch, "docker-swarm-peer/swarm/cluster.json").read_text()
                )
                sockets = [node["sock"] for node in cluster["nodes"]]  # the first has begun it
                done = subprocess.run(
                    [
                        *(sys.executable, __file__, "--inside", sockets[0]),
                        sockets[1] if managers > 1 else "",
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=900,
                )
                found = json.loads(done.stdout)
                figures |= {f"w{managers}_{name}": figure for name, figure in found.items()}
            finally:
                subprocess.run(
                    [str(directory / "down.sh")], env=environment, stdout=sys.stderr, check=False
                )
        return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, metavar="DIR")
    parser.add_argument("--inside", nargs=2, metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(*options.inside)
        return
    figures = {"name": "api", **measure(3), **measure(1), "docker_swarm": DOCKER_SWARM}
    if options.peer:
        figures["docker_swarm_now"] = measure_peer(options.peer.resolve())
    figures["load"] = round(os.getloadavg()[0], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

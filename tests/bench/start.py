"""How fast a task runs: `service create` to RUNNING, a hundred replicas, the command line.

Prints one JSON line. `one_p50_ms` and `one_p99_ms`: from sending the create of a one-replica
service with a local image to seeing its task RUNNING through the API (asked every 2 ms).
`hundred_s`: one service from 0 to 100 replicas RUNNING on one node. `cli_ms`: `swarm service ls`
as a process. Medians; load is noted.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

SERVICES = int(os.environ.get("SERVICES", "60"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
CLI_RUNS = 21
POLL_SECONDS = 0.002
WAIT_SECONDS_MAX = 120.0


class Api:
    """The Engine API over one connection."""

    def __init__(self, path):
        self._connection = http.client.HTTPConnection("swarm")
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(path)

    def __call__(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data else {}
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {answer.decode()}")
        return json.loads(answer) if answer else None

    def tasks(self, name):
        return self("GET", "/tasks?filters=" + quote(json.dumps({"service": [name]})))


def spec(name, replicas):
    return {
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "bench:1",
                "Command": ["sleep", "100000"],
                "StopGracePeriod": 1,
            }
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
    }


def wait(condition, poll=POLL_SECONDS):
    deadline = time.perf_counter() + WAIT_SECONDS_MAX
    while not condition():
        if time.perf_counter() > deadline:
            raise SystemExit("a limit is never reported as a figure: waited too long")
        time.sleep(poll)


def running(api, name):
    return sum(task["Status"]["State"] == "running" for task in api.tasks(name))


def one(api, index):
    name = f"one{index}"
    started = time.perf_counter()
    api("POST", "/services/create", spec(name, 1))
    wait(lambda: running(api, name) == 1)
    return 1000 * (time.perf_counter() - started)


def remove(api, name):
    api("DELETE", f"/services/{name}")


def hundred(api, index):
    name = f"hundred{index}"
    api("POST", "/services/create", spec(name, 0))
    service = api("GET", f"/services/{name}")
    started = time.perf_counter()
    api(
        "POST",
        f"/services/{name}/update?version={service['Version']['Index']}",
        spec(name, 100),
    )
    wait(lambda: running(api, name) == 100, 0.05)
    elapsed = time.perf_counter() - started
    remove(api, name)
    wait(lambda: not api("GET", "/tasks"), 0.1)
    return elapsed


def inside(path):
    api = Api(path)
    warm = [one(api, f"w{i}") for i in range(3)]
    singles = []
    for i in range(SERVICES):
        singles.append(one(api, i))
        remove(api, f"one{i}")
    for i in range(len(warm)):
        remove(api, f"onew{i}")
    wait(lambda: not api("GET", "/tasks"), 0.1)
    hundreds = [hundred(api, i) for i in range(ROUNDS)]
    cli = []
    for _ in range(CLI_RUNS):
        started = time.perf_counter()
        subprocess.run(["swarm", "service", "ls"], check=True, stdout=subprocess.DEVNULL)
        cli.append(1000 * (time.perf_counter() - started))
    quantiles = statistics.quantiles(singles, n=100, method="inclusive")
    print(
        json.dumps(
            {
                "name": "start",
                "one_p50_ms": round(statistics.median(singles), 1),
                "one_p99_ms": round(quantiles[98], 1),
                "hundred_s": round(statistics.median(hundreds), 2),
                "cli_ms": round(statistics.median(cli), 1),
                "services": SERVICES,
                "rounds": ROUNDS,
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


def main():
    from manager.lab.host import HOST_ADDRESS, Host
    from manager.lab.image import make_rootfs_tar

    host = Host("bench", Path(tempfile.mkdtemp(prefix="swarm-bench-")))
    try:
        host.start()
        host.start_daemon()
        archive = host.root / "rootfs.tar"
        make_rootfs_tar(archive)
        host.exec("swarm", "init", "--advertise-addr", HOST_ADDRESS)
        host.exec("swarm", "image", "import", str(archive), "bench:1")
        print(
            host.exec(sys.executable, __file__, "--inside", str(host.socket), timeout=900).stdout,
            end="",
        )
    finally:
        host.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
    else:
        main()

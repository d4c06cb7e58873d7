"""What a thousand agents cost a manager, and how soon five thousand are back after it was killed.

Prints one JSON line. One process is the manager: a store on a real log of one member, the node port
with TLS and the interceptor, the dispatcher. Agents are real `DispatcherClient`s with a certificate
and a connection each, many to a process; they beat once a second and have no tasks.

`agents_cpu`: the part of a core that the manager takes while 1,000 agents do nothing but beat.
`agents_mib`: its resident memory then. `reregister_s`: from the start of a new manager process, in
place of one that was killed with 5,000 sessions, until all have a session again; `down`: how many
of them were taken for dead on the way. `reregister_mib`: the manager's memory then.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AGENTS = 1_000
AGENTS_MANY = 5_000
PROCESSES = 4
STEADY_SECONDS = 20.0
SETTLE_SECONDS = 5.0
REGISTER_SECONDS_MAX = 300.0
ARRIVALS_PER_SECOND = 200
CLUSTER = "benchcluster"
RETRY_FILES = 65_536


def node_id(number):
    return f"node{number:05}"


def quiet():
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    del soft


# --- the manager ---


async def manage(directory, port, agents):
    from manager.dispatcher.core import DispatcherCore
    from manager.dispatcher.service import DispatcherService
    from manager.nodeport.authorize import authorizing_interceptor
    from manager.nodeport.remotes import ManagerPeer
    from manager.store import Store
    from proto.clock import SystemClock
    from proto.objects import Cluster, Node
    from proto.v1 import dispatcher_pb2_grpc
    from raft.keys import KeyRing
    from raft.node import RaftNode
    from raft.transport.transport import Transport

    clock, rng = SystemClock(), random.SystemRandom()
    log_directory = directory / "log"
    is_new = not log_directory.exists()
    if is_new:
        log_directory.mkdir(mode=0o700)
        keys = KeyRing.create(log_directory, rng.randbytes, None)
    else:
        keys = KeyRing.open(log_directory, None, rng_bytes=rng.randbytes)
    begin = RaftNode.create if is_new else RaftNode.open
    address = f"127.0.0.1:{port}"
    raft = await begin(
        log_directory, keys, node_id="manager", address=address, clock=clock, rng=rng
    )
    store = Store.open(raft, clock)
    if is_new:
        await store.update(lambda tx: tx.create(Cluster(id=CLUSTER)))
        await store.batch(range(agents), lambda tx, n: tx.create(Node(id=node_id(n))))
    peers = (ManagerPeer("manager", address),)
    core = DispatcherCore(
        store, clock=clock, rng=rng, managers=lambda: peers, must_renew=lambda _node: False
    )
    service = DispatcherService(core, lambda: address)
    credentials = issued(json.loads((directory / "root.json").read_text()), "manager")
    transport = Transport(
        "manager",
        CLUSTER,
        lambda: credentials,
        on_messages=lambda _node, _messages: None,
        on_snapshot=None,
        on_unreachable=lambda _node: None,
        is_allowed=lambda _node: False,
        clock=clock,
        rng=rng,
    )
    await transport.start(
        address,
        add_services=(
            lambda server: dispatcher_pb2_grpc.add_DispatcherServicer_to_server(service, server),
        ),
        interceptors=(authorizing_interceptor(CLUSTER, lambda: store, clock),),
    )
    running = asyncio.create_task(core.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    print("ready", flush=True)
    while await reader.readline():
        states = [node.status.state for node in store.view().nodes]
        down = sum(state == 1 for state in states)
        print(json.dumps({"sessions": len(core._sessions), "down": down}), flush=True)
        if running.done():
            running.result()


# --- agents ---


def issued(root, name, role=None):
    from manager.ca.issue import issue_certificate, new_key_and_csr
    from raft.transport.identity import MANAGER_ROLE, Credentials

    key, csr = new_key_and_csr()
    certificate = issue_certificate(
        root["certificate"],
        root["key"],
        csr,
        node_id=name,
        role=role or MANAGER_ROLE,
        cluster_id=CLUSTER,
        expiry_seconds=86_400.0,
        now=time.time(),
    )
    return Credentials(
        certificate_pem=certificate, key_pem=key, roots_pem=root["certificate"].encode()
    )


async def act(directory, port, first, count):
    import gc

    from manager.dispatcher.client import DispatcherClient
    from manager.nodeport.remotes import ManagerPeer, Remotes
    from proto.clock import SystemClock
    from proto.errors import SwarmError
    from proto.objects import NodeDescription
    from raft.transport.identity import WORKER_ROLE
    from worker.backoff import Backoff

    root = json.loads((directory / "root.json").read_text())
    rng = random.Random(first)
    clock = SystemClock()

    async def live(number):
        """Keep a session, as the agent does."""
        name = node_id(number)
        credentials = issued(root, name, WORKER_ROLE)
        description = NodeDescription(hostname=name)
        client = DispatcherClient(
            name,
            CLUSTER,
            lambda: credentials,
            Remotes([ManagerPeer("manager", f"127.0.0.1:{port}")]),
            clock=clock,
            rng=rng,
            on_session=lambda _told: None,
            describe=lambda: description,
        )
        backoff = Backoff(rng, seconds_max=5.0)
        while True:
            try:
                async with asyncio.timeout(90.0):
                    await client.register(name, description)
                async for _ in client.assignments(name):
                    backoff.reset()
            except (SwarmError, TimeoutError):
                await asyncio.sleep(backoff.next_seconds())

    lives = []
    for number in range(first, first + count):
        lives.append(asyncio.create_task(live(number)))
        await asyncio.sleep(PROCESSES / ARRIVALS_PER_SECOND)
    gc.freeze()
    print("ready", flush=True)
    await asyncio.gather(*lives)


# --- the measurement ---


class Process:
    """A child, and what it costs."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self):
        assert self.process.stdout.readline() == "ready\n"

    def ask(self):
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no memory")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(directory, agents, port):
    manager = Process("--manager", directory, "--port", port, "--agents", agents)
    manager.wait_ready()
    each = agents // PROCESSES
    others = [
        Process("--act", directory, "--port", port, "--first", i * each, "--agents", each)
        for i in range(PROCESSES)
    ]
    return manager, others


def until_registered(manager, agents, began):
    down = 0
    while True:
        answer = manager.ask()
        down = max(down, answer["down"])
        if answer["sessions"] >= agents:
            return time.monotonic() - began, down
        assert time.monotonic() - began < REGISTER_SECONDS_MAX, answer
        time.sleep(0.2)


def write_root(directory):
    from manager.ca.root import create_root

    root = create_root(time.time())
    content = {"certificate": root.certificate_pem, "key": root.key_pem}
    (directory / "root.json").write_text(json.dumps(content))


def measure_steady(directory, agents, profile):
    directory.mkdir()
    write_root(directory)
    manager, others = started(directory, agents, free_port())
    try:
        first, _ = until_registered(manager, agents, time.monotonic())
        time.sleep(SETTLE_SECONDS)
        if profile:
            profiler = subprocess.Popen(
                ["py-spy", "record", "-d", "15", "-n", "-o", profile, "-f", "raw", "-p",
                 str(manager.process.pid)]
            )  # fmt: skip
            profiler.wait()
        began, cpu = time.monotonic(), manager.cpu_seconds()
        time.sleep(STEADY_SECONDS)
        share = (manager.cpu_seconds() - cpu) / (time.monotonic() - began)
        answer = manager.ask()
        assert answer["sessions"] == agents, answer
        return {
            "agents_cpu": round(share, 3),
            "agents_mib": round(manager.rss_mib(), 1),
            "register_s": round(first, 2),
            "agents": agents,
            "agents_down": answer["down"],
        }
    finally:
        for process in (*others, manager):
            process.kill()


def measure_return(directory, agents):
    directory.mkdir()
    write_root(directory)
    port = free_port()
    manager, others = started(directory, agents, port)
    try:
        until_registered(manager, agents, time.monotonic())
        time.sleep(SETTLE_SECONDS)
        manager.kill()
        began = time.monotonic()
        manager = Process("--manager", directory, "--port", port, "--agents", agents)
        manager.wait_ready()
        elapsed, down = until_registered(manager, agents, began)
        return {
            "reregister_s": round(elapsed, 1),
            "reregister_agents": agents,
            "reregister_down": down,
            "reregister_mib": round(manager.rss_mib(), 1),
        }
    finally:
        for process in (*others, manager):
            process.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--manager", type=Path)
    parser.add_argument("--act", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--first", type=int)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--many", type=int, default=AGENTS_MANY)
    parser.add_argument("--profile", default="")
    arguments = parser.parse_args()
    quiet()
    if arguments.manager:
        asyncio.run(manage(arguments.manager, arguments.port, arguments.agents))
    elif arguments.act:
        asyncio.run(act(arguments.act, arguments.port, arguments.first, arguments.agents))
    else:
        figures = {"name": "agents"}
        with tempfile.TemporaryDirectory(prefix="swarm-bench-") as root:
            figures |= measure_steady(Path(root, "steady"), arguments.agents, arguments.profile)
            if arguments.many:
                figures |= measure_return(Path(root, "return"), arguments.many)
        figures["load"] = round(os.getloadavg()[0], 2)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

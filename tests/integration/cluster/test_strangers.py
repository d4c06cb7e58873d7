"""Strangers on a manager's ports: the manager goes on serving."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from overlay.firewall_rules import MEMBER_CONNECTIONS_MAX

CROWD = 15_000
MEMORY_MIB_MAX = 150
MEMORY_MIB_LEFT_MAX = 20

# Opens connections and holds those that it gets until its input ends: half say nothing, half begin
# TLS.
_CROWD = """
import resource, socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100,) * 2)
held = []
for number in range(count):
    try:
        held.append(socket.create_connection((address, port), timeout=20))
        if number % 2:
            held[-1].sendall(bytes.fromhex("160301"))
    except ConnectionError:
        pass
print("held", len(held), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def pair(make_cluster):
    """Two managers, a worker that is a crowd, and a host that wants to join."""
    cluster = make_cluster("t1s", 2, 2, is_formed=False)
    cluster.init("m1")
    cluster.join("m2", "m1", cluster.tokens("m1")["Manager"])
    cluster.join("w1", "m1", cluster.tokens("m1")["Worker"])
    return cluster


def memory_mib(host):
    """Return what a host's daemon has in memory."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            status = (process / "status").read_text()
        except OSError:
            continue  # it has ended
        if any(word.endswith(b"/swarmd") for word in words) and str(host.state).encode() in words:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024
    raise AssertionError(f"{host.state} has no daemon")


def leader_of(cluster):
    """Return who leads."""
    found = cluster.nodes("m2").items()
    return [name for name, node in found if node.get("ManagerStatus", {}).get("Leader")]


@pytest.mark.parametrize("port", [2377, 2378])
def test_fifteen_thousand_connections(pair, port, eventually):
    """Few of them come about, also of a node of the cluster; memory and leader stay what they were.

    Meanwhile managers talk, users are answered, and a node may join.
    """
    host = pair.host("w1")
    before, leader = memory_mib(pair.host("m1")), leader_of(pair)
    crowd = subprocess.Popen(
        host.enter([sys.executable, "-c", _CROWD, pair.host("m1").address, str(port), str(CROWD)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with crowd:
        what, held = crowd.stdout.readline().split()
        assert what == "held"
        assert 0 < int(held) <= MEMBER_CONNECTIONS_MAX
        assert memory_mib(pair.host("m1")) <= MEMORY_MIB_MAX
        for name in ("m1", "m2"):
            states = {n: node["Status"]["State"] for n, node in pair.nodes(name).items()}
            assert set(states.values()) == {"ready"}, states
        service = ("service", "create", "-d", "--name", f"during-{port}", "--replicas", "0", "bb")
        pair.docker("m2", *service)
        pair.join("w2", "m1", pair.tokens("m2")["Worker"])
        assert pair.state("w2") == "active"
        assert leader_of(pair) == leader
        crowd.stdin.close()
        crowd.wait(30)
    eventually(lambda: memory_mib(pair.host("m1")) <= before + MEMORY_MIB_LEFT_MAX, within=60)
    pair.docker("w2", "swarm", "leave")
    pair.docker("m1", "node", "rm", pair.nodes("m1")["w2"]["ID"])
    leaders = [n for n, node in pair.nodes("m2").items() if node.get("ManagerStatus")]
    assert sorted(leaders) == ["m1", "m2"]
    assert f"during-{port}" in pair.docker("m1", "service", "ls").stdout

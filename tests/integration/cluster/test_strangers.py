"""Strangers on a manager's ports: the manager goes on serving."""

import subprocess
import sys

import pytest

# Opens connections and holds them until its input ends: half say nothing, half begin TLS.
_CROWD = """
import resource, socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100,) * 2)
held = []
for number in range(count):
    held.append(socket.create_connection((address, port), timeout=20))
    if number % 2:
        held[-1].sendall(bytes.fromhex("160301"))
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


@pytest.mark.parametrize("port", [2377, 2378])
def test_ten_thousand_connections(pair, port):
    """With all of them open managers talk, users are answered, and a node may join."""
    host = pair.host("w1")
    crowd = subprocess.Popen(
        host.enter([sys.executable, "-c", _CROWD, pair.host("m1").address, str(port), "10000"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with crowd:
        assert crowd.stdout.readline() == "held 10000\n"
        for name in ("m1", "m2"):
            states = {n: node["Status"]["State"] for n, node in pair.nodes(name).items()}
            assert set(states.values()) == {"ready"}, states
        service = ("service", "create", "-d", "--name", f"during-{port}", "--replicas", "0", "bb")
        pair.docker("m2", *service)
        pair.join("w2", "m1", pair.tokens("m2")["Worker"])
        assert pair.state("w2") == "active"
        crowd.stdin.close()
        crowd.wait(30)
    pair.docker("w2", "swarm", "leave")
    pair.docker("m1", "node", "rm", pair.nodes("m1")["w2"]["ID"])
    leaders = [n for n, node in pair.nodes("m2").items() if node.get("ManagerStatus")]
    assert sorted(leaders) == ["m1", "m2"]
    assert f"during-{port}" in pair.docker("m1", "service", "ls").stdout

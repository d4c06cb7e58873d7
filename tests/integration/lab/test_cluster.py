"""What `swarm lab up` makes is one swarm, and stays one through cuts and losses of power."""

import json
from pathlib import Path

import pytest

from manager.lab.engine import Engine


@pytest.fixture(scope="module")
def cluster(make_module_command):
    """Three managers and two workers in one swarm."""
    command = make_module_command("c")
    said = command("up", "--managers", "3", "--workers", "2")
    assert "One swarm of 3 managers and 2 workers" in said
    return command


def nodes(command, asked):
    """Map host names to (state, what the node is among the managers), as a host sees them."""
    found = Engine(command.lab.host(asked).socket)("GET", "/nodes")
    return {
        node["Description"]["Hostname"]: (node["Status"]["State"], standing(node)) for node in found
    }


def standing(node):
    """Return "leader", "reachable", "unreachable", or "" for a worker."""
    status = node.get("ManagerStatus") or {}
    return "leader" if status.get("Leader") else status.get("Reachability", "")


def leader_of(command, asked):
    """Return the leader's name, "" while there is none."""
    return next((name for name, (_, is_) in nodes(command, asked).items() if is_ == "leader"), "")


def is_well(command, asked):
    """Tell whether every node is ready and every manager reachable."""
    found = nodes(command, asked)
    return {state for state, _ in found.values()} == {"ready"} and sorted(
        is_ for _, is_ in found.values()
    ) == ["", "", "leader", "reachable", "reachable"]


def test_up_returns_when_the_swarm_is_complete(cluster):
    """All five nodes are ready and the managers reachable at once, also in the eyes of docker."""
    assert is_well(cluster, "m1")
    places = {name: cells[3] for name, cells in cluster.rows().items()}
    assert places == {
        "m1": "leader",
        "m2": "manager, reachable",
        "m3": "manager, reachable",
        "w1": "worker",
        "w2": "worker",
    }
    listed = cluster("exec", "m2", "docker", "node", "ls", "--format", "{{json .}}")
    found = [json.loads(line) for line in listed.splitlines()]
    assert {(node["Hostname"], node["Status"]) for node in found} == {
        (name, "Ready") for name in places
    }


def test_a_leader_that_is_cut_off_is_followed(cluster, eventually):
    """The others choose a new one; healed, the old one follows."""
    leader = leader_of(cluster, "m1")
    other = next(name for name in ("m1", "m2", "m3") if name != leader)
    cluster("cut", leader)
    eventually(lambda: leader_of(cluster, other) not in {"", leader})
    cluster("heal")
    eventually(lambda: is_well(cluster, other))
    assert leader_of(cluster, leader) == leader_of(cluster, other) != leader


def test_a_worker_that_loses_power_is_down_until_it_is_back(cluster, eventually):
    """`start` brings the same node back."""
    before = {n["ID"] for n in Engine(cluster.lab.host("m1").socket)("GET", "/nodes")}
    cluster("kill", "w2")
    eventually(lambda: nodes(cluster, "m1")["w2"] == ("down", ""))
    cluster("start", "w2")
    eventually(lambda: is_well(cluster, "m1"))
    assert {n["ID"] for n in Engine(cluster.lab.host("m1").socket)("GET", "/nodes")} == before


def test_all_power_is_lost(cluster, eventually):
    """Every host at once; the cluster comes back by itself."""
    names = ("m1", "m2", "m3", "w1", "w2")
    cluster("kill", *names)
    assert {cells[2] for cells in cluster.rows().values()} == {"off"}
    cluster("start", *names)
    eventually(lambda: is_well(cluster, "m2"))


def test_options_for_daemons_last(make_command):
    """A daemon that is started again has the options that the lab was made with."""
    command = make_command("o")
    command.lab.up(1, 0, daemon_options=("--raft-tick", "0.2"))
    command("kill", "m1")
    command("start", "m1")
    daemon = command.lab.host("m1").daemon
    words = Path(f"/proc/{daemon.pid}/cmdline").read_text().split("\0")
    assert words[words.index("--raft-tick") + 1] == "0.2"

"""A manager whose disk is put back to an older state, as a restored backup does."""

import shutil
import time

import pytest


@pytest.fixture(scope="module")
def trio(make_cluster):
    """Three managers."""
    return make_cluster("t1r", 3, 0, is_formed=True)


def _label(cluster, count):
    node = cluster.nodes("m1")["m1"]["ID"]
    for number in range(count):
        cluster.docker("m1", "node", "update", "--label-add", f"n={number}", node)


def _run(cluster, eventually, *arguments):
    """Run the client until nobody else changes the same row meanwhile."""
    eventually(lambda: cluster.docker("m1", *arguments, check=False).returncode == 0)


def _descriptors(host):
    return len(host.exec("ls", f"/proc/{host.daemon_pid}/fd").stdout.split())


@pytest.mark.parametrize("is_slow", [True, False])
def test_it_stops_as_a_manager_and_comes_back_by_its_role(trio, eventually, tmp_path, is_slow):
    """It says what to do, does not turn in circles, and a demotion and promotion mend it.

    Also if the promotion comes before the node has noticed the demotion.
    """
    _label(trio, 3)
    host, node_id = trio.host("m3"), trio.nodes("m1")["m3"]["ID"]
    trio.lab.kill_daemon("m3")
    shutil.copytree(host.state / "raft", tmp_path / "raft")
    trio.lab.start("m3")
    eventually(lambda: trio.state("m3") == "active" and trio.is_manager("m3"))
    _label(trio, 30)
    trio.lab.kill_daemon("m3")
    shutil.rmtree(host.state / "raft")
    shutil.copytree(tmp_path / "raft", host.state / "raft")
    trio.lab.start("m3")
    eventually(lambda: trio.state("m3") == "error", what="it finds out")
    said = trio.api("m3", "GET", "/info")["Swarm"]["Error"]
    assert f"swarm node demote {node_id} && swarm node promote {node_id}" in said
    assert "force-new-cluster" not in trio.docker("m3", "info", check=False).stdout
    pid = host.daemon_pid
    before = _descriptors(host)
    time.sleep(10.0)
    assert (trio.state("m3"), host.daemon_pid) == ("error", pid)
    assert _descriptors(host) <= before + 5
    assert trio.state("m1") == "active"
    _label(trio, 1)
    trio.lab.kill_daemon("m3")
    trio.lab.start("m3")
    eventually(lambda: trio.state("m3") == "error", what="it did not forget that it forgot")
    _run(trio, eventually, "node", "demote", node_id)
    if is_slow:
        eventually(lambda: trio.state("m3") == "active", what="it is a worker")
    _run(trio, eventually, "node", "promote", node_id)
    eventually(lambda: trio.is_manager("m3") and trio.state("m3") == "active")
    eventually(
        lambda: trio.nodes("m1")["m3"].get("ManagerStatus", {}).get("Reachability") == "reachable"
    )
    _label(trio, 1)

"""Changes of roles that fail half-way: tried until they are so, taken back, and explained."""

import subprocess
from contextlib import contextmanager

import pytest

from manager.lab.engine import EngineRefusedError

HOLD = """
import socket, sys
port = int(sys.argv[1])
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("0.0.0.0", port))
listening.listen()
print("held", flush=True)
sys.stdin.read()
"""
WITHIN_SECONDS = 60.0


@contextmanager
def port_taken(cluster, name, port):
    """Let another program of a host listen on a port."""
    host = cluster.host(name)
    with subprocess.Popen(
        host.enter(["python3", "-c", HOLD, str(port)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=host.environment,
        text=True,
    ) as program:
        assert program.stdout.readline() == "held\n"
        try:
            yield
        finally:
            program.stdin.close()


@pytest.fixture(scope="module")
def group(make_cluster):
    """A manager and two workers."""
    return make_cluster("t2r", 1, 2, is_formed=True)


def warnings(cluster, name):
    """Return what a host says that keeps it from its work."""
    return "\n".join(cluster.api(name, "GET", "/info")["Warnings"] or ())


def change(cluster, name, role):
    """Want a node to have a role; its row may change between the look and the request."""
    for _ in range(20):
        url, spec = cluster.set_role("m1", name, role)
        try:
            cluster.api("m1", "POST", url, spec)
        except EngineRefusedError as error:
            if "out of sequence" not in str(error):
                raise
        else:
            return
    raise AssertionError(f"the row of {name} keeps changing")


@pytest.mark.parametrize("port", [2377, 2378])
def test_a_promotion_that_finds_its_port_taken_is_done_when_it_is_free(group, eventually, port):
    """Meanwhile the reason is shown, on the node and to who inspects it; then all is as wanted."""
    with port_taken(group, "w1", port):
        change(group, "w1", "manager")
        eventually(lambda: "is to be a manager" in warnings(group, "w1"), what="w1 says why")
        assert str(port) in warnings(group, "w1")
        eventually(
            lambda: str(port) in group.nodes("m1")["w1"]["Status"].get("Message", ""),
            within=WITHIN_SECONDS,
            what="m1 knows why",
        )
    eventually(lambda: group.is_manager("w1"), within=WITHIN_SECONDS, what="w1 is a manager")
    eventually(
        lambda: group.nodes("m1")["w1"]["ManagerStatus"]["Reachability"] == "reachable",
        what="m1 hears w1",
    )
    assert "is to be a manager" not in warnings(group, "w1")
    change(group, "w1", "worker")
    eventually(lambda: not group.is_manager("w1"), within=WITHIN_SECONDS, what="w1 is a worker")


def test_a_promotion_that_is_taken_back_stops(group, eventually):
    """The node is a worker again, though its port stays taken."""
    with port_taken(group, "w2", 2377):
        change(group, "w2", "manager")
        eventually(lambda: "is to be a manager" in warnings(group, "w2"), what="w2 says why")
        change(group, "w2", "worker")
        eventually(
            lambda: "is to be a manager" not in warnings(group, "w2"),
            within=WITHIN_SECONDS,
            what="w2 does not try any more",
        )
        assert group.state("w2") == "active"
        assert "ManagerStatus" not in group.nodes("m1")["w2"]
    assert not group.is_manager("w2")


def test_who_is_demoted_and_promoted_at_once_is_a_manager(group, eventually):
    """Though the group let it go in between, perhaps without its noticing."""
    change(group, "w1", "manager")
    eventually(lambda: group.is_manager("w1"), within=WITHIN_SECONDS, what="w1 is a manager")
    change(group, "w1", "worker")
    eventually(lambda: group.nodes("m1")["w1"].get("ManagerStatus") is None, what="w1 was let go")
    change(group, "w1", "manager")

    def is_whole():
        status = group.nodes("m1")["w1"].get("ManagerStatus")
        return group.is_manager("w1") and status and status["Reachability"] == "reachable"

    eventually(is_whole, within=WITHIN_SECONDS, what="w1 is a manager again")

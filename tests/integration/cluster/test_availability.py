"""What clients notice of managers that die."""

import threading
import time

import pytest

from proto.errors import SwarmError

AFTERWARDS = 10
CREATED_MAX = 2_000


@pytest.fixture(scope="module")
def formed(make_cluster, rootfs):
    """Three managers and two workers that have the image."""
    cluster = make_cluster("t2v", 3, 2, is_formed=True)
    for name in ("m1", "m2", "m3", "w1", "w2"):
        cluster.docker(name, "import", str(rootfs), "bb:1")
    return cluster


@pytest.fixture(autouse=True)
def _no_service_stays(formed, eventually):
    """Let a test that failed leave nothing that the next one would count."""
    yield
    for service in formed.api("m1", "GET", "/services"):
        formed.api("m1", "DELETE", f"/services/{service['ID']}")
    eventually(lambda: not formed.pids("m1"), what="no task runs")


def _spec(name):
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": "bb:1"}},
        "Mode": {"Replicated": {"Replicas": 0}},
    }


def _leader(cluster, asked):
    leaders = (
        name
        for name, node in cluster.nodes(asked).items()
        if node.get("ManagerStatus", {}).get("Leader")
    )
    return next(leaders, "")


@pytest.mark.parametrize("kind", ["daemon", "host"])
def test_leader_dies_under_a_client(formed, eventually, kind):
    """A client of a follower only waits: no create fails and none is done twice."""
    leader = _leader(formed, "m1")
    asked = next(name for name in ("m1", "m2", "m3") if name != leader)
    failed, created, is_over = [], [], threading.Event()

    def create():
        for number in range(CREATED_MAX):
            if is_over.is_set():
                return
            name = f"{kind}-{number}"
            try:
                created.append(formed.api(asked, "POST", "/services/create", _spec(name))["ID"])
            except SwarmError as error:
                failed.append((name, error))

    client = threading.Thread(target=create)
    client.start()
    eventually(lambda: len(created) + len(failed) >= 5, what="five creates")
    (formed.lab.kill if kind == "host" else formed.lab.kill_daemon)(leader)
    at_kill = len(created) + len(failed)
    eventually(lambda: len(created) + len(failed) >= at_kill + AFTERWARDS, what="it goes on")
    is_over.set()
    client.join(60)
    assert not client.is_alive()
    assert not failed
    formed.lab.start(leader)
    found = [
        service["ID"]
        for service in formed.api(asked, "GET", "/services")
        if service["Spec"]["Name"].startswith(f"{kind}-")
    ]
    assert sorted(found) == sorted(created)


def test_killed_daemon_keeps_its_containers(formed, eventually):
    """A daemon that is killed and comes back adopts its containers: nothing moves."""
    create = ("service", "create", "-d", "--name", "kept", "--replicas", "5")
    formed.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(formed.pids("m1")) == 5, what="five tasks run")
    before = formed.pids("m1")
    asked = _leader(formed, "m1")
    for name in ("w1", next(n for n in ("m1", "m2", "m3") if n != asked)):
        formed.lab.kill_daemon(name)
        formed.lab.start(name)
        eventually(lambda n=name: formed.state(n) == "active", what=f"{name} is back")
        eventually(lambda n=name: formed.nodes(asked)[n]["Status"]["State"] == "ready")
        # A move would be decided when the session breaks or comes back: both were.
        assert formed.pids(asked) == before


def test_short_cut_moves_nothing_and_a_long_one_everything(formed, eventually):
    """A worker that is cut off for a second keeps its tasks; one without power loses them."""
    create = ("service", "create", "-d", "--name", "moved", "--replicas", "5")
    formed.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(formed.pids("m1")) == 5, what="five tasks run")
    before = formed.pids("m1")
    formed.lab.cut("w1")
    time.sleep(1.0)
    formed.lab.heal()
    eventually(lambda: formed.nodes("m1")["w1"]["Status"]["State"] == "ready")
    assert formed.pids("m1") == before

    gone = formed.nodes("m1")["w1"]["ID"]
    formed.lab.kill("w1")

    def all_elsewhere():
        # One reading: between two the lost node's task may end and its successor not run yet.
        pids = formed.pids("m1")
        return pids if len(pids) == 5 and gone not in {node for node, _ in pids} else None

    elsewhere = eventually(all_elsewhere, what="the tasks run elsewhere")
    formed.lab.start("w1")
    eventually(lambda: formed.nodes("m1")["w1"]["Status"]["State"] == "ready")
    assert formed.pids("m1") == elsewhere


def test_logs_of_all_nodes_are_followed_through_the_loss_of_a_leader(formed, eventually):
    """Any manager shows them; a follower of them sees each line of each task once."""
    count = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done"
    create = ("service", "create", "-d", "--name", "talk", "--replicas", "5", "--stop-signal", "9")
    formed.docker("m1", *create, "bb:1", "sh", "-c", count)
    eventually(lambda: len(formed.pids("m1")) == 5, what="five tasks run")
    for name in ("m1", "m2", "m3"):
        lines = formed.docker(name, "service", "logs", "--tail", "1", "talk").stdout.splitlines()
        assert len({line.split()[0] for line in lines}) == len(lines) == 5

    leader = _leader(formed, "m1")
    asked = next(name for name in ("m1", "m2", "m3") if name != leader)
    with formed.follow(asked, "talk") as seen:
        eventually(lambda: len(seen) == 5, what="lines of five tasks")
        formed.lab.kill_daemon(leader)
        eventually(lambda: _leader(formed, asked) not in {"", leader}, what="another leads")
        at = {task: lines[-1] for task, lines in seen.items()}
        formed.lab.start(leader)
        eventually(
            lambda: all(seen[task][-1] > last + 10 for task, last in at.items()),
            what="all five go on",
        )
        formed.lab.kill("w1")
        eventually(lambda: len(seen) >= 6, what="a task that moved is followed, too")
        said = formed.docker(asked, "service", "logs", "talk", check=False)
        assert "w1 (" in said.stderr
        assert "has no connection with the managers" in said.stderr
        formed.lab.start("w1")
        eventually(lambda: formed.nodes(asked)["w1"]["Status"]["State"] == "ready")
    for lines in seen.values():
        assert lines == list(range(1, len(lines) + 1))


def test_removed_node_says_so_and_stops_its_containers(formed, eventually):
    """A node that was removed while it was off is not let in, says why, and runs nothing."""
    create = ("service", "create", "-d", "--name", "all", "--mode", "global")
    formed.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(formed.pids("m1")) == 5, what="five tasks run")
    gone = formed.nodes("m1")["w1"]["ID"]
    formed.lab.kill_daemon("w1")
    containers = formed.host("w1").state / "containers"
    assert len([*containers.iterdir()]) >= 1
    formed.docker("m1", "node", "rm", "--force", gone)
    formed.lab.start("w1")
    eventually(lambda: formed.state("w1") == "error", what="w1 knows")
    said = formed.api("w1", "GET", "/info")["Swarm"]["Error"]
    assert f"node {gone} was removed" in said
    assert "swarm leave" in said
    eventually(lambda: not [*containers.glob("[!.]*")], what="its containers are gone")
    formed.docker("w1", "swarm", "leave")
    assert formed.state("w1") == "inactive"
    formed.join("w1", "m2", formed.tokens("m2")["Worker"])
    eventually(lambda: len(formed.pids("m1")) == 5, what="it has a task again")


def test_root_is_rotated_to_the_end_everywhere(formed, eventually):
    """Every node ends on the new root alone, its containers run on, and managers still talk."""
    create = ("service", "create", "-d", "--name", "kept", "--replicas", "5")
    formed.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(formed.pids("m1")) == 5, what="five tasks run")
    before = formed.pids("m1")
    old = formed.api("m1", "GET", "/swarm")["TLSInfo"]["TrustRoot"]
    formed.docker("m2", "swarm", "ca", "--rotate", "--quiet")

    def is_new_everywhere():
        cluster = formed.api("m1", "GET", "/swarm")
        roots = {n["Description"]["TLSInfo"].get("TrustRoot") for n in formed.nodes("m1").values()}
        new = cluster["TLSInfo"]["TrustRoot"]
        return not cluster.get("RootRotationInProgress") and new != old and roots == {new}

    eventually(is_new_everywhere, what="all nodes trust the new root")
    assert formed.pids("m1") == before


def test_workers_go_on_without_managers(formed, eventually):
    """With all managers' daemons down containers run on, and are the same when one leads again."""
    create = ("service", "create", "-d", "--name", "alone", "--replicas", "5")
    formed.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(formed.pids("m1")) == 5, what="five tasks run")
    before = formed.pids("m1")
    for name in ("m1", "m2", "m3"):
        formed.lab.kill_daemon(name)
    formed.lab.kill_daemon("w2")
    for name in ("w2", "m1", "m2", "m3"):
        formed.lab.start(name)
    eventually(
        lambda: all(n["Status"]["State"] == "ready" for n in formed.nodes("m1").values()),
        what="all are ready",
    )
    assert formed.pids("m1") == before

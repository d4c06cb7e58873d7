"""Who gets into a cluster, who leaves it, and what its managers survive."""

import shutil

import pytest

QUICK_SECONDS = 5.0


@pytest.fixture(scope="module")
def apart(make_cluster):
    """Four hosts: m1 and m2 begin a cluster each, w1 joins the first, w2 stays alone."""
    cluster = make_cluster("t1a", 2, 2, is_formed=False)
    cluster.init("m1")
    cluster.init("m2")
    cluster.join("w1", "m1", cluster.tokens("m1")["Worker"])
    return cluster


def test_wrong_tokens_are_refused_and_leave_nothing(apart):
    """A truncated, a rotated, another cluster's and an invented token fail quickly."""
    old = apart.tokens("m1")["Worker"]
    swarm = apart.api("m1", "GET", "/swarm")
    url = f"/swarm/update?version={swarm['Version']['Index']}&rotateWorkerToken=true"
    apart.api("m1", "POST", url, swarm["Spec"])
    new = apart.tokens("m1")["Worker"]
    assert new != old
    before = apart.files("w2")
    wrong_secret = new[:-4] + ("0000" if not new.endswith("0000") else "1111")
    for token in (old, new[:-3], wrong_secret, apart.tokens("m2")["Worker"], "nonsense"):
        said, seconds = apart.join_refused("w2", "m1", token)
        assert "token" in said, said
        assert seconds < QUICK_SECONDS
        assert token not in said
        assert apart.state("w2") == "inactive"
        assert apart.files("w2") == before
    assert "w2" not in apart.nodes("m1")


@pytest.mark.parametrize("to", ["10.255.255.1:2377", "w1", "w2"])
def test_address_without_a_manager_is_refused(apart, to):
    """Nobody there, a worker, and the joiner itself: each fails quickly and leaves nothing."""
    before = apart.files("w2")
    said, seconds = apart.join_refused("w2", to, apart.tokens("m1")["Worker"])
    assert seconds < QUICK_SECONDS, said
    assert (to if ":" in to else apart.host(to).address) in said
    assert apart.state("w2") == "inactive"
    assert apart.files("w2") == before


@pytest.mark.parametrize("role", ["Worker", "Manager"])
@pytest.mark.parametrize("verdict", ["drop", "reject with tcp reset"])
def test_a_join_that_cannot_reach_the_second_port_says_so_and_leaves_no_row(apart, role, verdict):
    """A firewall that was opened for the first port only is found out at once, and by its name."""
    before = apart.files("w2")
    address, source = apart.host("m1").address, apart.host("w2").address
    rules = (
        "add table inet closed",
        "add chain inet closed in { type filter hook input priority 0; }",
        f"add rule inet closed in ip saddr {source} tcp dport 2378 {verdict}",
    )
    for rule in rules:
        apart.host("m1").exec("nft", *rule.split())
    try:
        said, seconds = apart.join_refused("w2", "m1", apart.tokens("m1")[role])
    finally:
        apart.host("m1").exec("nft", "delete", "table", "inet", "closed")
    assert f"{address}:2378" in said
    assert "open it for TCP, and join again" in said
    assert seconds < 2 * QUICK_SECONDS
    assert "w2" not in apart.nodes("m1")
    assert apart.state("w2") == "inactive"
    assert apart.files("w2") == before
    assert len(apart.api("m1", "GET", "/info")["Swarm"]["RemoteManagers"]) == 1


def test_second_membership_is_refused(apart):
    """A node of a cluster neither begins nor joins another."""
    for name in ("m2", "w1"):
        said, _ = apart.join_refused(name, "m1", apart.tokens("m1")["Worker"])
        assert "already part of a swarm" in said, said
        address = apart.host(name).address
        request = {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": address}
        said = apart.refused(name, "POST", "/swarm/init", request)
        assert "already part of a swarm" in said, said


def test_worker_leaves_and_its_node_is_removed(apart):
    """A worker leaves without force, is down, can be removed, and can join anew."""
    node_id = apart.nodes("m1")["w1"]["ID"]
    assert "down" in apart.refused("m1", "DELETE", f"/nodes/{node_id}")
    apart.api("w1", "POST", "/swarm/leave")
    assert apart.state("w1") == "inactive"
    status = apart.nodes("m1")["w1"]["Status"]
    assert (status["State"], status.get("Message")) == ("down", "the node said goodbye")
    apart.api("m1", "DELETE", f"/nodes/{node_id}")
    assert "w1" not in apart.nodes("m1")
    apart.join("w1", "m1", apart.tokens("m1")["Worker"])
    assert apart.nodes("m1")["w1"]["ID"] != node_id


def test_last_manager_is_neither_demoted_nor_leaves_without_force(apart):
    """The last manager stays one until it is told by force."""
    said = apart.refused("m1", "POST", *apart.set_role("m1", "m1", "worker"))
    assert "last manager" in said, said
    assert "force" in apart.refused("m2", "POST", "/swarm/leave")
    assert apart.state("m2") == "active"
    apart.api("m2", "POST", "/swarm/leave?force=true")
    assert apart.state("m2") == "inactive"
    assert apart.files("m2") == []


@pytest.fixture(scope="module")
def pair(make_cluster):
    """Two managers, a worker, and a host that is in no cluster."""
    cluster = make_cluster("t1c", 2, 2, is_formed=False)
    cluster.init("m1")
    cluster.join("m2", "m1", cluster.tokens("m1")["Manager"])
    cluster.join("w1", "m1", cluster.tokens("m1")["Worker"])
    return cluster


@pytest.fixture(scope="module")
def formed(make_cluster, rootfs, eventually):
    """Three managers and a worker, with a task of a service on each."""
    cluster = make_cluster("t1b", 3, 1, is_formed=True)
    for host in ("m1", "m2", "m3", "w1"):
        cluster.docker(host, "import", str(rootfs), "bb:1")
    create = ("service", "create", "--detach", "--name", "all", "--mode", "global")
    cluster.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(cluster.pids("m1")) == 4, what="a task runs on each node")
    return cluster


def test_roles_change_while_containers_run(formed, eventually):
    """A promoted worker and a demoted leader keep their daemon and their containers."""
    pids = formed.pids("m1")
    daemons = {name: formed.host(name).daemon_pid for name in ("m1", "w1")}
    formed.api("m1", "POST", *formed.set_role("m1", "w1", "manager"))
    eventually(lambda: formed.is_manager("w1"), what="w1 is a manager")
    leader = next(
        name
        for name, node in formed.nodes("m1").items()
        if node.get("ManagerStatus", {}).get("Leader")
    )
    assert leader == "m1"
    formed.api("m1", "POST", *formed.set_role("m1", "m1", "worker"))
    eventually(lambda: not formed.is_manager("m1"), what="m1 is no manager")
    eventually(
        lambda: formed.nodes("m2")["m1"]["Status"]["State"] == "ready", what="m1 is ready again"
    )
    assert formed.pids("m2") == pids
    assert {name: formed.host(name).daemon_pid for name in daemons} == daemons


def _carry(formed, source, target):
    """Copy what a host's daemon keeps of its cluster to another host, whose daemon is down."""
    old, new = formed.host(source).state, formed.host(target).state
    for name in ("node.json", "managers.json"):
        shutil.copy2(old / name, new / name)
    for name in ("certificates", "raft"):
        if (old / name).exists():
            shutil.copytree(old / name, new / name, dirs_exist_ok=True)


@pytest.mark.parametrize("source", ["w1", "m1"])
def test_copied_state_is_found_out(pair, eventually, source):
    """A worker's copy is let in nowhere, a manager's begins nothing; the original goes on."""
    pair.lab.kill_daemon("w2")
    _carry(pair, source, "w2")
    pair.lab.start("w2")
    eventually(lambda: pair.state("w2") == "error", what="the copy is refused")
    said = pair.api("w2", "GET", "/info")["Swarm"]["Error"]
    assert "copied" in said, said
    assert "join anew" in said
    assert pair.nodes("m1")[source]["Status"]["State"] == "ready"
    pair.docker("w2", "swarm", "leave", "--force")
    assert pair.state("w2") == "inactive"
    assert pair.nodes("m1")[source]["Status"]["State"] == "ready"


@pytest.mark.parametrize("name", ["w1", "m2"])
def test_address_may_change(pair, eventually, name):
    """A node that comes back at another address is the same node; the others find it there."""
    host = pair.host(name)
    old, new = host.address, host.address.rpartition(".")[0] + f".{200 + len(name)}"
    pair.lab.kill_daemon(name)
    host.exec("ip", "addr", "flush", "dev", "eth0")
    host.exec("ip", "addr", "add", f"{new}/24", "dev", "eth0")
    pair.lab.start(name)

    def is_known():
        node = pair.nodes("m1")[name]
        manager = node.get("ManagerStatus")
        return (
            node["Status"] == {"State": "ready", "Addr": new}
            and (manager is None or manager["Addr"] == f"{new}:2377")
            and (manager is None or manager["Reachability"] == "reachable")
        )

    eventually(is_known, what="known at the new address")
    assert len(pair.nodes("m1")) == 3
    pair.lab.kill_daemon(name)
    host.exec("ip", "addr", "flush", "dev", "eth0")
    host.exec("ip", "addr", "add", f"{old}/24", "dev", "eth0")
    pair.lab.start(name)
    eventually(lambda: pair.nodes("m1")[name]["Status"] == {"State": "ready", "Addr": old})


def test_lost_quorum_is_said_and_recovered(formed, eventually):
    """With one of three managers nothing is written, reading works, and force recovers."""
    pids = formed.pids("m2")
    id_of = {name: node["ID"] for name, node in formed.nodes("m2").items()}
    mine = {key: pid for key, pid in pids.items() if key[0] == id_of["m2"]}
    for name in ("m3", "w1"):
        formed.lab.kill(name)
    # A write that may come true: what a survivor has in its log counts when it is all there is.
    write = ("node", "update", "--label-add", "a=b", id_of["m1"])
    said = eventually(lambda: formed.docker("m2", *write, check=False).stderr, what="refusal")
    assert "1 of 3 managers reachable" in said, said
    assert "--force-new-cluster" in said, said
    assert "all" in formed.docker("m2", "service", "ls").stdout
    assert "1 of 3 managers reachable" in formed.docker("m2", "info").stdout
    formed.init("m2", ForceNewCluster=True)
    eventually(lambda: formed.is_manager("m2"), what="m2 leads")
    assert "managers reachable" not in formed.docker("m2", "info").stdout
    assert "all" in formed.docker("m2", "service", "ls").stdout
    now = formed.pids("m2")
    assert {key: pid for key, pid in now.items() if key[0] == id_of["m2"]} == mine

"""Nodes that were switched off for longer than their certificates last, or had a wrong clock."""

import asyncio
import random
import time

import pytest

from manager.ca.credentials import NodeCredentials
from manager.ca.issue import issue_certificate, new_key_and_csr, signer_of
from manager.daemon.identity import read_identity
from manager.daemon.membership import Membership, node_port_address
from proto.clock import SystemClock
from raft.keys import Kek
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE

DAY = 86_400.0
MANAGERS = ("m1", "m2", "m3")
WITHIN_SECONDS = 60.0


async def _redate(state, by, kek, days):
    """Do the work of `redate`, by the log of a manager whose daemon does not run."""
    node, manager = read_identity(state / "node.json"), read_identity(by / "node.json")
    membership = await Membership.open(
        by / "raft",
        kek,
        clock=SystemClock(),
        rng=random.Random(1),
        node_id=manager.node_id,
        address=node_port_address(manager.advertise_addr),
    )
    try:
        if node.role == "manager":
            credentials = membership.open_credentials(state / "certificates", None)
        else:
            credentials = NodeCredentials.open(state / "certificates", None)
        row = next(iter(membership.store.view().clusters))
        signer = signer_of(row)
        key_pem, csr = new_key_and_csr()
        certificate_pem = issue_certificate(
            signer.certificate_pem,
            signer.key_pem,
            csr,
            node_id=node.node_id,
            role=MANAGER_ROLE if node.role == "manager" else WORKER_ROLE,
            cluster_id=row.id,
            expiry_seconds=90 * DAY,
            now=time.time() + days * DAY,
        )
        credentials.replace(
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            roots_pem=credentials.source().roots_pem,
        )
    finally:
        await membership.close()


def redate(cluster, name, by, *, days, key=""):
    """Give a host a certificate that was issued so many days from now, by what `by` has stored."""
    kek = Kek.parse(key) if key else None
    asyncio.run(_redate(cluster.host(name).state, cluster.host(by).state, kek, days))


def error_of(cluster, name):
    """Return what a host says is wrong with its membership."""
    return cluster.api(name, "GET", "/info")["Swarm"]["Error"]


def all_ready(cluster, names):
    """Tell whether the first manager hears all of these."""
    nodes = cluster.nodes(names[0])
    return all(nodes[name]["Status"]["State"] == "ready" for name in names) and all(
        nodes[name]["ManagerStatus"]["Reachability"] == "reachable"
        for name in names
        if name.startswith("m")
    )


@pytest.fixture(scope="module")
def old(make_cluster):
    """Three managers and a worker."""
    return make_cluster("t2e", 3, 1, is_formed=True)


@pytest.mark.parametrize("days", [-100.0, 30.0], ids=["ended", "not begun"])
def test_managers_whose_certificates_are_not_valid_come_back(old, eventually, days):
    """All were switched off for too long, or their clocks were ahead; nobody has to do anything."""
    for name in (*MANAGERS, "w1"):
        old.lab.kill_daemon(name)
    redate(old, "w1", "m1", days=days)
    for name in MANAGERS:
        redate(old, name, name, days=days)
    for name in (*MANAGERS, "w1"):
        old.lab.start(name)
    eventually(
        lambda: (
            all(old.state(name) == "active" for name in MANAGERS) and all_ready(old, list(MANAGERS))
        ),
        within=WITHIN_SECONDS,
        what="the managers work together",
    )
    for name in MANAGERS:
        assert not error_of(old, name)
    # The worker says what is wrong, and what to do; not that it is active.
    assert old.state("w1") == "error"
    said = error_of(old, "w1")
    assert ("ended on" if days < 0 else "begins on") in said
    assert "run `swarm leave` on it, then join anew" in said
    _rejoin(old)


def _rejoin(cluster):
    """Do what the worker said."""
    cluster.api("w1", "POST", "/swarm/leave")
    cluster.join("w1", "m1", cluster.tokens("m1")["Worker"])
    assert cluster.state("w1") == "active"
    gone = [n for n in cluster.api("m1", "GET", "/nodes") if n["Status"]["State"] != "ready"]
    for node in gone:
        cluster.api("m1", "DELETE", f"/nodes/{node['ID']}?force=1")


def test_one_of_several_comes_back(old, eventually):
    """The others work all the while."""
    old.lab.kill_daemon("m3")
    redate(old, "m3", "m3", days=-100.0)
    old.lab.start("m3")
    eventually(
        lambda: old.state("m3") == "active" and all_ready(old, list(MANAGERS)),
        within=WITHIN_SECONDS,
        what="m3 is one of the managers again",
    )


def test_who_was_demoted_meanwhile_comes_back_as_no_manager(old, eventually):
    """It can give itself a certificate, but not the role that others know of it."""
    old.lab.kill_daemon("m3")
    redate(old, "m3", "m3", days=-100.0)
    url, spec = old.set_role("m1", "m3", "worker")
    old.api("m1", "POST", url, spec)
    eventually(lambda: "ManagerStatus" not in old.nodes("m1")["m3"], what="m3 is no manager")
    old.lab.start("m3")
    eventually(
        lambda: not old.is_manager("m3") and old.state("m3") == "active",
        within=WITHIN_SECONDS,
        what="m3 is a worker that works",
    )
    assert "ManagerStatus" not in old.nodes("m1")["m3"]


def test_a_new_cluster_is_forced_at_the_first_try(old, eventually):
    """The others are gone, and the certificate has ended."""
    for name in ("m1", "m2"):
        old.lab.kill_daemon(name)
    redate(old, "m2", "m2", days=-100.0)
    old.lab.start("m2")
    old.init("m2", ForceNewCluster=True)
    assert old.state("m2") == "active"
    nodes = old.nodes("m2")
    assert "ManagerStatus" not in nodes["m1"]
    assert nodes["m1"]["Spec"]["Role"] == "worker"
    eventually(lambda: old.nodes("m2")["m2"]["Status"]["State"] == "ready", what="m2 is ready")


def test_a_lone_locked_manager_is_unlocked_at_the_first_try(make_cluster):
    """Its port opens with a certificate that it issued for itself."""
    lone = make_cluster("t2u", 1, 1, is_formed=False)
    lone.init("m1")
    token = lone.tokens("m1")["Worker"]
    lone.join("w1", "m1", token)
    lone.lab.kill_daemon("m1")
    redate(lone, "m1", "m1", days=-100.0)
    lone.lab.start("m1")
    assert lone.state("m1") == "active"
    version = lone.api("m1", "GET", "/swarm")["Version"]["Index"]
    spec = lone.api("m1", "GET", "/swarm")["Spec"]
    spec["EncryptionConfig"] = {"AutoLockManagers": True}
    lone.api("m1", "POST", f"/swarm/update?version={version}", spec)
    key = lone.api("m1", "GET", "/swarm/unlockkey")["UnlockKey"]
    lone.lab.kill_daemon("m1")
    redate(lone, "m1", "m1", days=-100.0, key=key)
    lone.lab.start("m1")
    assert lone.state("m1") == "locked"
    lone.api("m1", "POST", "/swarm/unlock", {"UnlockKey": key})
    assert lone.state("m1") == "active"
    assert not error_of(lone, "m1")


def test_a_forced_cluster_has_what_was_asked_for_beside_it(make_cluster, eventually):
    """The lock, the addresses and the port of the data path; the rest is refused by name."""
    two = make_cluster("t2f", 2, 1, is_formed=False)
    two.init("m1")
    two.join("m2", "m1", two.tokens("m1")["Manager"])
    two.lab.kill_daemon("m2")
    address = two.host("m1").address
    said = two.refused(
        *("m1", "POST", "/swarm/init"),
        {"ForceNewCluster": True, "SubnetSize": 26, "Availability": "drain"},
    )
    assert "--default-addr-pool-mask-length, --availability" in said
    two.api(
        *("m1", "POST", "/swarm/init"),
        {
            "ForceNewCluster": True,
            "ListenAddr": "0.0.0.0:4377",
            "DataPathPort": 4800,
            "Spec": {"EncryptionConfig": {"AutoLockManagers": True}},
        },
    )
    assert two.api("m1", "GET", "/swarm")["DataPathPort"] == 4800
    assert two.nodes("m1")["m1"]["ManagerStatus"]["Addr"] == f"{address}:4377"
    key = two.api("m1", "GET", "/swarm/unlockkey")["UnlockKey"]
    assert key
    token = two.tokens("m1")["Worker"]
    request = two.join_request("w1", f"{address}:4377", token)
    two.api("w1", "POST", "/swarm/join", request)
    assert two.state("w1") == "active"
    two.lab.kill_daemon("m1")
    two.lab.start("m1")
    assert two.state("m1") == "locked"
    two.api("m1", "POST", "/swarm/unlock", {"UnlockKey": key})
    eventually(lambda: two.nodes("m1")["w1"]["Status"]["State"] == "ready", what="w1 is ready")

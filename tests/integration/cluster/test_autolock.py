"""Managers whose keys are sealed: what works without the key, and what is on their disks."""

import re

import pytest

LOCKED = "Swarm is encrypted and needs to be unlocked before it can be used"
NAME = "zebrafishservice"


def _key_in(text):
    found = re.search(r"SWMKEY-\S+", text)
    assert found is not None, text
    return found.group()


def _unlock(cluster, name, key):
    cluster.api(name, "POST", "/swarm/unlock", {"UnlockKey": key})


@pytest.fixture(scope="module")
def locked(make_cluster, rootfs, eventually):
    """Three managers and a spare host; a service on m1; then locked, and m3's daemon restarted."""
    cluster = make_cluster("t2l", 3, 1, is_formed=False)
    cluster.init("m1")
    for name in ("m2", "m3"):
        cluster.join(name, "m1", cluster.tokens("m1")["Manager"])
    for name in ("m1", "m2", "m3"):
        cluster.docker(name, "import", str(rootfs), "bb:1")
    create = ("service", "create", "-d", "--name", NAME, "--replicas", "3")
    cluster.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(cluster.pids("m1")) == 3, what="three tasks run")
    cluster.key = _key_in(cluster.docker("m1", "swarm", "update", "--autolock=true").stdout)
    return cluster


def test_locked_manager_says_so_until_unlocked(locked, eventually):
    """A restarted manager refuses what concerns the swarm, and unlocks."""
    locked.lab.kill_daemon("m3")
    locked.lab.start("m3")
    assert locked.state("m3") == "locked"
    for method, url in (("GET", "/nodes"), ("GET", "/services"), ("GET", "/swarm")):
        assert LOCKED in locked.refused("m3", method, url)
    said, _ = locked.join_refused("w1", "m3", locked.tokens("m1")["Worker"])
    assert LOCKED in said
    assert locked.state("w1") == "inactive"
    locked.docker("m3", "images")
    said = locked.refused("m3", "POST", "/swarm/unlock", {"UnlockKey": "SWMKEY-1-" + "A" * 43})
    assert "invalid key" in said, said
    assert locked.state("m3") == "locked"
    _unlock(locked, "m3", locked.key)
    eventually(lambda: locked.state("m3") == "active", what="m3 is active")
    eventually(lambda: NAME in locked.docker("m3", "service", "ls", check=False).stdout)


def test_nothing_on_a_locked_disk_is_in_the_clear(locked):
    """No manager's state has the service's name, a token's secret or a private key in the clear."""
    tokens = locked.tokens("m1")
    secrets = [NAME, locked.key, *(token.rsplit("-", 1)[1] for token in tokens.values())]
    for name in ("m1", "m2", "m3"):
        state = locked.host(name).state
        for top in ("certificates", "raft"):
            files = [path for path in (state / top).rglob("*") if path.is_file()]
            assert files, f"{name} keeps nothing in {top}"
            for path in files:
                content = path.read_bytes()
                for secret in secrets:
                    assert secret.encode() not in content, f"{name}: {path}"
                assert not re.search(rb"BEGIN (EC )?PRIVATE KEY", content), f"{name}: {path}"


def test_rotated_key_is_the_one_that_unlocks(locked, eventually):
    """After a rotation the old key is refused and the new one opens a restarted manager."""
    new = _key_in(locked.docker("m1", "swarm", "unlock-key", "--rotate", "-q").stdout)
    assert new != locked.key
    eventually(
        lambda: locked.api("m2", "GET", "/swarm/unlockkey")["UnlockKey"] == new, what="m2 knows"
    )
    locked.lab.kill_daemon("m1")
    locked.lab.start("m1")
    assert locked.state("m1") == "locked"
    assert "invalid key" in locked.refused("m1", "POST", "/swarm/unlock", {"UnlockKey": locked.key})
    _unlock(locked, "m1", new)
    eventually(lambda: locked.state("m1") == "active", what="m1 is active")
    locked.key = new


def test_new_manager_needs_no_unlocking_until_it_restarts(locked, eventually):
    """A manager that joins a locked cluster works at once; its disk is sealed by the same key."""
    locked.join("w1", "m2", eventually(lambda: locked.tokens("m2"))["Manager"])
    eventually(lambda: locked.is_manager("w1"), what="w1 manages")
    assert locked.state("w1") == "active"
    locked.lab.kill_daemon("w1")
    locked.lab.start("w1")
    assert locked.state("w1") == "locked"
    _unlock(locked, "w1", locked.key)
    eventually(lambda: locked.state("w1") == "active", what="w1 is active")

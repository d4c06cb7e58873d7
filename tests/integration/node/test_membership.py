"""init, leave, autolock and restarts of a manager of one."""

import re

import pytest


def test_a_node_in_no_swarm_says_so(idle_node):
    """Swarm commands name the way in; image commands work all the same."""
    done = idle_node.docker("service", "ls", check=False)
    assert done.returncode == 1
    assert "This node is not a swarm manager" in done.stderr
    assert "bb" in idle_node.docker("image", "ls").stdout
    assert "Swarm: inactive" in idle_node.docker("info").stdout


def test_a_second_init_is_refused(node):
    """The node is in a swarm already, and stays in it."""
    done = node.docker("swarm", "init", "--advertise-addr", "10.77.0.1", check=False)
    assert done.returncode == 1
    assert "already part of a swarm" in done.stderr
    assert "Ready" in node.docker("node", "ls").stdout


@pytest.mark.parametrize("address", ["nosuch0", "10.77.0.1:99999", "256.1.1.1"])
def test_a_bad_advertise_address_leaves_nothing(idle_node, address):
    """Refused with the reason, and the next init works."""
    done = idle_node.docker("swarm", "init", "--advertise-addr", address, check=False)
    assert done.returncode == 1
    assert "advertise address" in done.stderr
    assert not (idle_node.host.state / "node.json").exists()
    idle_node.init()


def test_leave_wants_force_and_then_removes_everything(node):
    """The last manager warns; with force its containers and state are gone, images stay."""
    node.create("web", "--replicas", "2")
    pids = node.wait_running("web", 2).values()
    refused = node.docker("swarm", "leave", check=False)
    assert refused.returncode == 1
    assert "--force" in refused.stderr

    node.docker("swarm", "leave", "--force")

    for pid in pids:
        assert node.host.exec("kill", "-0", str(pid), check=False).returncode != 0
    assert not (node.host.state / "raft").exists()
    assert list((node.host.state / "containers").iterdir()) == []
    assert "Swarm: inactive" in node.docker("info").stdout
    assert "bb" in node.docker("image", "ls").stdout
    assert "gwbr" not in node.host.exec("ip", "-br", "link").stdout
    node.init()
    node.create("again")
    node.wait_running("again", 1)


def test_restart_restores_everything(node):
    """Services, tasks, tokens and labels are the same after a kill -9."""
    node.create("web", "--replicas", "2", "--label", "a=b", "--env", "X=1")
    before = node.wait_running("web", 2)
    token = node.docker("swarm", "join-token", "-q", "worker").stdout
    attrs = node.api.services.get("web").attrs

    node.host.kill_daemon("KILL")
    node.start_daemon()

    assert attrs == node.api.services.get("web").attrs
    assert token == node.docker("swarm", "join-token", "-q", "worker").stdout
    assert before == node.wait_running("web", 2)


def test_autolock_locks_after_a_restart_and_containers_go_on(idle_node):
    """A locked manager answers as Docker's; a wrong key is refused, the right one opens it."""
    node = idle_node
    said = node.docker("swarm", "init", "--advertise-addr", "10.77.0.1", "--autolock").stdout
    (key,) = re.findall(r"SWMKEY-1-\S+", said)
    assert key == node.docker("swarm", "unlock-key", "-q").stdout.strip()
    node.create("web", "--replicas", "2")
    before = node.wait_running("web", 2)

    node.host.kill_daemon("KILL")
    node.start_daemon()

    locked = node.docker("service", "ls", check=False)
    assert locked.returncode == 1
    assert "Swarm is encrypted and needs to be unlocked" in locked.stderr
    assert "Swarm: locked" in node.docker("info").stdout
    assert "bb" in node.docker("image", "ls").stdout
    for pid in before.values():
        node.host.exec("kill", "-0", str(pid))
    wrong = key[:-4] + ("AAAA" if not key.endswith("AAAA") else "BBBB")
    refused = node.docker("swarm", "unlock", stdin=wrong + "\n", check=False)
    assert refused.returncode == 1
    assert "invalid key" in refused.stderr
    node.docker("swarm", "unlock", stdin=key + "\n")
    assert before == node.wait_running("web", 2)


def test_autolock_is_switched_and_rotated_at_run_time(node):
    """On, rotated, off: what is needed after a restart follows at once."""
    said = node.docker("swarm", "update", "--autolock=true").stdout
    (first,) = re.findall(r"SWMKEY-1-\S+", said)
    second = node.docker("swarm", "unlock-key", "--rotate", "-q").stdout.strip()
    assert first != second
    node.host.kill_daemon("KILL")
    node.start_daemon()
    assert node.docker("swarm", "unlock", stdin=first + "\n", check=False).returncode == 1
    node.docker("swarm", "unlock", stdin=second + "\n")
    node.docker("swarm", "update", "--autolock=false")
    node.host.kill_daemon("KILL")
    node.start_daemon()
    assert "Ready" in node.docker("node", "ls").stdout


def test_nothing_of_the_cluster_is_on_the_disk_in_the_clear(node):
    """No service name, environment, token or key can be read from the manager's files."""
    node.create("very-secret-name", "--env", "PASSWORD=swordfish-71")
    node.wait_running("very-secret-name", 1)
    token = node.docker("swarm", "join-token", "-q", "manager").stdout.strip()
    node.host.kill_daemon("TERM")

    for path in (node.host.state / "raft").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for text in ("very-secret-name", "swordfish-71", token, "PRIVATE KEY"):
                assert text.encode() not in data, path
    log = node.host.log.read_text()
    assert token not in log
    assert "swordfish-71" not in log
    node.start_daemon()


def test_a_damaged_log_is_refused_with_its_place(node):
    """The daemon starts, says which file is damaged at which byte, and applies nothing of it."""
    for index in range(30):
        node.create(f"s{index}", "--replicas", "0")
    node.host.kill_daemon("KILL")
    (segment,) = (node.host.state / "raft").rglob("*.wal")
    data = bytearray(segment.read_bytes())
    place = len(data) // 3
    data[place] ^= 0xFF
    segment.write_bytes(data)
    node.start_daemon()

    done = node.docker("service", "ls", check=False)
    assert done.returncode == 1
    assert segment.name in done.stderr
    assert "damaged at byte" in done.stderr

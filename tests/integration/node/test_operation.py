"""What an operator does to a node with services on it, and what kills and restarts do to it."""

import json
import random
import time

from manager.lab.footprint import read_host_footprint


def test_drain_stops_the_tasks_and_active_brings_them_back(node, eventually):
    """Tasks of the only node wait with the reason; a paused node keeps what it has."""
    node.create("web", "--replicas", "2")
    before = node.wait_running("web", 2)

    node.docker("node", "update", "--availability", "pause", "self")
    assert before == node.wait_running("web", 2)
    node.docker("node", "update", "--availability", "drain", "self")

    reason = "no suitable node (1 node is not available for new tasks)"
    eventually(lambda: node.states("web").count(("pending", reason)) == 2)
    eventually(lambda: node.docker("ps", "-q").stdout == "")
    node.docker("node", "update", "--availability", "active", "self")
    assert before.keys().isdisjoint(node.wait_running("web", 2))


def test_a_task_that_cannot_be_prepared_waits_before_the_next_try(node, eventually):
    """One rejection in the restart delay, not as many as the machine can make."""
    mount = "type=bind,source=/no/such/folder,target=/x"
    node.create("web", "--mount", mount)
    eventually(lambda: [s for s, _ in node.states("web")] == ["rejected"])

    version = node.api.services.get("web").version
    assert [s for s, _ in node.states("web")] == ["rejected"]
    assert version == node.api.services.get("web").version


def test_what_waits_for_room_starts_when_there_is_some(node, eventually):
    """A service that found no memory, or no free port of the node, begins when another goes."""
    most = node.api.info()["MemTotal"] * 3 // 4
    port = ("--publish", "mode=host,published=8081,target=80")
    node.create("first", "--reserve-memory", str(most), *port)
    node.wait_running("first", 1)
    node.create("second", "--reserve-memory", str(most))
    node.create("third", *port)
    for name, reason in (("second", "insufficient resources"), ("third", "host-mode port already")):
        eventually(lambda name=name, reason=reason: reason in str(node.states(name)))

    node.docker("service", "rm", "first")

    node.wait_running("second", 1)
    node.wait_running("third", 1)


def test_a_restart_of_the_machine_brings_services_back_with_their_logs(node, eventually):
    """All processes are gone at once; tasks are replaced, and what they wrote can be read."""
    script = "echo x >> /data/x; echo up $(wc -l < /data/x); sleep 1000"
    node.create("web", "--replicas", "2", "--restart-delay", "200ms",
                "--mount", "type=volume,source=data,target=/data",
                command=("sh", "-c", script))  # fmt: skip
    before = node.wait_running("web", 2)

    node.host.restart()
    node.start_daemon()

    # The store still has the old tasks as running until the daemon has looked for them.
    eventually(lambda: before.keys().isdisjoint(node.running("web")))
    node.wait_running("web", 2)
    assert "task: container ended while nobody watched it" in [e for _, e in node.states("web")]

    def logs():
        return sorted(node.docker("service", "logs", "--raw", "web").stdout.splitlines())

    eventually(lambda: len(logs()) == 4)
    assert logs()[-1] == "up 4"


def test_kills_at_any_moment_leave_nothing(node, eventually):
    """After kills of the daemon among scale-ups, updates and removals all is as it was before."""
    rng = random.Random(7)

    def look():
        return read_host_footprint(node.host.init_pid, node.host.cgroup_parent)

    before = look()
    for round_number in range(8):
        name = f"s{round_number % 2}"
        if round_number < 2:
            node.create(name, "--replicas", "4", "--mount", "type=volume,target=/v")
        else:
            command = rng.choice([("scale", "-d", f"{name}={rng.randint(0, 8)}"),
                                  ("update", "-d", "--force", name)])  # fmt: skip
            node.docker("service", *command)
        time.sleep(rng.random() * 0.3)  # the moment of the kill, not a wait for anything
        node.host.kill_daemon("KILL")
        node.start_daemon()
    for service in node.api.services.list():
        service.remove()

    eventually(lambda: node.api.api.tasks() == [])
    eventually(lambda: not look().difference(before), what="footprint as before")
    state = node.host.state
    eventually(lambda: list((state / "containers").iterdir()) == [])
    eventually(lambda: node.docker("volume", "ls", "-q").stdout == "")
    assert '"level": "error"' not in node.host.log.read_text()


def test_volumes_and_their_users(node, eventually):
    """What a service made is listed and kept while it is used; usage is measured."""
    script = "dd if=/dev/zero of=/data/x bs=1M count=2; sleep 1000"
    node.create("web", "--mount", "type=volume,source=data,target=/data",
                command=("sh", "-c", script))  # fmt: skip
    node.wait_running("web", 1)
    eventually(lambda: "2.097MB" in node.docker("system", "df", "--format", "{{.Size}}").stdout)
    refused = node.docker("volume", "rm", "data", check=False)
    assert "volume is in use" in refused.stderr
    # The option of the command for this came after the oldest client that we are tested with.
    pruned = node.api.volumes.prune(filters={"all": ["true"]})
    assert "data" not in (pruned["VolumesDeleted"] or [])
    described = json.loads(node.docker("volume", "inspect", "data").stdout)
    assert described[0]["Name"] == "data"

    node.docker("service", "rm", "web")
    eventually(lambda: node.docker("volume", "rm", "data", check=False).returncode == 0)

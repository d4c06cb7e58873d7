"""A node whose disk is full to the last byte: nothing healthy is given up, and it can be pruned."""

import time

import pytest

QUIET_SECONDS = 8.0
DISK_BYTES = 64 * 1024 * 1024
MOUNTS = {
    "tmpfs": 'mount -t tmpfs -o size={bytes} none "$1"',
    # Where a name needs a block of its own, too.
    "ext4": "truncate -s {bytes} /run/disk && mkfs.ext4 -q -m 0 /run/disk"
    ' && mount -o loop /run/disk "$1"',
}
# A small disk in the place of the node's own, with what was on that.
MOVE = 'set -e; cp -a "$1" /run/before; {mount}; cp -a /run/before/. "$1"; rm -r /run/before'
FILL = (
    'dd if=/dev/zero of="$1/filler" bs=64k 2>/dev/null; '
    'dd if=/dev/zero of="$1/filler2" bs=512 2>/dev/null; '
    'n=0; while [ $n -lt 200 ] && echo > "$1/filler3.$n"; do n=$((n+1)); done 2>/dev/null; true'
)
NOISE = "i=0; while true; do i=$((i+1)); echo line $i of a noisy service; sleep 0.01; done"


def _sh(cluster, host, script):
    return cluster.host(host).exec("sh", "-c", script, "sh", str(cluster.host(host).state))


def _fill(cluster, host):
    _sh(cluster, host, FILL)


def _empty(cluster, host):
    _sh(cluster, host, 'rm "$1"/filler*')


@pytest.fixture(params=sorted(MOUNTS))
def full(request, make_cluster, rootfs, eventually):
    """A manager, and a worker on a small disk, with a checked and a noisy service on the worker."""
    kind = request.param
    cluster = make_cluster(f"fd{kind}", 1, 1, is_formed=True)
    # However long a daemon takes to come back on a busy machine, its node is not taken for dead.
    cluster.docker("m1", "swarm", "update", "--dispatcher-heartbeat", "20s")
    cluster.lab.kill_daemon("w1", "TERM")
    _sh(cluster, "w1", MOVE.format(mount=MOUNTS[kind].format(bytes=DISK_BYTES)))
    cluster.lab.start("w1")
    cluster.docker("w1", "import", str(rootfs), "bb:1")
    cluster.docker("w1", "import", "-c", "CMD true", str(rootfs), "bb:2")
    on_worker = ("--constraint", "node.hostname==w1", "--detach", "--stop-grace-period", "1s")
    health = ("--health-cmd", "true", "--health-interval", "1s", "--health-retries", "1")
    cluster.docker(
        "m1", *("service", "create", *on_worker, *health), *("--name", "web", "bb:1"),
        *("sleep", "10000"),
    )  # fmt: skip
    rotated = ("--log-driver", "json-file", "--log-opt", "max-size=4k", "--log-opt", "max-file=3")
    cluster.docker(
        "m1", *("service", "create", *on_worker, *rotated), *("--name", "noisy", "bb:1"),
        *("sh", "-c", NOISE),
    )  # fmt: skip
    eventually(lambda: len(cluster.pids("m1")) == 2, what="both run")
    yield cluster
    print(cluster.host("w1").log.read_text()[-8000:])  # shown if the test fails
    print(cluster.api("m1", "GET", "/tasks"))


def test_a_full_disk_gives_up_nothing(full, eventually):
    """Tasks stay, reports go on, the reason is told everywhere, and pruning makes room."""
    before = full.pids("m1")
    session = full.host("w1").log.read_text().count("session_opened")
    _fill(full, "w1")

    def warnings():
        return " ".join(full.api("w1", "GET", "/info")["Warnings"] or [])

    state = str(full.host("w1").state)
    eventually(lambda: state in warnings(), what="info tells")

    def message():
        return full.nodes("m1")["w1"]["Status"].get("Message", "")

    eventually(lambda: state in message(), what="node inspect tells")
    time.sleep(QUIET_SECONDS)  # many checks, rotations and reports
    assert before == full.pids("m1")
    assert full.host("w1").log.read_text().count("session_opened") == session
    assert "session_crashed" not in full.host("w1").log.read_text()

    # A new task meets the full disk, and says so.
    _fill(full, "w1")
    full.docker("m1", *("service", "create", "--detach", "--constraint", "node.hostname==w1"),
                "--restart-condition", "none", "--name", "late", "bb:1", "true")  # fmt: skip

    def late():
        tasks = full.api("m1", "GET", '/tasks?filters={"service":["late"]}')
        return " ".join(str(task["Status"]) for task in tasks)

    # Or it finds room in what a file system keeps for itself.
    eventually(lambda: "the disk is full" in late() or "'complete'" in late(), what="late ends")

    # A daemon that is killed comes back.
    full.lab.kill_daemon("w1")
    full.lab.start("w1")
    eventually(lambda: before == full.pids("m1"), what="adopted")
    eventually(lambda: state in warnings(), what="info tells again")

    full.docker("w1", "system", "df")
    full.docker("w1", "volume", "prune", "--force")
    full.docker("w1", "rmi", "bb:2")
    _fill(full, "w1")
    full.docker("w1", "image", "prune", "--all", "--force")
    _empty(full, "w1")
    eventually(lambda: not warnings(), what="all is well")
    eventually(lambda: not message(), what="all is well, for the manager too")
    assert before == full.pids("m1")
    assert "Traceback" not in full.host("w1").log.read_text()

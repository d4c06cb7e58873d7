"""Connections to the managers' ports that prove nothing, from a container and from a host."""

import subprocess
import sys

from manager.lab.image import make_rootfs_tar
from overlay.firewall_rules import MEMBER_CONNECTIONS_MAX

COUNT = 700
KNOCK = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
kept = []
for _ in range(count):
    one = socket.socket()
    one.settimeout(5)
    try:
        one.connect((address, port))
    except ConnectionRefusedError:
        continue
    kept.append(one)
print(len(kept), flush=True)
"""


def knock(command, host, address, port, namespace=""):
    """Return how many of `COUNT` connections came about, from a host or a namespace of it."""
    there = command.lab.running(host)
    inside = ["nsenter", f"--net={namespace}"] if namespace else []
    program = [sys.executable, "-c", KNOCK, address, str(port), str(COUNT)]
    done = subprocess.run(
        there.enter([*inside, *program]),
        env=there.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(done.stdout)


def test_no_container_reaches_a_manager_and_no_host_takes_all_room(
    make_command, tmp_path, eventually
):
    """Of this node or another; what a host opens is bounded, and the cluster works meanwhile."""
    command = make_command("k")
    command("up", "--managers", "1", "--workers", "1")
    archive = tmp_path / "rootfs.tar"
    make_rootfs_tar(archive)
    for host in ("m1", "w1"):
        change = 'CMD ["sleep","1000"]'
        command("exec", host, "swarm", "image", "import", "--change", change, str(archive), "a:1")
    command("exec", "m1", "swarm", "service", "create", "--mode", "global", "a:1")
    address = command.rows()["m1"][0]
    found = {}
    for host in ("m1", "w1"):
        run = command.lab.host(host).socket.parent
        (namespace,) = eventually(lambda run=run: list((run / "netns").glob("*")))
        for port in (2377, 2378):
            found[host, port] = knock(command, host, address, port, str(namespace))
    assert found == dict.fromkeys(found, 0)

    assert 0 < knock(command, "w1", address, 2378) <= MEMBER_CONNECTIONS_MAX
    listed = command("exec", "m1", "swarm", "node", "ls", "--format", "{{.Hostname}} {{.Status}}")
    assert sorted(listed.split("\n")[:2]) == ["m1 Ready", "w1 Ready"]

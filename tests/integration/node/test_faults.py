"""Bad input and faults: a sentence that names the thing, Docker's status, and nothing half made."""

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def request(node, method, path, body=None):
    """Send one request; returns the status and the message."""
    connection = http.client.HTTPConnection("swarm", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(str(node.host.socket))
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
    connection.request(method, path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text).get("message", "") if text else ""


def spec(name="web", **changes):
    """Return a service's Engine JSON; `changes` replace top-level members."""
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": "bb:1", "Command": ["sleep", "1000"]}},
        "Mode": {"Replicated": {"Replicas": 1}},
    } | changes


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"Name": "bad name"}, 400, "name"),
        ({"Name": "x" * 64}, 400, "63"),
        ({"Mode": {"Replicated": {"Replicas": -1}}}, 400, "replicas"),
        ({"Mode": {"Replicated": {"Replicas": 10**9}}}, 400, "replicas"),
        ({"Mode": {"GlobalJob": {}}}, 501, "global-job"),
        (
            {
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "bb:1"},
                    "Resources": {"Limits": {"MemoryBytes": 1000}},
                }
            },
            400,
            "memory",
        ),
        (
            {
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "bb:1"},
                    "Resources": {"Limits": {"NanoCPUs": 1}},
                }
            },
            400,
            "cpu",
        ),
        ({"TaskTemplate": {"ContainerSpec": {"Image": ""}}}, 400, "image"),
        ({"TaskTemplate": {"ContainerSpec": {"Image": "UPPER:::x"}}}, 400, "reference"),
    ],
)
def test_bad_services_are_refused_and_nothing_is_made(node, changes, status, words):
    """Each is refused with Docker's status and a sentence about the thing at fault."""
    answered, message = request(node, "POST", "/services/create", spec(**changes))

    assert status == answered, message
    assert words in message.lower()
    assert node.api.services.list() == []
    assert node.api.api.tasks() == []


def test_garbage_bodies_are_refused(node):
    """No JSON, wrong types, unknown paths and versions: a message each, never a traceback."""
    for body in (b"{", b"[]", b'{"Name": 3}', b"\xff\xfe"):
        status, message = request(node, "POST", "/services/create", body)
        assert status == 400
        assert message
    assert request(node, "GET", "/nosuch") == (404, "page not found")
    assert request(node, "GET", "/v9.99/info")[0] == 400
    assert "Traceback" not in node.host.log.read_text()


def test_names_and_versions_conflict(node):
    """A second service of a name, and an update of an old version, are refused."""
    node.create("web")
    status, message = request(node, "POST", "/services/create", spec())
    assert (status, "web" in message) == (409, True)
    status, message = request(node, "POST", "/services/web/update?version=1", spec())
    assert (status, "out of sequence" in message) == (500, True)


def test_a_published_port_is_taken_once(node):
    """The second service that wants an ingress port is told who has it."""
    node.create("one", "--publish", "8080:80")
    refused = node.create("two", "--publish", "8080:80", check=False)
    assert refused.returncode == 1
    assert "8080" in refused.stderr
    assert "one" in refused.stderr


@pytest.mark.parametrize("shared", ["both", "state", "run"])
def test_a_second_daemon_is_refused(node, shared):
    """With either directory of the first the second names it and ends; the first goes on."""
    swarmd = str(Path(sys.executable).parent / "swarmd")
    other = node.host.root / f"other-{shared}"
    state = other / "state" if shared == "run" else node.host.state
    run = other / "run" if shared == "state" else node.host.run
    second = node.host.exec(swarmd, "--state-dir", str(state), "--run-dir", str(run), check=False)
    assert second.returncode == 1
    assert f"process {node.host.daemon_pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert node.docker("node", "ls").returncode == 0


def test_a_socket_in_use_is_named(node):
    """Other directories but the same socket: refused with the socket's path."""
    swarmd = str(Path(sys.executable).parent / "swarmd")
    other = node.host.root / "other"
    second = node.host.exec(
        *(swarmd, "--state-dir", f"{other}/state", "--run-dir", f"{other}/run"),
        *("--host", f"unix://{node.host.socket}", "--cgroup-parent", node.host.cgroup_parent),
        check=False,
    )
    assert second.returncode == 1
    assert str(node.host.socket) in second.stderr
    assert node.docker("node", "ls").returncode == 0


def test_a_missing_runtime_is_named(bare_node):
    """Without crun and runc the daemon says what to install, and ends."""
    swarmd = str(Path(sys.executable).parent / "swarmd")
    done = bare_node.host.exec(
        *("env", f"PATH={Path(sys.executable).parent}", swarmd),
        *("--state-dir", str(bare_node.host.state), "--run-dir", str(bare_node.host.run)),
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corrupt_archive_leaves_nothing(idle_node):
    """Loading or importing garbage is refused, and no image or file of it is kept."""
    before = idle_node.docker("image", "ls", "-q").stdout
    broken = idle_node.host.root / "broken.tar"
    broken.write_bytes(os.urandom(100_000))
    for command in (("load", "-i"), ("import",)):
        done = idle_node.docker(*command, str(broken), check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()
    assert before == idle_node.docker("image", "ls", "-q").stdout
    assert list((idle_node.host.state / "images").glob("*tmp*/*")) == []


def test_a_client_that_goes_away_mid_stream(node, eventually):
    """Followed logs and a half-sent image end with their client; the daemon goes on."""
    node.create("web", command=("sh", "-c", "while true; do echo line; sleep 0.1; done"))
    node.wait_running("web", 1)
    follow = subprocess.Popen(
        ["docker", "-H", f"unix://{node.host.socket}", "service", "logs", "-f", "web"],
        stdout=subprocess.PIPE,
    )
    assert follow.stdout.readline()
    follow.kill()
    follow.wait()
    follow.stdout.close()
    half = socket.socket(socket.AF_UNIX)
    half.connect(str(node.host.socket))
    half.sendall(
        b"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 5000
    )
    half.close()
    fds = f"/proc/{node.host.daemon_pid}/fd"
    assert node.docker("node", "ls").returncode == 0
    before = len(node.host.exec("ls", fds).stdout.split())
    eventually(lambda: len(node.host.exec("ls", fds).stdout.split()) <= before)
    assert "Traceback" not in node.host.log.read_text()


def test_a_full_disk_is_said_and_survived(bare_node, rootfs, eventually):
    """On a full disk writes are refused with the reason; with room again they work."""
    node = bare_node
    node.host.exec("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(node.host.state))
    node.start_daemon()
    node.docker("import", str(rootfs), "bb:1")
    node.init()
    node.create("web")
    node.wait_running("web", 1)
    fill = f"{node.host.state}/fill"
    node.host.exec("sh", "-c", f"dd if=/dev/zero of={fill} bs=64k 2>/dev/null", check=False)

    def refused():
        done = node.docker("service", "update", "--detach", "--label-add", "a=" + "b" * 9000,
                           "web", check=False)  # fmt: skip
        return done if done.returncode else None

    done = eventually(refused)
    assert "no space" in done.stderr.lower() or "full" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    node.host.exec("rm", fill)
    eventually(lambda: node.create("after", check=False).returncode == 0)
    node.wait_running("after", 1)
    assert len(node.running("web")) == 1

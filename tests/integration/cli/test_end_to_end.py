"""A person's walk through one node, with the real daemon."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from typing import Any

from tests import needs


def test_create_waits_until_the_tasks_run(swarm: Any, service: Callable[..., str]) -> None:
    """Attached, the command ends when the service has converged."""
    out = service("web", "--replicas", "3")
    assert "overall progress: 3 out of 3 tasks" in out
    assert re.search(r"verify: Service \w{25} converged\n\Z", out)
    assert re.search(r"web +replicated +3/3 +bb:1", swarm.ok("service", "ls"))
    tasks = swarm.ok("service", "ps", "web").splitlines()
    assert len(tasks) == 4
    assert all(re.search(r"web\.\d +bb:1 +node +Running +Running", line) for line in tasks[1:])


def test_scale_update_rollback(swarm: Any, service: Callable[..., str]) -> None:
    """Each change is seen through to its end, and the spec is what was asked."""
    service("app", "-d", "--env", "A=1")
    assert "app scaled to 2\n" in swarm.ok("service", "scale", "app=2")
    out = swarm.ok("service", "update", "--env-add", "B=2", "app")
    assert out.startswith("app\n")
    assert "verify: Service app converged" in out
    env = ("service", "inspect", "app", "-f", "{{json .Spec.TaskTemplate.ContainerSpec.Env}}")
    assert json.loads(swarm.ok(*env)) == ["A=1", "B=2"]
    swarm.ok("service", "rollback", "app")
    assert json.loads(swarm.ok(*env)) == ["A=1"]
    state = ("service", "inspect", "app", "-f", "{{.UpdateStatus.State}}")
    # The watch ends with the monitoring period, a moment before the manager's own clock.
    deadline = time.monotonic() + 10
    while swarm.ok(*state) != "rollback_completed\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_logs(swarm: Any, service: Callable[..., str]) -> None:
    """Lines of all tasks, each with its task's name; --follow goes on until it is ended."""
    service(
        "talk", command=("sh", "-c", "echo out; echo err >&2; while sleep 0.1; do echo x; done")
    )
    done = swarm("service", "logs", "talk")
    assert re.search(r"^talk\.1\.\w{12}@node    \| out$", done.stdout, re.MULTILINE)
    assert re.search(r"^talk\.1\.\w{12}@node    \| err$", done.stderr, re.MULTILINE)
    assert swarm.ok("service", "logs", "--raw", "--tail", "1", "talk") == "x\n"
    stamped = swarm.ok("service", "logs", "-t", "--no-task-ids", "-n", "1", "talk")
    assert re.fullmatch(r"\d{4}-\S+Z talk\.1@node    \| x\n", stamped)
    follower = swarm.start("service", "logs", "-f", "talk")
    assert follower.stdout is not None
    assert "talk.1." in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=10)
    assert follower.returncode == 130
    assert "Traceback" not in errors


def test_closed_output_ends_quietly(swarm: Any, service: Callable[..., str]) -> None:
    """`swarm … | head` shows no traceback."""
    service("chat", "-d", command=("sh", "-c", "while true; do echo hello; done"))
    follower = swarm.start("service", "logs", "-f", "chat")
    assert follower.stdout is not None
    follower.stdout.readline()
    follower.stdout.close()
    _, errors = follower.communicate(timeout=10)
    assert follower.returncode == 141
    assert "Traceback" not in errors


def test_an_interrupt_leaves_the_service_converging(swarm: Any) -> None:
    """Ctrl-C ends the watch with Docker's words, and the service goes on."""
    watcher = swarm.start(
        *("service", "create", "--name", "slow", "--no-resolve-image"),
        *("--constraint", "node.role==worker", "bb:1", "sleep", "1000"),
    )
    assert watcher.stdout is not None
    lines = [watcher.stdout.readline(), watcher.stdout.readline()]
    time.sleep(0.3)  # the interrupt arrives while the program waits, as a person's does
    watcher.send_signal(signal.SIGINT)
    out, errors = watcher.communicate(timeout=10)
    assert watcher.returncode == 0, errors
    assert "Operation continuing in background.\nUse `swarm service ps " in out
    assert lines[1] == "overall progress: 0 out of 1 tasks\n"
    assert "no suitable node" in swarm.ok("service", "ps", "--no-trunc", "slow")
    swarm.ok("service", "rm", "slow")


def test_what_the_daemon_says_is_shown(swarm: Any) -> None:
    """Errors of the daemon end the command with its sentence."""
    for arguments in (
        ("service", "create", "-d", "--name", "bad name", "bb:1"),
        ("service", "rm", "nope"),
        ("node", "inspect", "nope"),
        ("init",),
        ("node", "demote", "self"),
    ):
        done = swarm(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("Error response from daemon: "), done.stderr


def test_autolock_key(swarm: Any) -> None:
    """The key is shown when locking is turned on, and can be asked for again."""
    out = swarm.ok("update", "--autolock=true")
    key = re.search(r"SWMKEY-1-\S+", out)
    assert key is not None
    assert swarm.ok("unlock-key", "-q").strip() == key[0]
    assert swarm.ok("unlock-key", "-q", "--rotate").strip() != key[0]
    swarm.ok("update", "--autolock=false")


def test_live_tables_equal_the_stock_clients(swarm: Any, service: Callable[..., str]) -> None:
    """On one live socket both clients print the same."""
    needs.program("docker")
    service("both", "--replicas", "2", "-p", "8081:80", "--label", "a=b")
    for line in (
        "service ls",
        "node ls",
        "node inspect --pretty self",
        "image ls -q",
        "image ls --format {{.Repository}}:{{.Tag}}={{.ID}}={{.Size}}",
        "image history --human=false bb:1",
        "service ps -q both",
        "service inspect both -f {{.Spec.Name}}:{{.Endpoint.Ports}}",
    ):
        theirs = swarm.run("docker", *line.split())
        mine = swarm(*line.split())
        assert (theirs.stdout, theirs.returncode) == (mine.stdout, mine.returncode), line


def test_images_travel(swarm: Any, tmp_path: Any) -> None:
    """Save, remove, load: the image is the same; what cannot be written or found is told."""
    swarm.ok("image", "tag", "bb:1", "copy:2")
    before = swarm.ok("image", "inspect", "copy:2", "-f", "{{.Id}}")
    archive = tmp_path / "copy.tar"
    swarm.ok("image", "save", "-o", str(archive), "copy:2")
    assert swarm.ok("image", "rm", "copy:2") == "Untagged: copy:2\n"
    assert swarm("image", "inspect", "copy:2").returncode == 1
    assert "Loaded image: copy:2\n" in swarm.ok("image", "load", "-i", str(archive))
    assert swarm.ok("image", "inspect", "copy:2", "-f", "{{.Id}}") == before
    done = swarm("image", "save", "-o", f"{tmp_path}/no/such/folder", "copy:2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot write" in done.stderr
    assert "no such file" in swarm("image", "load", "-i", "/nope").stderr
    assert swarm("image", "prune", stdin="n\n").returncode == 1
    assert "Total reclaimed space: " in swarm.ok("image", "prune", "-f")


def test_a_pull_that_fails_says_so(swarm: Any) -> None:
    """No registry is there, and the daemon's sentence reaches the user."""
    done = swarm("image", "pull", "127.0.0.1:1/none:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_locked_manager_is_unlocked_from_a_pipe(swarm: Any, node: Any) -> None:
    """After a restart commands say what to do; a wrong key is refused, the right one opens."""
    out = swarm.ok("update", "--autolock=true")
    key = re.search(r"SWMKEY-1-\S+", out)
    assert key is not None
    node.kill_daemon("TERM")
    node.start_daemon()
    locked = swarm("node", "ls")
    assert locked.returncode == 1
    assert 'Please use "swarm unlock" to unlock it.' in locked.stderr
    wrong = swarm("unlock", stdin="SWMKEY-1-" + "A" * 43 + "\n")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("Error response from daemon: ")
    assert swarm.ok("unlock", stdin=key[0] + "\n") == ""
    deadline = time.monotonic() + 20
    while swarm("node", "ls").returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert swarm("unlock").stderr == "Error: swarm is not locked\n"
    swarm.ok("update", "--autolock=false")

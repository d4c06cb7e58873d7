"""Hosts, the switch between them, and what is left of them, without a swarm."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manager.lab.footprint import read_machine_footprint
from manager.lab.processes import marks
from manager.lab.state import HostState

ECHO = """
import socket
listener = socket.create_server(("0.0.0.0", 9000))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
TALK = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 9000), 5)
connection.settimeout(60)
for line in sys.stdin:
    connection.sendall(line.encode())
    print(connection.recv(100).decode(), end="", flush=True)
"""
ADDRESS = "/sys/class/net/eth0/address"


@pytest.fixture
def hosts(make_command):
    """Two managers and a worker, in no swarm."""
    command = make_command("h")
    command("up", "--managers", "2", "--workers", "1", "--no-form")
    return command


def python(command, host, text, *arguments):
    """Start a Python program in a host."""
    there = command.lab.running(host)
    return subprocess.Popen(
        there.enter([sys.executable, "-c", text, *arguments]),
        env=there.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def ended(process):
    """End a program and the one that it started in a host with the block."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def answers(process, within):
    """Tell whether a line comes in time, and return it."""
    ready, _, _ = select.select([process.stdout], [], [], within)
    return process.stdout.readline() if ready else None


def say(process, line):
    """Write a line to a program."""
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def ping(command, source, target):
    """Tell whether one host reaches another."""
    words = ("busybox", "ping", "-c", "1", "-W", "1", target)
    return command.run("exec", source, *words, check=False).returncode == 0


def test_hosts_are_machines(hosts):
    """Each has a name, an address, processes, a daemon of its own, and reaches the others."""
    assert hosts.rows() == {
        "m1": ["10.77.0.1", "manager", "up", "inactive"],
        "m2": ["10.77.0.2", "manager", "up", "inactive"],
        "w1": ["10.77.0.3", "worker", "up", "inactive"],
    }
    assert hosts("exec", "w1", "--", "hostname") == "w1\n"
    assert hosts("exec", "w1", "cat", "/proc/1/comm") == "tini\n"
    assert "Swarm: inactive" in hosts("exec", "m2", "swarm", "info")
    assert ping(hosts, "m1", "w1")
    assert hosts.run("exec", "m1", "sh", "-c", "exit 7", check=False).returncode == 7


def test_a_cut_is_silent(hosts):
    """What is on its way in a TCP connection stops, nobody is told, and it goes on when healed."""
    with ended(python(hosts, "m1", ECHO)) as echo, contextlib.ExitStack() as stack:
        assert answers(echo, 10) == "listening\n"
        talk = stack.enter_context(ended(python(hosts, "w1", TALK, "m1")))
        say(talk, "before")
        assert answers(talk, 10) == "before\n"
        hosts("cut", "m1", "w1")
        assert hosts.rows()["m1"][-1] == "w1"
        say(talk, "during")
        assert answers(talk, 1.5) is None
        assert talk.poll() is None, "the connection was not reset"
        assert not ping(hosts, "w1", "m1")
        assert ping(hosts, "m1", "m2")
        assert ping(hosts, "w1", "m2")
        hosts("heal", "w1", "m1")
        assert answers(talk, 15) == "during\n"


def test_a_host_is_cut_from_all(hosts, eventually):
    """One name is enough; `heal` undoes everything, and twice is no error."""
    hosts("cut", "m1")
    assert not ping(hosts, "m1", "m2")
    assert not ping(hosts, "m1", "w1")
    assert ping(hosts, "m2", "w1")
    hosts("cut", "m1", "m2")
    hosts("heal")
    hosts("heal")
    # Whom a host asked for in vain it asks again only after a second.
    eventually(lambda: ping(hosts, "m1", "m2"), within=5)
    eventually(lambda: ping(hosts, "m1", "w1"), within=5)


def test_power_is_lost_and_comes_back(hosts, eventually):
    """Everything in the host ends at once; its disk, its name and its addresses stay."""
    hardware = hosts("exec", "w1", "cat", ADDRESS)
    w1 = hosts.lab.running("w1")
    (w1.state / "kept").write_text("kept")
    (w1.run / "lost").write_text("lost")
    daemon = w1.daemon
    assert daemon.is_alive
    with ended(python(hosts, "w1", "input()")) as program:
        hosts("kill", "w1")
        assert program.wait(5) != 0
    assert not daemon.is_alive
    assert hosts.rows()["w1"][2] == "off"
    assert "host w1 is off" in hosts.refused("exec", "w1", "true")
    assert "host w1 is off" in hosts.refused("kill", "w1")
    assert ping(hosts, "m1", "m2")
    assert not ping(hosts, "m1", "w1")
    hosts("start", "w1")
    assert hosts("exec", "w1", "cat", ADDRESS) == hardware
    eventually(lambda: ping(hosts, "m1", "w1"), within=5)
    assert (w1.state / "kept").read_text() == "kept"
    assert not (w1.run / "lost").exists()
    assert "is up, and so is its daemon" in hosts.refused("start", "w1")


def test_a_cut_outlives_a_restart(hosts):
    """A host that comes back is still cut off: the cable is the switch's."""
    hosts("cut", "m1", "w1")
    hosts("kill", "w1")
    hosts("start", "w1")
    assert not ping(hosts, "m1", "w1")
    assert ping(hosts, "m2", "w1")


def test_a_daemon_ends_alone(hosts):
    """The host and what else runs in it do not notice."""
    with ended(python(hosts, "m2", "print('on', flush=True); input()")) as program:
        assert answers(program, 10) == "on\n"
        hosts("kill", "--daemon", "m2")
        assert program.poll() is None
        assert hosts.rows()["m2"][2] == "daemon stopped"
        assert "swarmd does not run" in hosts.refused("kill", "--daemon", "m2")
        hosts("start", "m2")
        assert program.poll() is None
    assert hosts.rows()["m2"][2] == "up"


@pytest.mark.parametrize("verb", ["down", "kill"])
def test_a_daemon_that_was_stopped_keeps_nothing_up(hosts, eventually, verb):
    """SIGSTOP also stops who entered the host for it, and SIGCONT wakes only the daemon."""
    host = hosts.lab.running("m1")
    daemon = host.daemon
    daemon.kill(signal.SIGSTOP)
    # Its parent notices, and stops as well.
    status = Path(f"/proc/{daemon.pid}/stat")
    parent = Path("/proc", status.read_text().rpartition(")")[2].split()[1], "stat")
    eventually(lambda: parent.read_text().rpartition(")")[2].split()[0] == "T")
    daemon.kill(signal.SIGCONT)
    if verb == "kill":
        hosts("kill", "m1")
        hosts("start", "m1")
        hosts.lab.running("m1")
    hosts("down")
    assert hosts.name not in {mark.rpartition("/")[0].rpartition("/")[2] for mark in marks("/")}


def test_logs_are_shown_and_followed(hosts):
    """The daemon's log, from the beginning, its end, or as it grows."""
    assert "daemon_started" in hosts("logs", "m1")
    assert len(hosts("logs", "-n", "1", "m1").splitlines()) == 1
    with ended(
        subprocess.Popen(
            ["swarm", "lab", "logs", "--name", hosts.name, "-f", "-n", "1", "m1"],
            executable=str(Path(sys.executable).parent / "swarm"),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    ) as following:
        assert answers(following, 10)
        hosts("kill", "--daemon", "m1")
        hosts("start", "m1")
        assert answers(following, 10)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_the_docker_client_works_in_a_shell(hosts, shell):
    """`shell` is a terminal in the host, whose daemon both clients find."""
    pid, terminal = pty.fork()
    if pid == 0:
        program = str(Path(sys.executable).parent / "swarm")
        os.environ["SHELL"] = shell
        os.execv(program, ["swarm", "lab", "shell", "--name", hosts.name, "m2"])
    os.write(terminal, b"docker info -f {{.Name}}-{{.NCPU}}; swarm info | grep Name:; exit 3\n")
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while select.select([terminal], [], [], 20)[0]:
            shown += os.read(terminal, 1000)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 3, shown
    assert f"m2-{os.cpu_count()}".encode() in shown
    assert b"Name: m2" in shown


def test_two_labs_at_a_time(hosts, make_command):
    """The same addresses, and no traffic between them."""
    other = make_command("i")
    other("up", "--managers", "1", "--workers", "0", "--no-form")
    assert hosts("exec", "m1", "--", "hostname") == other("exec", "m1", "--", "hostname")
    assert not ping(other, "m1", "10.77.0.2")
    assert ping(hosts, "m1", "10.77.0.2")
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "swarm"), "lab", "ls"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert {hosts.name, other.name} <= {line.split()[0] for line in shown.splitlines()}
    other("down")
    assert set(hosts.rows()) == {"m1", "m2", "w1"}


def test_misuse_is_told(hosts):
    """Every wrong word gets a sentence and exit code 1."""
    assert "is up already, with 3 hosts" in hosts.refused("up")
    assert "has no host x9; it has m1, m2, w1" in hosts.refused("kill", "x9")
    assert "has no host x9" in hosts.refused("cut", "m1", "x9")
    assert "cannot be cut from itself" in hosts.refused("cut", "m1", "m1")
    assert "say what to run" in hosts.refused("exec", "m1", "--")
    assert "at least one manager" in hosts.refused("up", "--managers", "0")
    assert set(hosts.rows()) == {"m1", "m2", "w1"}


def test_nothing_is_left(make_command):
    """After `down` the machine has the links, mounts, routes, rules and switches it had."""
    command = make_command("f")
    ours = (f"swarm-lab.{command.name}.*",)
    before = read_machine_footprint(ours)
    command("up", "--managers", "1", "--workers", "1", "--no-form")
    while_up = read_machine_footprint(("none*",)).difference(before)
    data = command.lab.data
    command("kill", "w1")
    command("down")
    assert while_up == []
    assert read_machine_footprint(ours).difference(before) == []
    assert not data.exists()
    assert marks(f"{data}/") == set()
    assert "there is no lab" in command.refused("down")


@pytest.mark.parametrize("seconds", [0.15, 0.4, 1.0])
def test_a_killed_up_leaves_nothing_for_long(make_command, seconds):
    """The next `up` of that name removes what the killed one had made, wherever it was."""
    command = make_command("k")
    program = str(Path(sys.executable).parent / "swarm")
    making = subprocess.Popen(
        [program, "lab", "up", "--name", command.name, "--no-form", "-q"],
        start_new_session=True,
    )
    time.sleep(seconds)  # not a wait for something: where the kill falls is the point
    making.send_signal(signal.SIGKILL)
    making.wait()
    data = command.lab.data
    done = command.run("up", "--managers", "1", "--workers", "0", "--no-form", check=False)
    if done.returncode:  # it was far enough to be a lab: then it is one that can be ended
        assert "is up already" in done.stderr
        command("down")
        command("up", "--managers", "1", "--workers", "0", "--no-form")
    assert {Path(mark).name for mark in making_hosts(data)} == {"switch", "m1"}
    command("down")
    assert making_hosts(data) == set()


def making_hosts(data):
    """Return the marks of a lab's holders."""
    return marks(f"{data}/")


def test_hosts_that_died_are_seen(hosts, eventually):
    """A lab whose processes were killed from outside is shown as it is, and can be started."""
    state = hosts.lab.state
    kept: HostState = state.host("w1")
    kept.init.kill()
    assert hosts.rows()["w1"][2] == "off"
    hosts("start", "w1")
    eventually(lambda: ping(hosts, "w1", "m1"), within=5)

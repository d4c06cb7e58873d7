"""A service's whole life on one node, through the stock client and docker-py."""

import subprocess
import sys

from manager.lab.footprint import read_host_footprint

HOST = "10.77.0.1"
HTTPD = ("sh", "-c", "exec httpd -f -p 80 -h /www")


def fetch(node, address, *, expect_refusal=False):
    """Fetch from the client namespace; returns the text, or "" when refused."""
    code = (
        "import sys,urllib.request as r\n"
        "try: sys.stdout.write(r.urlopen(sys.argv[1],timeout=5).read().decode())\n"
        "except OSError as e: sys.exit(7 if 'refused' in str(e) else 8)\n"
    )
    done = subprocess.run(
        node.host.enter_client([sys.executable, "-c", code, f"http://{address}/index.html"]),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode in ((7,) if expect_refusal else (0,)), done
    return done.stdout


def test_stock_client_goes_through_a_services_life(node, eventually):
    """create, ls, ps, logs, inspect, scale and rm print what they print against an engine."""
    node.docker(
        *("service", "create", "--quiet", "--name", "web", "--replicas", "2", "--init"),
        *("--publish", "8080:80", "bb:1", "sh", "-c", "echo up; exec httpd -f -p 80 -h /www"),
    )
    assert "2/2" in node.docker("service", "ls").stdout
    listed = node.docker("service", "ps", "web").stdout
    assert listed.count("Running") == 4  # desired and current state of two
    assert "web.1" in listed
    eventually(lambda: node.docker("service", "logs", "web").stdout.count("| up") == 2)
    assert "PublishedPort = 8080" in node.docker("service", "inspect", "--pretty", "web").stdout
    assert fetch(node, f"{HOST}:8080") == "hello from swarm\n"
    assert "converged" in node.docker("service", "scale", "web=3").stdout
    node.docker("service", "rm", "web")
    eventually(lambda: node.api.api.tasks() == [])
    fetch(node, f"{HOST}:8080", expect_refusal=True)
    refused = node.docker("service", "rm", "web", check=False).stderr
    # Older clients have a sentence of their own for this.
    assert "service web not found" in refused or "No such service: web" in refused


def test_docker_py_goes_through_a_services_life(node, eventually):
    """create, list, tasks, scale, logs, update, remove through the Python SDK."""
    service = node.api.services.create(
        "bb:1",
        command=["sh", "-c", "echo from $WHO; exec sleep 1000"],
        name="py",
        env=["WHO=docker-py"],
        stop_grace_period=10**9,
    )
    node.wait_running("py", 1)
    assert [service.id] == [s.id for s in node.api.services.list(filters={"name": "py"})]
    eventually(lambda: b"from docker-py" in b"".join(service.logs(stdout=True)))
    service.reload()
    assert service.scale(3)
    node.wait_running("py", 3)
    service.reload()
    service.update(env=["WHO=again"], fetch_current_spec=True)
    eventually(
        lambda: [
            t
            for t in node.tasks("py")
            if t["Spec"]["ContainerSpec"].get("Env") == ["WHO=again"]
            and t["Status"]["State"] == "running"
        ]
    )
    service.remove()
    eventually(lambda: node.api.services.list() == [])
    eventually(lambda: node.api.api.tasks() == [])


def test_a_killed_container_comes_back_and_says_why(node, eventually):
    """The slot gets a new task; the old one is failed with its exit code."""
    node.create("web", "--replicas", "3", "--restart-delay", "100ms")
    before = node.wait_running("web", 3)
    victim, pid = next(iter(before.items()))

    node.host.exec("kill", "-9", str(pid))

    eventually(lambda: victim not in node.running("web") and len(node.running("web")) == 3)
    (dead,) = [t for t in node.tasks("web") if t["ID"] == victim]
    assert dead["Status"]["State"] == "failed"
    assert dead["Status"]["Err"] == "task: non-zero exit (137)"
    assert dead["Status"]["ContainerStatus"]["ExitCode"] == 137
    others = {i: p for i, p in before.items() if i != victim}
    assert others.items() <= node.running("web").items()


def test_containers_outlive_kill_9_and_are_adopted(node, eventually):
    """Same tasks, same processes after the daemon was killed; what died meanwhile is replaced."""
    node.create("web", "--replicas", "4", "--restart-delay", "100ms", "--publish", "8080:80",
                "--init", command=HTTPD)  # fmt: skip
    before = node.wait_running("web", 4)

    node.host.kill_daemon("KILL")
    victim, pid = next(iter(before.items()))
    assert fetch(node, f"{HOST}:8080") == "hello from swarm\n"
    node.host.exec("kill", "-9", str(pid))
    node.start_daemon()

    after = eventually(
        lambda: (
            len(node.running("web")) == 4
            and victim not in node.running("web")
            and node.running("web")
        )
    )
    assert {i: p for i, p in before.items() if i != victim}.items() <= after.items()
    (dead,) = [t for t in node.tasks("web") if t["ID"] == victim]
    assert (dead["Status"]["State"], dead["Status"]["Err"]) == (
        "failed",
        "task: non-zero exit (137)",
    )
    assert fetch(node, f"{HOST}:8080") == "hello from swarm\n"


def test_a_gentle_stop_and_start_changes_nothing(node):
    """SIGTERM ends the daemon only: the same processes are there afterwards."""
    node.create("web", "--replicas", "3")
    before = node.wait_running("web", 3)

    node.host.kill_daemon("TERM")
    node.start_daemon()

    assert before == node.wait_running("web", 3)


def test_removal_leaves_nothing_behind(node, eventually):
    """Processes, mounts, cgroups, namespaces and links are as before the service."""

    def look():
        return read_host_footprint(node.host.init_pid, node.host.cgroup_parent)

    def processes():
        return sorted(node.host.exec("ps", "-eo", "comm=").stdout.split())

    before, processes_before = look(), processes()
    node.create("many", "--replicas", "10", "--publish", "8080:80", "--limit-memory", "64M",
                "--limit-cpu", "0.5", "--mount", "type=volume,target=/data",
                "--mount", "type=tmpfs,target=/scratch", "--init")  # fmt: skip
    node.wait_running("many", 10)
    assert look().difference(before)

    node.docker("service", "rm", "many")
    eventually(lambda: node.api.api.tasks() == [])

    eventually(lambda: not look().difference(before), what="footprint as before")
    eventually(lambda: processes() == processes_before, what="processes as before")
    eventually(lambda: list((node.host.state / "containers").iterdir()) == [])
    volumes = node.host.state / "worker/volumes"
    eventually(lambda: [p for p in volumes.iterdir() if p.is_dir()] == [], what="no volume left")


def test_update_image_rolls_one_by_one(node, rootfs, eventually):
    """`service update --image` replaces every task; rollback brings the old image again."""
    node.docker("import", "--change", "ENV VERSION=2", str(rootfs), "bb:2")
    node.create("web", "--replicas", "3", "--update-monitor", "1s", "--rollback-monitor", "1s")
    node.wait_running("web", 3)

    done = node.docker("service", "update", "--image", "bb:2", "web")
    assert "converged" in done.stdout

    def images():
        return sorted(
            t["Spec"]["ContainerSpec"]["Image"]
            for t in node.tasks("web")
            if t["Status"]["State"] == "running"
        )

    assert images() == ["bb:2"] * 3
    assert node.api.services.get("web").attrs["UpdateStatus"]["State"] == "completed"
    node.docker("service", "rollback", "web")
    eventually(lambda: images() == ["bb:1"] * 3)


def test_limits_and_identity_reach_the_container(node, eventually):
    """Memory, pids, user, environment templates, hostname, workdir are what was asked."""
    script = "id; echo $NAME; hostname; pwd; grep -i seccomp: /proc/self/status; sleep 1000"
    node.create("lim", "--limit-memory", "32M", "--limit-pids", "50", "--user", "web",
                "--env", "NAME={{.Service.Name}}.{{.Task.Slot}}",
                "--hostname", "{{.Node.Hostname}}-{{.Task.Slot}}", "--workdir", "/www",
                command=("sh", "-c", script))  # fmt: skip
    (pid,) = node.wait_running("lim", 1).values()

    said = eventually(
        lambda: node.docker("service", "logs", "--raw", "lim").stdout.splitlines()[4:]
    )
    said = node.docker("service", "logs", "--raw", "lim").stdout.splitlines()
    assert said[0].startswith("uid=1000(web) gid=1000(web)")
    assert said[1:4] == ["lim.1", "node-1", "/www"]
    assert said[4].split() == ["Seccomp:", "2"]
    groups = node.host.exec("cat", f"/proc/{pid}/cgroup").stdout
    assert node.host.cgroup_parent in groups


def test_a_full_node_says_why(node, eventually):
    """A reservation that no node has leaves the task pending with Swarm's sentence."""
    node.create("big", "--reserve-cpu", "512")

    expected = ("pending", "no suitable node (insufficient resources on 1 node)")
    eventually(lambda: node.states("big") == [expected])


def test_an_unknown_image_is_rejected_with_its_name(node, eventually):
    """No registry answers: the task says which image it was."""
    node.create("ghost", "--restart-condition", "none", image="127.0.0.1:1/ghost:1")

    ((state, err),) = eventually(
        lambda: [s for s in node.states("ghost") if s[0] == "rejected"] or None
    )
    assert state == "rejected"
    assert "127.0.0.1:1/ghost:1" in err


def test_a_missing_command_is_named(node, eventually):
    """The task says which program does not exist in the image."""
    node.create("typo", "--restart-condition", "none", command=("nosuchthing",))

    ((_, err),) = eventually(
        lambda: [s for s in node.states("typo") if s[0] in {"rejected", "failed"}] or None
    )
    assert "nosuchthing" in err


def test_a_global_service_has_its_task_on_the_node(node, eventually):
    """Clients count it and name it by its node; it has none while drained; scale is refused."""
    node.create("agent", "--mode", "global")
    node.wait_running("agent", 1)
    listed = node.docker("service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}").stdout
    assert listed.strip() == "agent global 1/1"
    own = node.docker("node", "inspect", "self", "--format", "{{.ID}}").stdout.strip()
    assert f"agent.{own}" in node.docker("service", "ps", "--no-trunc", "agent").stdout
    (task,) = node.tasks("agent")
    assert "Slot" not in task
    pretty = node.docker("service", "inspect", "--pretty", "agent").stdout
    assert "Service Mode:\tGlobal" in pretty
    refused = node.docker("service", "scale", "agent=2", check=False)
    assert refused.returncode != 0
    assert "scale can only be used with replicated" in refused.stderr + refused.stdout
    node.docker("service", "update", "--detach", "--env-add", "A=1", "agent")
    eventually(lambda: task["ID"] not in node.running("agent") and len(node.running("agent")) == 1)

    node.docker("node", "update", "--availability", "drain", "self")
    eventually(lambda: not node.running("agent"))
    node.docker("node", "update", "--availability", "active", "self")
    node.wait_running("agent", 1)
    node.docker("service", "rm", "agent")
    eventually(lambda: node.api.api.tasks() == [])

"""The stock docker client, as people type it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
import tarfile
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from proto.objects import NodeAvailability, ReplicatedMode
from worker.images.removal import ImageUse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.conftest import Docker

pytestmark = pytest.mark.integration

QUICK = ("--update-monitor", "50ms")


def rootfs() -> bytes:
    """Make a tar of a small root file system."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("etc/motd")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    return buffer.getvalue()


async def imported(docker: Docker, name: str) -> str:
    """Import an image; return its ID."""
    return await docker.ok("import", "-c", 'CMD ["sh"]', "-m", "made", "-", name, stdin=rootfs())


@contextlib.asynccontextmanager
async def running(docker: Docker, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command that goes on; interrupt it as a person would."""
    process = await docker.start(*words)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await process.communicate()


async def test_version_and_info_outside_a_swarm(docker: Docker) -> None:
    """The node describes itself, and says what is missing for the rest."""
    assert await docker.ok("version", "-f", "{{.Server.APIVersion}} {{.Server.Version}}") == (
        "1.50 0.1.0"
    )
    info = await docker.ok("info")
    assert "Swarm: inactive" in info
    assert "Runtimes: crun" in info
    ran = await docker.run("service", "ls")
    assert ran.code == 1
    assert 'Use "docker swarm init" or "docker swarm join"' in ran.err
    assert await docker.ok("ps", "-q") == ""


async def test_init_prints_the_join_command(docker: Docker) -> None:
    """And everything that was said arrives."""
    out = await docker.ok(
        *("swarm", "init", "--advertise-addr", "192.0.2.1", "--listen-addr", "192.0.2.1:2377"),
        *("--default-addr-pool", "10.20.0.0/16", "--default-addr-pool-mask-length", "26"),
        *("--data-path-port", "7777", "--task-history-limit", "3", "--availability", "drain"),
        "--autolock",
    )
    assert re.search(r"docker swarm join --token SWMTKN-1-\w{50}-\w{25} 192\.0\.2\.1:2377", out)
    assert re.search(r"SWMKEY-1-\S{43}", out)
    request = docker.backend.init_request
    assert request is not None
    assert request.listen_addr == "192.0.2.1:2377"
    assert request.default_addr_pool == ("10.20.0.0/16",)
    assert request.subnet_size == 26
    assert request.data_path_port == 7777
    assert request.availability is NodeAvailability.DRAIN
    assert request.spec.task_history_retention_limit == 3
    assert request.spec.raft_snapshot_interval == 10_000
    again = await docker.run("swarm", "init")
    assert "already part of a swarm" in again.err


async def test_swarm_settings_tokens_and_leaving(swarm: Docker) -> None:
    """`swarm update`, `join-token`, `unlock-key`, `ca` and `leave`."""
    info = await swarm.ok("info")
    assert "Is Manager: true" in info
    assert "Node Address: 192.0.2.1" in info
    token = await swarm.ok("swarm", "join-token", "-q", "worker")
    assert token in await swarm.ok("swarm", "join-token", "worker")
    assert token != await swarm.ok("swarm", "join-token", "--rotate", "-q", "worker")
    out = await swarm.ok("swarm", "update", "--autolock=true", "--dispatcher-heartbeat", "7s")
    key = await swarm.ok("swarm", "unlock-key", "-q")
    assert key in out
    assert "Heartbeat Period: 7 seconds" in await swarm.ok("info")
    assert key != await swarm.ok("swarm", "unlock-key", "--rotate", "-q")
    assert "BEGIN CERTIFICATE" in await swarm.ok("swarm", "ca")
    before = (await swarm.ok("swarm", "ca")).strip()
    await swarm.ok("swarm", "ca", "--rotate", "--detach")
    cluster = swarm.backend.control().cluster()
    assert cluster.root_rotation is not None
    assert before != cluster.root_rotation.certificate_pem.strip()
    assert "--force" in (await swarm.run("swarm", "leave")).err
    assert await swarm.ok("swarm", "leave", "--force") == "Node left the swarm."
    assert "Swarm: inactive" in await swarm.ok("info")


async def test_a_locked_manager_says_so_until_it_is_unlocked(swarm: Docker) -> None:
    """Commands that are not about the swarm work meanwhile."""
    await swarm.ok("swarm", "update", "--autolock=true")
    key = await swarm.ok("swarm", "unlock-key", "-q")
    swarm.backend.is_locked = True
    for words in (("service", "ls"), ("node", "ls"), ("swarm", "join-token", "worker")):
        assert "Swarm is encrypted and needs to be unlocked" in (await swarm.run(*words)).err
    assert "Swarm: locked" in await swarm.ok("info")
    assert await swarm.ok("image", "ls", "-q") == ""
    wrong = await swarm.run("swarm", "unlock", stdin=b"SWMKEY-1-wrong\n")
    assert "invalid key" in wrong.err
    await swarm.ok("swarm", "unlock", stdin=f"{key}\n".encode())
    assert await swarm.ok("service", "ls", "-q") == ""


async def test_nodes(swarm: Docker) -> None:
    """List, inspect, change and refuse to remove."""
    listed = await swarm.ok("node", "ls", "--format", "{{.Hostname}} {{.Self}} {{.ManagerStatus}}")
    assert listed == "wkr01 true Leader"
    pretty = await swarm.ok("node", "inspect", "self", "--pretty")
    assert "Availability:         \tActive" in pretty
    await swarm.ok("node", "update", "--label-add", "zone=a", "--availability", "pause", "self")
    (node,) = await swarm.json("node", "inspect", "wkr01")
    assert node["Spec"] == {
        "Labels": {"zone": "a"},
        "Role": "manager",
        "Availability": "pause",
    }
    assert node["Description"]["Resources"] == {"NanoCPUs": 2 * 10**9, "MemoryBytes": 2 * 1024**3}
    assert await swarm.ok("node", "ls", "-q", "--filter", "node.label=zone=a") == node["ID"]
    assert await swarm.ok("node", "ls", "-q", "--filter", "role=worker") == ""
    assert "demote" in (await swarm.run("node", "rm", "self")).err
    assert "last manager" in (await swarm.run("node", "demote", "wkr01")).err


async def test_a_service_from_birth_to_end(swarm: Docker) -> None:
    """Attached: the client polls until the service has converged."""
    await imported(swarm, "local:1")
    create = ("service", "create", "--name", "web", "--replicas", "2", *QUICK)
    out = await swarm.ok(*create, "-p", "8080:80", "local:1", "sleep", "9")
    assert "2 out of 2 tasks" in out
    assert "converged" in out
    listed = "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}"
    assert await swarm.ok("service", "ls", "--format", listed) == (
        "web replicated 2/2 local:1 *:8080->80/tcp"
    )
    names = await swarm.ok("service", "ps", "web", "--format", "{{.Name}} {{.Node}}")
    assert sorted(names.splitlines()) == ["web.1 wkr01", "web.2 wkr01"]
    pretty = await swarm.ok("service", "inspect", "--pretty", "web")
    assert re.search(r"Replicas:\s+2", pretty)
    assert "PublishedPort = 8080" in pretty
    assert "converged" in await swarm.ok("service", "scale", "web=3")
    await swarm.ok("service", "update", "--image", "local:2", "--env-add", "A=b", "web")
    assert await swarm.ok("service", "ls", "--format", "{{.Replicas}} {{.Image}}") == "3/3 local:2"
    await swarm.ok("service", "rollback", "web")
    assert await swarm.ok("service", "ls", "--format", "{{.Replicas}} {{.Image}}") == "3/3 local:1"
    assert len((await swarm.ok("ps", "-q")).splitlines()) == 3
    assert (await swarm.json("inspect", "web"))[0]["Spec"]["Name"] == "web"
    assert await swarm.ok("service", "rm", "web") == "web"
    assert await swarm.ok("service", "ls", "-q") == ""


async def test_a_local_image_is_not_looked_up(swarm: Docker) -> None:
    """No registry knows it: the client is told at once and goes on with its warning."""
    await imported(swarm, "local:1")
    loop = asyncio.get_running_loop()
    start = loop.time()
    ran = await swarm.run("service", "create", "--detach", "--name", "web", "local:1")
    assert ran.code == 0
    assert loop.time() - start < 3
    assert "could not be accessed on a registry" in ran.err


async def test_every_flag_arrives_in_the_spec(swarm: Docker) -> None:
    """What walk-through B.7 types comes out of `service inspect`."""
    await swarm.ok(
        *("service", "create", "--detach", "--no-resolve-image", "--name", "all", "--replicas=0"),
        *("--label", "a=b", "--container-label", "c=d", "--env", "E=1", "--user", "1:2"),
        *("--hostname", "{{.Node.Hostname}}", "--workdir", "/w", "--init", "--read-only"),
        *("--stop-signal", "SIGINT", "--stop-grace-period", "3s", "--tty"),
        *("--constraint", "node.role==worker", "--placement-pref", "spread=node.labels.zone"),
        *("--replicas-max-per-node", "2", "--limit-cpu", "1.5", "--limit-memory", "64M"),
        *("--limit-pids", "9", "--reserve-cpu", "0.5", "--reserve-memory", "32M"),
        *("--restart-condition", "on-failure", "--restart-delay", "1s"),
        *("--restart-max-attempts", "4", "--restart-window", "9s"),
        *("--health-cmd", "true", "--health-interval", "2s", "--health-retries", "5"),
        *("--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700"),
        *("--mount", "type=bind,source=/etc,target=/e,readonly,bind-propagation=rslave"),
        *("--mount", "type=volume,source=vol,target=/v,volume-nocopy"),
        *("--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN", "--ulimit", "nofile=10:20"),
        *("--sysctl", "net.core.somaxconn=9", "--log-driver", "json-file"),
        *("--log-opt", "max-size=1m", "--update-order", "start-first"),
        *("--update-failure-action", "rollback", "--update-parallelism", "3"),
        *("--update-max-failure-ratio", ".25", "--update-delay", "4s"),
        *("--rollback-order", "start-first", "--dns", "192.0.2.9", "--host", "h:192.0.2.8"),
        *("-p", "published=81,target=80,protocol=udp,mode=host", "local:1", "run", "it"),
    )
    service = swarm.backend.control().service("all")
    spec = service.spec
    (sent,) = await swarm.json("service", "inspect", "all")
    template = sent["Spec"]["TaskTemplate"]
    container = spec.task.container
    assert spec.mode == ReplicatedMode(replicas=0)
    assert container.args == ("run", "it")
    assert container.ulimits[0].hard == 20
    assert [mount.type for mount in container.mounts] == ["tmpfs", "bind", "volume"]
    assert container.mounts[0].tmpfs_size_bytes == 1024**2
    assert container.mounts[0].tmpfs_mode == 0o700
    assert spec.task.placement.spread_preferences == ("node.labels.zone",)
    assert spec.update is not None
    assert spec.update.failure_action == "rollback"
    assert template["Resources"] == {
        "Limits": {"NanoCPUs": 1500000000, "MemoryBytes": 67108864, "Pids": 9},
        "Reservations": {"NanoCPUs": 500000000, "MemoryBytes": 33554432},
    }
    assert template["RestartPolicy"] == {
        "Condition": "on-failure",
        "Delay": 1000000000,
        "MaxAttempts": 4,
        "Window": 9000000000,
    }
    assert template["ContainerSpec"]["Healthcheck"] == {
        "Test": ["CMD-SHELL", "true"],
        "Interval": 2000000000,
        "Retries": 5,
    }
    assert template["ContainerSpec"]["DNSConfig"] == {"Nameservers": ["192.0.2.9"]}
    assert sent["Spec"]["EndpointSpec"]["Ports"] == [
        {
            "Protocol": "udp",
            "TargetPort": 80,
            "PublishedPort": 81,
            "PublishMode": "host",
        }
    ]
    # An update that says one thing changes one thing: the client sends back all that it read
    # (mounts sorted by their source, hence the order above).
    before = spec
    await swarm.ok("service", "update", "--detach", "--no-resolve-image", "--label-add=x=y", "all")
    after = swarm.backend.control().service("all").spec
    assert (before.task, before.update, before.endpoint) == (
        after.task,
        after.update,
        after.endpoint,
    )
    assert after.labels == {"a": "b", "x": "y"}


async def test_service_logs(swarm: Docker) -> None:
    """Of a service and of a task, with times and details, and followed."""
    create = ("service", "create", "--detach", "--no-resolve-image", "--name", "web")
    await swarm.ok(*create, "--replicas", "2", "local:1")
    ran = await swarm.run("service", "logs", "web")
    assert sorted(line.partition("|")[2].strip() for line in ran.out.splitlines()) == [
        "stdout of 1",
        "stdout of 2",
    ]
    assert all(re.match(r"web\.[12]\.\w+@wkr01 ", line) for line in ran.out.splitlines())
    assert "stderr of 1" in ran.err
    timed = await swarm.ok("service", "logs", "-t", "--tail", "7", "--since", "1h", "web")
    assert timed.startswith("2001-09-09T01:46:40.000000000Z web.")
    assert swarm.backend.log_options[-1].tail == 7
    assert swarm.backend.log_options[-1].since_ns > 10**18
    task = (await swarm.ok("service", "ps", "-q", "web")).split()[0]
    assert "stdout of" in await swarm.ok("service", "logs", "--raw", "--no-task-ids", task)


async def test_followed_logs_include_tasks_to_come_and_end_with_the_client(swarm: Docker) -> None:
    """A scaled service's new tasks appear; after Ctrl-C nothing reads logs any more."""
    create = ("service", "create", "--detach", "--no-resolve-image", "--name", "web")
    await swarm.ok(*create, "--replicas", "1", "local:1")
    async with running(swarm, "service", "logs", "-f", "web") as process:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert b"stdout of 1" in await process.stdout.readline()
            await swarm.ok("service", "scale", "--detach", "web=2")
            assert b"stdout of 2" in await process.stdout.readline()
    async with asyncio.timeout(10):
        await swarm.backend.logs_idle.wait()


async def test_events_tell_of_services(swarm: Docker) -> None:
    """Created, changed and removed, as they are committed; filters hold."""
    create = ("service", "create", "--detach", "--no-resolve-image", "--name")
    form = "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.Scope}}"
    async with running(swarm, "events", "--filter", "service=web", "--format", form) as process:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            await swarm.backend.watched.wait()
            await swarm.ok(*create, "web", "local:1")
            await swarm.ok(*create, "other", "local:1")
            await swarm.ok("service", "rm", "web")
            lines = [await process.stdout.readline() for _ in range(2)]
    assert lines == [b"service create web swarm\n", b"service remove web swarm\n"]


async def test_images_from_import_to_prune(docker: Docker, tmp_path: Path) -> None:
    """Import, list, tag, save, remove, load, prune."""
    image_id = await imported(docker, "mini:1")
    assert image_id.startswith("sha256:")
    await docker.ok("tag", "mini:1", "mini:2")
    listed = "{{.Repository}}:{{.Tag}}"
    assert sorted((await docker.ok("images", "--format", listed)).split()) == ["mini:1", "mini:2"]
    assert await docker.ok("images", "-q", "--no-trunc", "--filter", "reference=mini:2") == image_id
    (inspected,) = await docker.json("image", "inspect", "mini:1")
    assert inspected["Id"] == image_id
    assert inspected["Config"]["Cmd"] == ["sh"]
    assert inspected["Comment"] == "made"
    history = await docker.ok("history", "--no-trunc", "--format", "{{.ID}} {{.Comment}}", "mini:1")
    assert history == f"{image_id} made"
    archive = str(tmp_path / "mini.tar")
    await docker.ok("save", "-o", archive, "mini:1", "mini:2")
    assert "Untagged: mini:2" in await docker.ok("rmi", "mini:2")
    docker.backend.uses = {inspected["Id"]: ImageUse(container_id="c" * 64)}
    assert (
        "is using" in (await docker.run("rmi", "mini:1")).err
        or "being used" in (await docker.run("rmi", "mini:1")).err
    )
    docker.backend.uses = {}
    assert f"Deleted: {image_id}" in await docker.ok("rmi", "mini:1")
    assert await docker.ok("load", "-i", archive) == "Loaded image: mini:1\nLoaded image: mini:2"
    assert await docker.ok("image", "prune", "-f") == "Total reclaimed space: 0B"
    assert image_id in await docker.ok("image", "prune", "-af")
    assert await docker.ok("images", "-q") == ""
    missing = await docker.run("image", "inspect", "mini:1")
    assert "No such image: mini:1" in missing.err


async def test_push_pull_and_pinning(swarm: Docker, registry: str) -> None:
    """Through a registry, whose digest is then pinned by `service create`."""
    name = f"{registry}/team/mini:1"
    image_id = await imported(swarm, name)
    pushed = await swarm.ok("push", name)
    match = re.search(r"sha256:[0-9a-f]{64}", pushed)
    assert match is not None
    await swarm.ok("rmi", "-f", image_id)
    pulled = await swarm.ok("pull", name)
    assert f"Digest: {match[0]}" in pulled
    assert f"Status: Downloaded newer image for {name}" in pulled
    assert f"Status: Image is up to date for {name}" in await swarm.ok("pull", name)
    await swarm.ok("service", "create", "--detach", "--name", "web", name)
    spec = swarm.backend.control().service("web").spec
    assert spec.task.container.image == f"{name}@{match[0]}"
    assert [platform.os for platform in spec.task.placement.platforms] == ["linux"]
    missing = await swarm.run("pull", f"{registry}/team/none:1")
    assert missing.code == 1
    assert missing.err.startswith("Error response from daemon: manifest for")


async def test_what_is_not_served_says_so(docker: Docker) -> None:
    """A sentence, not a missing page."""
    for words in (
        ("run", "x", "true"),
        ("network", "create", "n"),
    ):
        ran = await docker.run(*words)
        assert ran.code != 0
        assert "not served by this version of Swarm" in ran.err, words

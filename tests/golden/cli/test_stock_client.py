"""Our client against Docker's own: the same tables, and the same JSON to the Engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCKER = shutil.which("docker")
# Our flags and texts are those of this client; an older one lacks some and words others otherwise.
MAJOR_LEAST = 28


def _major() -> int:
    """Return the first number of the client's version; 0 without one."""
    if DOCKER is None:
        return 0
    said = subprocess.run([DOCKER, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", said)
    return int(found[1]) if found else 0


pytestmark = pytest.mark.skipif(
    _major() < MAJOR_LEAST, reason=f"no docker client {MAJOR_LEAST} or newer is installed"
)

SAME_OUTPUT = [
    "service ls",
    "service ls -q",
    "service ls --format json",
    r"service ls --format 'table {{.Name}}\t{{lower .Mode}}\t{{.Ports}}'",
    "service ls --format '{{json .}}'",
    "node ls",
    "node ls --format json",
    r"node ls --format 'table {{.Hostname}}\t{{.Self}}'",
    "service ps web2",
    "service ps agent web2",
    "service ps -q web2",
    "service ps nope",
    "node ps wkr01",
    "node ps -q",
    "service inspect --pretty web2 agent migrate",
    "node inspect --pretty mgr01 mgr03 wkr01",
    "node inspect self -f '{{.Spec.Labels}} {{.Status.Addr}} {{json .Status}}'",
    "service inspect web2 -f '{{range .Endpoint.Ports}}{{.PublishedPort}} {{end}}{{.Spec.Name}}'",
    "service inspect agent -f '{{json .UpdateStatus}} {{len .Spec.TaskTemplate.Networks}}'",
    "service inspect agent -f '{{json .Spec.TaskTemplate.Placement.Constraints}}'",
    "swarm init",
    "swarm join-token worker",
    "swarm join-token -q manager",
    "swarm unlock-key",
    "swarm update --autolock=true",
    "swarm ca",
    "swarm ca --cert-expiry 5h",
    "swarm ca --rotate -d",
    "swarm ca --rotate -q",
    "swarm ca --rotate -d --external-ca protocol=cfssl,url=https://x",
    "swarm ca --rotate -d --ca-cert /nope",
    "swarm ca --rotate -d --ca-cert /dev/null",
    "swarm leave",
    "node demote mgr02 wkr01",
    "image ls",
    "image ls --digests",
    "image history nginx",
    "image history --no-trunc --human=false nginx",
    "service scale -d web2=3 agent=2",
    "node promote mgr02 wkr01",
    "node rm nope wkr01",
    "service create --badflag",
    "service create",
    "service ls extra",
    "service create -d --limit-memory 5x x",
    "service create -d -p 80-82:80-81 x",
    "service create -d --mount type=volume x",
    "foo",
    "service foo",
]

CREATE = [
    "img",
    "--mode global --no-healthcheck img@sha256:" + "0" * 64,
    "--mode replicated-job --replicas 4 img sh -c true",
    "--mode replicated-job --replicas 4 --max-concurrent 2 img",
    "--mode global-job img",
    "--name web --replicas 0 -l a=b -l c --container-label x=y -e A=1 -e A=2 -e NOPE_X img cmd --x",
    "-p 80:80 -p 53 -p published=5,target=6,mode=host,protocol=sctp -p 90:100/udp img",
    "--mount type=volume,source=v,target=/v,volume-label=a=b,volume-driver=d,volume-opt=o=1 img",
    "--mount type=bind,src=/a,dst=/b,ro,bind-propagation=rslave,bind-recursive=disabled img",
    "--mount type=tmpfs,target=/t,tmpfs-size=10m,tmpfs-mode=1777 --mount target=/x img",
    "--limit-pids -1 img",
    "--limit-cpu .5 --limit-memory 512m --limit-pids 5 --reserve-cpu 1/4 --reserve-memory 1g img",
    "--restart-condition on-failure --restart-delay 3s --restart-max-attempts 4 img",
    "--restart-window 1m30s img",
    "--update-parallelism 0 --update-delay 5s --update-order start-first img",
    "--update-max-failure-ratio .2 --update-monitor 10s --update-failure-action rollback img",
    "--rollback-monitor 3s --stop-signal SIGINT --stop-grace-period 1h1m1.5s img",
    "--health-cmd 'curl x' --health-interval 5s --health-retries 3 --health-start-interval 1s img",
    "--health-start-period 1m --health-timeout 2s img",
    "--init --tty --read-only -w /w -u u:g --hostname '{{.Node.Hostname}}' --group g img",
    "--init=false --tty=false img",
    "--cap-add net_admin --cap-add CAP_CHOWN --cap-drop all --cap-drop chown img",
    "--ulimit nofile=1024:2048 --ulimit nproc=5 --sysctl a=b --oom-score-adj 10 img",
    "--log-driver json-file --log-opt max-size=1m --log-opt tag= img",
    "--endpoint-mode dnsrr --network front --network name=back,alias=x,alias=y,driver-opt=a=b img",
    "--secret cert img",
    "--secret source=key,target=k,uid=1,mode=0400 --config source=app,target=/a --config extra img",
    "--host one:1.2.3.4 --dns 8.8.8.8 --dns-option o --dns-search s.org img",
    "--constraint node.role==worker --constraint a==b --placement-pref spread=node.labels.z img",
    "--replicas-max-per-node 2 --replicas 3 --generic-resource gpu=2 img",
    "--entrypoint '/bin/sh -c \"a b\"' -dq img",
    "--isolation default img -e x",
]

UPDATE = [
    "--force",
    "--image other:2 --args 'a \"b c\"' --entrypoint ''",
    "--replicas 7 --replicas-max-per-node 0",
    "--env-add A=9 --env-rm B",
    "--label-add new=1 --label-rm tier --container-label-add q --container-label-rm c",
    "--mount-add type=tmpfs,target=/t --mount-rm /data",
    "--mount-add type=volume,source=other,target=/data",
    "--publish-add 7000:70 --publish-rm 80 --publish-rm 53/udp",
    "--publish-rm published=9000,target=9000,mode=host",
    "--publish-add 8081:80",
    "--constraint-add a==b --constraint-rm node.role==worker",
    "--placement-pref-add spread=x --placement-pref-rm spread=node.labels.zone",
    "--network-add back --network-rm front",
    "--secret-add key --secret-rm cert --config-rm app --config-add extra",
    "--host-add three:10.1.1.3 --host-rm one --host-rm two:9.9.9.9",
    "--dns-add 1.1.1.1 --dns-rm 8.8.8.8 --dns-search-add a.org --dns-option-rm ndots:2",
    "--group-add wheel --group-rm staff",
    "--ulimit-add nproc=1:2 --ulimit-rm nofile --sysctl-add x=y --sysctl-rm net.core.somaxconn",
    "--cap-add chown --cap-drop net_admin --cap-add sys_time",
    "--cap-drop chown --cap-add RESET",
    "--generic-resource-add gpu=1",
    "--limit-memory 1g --reserve-cpu 0 --limit-pids 9",
    "--health-interval 3s",
    "--health-cmd ''",
    "--no-healthcheck",
    "--log-driver syslog --log-opt a=b",
    "--update-order stop-first --update-monitor 1s --rollback-delay 2s --restart-delay 1s",
    "--tty --read-only=true --hostname '' --user root --init=false --stop-grace-period 3s",
    "--endpoint-mode dnsrr",
]


@pytest.fixture
def docker(engine: Any) -> Callable[[str], Any]:
    """Run Docker's client against the fake Engine."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{engine.path}", "TZ": "UTC"}
        environment["DOCKER_CONFIG"] = "/nonexistent"
        return subprocess.run(
            [str(DOCKER), *shlex.split(line)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=20,
            check=False,
        )

    return run


def ours(text: str) -> str:
    """Write the names of Docker's program as ours."""
    text = re.sub(
        "^docker: ", "swarm: ", text.replace("docker swarm ", "swarm "), flags=re.MULTILINE
    )
    return text.replace("docker ", "swarm ")


@pytest.mark.parametrize("line", SAME_OUTPUT)
def test_prints_what_docker_prints(
    line: str, swarm: Callable[..., Any], docker: Callable[[str], Any]
) -> None:
    """Outputs and exit codes are Docker's."""
    theirs = docker(line)
    mine = swarm(*shlex.split(line.removeprefix("swarm ")), now=time.time())
    assert ours(theirs.stdout) == mine.out
    assert ours(theirs.stderr) == mine.err
    assert theirs.returncode == mine.code


def pruned(value: Any) -> Any:
    """Leave out empty fields: to the Engine they are the same as absent ones."""
    if isinstance(value, dict):
        kept = {key: pruned(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ({}, [], "", 0, None)}
    return [pruned(item) for item in value] if isinstance(value, list) else value


def normalised(spec: Any) -> Any:
    """Sort what Docker's client leaves in the order of a Go map."""
    container = spec["TaskTemplate"]["ContainerSpec"]
    # Docker's client shortens the name of an image that it does not change.
    container["Image"] = container["Image"].removeprefix("docker.io/library/")
    container.get("Env", []).sort()
    for field in ("Secrets", "Configs", "Mounts"):
        container.get(field, []).sort(key=str)
    ports = (spec.get("EndpointSpec") or {}).get("Ports", [])
    ports.sort(key=str)
    return flat(pruned(spec))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Write a tree as paths and leaves, which differ readably."""
    if isinstance(value, dict):
        parts = [flat(item, f"{path}.{key}") for key, item in value.items()]
    elif isinstance(value, list):
        parts = [flat(item, f"{path}[{at}]") for at, item in enumerate(value)]
    else:
        return {path: value}
    return {key: item for part in parts for key, item in part.items()}


@pytest.mark.parametrize("flags", CREATE)
def test_creates_what_docker_creates(
    flags: str, swarm: Callable[..., Any], docker: Callable[[str], Any], engine: Any
) -> None:
    """`service create` sends the same spec, zeros that mean something included."""
    theirs = docker(f"service create -d {flags}")
    assert theirs.returncode == 0, theirs.stderr
    expected = engine.posted("/services/create").json()
    engine.requests.clear()
    mine = swarm("service", "create", "-d", *shlex.split(flags))
    assert mine.code == 0, mine.err
    actual = engine.posted("/services/create").json()
    assert normalised(expected) == normalised(actual)
    for policy in ("UpdateConfig", "RollbackConfig"):
        assert expected.get(policy) == actual.get(policy)
    assert expected["Mode"] == actual["Mode"]
    assert (
        expected["TaskTemplate"]["ContainerSpec"]["Init"]
        == actual["TaskTemplate"]["ContainerSpec"]["Init"]
    )


@pytest.mark.parametrize("flags", UPDATE)
def test_updates_as_docker_updates(
    flags: str, swarm: Callable[..., Any], docker: Callable[[str], Any], engine: Any
) -> None:
    """`service update` sends the same spec and asks for the same version."""
    theirs = docker(f"service update -d {flags} web2")
    assert theirs.returncode == 0, theirs.stderr
    expected = engine.posted("/services/.*/update")
    engine.requests.clear()
    mine = swarm("service", "update", "-d", *shlex.split(flags), "web2")
    assert mine.code == 0, mine.err
    actual = engine.posted("/services/.*/update")
    assert normalised(expected.json()) == normalised(actual.json())
    assert expected.query["version"] == actual.query["version"]
    assert expected.query["registryAuthFrom"] == actual.query["registryAuthFrom"]


@pytest.mark.parametrize(
    "line",
    [
        "ca --rotate -d --cert-expiry 5h",
        "ca --rotate -d --ca-cert ROOT --ca-key ROOT",
        "ca --rotate -d --ca-key ROOT",
        "ca --rotate -d --ca-cert ROOT --external-ca protocol=cfssl,url=https://x,a=b",
        "update --cert-expiry 5h --external-ca protocol=cfssl,url=https://x,cacert=ROOT",
    ],
)
def test_changes_the_root_as_docker_changes_it(
    line: str, swarm: Callable[..., Any], docker: Callable[[str], Any], engine: Any
) -> None:
    """`ca` and `update` ask the same of the daemon."""
    line = line.replace("ROOT", str(Path(__file__).parents[1] / "httpapi" / "root.pem"))
    theirs = docker(f"swarm {line}")
    assert theirs.returncode == 0, theirs.stderr
    expected = engine.posted("/swarm/update").json()
    engine.requests.clear()
    mine = swarm(*shlex.split(line))
    assert mine.code == 0, mine.err
    assert pruned(expected) == pruned(engine.posted("/swarm/update").json())


@pytest.mark.parametrize(
    "line",
    [
        "init --advertise-addr 10.0.0.1 --task-history-limit 3 --default-addr-pool 10.20.0.0/16",
        "init --autolock --availability drain --cert-expiry 48h --dispatcher-heartbeat 10s",
        "init --listen-addr 10.0.0.1 --data-path-port 7777 --force-new-cluster",
        "init --snapshot-interval 5 --max-snapshots 2 --default-addr-pool-mask-length 26",
    ],
)
def test_forms_the_swarm_that_docker_forms(
    line: str, swarm: Callable[..., Any], docker: Callable[[str], Any], engine: Any
) -> None:
    """`init` asks the same of the daemon."""
    assert docker(f"swarm {line}").returncode == 0
    expected = engine.posted("/swarm/init").json()
    engine.requests.clear()
    assert swarm(*shlex.split(line)).code == 0
    assert pruned(expected) == pruned(engine.posted("/swarm/init").json())

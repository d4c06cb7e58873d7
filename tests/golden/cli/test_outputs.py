"""What each command prints, kept in `expected/`; SWARM_REWRITE=1 writes it anew."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXPECTED = Path(__file__).parent / "expected"
REWRITE = os.environ.get("SWARM_REWRITE") == "1"

SCRIPTS: dict[str, list[str]] = {
    "service_ls": [
        "service ls",
        "service ls -q",
        "service ls --format json",
        r"service ls --format 'table {{.Name}}\t{{upper .Mode}}'",
        "service ls --format '{{.Name}}: {{json .Ports}}'",
        "service ls --format raw",
        "service ls --format '{{.Nope}}'",
        "service ls --format '{{'",
        "service ls --filter nope",
    ],
    "service_ps": [
        "service ps web2",
        "service ps web2 agent --no-trunc",
        "service ps -q web2",
        "service ps --no-resolve web2",
        "service ps --format json web2",
        "service ps nope web2",
        "service ps nope",
    ],
    "service_inspect": [
        "service inspect --pretty web2 web10 agent migrate scan",
        "service inspect agent",
        "service inspect web10 -f '{{range .Endpoint.Ports}}{{.PublishedPort}} {{end}}'",
        "service inspect agent -f '{{len .Spec.TaskTemplate.Networks}}{{json .UpdateStatus}}'",
        "service inspect agent -f '{{.UpdateStatus.State}}'",
        "service inspect nope web10 -f '{{.ID}}'",
        "service inspect --pretty -f x web10",
    ],
    "service_changes": [
        "service create -d --name new img",
        "service scale -d web2=3 agent=2 nope=1 web10=x",
        "service scale web2",
        "service rollback -d web2",
        "service update -d --force web2",
        "service update --rollback --image x web2",
        "service rm nope web2",
    ],
    "node": [
        "node ls",
        "node ls -q",
        "node ls --format json",
        "node ls --format '{{.Hostname}} {{.Self}} {{.TLSStatus}}'",
        "node ps",
        "node ps wkr01 nope",
        "node inspect --pretty mgr01 mgr03 wkr01",
        "node inspect self -f '{{.Spec.Role}} {{.ManagerStatus.Addr}} {{.Spec.Name}}'",
        "node inspect nope",
        "node promote mgr02 wkr01",
        "node demote mgr02 wkr01",
        "node update --availability drain wkr01",
        "node update --label-rm foo wkr01",
        "node rm nope wkr01",
    ],
    "cluster": [
        "init",
        "init --autolock",
        "init --availability foo",
        "init --listen-addr a:b:c",
        "join-token worker",
        "join-token -q manager",
        "join-token --rotate worker",
        "join-token foo",
        "unlock-key",
        "unlock-key -q",
        "unlock-key --rotate",
        "update",
        "update --autolock=true",
        "update --task-history-limit 3",
        "join --token SWMTKN-1-x 10.0.0.1:2377",
        "leave --force",
        "ca",
        "ca --rotate",
        "ca --rotate --ca-cert /nope",
        "ca --rotate --ca-key /dev/null",
        "ca --cert-expiry 5h",
        "ca --help",
        "unlock",
    ],
    "image": [
        "image ls",
        "image ls --digests",
        "image ls -q --no-trunc",
        "image ls --format json",
        "image history nginx",
        "image history --human=false --no-trunc nginx",
        "image inspect nginx -f '{{.Os}} {{.Config.Labels}} {{join .Config.Env \",\"}}'",
        "image tag nginx other:1",
        "image tag nginx Other",
    ],
    "system": ["info", "info -f '{{.Swarm.NodeID}}'", "version -f '{{.Server.Version}}'"],
    "usage": [
        "service",
        "service foo",
        "foo",
        "service ls extra",
        "service create",
        "node update a b",
        "service create --badflag",
        "service create -zfoo x",
        "service create --name",
        "service create --replicas abc x",
        "service create --detach=maybe x",
        "service rollback --help",
        "service scale --help",
        "join-token",
    ],
    "flags": [
        f"service create -d {flags} x"
        for flags in (
            *("--update-delay 5", "--restart-delay 5q", "--mount typ=x", "--mount type=volume"),
            *("--mount type=bind,src=/a,dst=/b,volume-nocopy", "--mount a", "--mount ro=x,dst=/a"),
            *("-p 80:80:80:80", "-p foo", "-p 99999", "-p 80-82:80-81", "-p 1.2.3.4:80:80"),
            *("-p 80:80/foo", "-p target=x", "-p published=8", "-p foo=8", "-p mode=x,target=8"),
            *("--mode foo", "--label ''", "--env =a", "--health-interval=-1s", "--dns foo"),
            *(
                "--limit-memory 5x",
                "--limit-memory ''",
                "--limit-cpu x",
                "--limit-cpu 0.0000000001",
            ),
            *("--ulimit x", "--ulimit nofile=10:5", "--ulimit foo=1", "--host foo", "--host a:b"),
            *("--stop-grace-period 1y", "--placement-pref a", "--placement-pref a=b"),
            *("--no-healthcheck --health-cmd x", "--mode global --replicas 2", "--secret nope"),
            *("--mode global --max-concurrent 2", "--mode global-job --update-delay 5s"),
            *("--secret target=a", "--secret foo=bar", "--network nope", "--network foo=1"),
            *("--entrypoint 'a \"b'", "--update-max-failure-ratio x", "--limit-pids x"),
            *("--env-file /nope", "--dns-search '!!'", "--generic-resource a", "--replicas -1"),
            *("--secret cert --secret source=key,target=cert",),
        )
    ],
}


def transcript(swarm: Callable[..., Any], lines: list[str]) -> str:
    """Run commands and write down what they did."""
    parts = []
    for line in lines:
        result = swarm(*shlex.split(line))
        parts.append(f"$ swarm {line}\n{result.out}")
        if result.err:
            parts.append("".join(f"! {text}\n" for text in result.err.splitlines()))
        parts.append(f"=> {result.code}\n\n")
    return "".join(parts)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_output_is_as_expected(name: str, swarm: Callable[..., Any]) -> None:
    """Commands print what was reviewed and kept."""
    actual = transcript(swarm, SCRIPTS[name])
    path = EXPECTED / f"{name}.txt"
    if REWRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(actual)
    expected = path.read_text()
    diff = "\n".join(difflib.unified_diff(expected.splitlines(), actual.splitlines(), lineterm=""))
    assert expected == actual, diff


def test_the_watch_of_a_rotation_has_an_end(
    swarm: Callable[..., Any], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that never says that it trusts the new root alone is named a while, then left."""
    monkeypatch.setattr("manager.cli.commands.ca.TRUST_SECONDS_MAX", 0.0)
    engine.nodes[0]["Description"]["TLSInfo"]["TrustRoot"] = "both"
    result = swarm("ca", "--rotate")
    assert result.code == 0
    assert result.err == "some nodes have not said yet that they trust the new root alone\n"
    assert result.out.endswith("-----END CERTIFICATE-----\n")


def test_info_names_the_authorities_outside(swarm: Callable[..., Any], engine: Any) -> None:
    """As Docker's client does, below the count of forced rotations."""
    settings = engine.info["Swarm"]["Cluster"]["Spec"]["CAConfig"]
    settings.update(
        ForceRotate=3, ExternalCAs=[{"Protocol": "cfssl", "URL": f"https://{x}"} for x in "xy"]
    )
    engine.info["Swarm"]["Cluster"]["RootRotationInProgress"] = True
    assert (
        "   Force Rotate: 3\n   External CAs:\n     cfssl: https://x\n     cfssl: https://y\n"
        "  Autolock Managers: false\n  Root Rotation In Progress: true\n"
    ) in swarm("info").out


def test_a_stale_answer_is_announced_once_on_standard_error(
    swarm: Callable[..., Any], engine: Any
) -> None:
    """Scripts read the same table; a person sees that it may be old."""
    fresh = swarm("service", "ls")
    for path in ("GET /services", "GET /nodes"):
        route = engine.routes[path]
        engine.routes[path] = lambda request, route=route: route(request)._replace(
            headers={"Warning": '110 swarm "Response is Stale"'}
        )
    stale = swarm("service", "ls")
    assert (stale.out, stale.code) == (fresh.out, 0)
    assert fresh.err == ""
    assert stale.err.count("may be stale") == 1
    assert swarm("service", "ps", "web2").err.count("may be stale") == 1

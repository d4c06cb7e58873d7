"""Engine JSON as it comes in and goes out.

`*.request.json` is what the stock client 28.2 sends (or could); `*.answer.json` what is answered.
Rewrite the answers with SWARM_REWRITE=1, then review the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from manager.ca.issue import issuer_names
from manager.ca.root import create_root
from manager.ca.tokens import root_digest
from manager.httpapi.backend import NodeFacts, RemoteManager, SwarmFacts
from manager.httpapi.convert.container_summary import summary_to_json
from manager.httpapi.convert.event import event_of
from manager.httpapi.convert.image import history_to_json, image_summary_to_json, image_to_json
from manager.httpapi.convert.info import info_to_json, version_to_json
from manager.httpapi.convert.node import node_to_json
from manager.httpapi.convert.service import ServiceStatus, service_spec_of, service_to_json
from manager.httpapi.convert.swarm import cluster_spec_from, swarm_to_json
from manager.httpapi.convert.task import task_to_json
from manager.httpapi.convert.wire import WireInit, decoded
from manager.store import Updated
from proto.ids import ClusterID, ImageID, NodeID, ServiceID, TaskID
from proto.objects import (
    Cluster,
    ClusterSpec,
    ContainerSpec,
    Endpoint,
    EngineDescription,
    GenericResource,
    HealthConfig,
    JoinTokens,
    ManagerStatus,
    Node,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Platform,
    PortConfig,
    PortMode,
    Reachability,
    ReplicatedMode,
    Resources,
    RootRotation,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
    TLSInfo,
    UpdateStatus,
)
from proto.states import TaskState
from worker.images.api import HistoryEntry, Image, ImageConfig

HERE = Path(__file__).parent
REWRITE = os.environ.get("SWARM_REWRITE") == "1"
NOW = 1_700_000_000.25
ROOT = (HERE / "root.pem").read_text()


def check(name: str, answer: Any) -> None:
    """Compare with the golden answer."""
    path = HERE / f"{name}.answer.json"
    if REWRITE:
        path.write_text(json.dumps(answer, indent=2) + "\n")
    assert json.loads(path.read_text()) == json.loads(json.dumps(answer))


def request(name: str) -> Any:
    """Read a request."""
    return json.loads((HERE / f"{name}.request.json").read_text())


@pytest.mark.parametrize("name", ["plain", "all", "job", "hardened"])
def test_a_service_is_answered_as_it_was_asked(name: str) -> None:
    """What the Engine would answer for the same request, without and with defaults."""
    spec = service_spec_of(request(f"services/{name}"))
    service = Service(
        id=ServiceID("s1"), version=9, created_at=NOW, updated_at=NOW, spec=spec, spec_version=7
    )
    check(f"services/{name}", service_to_json(service))
    check(f"services/{name}.defaults", service_to_json(service, insert_defaults=True))


def _service() -> Service:
    spec = ServiceSpec(
        name="web", task=TaskSpec(container=ContainerSpec(image="web:1", args=("run", "a b")))
    )
    return Service(
        id=ServiceID("s1"),
        version=9,
        created_at=NOW,
        updated_at=NOW + 1,
        spec=spec,
        spec_version=9,
        previous_spec=ServiceSpec(name="web"),
        endpoint=Endpoint(ports=(PortConfig(target_port=80, published_port=30000),)),
        update_status=UpdateStatus(state="updating", started_at=NOW, message="update in progress"),
    )


def _task() -> Task:
    return Task(
        id=TaskID("t1"),
        version=11,
        created_at=NOW,
        updated_at=NOW,
        service_id=ServiceID("s1"),
        spec_version=9,
        slot=2,
        node_id=NodeID("n1"),
        desired_state=TaskState.SHUTDOWN,
        status=TaskStatus(
            state=TaskState.FAILED,
            timestamp=NOW + 1,
            message="started",
            err="task: non-zero exit (3)",
            container_id="c1",
            pid=0,
            exit_code=3,
            host_ports=(PortConfig(target_port=80, published_port=81, publish_mode=PortMode.HOST),),
        ),
    )


def _node() -> Node:
    return Node(
        id=NodeID("n1"),
        version=3,
        created_at=NOW,
        updated_at=NOW,
        spec=NodeSpec(labels={"zone": "a"}, role=NodeRole.MANAGER),
        role=NodeRole.MANAGER,
        description=NodeDescription(
            hostname="wkr01",
            platform=Platform(os="linux", architecture="x86_64"),
            resources=Resources(
                nano_cpus=2 * 10**9,
                memory_bytes=2**31,
                generic=(GenericResource(kind="gpu", value="one", is_named=True),),
            ),
            engine=EngineDescription(
                version="0.1.0", labels={"disk": "ssd"}, plugins=(("Volume", "local"),)
            ),
        ),
        status=NodeStatus(state=NodeState.READY, addr="192.0.2.1"),
        manager_status=ManagerStatus(
            is_leader=True, reachability=Reachability.REACHABLE, addr="192.0.2.1:2377"
        ),
    )


def _cluster() -> Cluster:
    wire = decoded(request("init"), WireInit)
    return Cluster(
        id=ClusterID("cl1"),
        version=2,
        created_at=NOW,
        updated_at=NOW,
        spec=cluster_spec_from(wire.spec, ClusterSpec()),
        root_ca_certificate_pem=ROOT,
        join_tokens=JoinTokens(worker="W", manager="M"),
    )


def _image() -> Image:
    return Image(
        id=ImageID("sha256:1"),
        repo_tags=("web:1",),
        repo_digests=("web@sha256:2",),
        config=ImageConfig(
            entrypoint=("/e",),
            cmd=("c",),
            env=("A=b",),
            working_dir="/w",
            user="1",
            labels={"k": "v"},
            exposed_ports=("80/tcp",),
            volumes=("/data",),
            stop_signal="SIGINT",
            healthcheck=HealthConfig(test=("CMD", "x"), interval_ns=5),
        ),
        architecture="arm",
        variant="v7",
        os="linux",
        author="me",
        comment="why",
        created=NOW,
        diff_ids=("sha256:a", "sha256:b"),
        layer_dirs=("/l/a", "/l/b"),
        size_bytes=7,
        history=(
            HistoryEntry(created=NOW, created_by="ADD", size_bytes=7),
            HistoryEntry(created=NOW + 1, created_by="CMD", empty_layer=True),
        ),
    )


def test_a_service_in_the_middle_of_an_update() -> None:
    """Ports as allocated, counts as asked, the spec before."""
    check(
        "service",
        service_to_json(_service(), status=ServiceStatus(running_tasks=1, desired_tasks=2)),
    )


def test_tasks_and_containers() -> None:
    """A failed task, and its container as `docker ps -a` shows it."""
    spec = _service().spec
    check("task", task_to_json(_task(), spec))
    check("container", summary_to_json(_task(), spec, "web.2.t1", now=NOW + 200))


def test_nodes() -> None:
    """A leading manager."""
    check("node", node_to_json(_node()))
    shown = TLSInfo(
        trust_root_digest=root_digest(ROOT), issuer_subject="MA==", issuer_public_key="MQ=="
    )
    node = msgspec.structs.replace(_node(), tls_info=shown)
    assert node_to_json(node, _cluster())["Description"]["TLSInfo"] == {
        "TrustRoot": ROOT,
        "CertIssuerSubject": "MA==",
        "CertIssuerPublicKey": "MQ==",
    }
    other = msgspec.structs.replace(_cluster(), root_ca_certificate_pem="another")
    assert "TrustRoot" not in node_to_json(node, other)["Description"]["TLSInfo"]


def test_the_swarm() -> None:
    """As the client's init request made it."""
    rotation = RootRotation(certificate_pem=create_root(NOW).certificate_pem)
    rotating = swarm_to_json(msgspec.structs.replace(_cluster(), root_rotation=rotation))
    assert rotating["RootRotationInProgress"] is True
    assert rotating["TLSInfo"]["TrustRoot"] == ROOT
    issuer = issuer_names(rotation.certificate_pem)
    told = (rotating["TLSInfo"]["CertIssuerSubject"], rotating["TLSInfo"]["CertIssuerPublicKey"])
    assert told == issuer
    check("swarm", swarm_to_json(_cluster()))


def test_images() -> None:
    """Summary, inspection and history."""
    check("image", image_to_json(_image(), "overlay2"))
    check("image_summary", image_summary_to_json(_image()))
    check("history", history_to_json(_image()))


def test_info_and_version() -> None:
    """Of a manager."""
    facts = NodeFacts(
        node_id=NodeID("n1"),
        name="wkr01",
        version="0.1.0",
        architecture="x86_64",
        go_arch="amd64",
        runtimes={"crun": "/usr/bin/crun"},
        default_runtime="crun",
        containers_running=2,
        containers_stopped=1,
        warnings=("w",),
        swarm=SwarmFacts(
            local_node_state="active",
            control_available=True,
            node_addr="192.0.2.1",
            remote_managers=(RemoteManager(NodeID("n1"), "192.0.2.1:2377"),),
            nodes=1,
            managers=1,
            cluster=_cluster(),
        ),
    )
    check("info", info_to_json(facts, now_ns=int(NOW * 10**9), listener_count=1))
    check("version", version_to_json(facts))
    assert "JoinTokens" not in json.dumps(info_to_json(facts, now_ns=0, listener_count=0))


def test_events() -> None:
    """A scaled service and a drained node."""
    service, node = _service(), _node()
    scaled = Service(
        id=service.id,
        updated_at=NOW + 2,
        spec=ServiceSpec(name="web", mode=ReplicatedMode(replicas=5)),
    )
    drained = Node(id=node.id, updated_at=NOW, status=NodeStatus(state=NodeState.DOWN))
    changes = [Updated(old=service, new=scaled), Updated(old=node, new=drained)]
    check("events", [event_of(change, now=NOW) for change in changes])

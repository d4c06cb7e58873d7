"""Requests over the socket, with a small daemon behind."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from proto.errors import (
    LockedError,
    NameConflictError,
    SequenceConflictError,
    UnavailableError,
)
from proto.ids import NodeID, ServiceID, TaskID
from proto.logs import LogRecord
from proto.objects import (
    ContainerSpec,
    NodeAvailability,
    NodeSpec,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from proto.states import TaskState
from worker.images.api import Progress

if TYPE_CHECKING:
    from tests.unit.httpapi.conftest import Served

SECRET = "hunter2-do-not-log"


def with_task(served: Served, *, tty: bool = False) -> Task:
    """Give the daemon a service with a task and two lines of output."""
    service = Service(
        id=ServiceID("s1"),
        spec=ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(tty=tty))),
    )
    task = Task(id=TaskID("t1"), service_id=service.id, slot=1, node_id=NodeID("n1"))
    served.backend.fake_control.by_id["s1"] = service
    served.backend.fake_control.all_tasks["t1"] = task
    served.backend.records = [
        (task, LogRecord(time_ns=10**18, stream="stdout", data=b"out\n")),
        (task, LogRecord(time_ns=10**18, stream="stderr", data=b"err\n")),
    ]
    return task


async def test_ping_tells_what_clients_negotiate_by(served: Served) -> None:
    """With and without a version in the path, and by HEAD."""
    for method, path in (("GET", "/_ping"), ("HEAD", "/_ping"), ("GET", "/v1.24/_ping")):
        answer = await served.ask(method, path)
        assert answer.status == 200
        assert answer.headers["api-version"] == "1.50"
        assert answer.headers["ostype"] == "linux"
        assert answer.headers["swarm"] == "active/manager"
        assert answer.headers["docker-experimental"] == "false"
        assert answer.body == (b"OK" if method == "GET" else b"")


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/nowhere", 404, "page not found"),
        ("/v1.50/nowhere", 404, "page not found"),
        ("/vx/info", 404, "page not found"),
        ("/v1." + "9" * 5000 + "/info", 404, "page not found"),
        ("/v1.99/info", 400, "client version 1.99 is too new"),
        ("/v1.1/info", 400, "client version 1.1 is too old"),
        ("/services/none", 404, "service none not found"),
        ("/v1.50/containers/x/json", 404, "No such container: x"),
        ("/v1.50/containers/x/logs", 501, "commands on single containers: not served"),
        ("/volumes/xx", 404, "get xx: no such volume"),
        ("/networks/x", 404, "network x not found"),
        ("/images/web/json", 404, "No such image: web"),
        ("/services?filters=%7B%22color%22%3A%5B%22red%22%5D%7D", 400, "invalid filter 'color'"),
    ],
)
async def test_errors_are_messages_with_the_right_status(
    served: Served, path: str, status: int, message: str
) -> None:
    """Clients print `message`."""
    answer = await served.ask("GET", path)
    assert status == answer.status
    assert answer.json()["message"].startswith(message)
    assert answer.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the request body is empty"),
        (b"{", "the request body is not JSON"),
        (b"[" * 100_000, "the request body is nested too deeply"),
        (b'{"x":' * 700 + b"1" + b"}" * 700, "the request body is nested too deeply"),
        (b"[1]", "the request body is not valid: Expected `object`"),
        (b'{"Mode":{"Replicated":{"Replicas":-1}}}', "$.Mode.Replicated.Replicas"),
        (b'{"Mode":{"Replicated":{"Replicas":1e40}}}', "$.Mode.Replicated.Replicas"),
        (b'{"Mode":{"Replicated":{},"Global":{}}}', "must specify only one service mode"),
        (b'{"TaskTemplate":{"Runtime":"plugin"}}', "task runtime 'plugin' is not supported"),
        (
            b'{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Type":"npipe","Target":"/x"}]}}}',
            "mount type 'npipe' at /x is not supported: use bind, volume or tmpfs",
        ),
    ],
)
async def test_a_bad_spec_is_refused_by_name(served: Served, body: bytes, message: str) -> None:
    """The sentence leads to the member that is wrong."""
    answer = await served.ask("POST", "/services/create", body)
    assert answer.status == 400
    assert message in answer.json()["message"]


@pytest.mark.parametrize(
    "header",
    [
        "\xff",
        base64.b64encode(b"[" * 5_000).decode(),
        base64.b64encode(b'{"username":"\xff"}').decode(),
        base64.b64encode(b'{"x":' * 1_200).decode(),
        base64.b64encode(b"null").decode(),
        "a",
    ],
    ids=range(6),
)
async def test_credentials_of_a_registry_that_are_none_are_refused(
    served: Served, header: str
) -> None:
    """Nested deeply, no UTF-8, no base64: one sentence, which does not repeat what was sent."""
    answer = await served.ask(
        "POST", "/images/create?fromImage=web&tag=1", headers={"X-Registry-Auth": header}
    )
    assert answer.status == 400
    assert "X-Registry-Auth header is not valid" in answer.json()["message"]


async def test_a_refusal_is_printable(served: Served) -> None:
    """What a sentence quotes is spelt out where a terminal would obey it."""
    answer = await served.ask("GET", "/services/%1b%5b2J%c2%9b%ff")
    assert answer.status == 404
    assert answer.json()["message"].isprintable()


async def test_a_large_body_is_refused(served: Served) -> None:
    """Only uploads of images may be large."""
    answer = await served.ask("POST", "/services/create", b" " * (4 * 1024 * 1024 + 1))
    assert answer.status == 413
    assert "larger than" in answer.json()["message"]


async def test_an_upload_may_be_large(served: Served) -> None:
    """`docker load` sends gigabytes; the limit of other bodies does not hold."""
    answer = await served.ask("POST", "/images/load", b"x" * (5 * 1024 * 1024))
    assert answer.status == 200
    assert served.backend.images.uploaded == 5 * 1024 * 1024
    assert answer.json() == {"stream": "Loaded image: web:1\n"}


async def test_a_bug_is_logged_and_not_shown(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback is for the operator, the client gets a plain sentence."""
    with_task(served)
    answer = await served.ask("GET", "/services?status=1")
    assert answer.status == 500
    assert "secret-looking" not in answer.json()["message"]
    assert "secret-looking" in "".join(capsys.readouterr())


@pytest.mark.parametrize("path", ["/services/s1/update", "/nodes/n/update", "/swarm/update"])
@pytest.mark.parametrize(
    "query", ["", "?version=", "?version=-1", "?version=x", "?version=" + "9" * 5000]
)
async def test_an_update_needs_the_version_it_was_made_for(
    served: Served, path: str, query: str
) -> None:
    """Without it two writers would overwrite each other."""
    answer = await served.ask("POST", path + query, {})
    assert answer.status == 400
    assert "version" in answer.json()["message"]


async def test_a_service_without_a_name_gets_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the Engine; a name that is taken is not the user's fault and drawn again."""
    control = served.backend.fake_control
    tried: list[str] = []

    async def create(spec: ServiceSpec, **_: Any) -> ServiceID:
        tried.append(spec.name)
        if len(tried) < 3:
            raise NameConflictError("service", spec.name)
        return ServiceID("s9")

    monkeypatch.setattr(control, "create_service", create)
    answer = await served.ask("POST", "/services/create", {"TaskTemplate": {}})
    assert (answer.status, answer.json()) == (201, {"ID": "s9"})
    assert [name.count("_") for name in tried] == [1, 2, 2]


async def test_a_rollback_ignores_the_body(served: Served) -> None:
    """The client sends a spec all the same."""
    answer = await served.ask("POST", "/services/s1/update?version=7&rollback=previous", {})
    assert answer.status == 200
    assert served.backend.fake_control.calls == [("update_service", "s1", 7, ServiceSpec(), True)]


@pytest.mark.parametrize(
    ("error", "status"), [(SequenceConflictError("service", "s1", 1, 2), 500), (LockedError(), 503)]
)
async def test_each_error_has_its_status(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """As the table of `proto.errors` has it; the Engine's clients look for these."""

    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(served.backend.fake_control, "update_service", refuse)
    answer = await served.ask("POST", "/services/s1/update?version=1", {})
    assert (answer.status, answer.json()["message"]) == (status, str(error))


async def test_self_names_this_node(served: Served) -> None:
    """For every command on nodes, not only for those whose client knows the word."""
    assert (await served.ask("DELETE", "/nodes/self?force=1")).status == 200
    assert (await served.ask("POST", "/nodes/self/update?version=3", {})).status == 200
    assert served.backend.fake_control.calls == [
        ("remove_node", "n1", True),
        ("update_node", "n1", 3, NodeSpec()),
    ]


async def test_outside_a_swarm_the_sentence_is_shown(served: Served) -> None:
    """It names the remedy; lists of what cannot exist are refused too, not empty."""
    served.backend.is_manager = False
    for path in ("/services", "/nodes", "/tasks", "/swarm", "/secrets", "/configs"):
        answer = await served.ask("GET", path)
        assert (answer.status, answer.json()) == (
            503,
            {"message": "This node is not a swarm manager."},
        )
    assert (await served.ask("GET", "/_ping")).headers["swarm"] == "inactive"
    assert (await served.ask("GET", "/containers/json")).json() == []


async def test_credentials_are_passed_and_never_logged(
    served: Served, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a good header nor a broken one."""
    caplog.set_level(logging.DEBUG)
    header = {"username": "u", "password": SECRET, "serveraddress": "r.example"}
    encoded = base64.urlsafe_b64encode(msgspec.json.encode(header)).decode()
    reader, writer = await served.open(
        "POST", "/images/create?fromImage=web&tag=1", headers={"X-Registry-Auth": encoded}
    )
    await asyncio.wait_for(served.backend.images.started.wait(), 5)
    assert served.backend.images.auth is not None
    assert served.backend.images.auth.password == SECRET
    assert SECRET not in repr(served.backend.images.auth)
    writer.close()
    broken = {"X-Registry-Auth": SECRET}
    answer = await served.ask("POST", "/images/create?fromImage=web&tag=1", headers=broken)
    assert answer.status == 400
    assert SECRET not in answer.body.decode()
    output = "".join(capsys.readouterr()) + caplog.text
    assert SECRET not in output
    assert encoded not in output
    del reader


async def test_a_pull_ends_with_its_client(served: Served) -> None:
    """Nobody waits for it any more."""
    served.backend.images.steps = [Progress(status="one"), Progress(status="two")]
    reader, writer = await served.open("POST", "/images/create?fromImage=web&tag=1")
    async with asyncio.timeout(5):
        await reader.readuntil(b"two")
        writer.close()
        await served.backend.images.cancelled.wait()


async def test_pulling_all_tags_is_refused(served: Served) -> None:
    """A name without a tag means that to the Engine; silently taking latest would be wrong."""
    answer = await served.ask("POST", "/images/create?fromImage=web")
    assert answer.status == 501
    assert "web:latest" in answer.json()["message"]


async def test_logs_are_frames(served: Served) -> None:
    """Standard output and error keep apart, and the origin comes with `details`."""
    with_task(served)
    answer = await served.ask("GET", "/services/s1/logs?stdout=1&stderr=1&details=1")
    assert answer.headers["content-type"] == "application/vnd.docker.multiplexed-stream"
    origin = (
        b"com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1 "
    )
    lines = [(1, origin + b"out\n"), (2, origin + b"err\n")]
    assert answer.body == b"".join(
        struct.pack(">BxxxI", stream, len(data)) + data for stream, data in lines
    )


async def test_logs_of_a_terminal_are_raw(served: Served) -> None:
    """The client copies them as they are."""
    with_task(served, tty=True)
    answer = await served.ask("GET", "/tasks/t1/logs?stdout=1&stderr=1")
    assert answer.headers["content-type"] == "application/vnd.docker.raw-stream"
    assert answer.body == b"out\nerr\n"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "Bad parameters: you must choose at least one stream"),
        ("?stdout=1&tail=x", "invalid value 'x' for tail"),
        ("?stdout=1&tail=" + "9" * 5000, "invalid value '999"),
        ("?stdout=1&since=x", "invalid value 'x' for since"),
    ],
)
async def test_wrong_log_options_are_refused(served: Served, query: str, message: str) -> None:
    """Before the response begins."""
    with_task(served)
    answer = await served.ask("GET", f"/services/s1/logs{query}")
    assert answer.status == 400
    assert answer.json()["message"].startswith(message)


async def test_following_ends_with_the_client(served: Served) -> None:
    """The work on the nodes is given up."""
    with_task(served)
    reader, writer = await served.open("GET", "/tasks/t1/logs?stdout=1&follow=1&tail=5")
    async with asyncio.timeout(5):
        await reader.readuntil(b"err\n")
        assert not served.backend.logs_closed.is_set()
        writer.close()
        await served.backend.logs_closed.wait()
    assert served.backend.log_options is not None
    assert served.backend.log_options.tail == 5


async def test_following_ends_in_order_with_the_server(served: Served) -> None:
    """The client sees a complete response: the last chunk comes."""
    with_task(served)
    reader, writer = await served.open("GET", "/tasks/t1/logs?stdout=1&follow=1")
    async with asyncio.timeout(5):
        await reader.readuntil(b"err\n")
        await served.listener.close()
        rest = await reader.read()
    writer.close()
    assert rest.endswith(b"0\r\n\r\n")
    assert served.backend.logs_closed.is_set()


async def test_init_passes_everything(served: Served) -> None:
    """What `docker swarm init` may say."""
    body = {
        "ListenAddr": "0.0.0.0:2377",
        "AdvertiseAddr": "192.0.2.1",
        "DataPathPort": 7777,
        "DefaultAddrPool": ["10.20.0.0/16"],
        "SubnetSize": 26,
        "ForceNewCluster": True,
        "Availability": "drain",
        "Spec": {"EncryptionConfig": {"AutoLockManagers": True}, "Raft": {}},
    }
    answer = await served.ask("POST", "/swarm/init", body)
    assert (answer.status, answer.json()) == (200, "n1")
    request = served.backend.init_request
    assert request is not None
    assert request.listen_addr == "0.0.0.0:2377"
    assert request.data_path_port == 7777
    assert request.default_addr_pool == ("10.20.0.0/16",)
    assert request.force_new_cluster
    assert request.auto_lock
    assert request.availability.name == "DRAIN"
    assert request.spec.task_history_retention_limit == 5


async def test_joining_passes_on_what_was_asked(served: Served) -> None:
    """The addresses and the token reach the daemon, and nothing shows the token."""
    body = {"JoinToken": "x", "RemoteAddrs": ["10.0.0.1:2377"], "Availability": "drain"}
    answer = await served.ask("POST", "/swarm/join", body)
    assert answer.status == 200
    request = served.backend.join_request
    assert request is not None
    assert (request.join_token, request.remote_addrs) == ("x", ("10.0.0.1:2377",))
    assert request.availability is NodeAvailability.DRAIN
    assert "'x'" not in repr(request)


async def test_a_task_s_container_is_not_denied(served: Served) -> None:
    """`docker ps` lists it; who asks for more is told where to look, by ID, prefix or name."""
    control = served.backend.fake_control
    status = TaskStatus(state=TaskState.RUNNING, container_id="c" * 64)
    task = Task(id=TaskID("t1"), service_id=ServiceID("s1"), node_id=NodeID("n1"), status=status)
    control.all_tasks[task.id] = task
    control.by_id["s1"] = Service(id=ServiceID("s1"), spec=ServiceSpec(name="web"))
    (listed,) = (await served.ask("GET", "/containers/json")).json()
    for name in ("c" * 64, "c" * 12, listed["Names"][0].removeprefix("/")):
        answer = await served.ask("GET", f"/containers/{name}/json")
        assert answer.status == 501
        assert "use service logs t1" in answer.json()["message"]
    assert (await served.ask("GET", "/containers/d/json")).status == 404


@pytest.mark.parametrize(
    ("path", "barriers"),
    [
        ("/services", 1),
        ("/v1.50/tasks", 1),
        ("/nodes?consistency=stale", 0),
        ("/info", 0),
        ("/images/json", 0),
    ],
)
async def test_reads_of_the_cluster_are_linearizable_unless_stale_is_asked(
    served: Served, path: str, barriers: int
) -> None:
    """What shows replicated objects waits for a read barrier; nothing else does."""
    await served.ask("GET", path)

    assert barriers == served.backend.barriers


async def test_without_a_quorum_a_read_says_that_it_may_be_stale(served: Served) -> None:
    """A header warns; `consistency=stale`, which asks for it, is not warned."""
    served.backend.barrier_error = UnavailableError("no majority of the managers answers")

    warned = await served.ask("GET", "/services")
    stale = await served.ask("GET", "/services?consistency=stale")

    assert (warned.status, stale.status) == (200, 200)
    assert warned.headers.get("warning") == '110 swarm "Response is Stale"'
    assert "warning" not in stale.headers

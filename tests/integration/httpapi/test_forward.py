"""Any manager answers: followers ask the leader, and a fail-over is a pause."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from manager.httpapi.backend import LeaderInfo
from manager.store import Transaction
from proto.errors import UnavailableError
from proto.ids import NodeID
from proto.objects import Node, NodeRole
from raft.transport.identity import WORKER_ROLE

if TYPE_CHECKING:
    from tests.integration.httpapi.conftest import Managers

pytestmark = pytest.mark.integration

IMAGE = {"ContainerSpec": {"Image": "nginx"}}
LOST = UnavailableError("the connection to the disk was lost")


def spec(name: str = "web", replicas: int = 1) -> dict[str, Any]:
    """Write a service's spec."""
    return {"Name": name, "TaskTemplate": IMAGE, "Mode": {"Replicated": {"Replicas": replicas}}}


def replicas(managers: Managers) -> list[Any]:
    """Tell how many replicas each service wants."""
    return [service.spec.mode for service in managers.store.view().services]


async def created(managers: Managers, name: str = "m1") -> Any:
    """Create a service; return it as the API shows it."""
    answer = await managers.ask(name, "POST", "/services/create", spec())
    assert answer.status == 201, answer.body
    return (await managers.ask(name, "GET", f"/services/{answer.json()['ID']}")).json()


async def later(managers: Managers, leader: str, seconds: float = 0.2) -> None:
    """Let somebody lead after a while."""
    await asyncio.sleep(seconds)
    managers.lead(leader)


async def test_every_manager_takes_every_write(managers: Managers) -> None:
    """Create, update, remove and a node's update, each through a follower; done once each."""
    service = await created(managers, "m2")
    assert managers.all["m2"].changes == 0
    path = f"/services/{service['ID']}"
    update = f"{path}/update?version={service['Version']['Index']}"
    assert (await managers.ask("m3", "POST", update, spec(replicas=4))).status == 200
    assert [mode.replicas for mode in replicas(managers)] == [4]
    assert (await managers.ask("m2", "DELETE", path)).status == 200
    assert replicas(managers) == []
    node = (await managers.ask("m2", "GET", "/nodes/w1")).json()
    update = f"/nodes/w1/update?version={node['Version']['Index']}"
    drained = {"Role": "worker", "Availability": "drain"}
    assert (await managers.ask("m3", "POST", update, drained)).status == 200
    cluster = (await managers.ask("m2", "GET", "/swarm")).json()
    update = f"/swarm/update?version={cluster['Version']['Index']}&rotateWorkerToken=1"
    assert (await managers.ask("m3", "POST", update, cluster["Spec"])).status == 200
    after = (await managers.ask("m2", "GET", "/swarm")).json()
    assert after["JoinTokens"]["Worker"] != cluster["JoinTokens"]["Worker"]
    assert managers.all["m1"].changes == 5


async def test_the_leader_s_refusals_come_as_they_are(managers: Managers) -> None:
    """Status and sentence, also of a version that is too old."""
    assert (await managers.ask("m2", "DELETE", "/services/none")).message == (
        "service none not found"
    )
    await created(managers)
    taken = await managers.ask("m2", "POST", "/services/create", spec())
    assert (taken.status, "already exists" in taken.message) == (409, True)
    bad = await managers.ask("m2", "POST", "/services/create", b"{")
    assert (bad.status, "is not JSON" in bad.message) == (400, True)
    old = await managers.ask("m2", "POST", "/services/web/update?version=1", spec())
    assert (old.status, "update out of sequence" in old.message) == (500, True)


async def test_self_is_the_node_that_was_asked(managers: Managers) -> None:
    """Not the leader that answers."""
    assert (await managers.ask("m2", "GET", "/nodes/self")).json()["ID"] == "m2"
    assert (await managers.ask("m3", "GET", "/v1.50/nodes/self")).json()["ID"] == "m3"
    refused = await managers.ask("m2", "DELETE", "/nodes/self?force=1")
    assert "node m2 is a cluster manager" in refused.message


async def test_an_election_is_a_pause(managers: Managers) -> None:
    """A write during it waits and succeeds, wherever it was sent."""
    managers.lead(None)
    election = asyncio.create_task(later(managers, "m3"))
    started = time.monotonic()
    answers = await asyncio.gather(
        *(
            managers.ask(name, "POST", "/services/create", spec(f"web-{name}"))
            for name in ("m1", "m2", "m3")
        )
    )
    await election
    assert [answer.status for answer in answers] == [201] * 3
    assert time.monotonic() - started > 0.15
    assert len(replicas(managers)) == 3


async def test_a_leader_that_is_gone_is_waited_out(managers: Managers) -> None:
    """Nobody listens at the address that is still known as the leader's."""
    await managers.kill("m1")
    managers.lead(None, known_to=())
    election = asyncio.create_task(later(managers, "m3"))
    assert (await managers.ask("m2", "POST", "/services/create", spec())).status == 201
    await election


async def test_a_leader_that_does_not_answer_is_left_for_the_next(managers: Managers) -> None:
    """As when its machine lost power: no connection is closed. The service is made once."""
    silent = asyncio.Event()

    async def hang() -> None:
        await silent.wait()

    managers.all["m1"].before_change = hang
    election = asyncio.create_task(later(managers, "m3"))
    started = time.monotonic()
    assert (await managers.ask("m2", "POST", "/services/create", spec())).status == 201
    assert time.monotonic() - started < 10  # an answer would be waited for 30 s
    silent.set()
    await election
    assert len(replicas(managers)) == 1


async def test_one_who_leads_no_more_sends_away(managers: Managers) -> None:
    """Its answer says that nothing was done; who knows the next leader goes there."""
    managers.lead(None, known_to=())
    election = asyncio.create_task(later(managers, "m3"))
    assert (await managers.ask("m2", "POST", "/services/create", spec())).status == 201
    assert managers.all["m1"].changes > 1
    await election


@pytest.mark.parametrize("asked", ["m1", "m2"])
async def test_a_creation_of_unknown_outcome_is_made_sure_of(
    managers: Managers, asked: str
) -> None:
    """It had succeeded: the second attempt finds its own ID and creates nothing, name or not."""
    for body in (spec(), {"TaskTemplate": IMAGE}):
        managers.all["m1"].after_change = LOST
        answer = await managers.ask(asked, "POST", "/services/create", body)
        assert answer.status == 201
        assert answer.json()["ID"] in managers.store.view().services
    assert len(replicas(managers)) == 2


@pytest.mark.parametrize("asked", ["m1", "m2"])
async def test_an_update_of_unknown_outcome_is_judged_by_what_is_there(
    managers: Managers, asked: str
) -> None:
    """It had succeeded: the second attempt finds the wanted spec."""
    service = await created(managers)
    path = f"/services/web/update?version={service['Version']['Index']}"
    managers.all["m1"].after_change = LOST
    assert (await managers.ask(asked, "POST", path, spec(replicas=7))).status == 200
    node = (await managers.ask("m1", "GET", "/nodes/w1")).json()
    path = f"/nodes/w1/update?version={node['Version']['Index']}"
    managers.all["m1"].after_change = LOST
    assert (await managers.ask(asked, "POST", path, {"Availability": "pause"})).status == 200
    cluster = (await managers.ask("m1", "GET", "/swarm")).json()
    path = f"/swarm/update?version={cluster['Version']['Index']}"
    managers.all["m1"].after_change = LOST
    wanted = {"Orchestration": {"TaskHistoryRetentionLimit": 9}}
    assert (await managers.ask(asked, "POST", path, wanted)).status == 200
    (stored,) = managers.store.view().clusters
    assert stored.spec.task_history_retention_limit == 9


async def test_an_update_that_lost_against_another_one_is_refused(managers: Managers) -> None:
    """What is there after the doubt is not what was wanted."""
    service = await created(managers)
    version = service["Version"]["Index"]
    manager = managers.all["m1"]
    is_first = True

    async def overtake() -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            await manager._control._control.update_service(
                "web", version, managers.store.view().services.get(service["ID"]).spec
            )
            raise LOST

    manager.before_change = overtake
    answer = await managers.ask(
        "m2", "POST", f"/services/web/update?version={version}", spec(replicas=7)
    )
    assert (answer.status, "update out of sequence" in answer.message) == (500, True)


@pytest.mark.parametrize("asked", ["m1", "m2"])
async def test_a_removal_of_unknown_outcome_is_done_when_nothing_is_left(
    managers: Managers, asked: str
) -> None:
    """The second attempt finds nothing, which is what was wanted."""
    await created(managers)
    managers.all["m1"].after_change = LOST
    assert (await managers.ask(asked, "DELETE", "/services/web")).status == 200
    managers.all["m1"].after_change = LOST
    assert (await managers.ask(asked, "DELETE", "/nodes/w1?force=1")).status == 200


@pytest.mark.parametrize("asked", ["m1", "m2"])
async def test_what_would_be_done_twice_is_not_repeated(managers: Managers, asked: str) -> None:
    """New tokens of unknown fate: the sentence says to look, and they were drawn once at most."""
    (before,) = managers.store.view().clusters
    managers.all["m1"].after_change = LOST
    path = f"/swarm/update?version={before.version}&rotateWorkerToken=1"
    answer = await managers.ask(asked, "POST", path, {})
    assert answer.status == 503
    assert "whether the change was made is not known" in answer.message
    assert managers.all["m1"].changes == 1


async def test_without_a_quorum_a_write_says_so_and_the_way_out(managers: Managers) -> None:
    """After the pause, not before."""
    managers.lead(None)
    managers.all["m2"].reachable = 1
    started = time.monotonic()
    answer = await managers.ask("m2", "POST", "/services/create", spec())
    assert time.monotonic() - started > 2.9
    assert answer.status == 503
    assert "1 of 3 managers reachable, and it takes 2" in answer.message
    assert "swarm init --force-new-cluster" in answer.message


async def test_whoever_knows_that_a_majority_is_gone_does_not_wait_for_an_election(
    managers: Managers,
) -> None:
    """Neither for one, nor for an answer of who led before: that machine may be dead."""
    lost = managers.all["m2"]
    managers.lead(None)
    lost.reachable, lost.knows_loss = 1, True
    started = time.monotonic()
    answer = await managers.ask("m2", "POST", "/services/create", spec())
    assert time.monotonic() - started > 0.9
    assert answer.status == 503
    assert "1 of 3 managers reachable, and it takes 2" in answer.message

    managers.lead("m1")
    lost.knows_loss = False

    async def hang() -> None:
        lost.knows_loss = True
        await asyncio.sleep(3600)

    managers.all["m1"].before_change = hang
    answer = await managers.ask("m2", "POST", "/services/create", spec())
    assert answer.status == 503
    assert "1 of 3 managers reachable, and it takes 2" in answer.message
    assert "whether the change was made is not known" in answer.message


async def test_without_a_quorum_a_read_shows_what_is_there_and_says_so(
    managers: Managers,
) -> None:
    """Nodes too, which the leader would be asked for; the next read does not wait as long."""
    managers.lead(None)
    managers.all["m2"].barrier_error = UnavailableError("no majority answers")
    nodes = await managers.ask("m2", "GET", "/nodes")
    assert [node["ID"] for node in nodes.json()] == ["m1", "m2", "m3", "w1"]
    assert nodes.headers["warning"] == '110 swarm "Response is Stale"'
    services = await managers.ask("m2", "GET", "/services")
    assert services.headers["warning"] == '110 swarm "Response is Stale"'
    assert "warning" not in (await managers.ask("m1", "GET", "/services")).headers


async def test_managers_that_send_to_each_other_go_in_no_circle(managers: Managers) -> None:
    """m2 takes m3 for the leader and m3 takes m2 for it; neither is."""
    managers.lead(None)
    for name, other in (("m2", "m3"), ("m3", "m2")):
        address = managers.all[other].address
        managers.all[name].known_leader = LeaderInfo(NodeID(other), address)
    answer = await managers.ask("m2", "POST", "/services/create", spec())
    assert answer.status == 503
    assert managers.all["m2"].changes == 0
    assert managers.all["m3"].changes < 160  # one for each attempt of m2


async def test_another_node_at_the_leader_s_address_is_not_asked(managers: Managers) -> None:
    """The name in the certificate is not that of the leader; a worker's would not do either."""
    managers.all["m2"].known_leader = LeaderInfo(NodeID("m3"), managers.all["m1"].address)
    assert (await managers.ask("m2", "POST", "/services/create", spec())).status == 503
    managers.all["m1"].shown = managers.pki.credentials("m3", WORKER_ROLE)
    assert managers.all["m1"].tls is not None
    managers.all["m1"].tls.reload()
    assert (await managers.ask("m2", "POST", "/services/create", spec())).status == 503
    assert managers.all["m1"].changes == 0


async def test_headers_of_forwarding_count_for_managers_only(managers: Managers) -> None:
    """A client on the socket cannot choose the ID, nor call its request a repetition."""
    headers = {"Swarm-Forwarded-By": "m3", "Swarm-Object-Id": "chosen", "Swarm-Repeat": "1"}
    answer = await managers.ask("m2", "POST", "/services/create", spec(), headers)
    assert answer.status == 201
    assert answer.json()["ID"] != "chosen"
    assert (await managers.ask("m1", "DELETE", "/services/none", b"", headers)).status == 404


async def test_a_new_certificate_is_used_at_once(managers: Managers) -> None:
    """The session to the leader does not go on with the old one."""
    await created(managers, "m2")
    managers.all["m2"].shown = managers.pki.credentials("gone")
    answer = await managers.ask("m2", "DELETE", "/services/web")
    assert (answer.status, "was removed from" in answer.message) == (403, True)


async def test_a_server_that_stops_keeps_nobody_waiting(managers: Managers) -> None:
    """Who waits for a leader is told so at once."""
    managers.lead(None)
    waiting = asyncio.create_task(managers.ask("m2", "POST", "/services/create", spec()))
    await asyncio.sleep(0.1)
    unix = managers.all["m2"].unix
    assert unix is not None
    started = time.monotonic()
    await unix.close()
    answer = await waiting
    assert time.monotonic() - started < 2.5  # the pause would take longer
    assert (answer.status, "is stopping" in answer.message) == (503, True)


@pytest.mark.parametrize("change", ["demoted", "removed"])
async def test_an_answer_ends_when_its_caller_is_no_manager_any_more(
    managers: Managers, change: str
) -> None:
    """What a manager had asked for before it was demoted goes on no longer than that."""
    reader, writer = await managers.dial("m1", managers.pki.credentials("m3"))
    writer.write(b"GET /events HTTP/1.1\r\nHost: m1\r\n\r\n")
    async with asyncio.timeout(10):
        assert b"200" in await reader.readline()
        while await reader.readline() != b"\r\n":
            pass

        def end(tx: Transaction) -> None:
            node = tx.nodes.get(NodeID("m3"))
            assert node is not None
            if change == "removed":
                tx.delete(Node, node.id)
            else:
                tx.update(msgspec.structs.replace(node, role=NodeRole.WORKER))

        await managers.store.update(end)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.read(1000):
                pass
    writer.close()

"""Sessions over real gRPC and TLS."""

import asyncio
import time

import msgspec
import pytest

from proto.assignments import AssignmentChanges, CompleteAssignments, StatusUpdate
from proto.errors import DeniedError, ResourceExhaustedError, UnavailableError
from proto.objects import (
    Node,
    NodeDescription,
    NodeState,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskStatus,
)
from proto.states import TaskState

pytestmark = pytest.mark.integration


def create_task(tx, name, node_id):
    """Assign a task."""
    if "svc.1" not in tx.spec_versions:
        spec = ServiceSpec(name="web")
        tx.create(ServiceSpecVersion(id="svc.1", service_id="svc", spec_version=1, spec=spec))
    tx.create(
        Task(
            id=name,
            service_id="svc",
            spec_version=1,
            node_id=node_id,
            status=TaskStatus(state=TaskState.ASSIGNED),
        )
    )


async def test_a_node_registers_and_is_ready(manager, client):
    """A hello makes the node READY with its description and the address it came from."""
    told = []
    node = await client("w1", manager, told=told).register("w1", NodeDescription(hostname="h"))

    assert node.status.state is NodeState.READY
    stored = manager.store.view().nodes.get("w1")
    assert (stored.description.hostname, stored.status.addr) == ("h", "127.0.0.1")
    assert [peer.address for peer in told[0].managers] == [manager.address]


async def test_tasks_come_and_statuses_go(manager, client):
    """Everything first, then what changes; a status is stored when the report returns."""
    one = client("w1", manager)
    await manager.store.update(lambda tx: create_task(tx, "t1", "w1"))
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")

    first = await anext(messages)
    await manager.store.update(lambda tx: create_task(tx, "t2", "w1"))
    await manager.store.update(lambda tx: create_task(tx, "t3", "w2"))
    second = await anext(messages)
    running = TaskStatus(state=TaskState.RUNNING, timestamp=5.0)
    await one.update_statuses("w1", [StatusUpdate("t1", running), StatusUpdate("t3", running)])

    assert isinstance(first, CompleteAssignments)
    assert [a.task.id for a in first.assignments] == ["t1"]
    assert isinstance(second, AssignmentChanges)
    assert [(a.task.id, a.spec.name) for a in second.updated] == [("t2", "web")]
    tasks = manager.store.view().tasks
    assert tasks.get("t1").status.state is TaskState.RUNNING
    assert tasks.get("t3").status.state is TaskState.ASSIGNED
    await messages.aclose()


async def test_a_follower_names_the_leader(start_manager, follower, client):
    """The agent that asks the wrong manager is with the right one at once."""
    leader = await start_manager("a")
    other = await start_manager("b", kind=follower)
    other.leader = leader.address
    one = client("w1", other)
    began = time.monotonic()
    await one.register("w1", NodeDescription())
    assert time.monotonic() - began < 2
    assert leader.state("w1") is NodeState.READY
    assert other.state("w1") is NodeState.UNKNOWN


async def test_a_leader_that_is_not_known_is_said(start_manager, follower, client):
    """Nobody leads: the agent waits and tries again."""
    other = await start_manager(kind=follower)
    one = client("w1", other)
    with pytest.raises(UnavailableError, match="no manager lets this node in"):
        await one.register("w1", NodeDescription())


async def test_a_session_moves_with_the_leadership(manager, client):
    """When the leader steps down its sessions end; the agent hears who leads."""
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")
    await anext(messages)
    manager.leader = "127.0.0.1:1"
    manager.store.follow()
    with pytest.raises(UnavailableError, match="not the leader"):
        await anext(messages)


async def test_the_newest_session_of_a_node_counts(manager, client):
    """A copy of a node takes its place, and the older one is told."""
    first, second = client("w1", manager), client("w1", manager)
    await first.register("w1", NodeDescription())
    messages = first.assignments("w1")
    await anext(messages)
    await second.register("w1", NodeDescription())
    with pytest.raises(UnavailableError, match="a newer session of node w1"):
        await anext(messages)


async def test_heartbeats_keep_a_node_alive_and_silence_kills_it(manager, client, eventually):
    """READY while it beats, also without a word otherwise; DOWN three periods after it is gone."""
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")
    await anext(messages)
    waiting = asyncio.create_task(anext(messages))
    await asyncio.sleep(4)
    assert manager.state("w1") is NodeState.READY
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await one.close()
    await asyncio.sleep(1)
    assert manager.state("w1") is NodeState.READY
    took = await eventually(lambda: manager.state("w1") is NodeState.DOWN)
    assert took < 3.5


async def test_a_goodbye_is_heard(manager, client, eventually):
    """A node that leaves is DOWN at once."""
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    await one.close(is_goodbye=True)
    await eventually(lambda: manager.state("w1") is NodeState.DOWN, within=1)


async def test_what_changes_about_a_node_is_told(manager, client, eventually):
    """Labels, and the wish for a new certificate, over the wire."""
    told = []
    one = client("w1", manager, told=told)
    await one.register("w1", NodeDescription())
    node = manager.store.view().nodes.get("w1")
    spec = msgspec.structs.replace(node.spec, labels={"zone": "b"})
    await manager.store.update(lambda tx: tx.update(msgspec.structs.replace(node, spec=spec)))
    await eventually(lambda: told[-1].node.spec.labels == {"zone": "b"})
    manager.renew.add("w1")
    await eventually(lambda: told[-1].renew_certificate)


async def test_a_changed_description_is_sent_again(manager, client, eventually, monkeypatch):
    """What the node says of itself is looked at now and then."""
    from manager.dispatcher import describing as module  # noqa: PLC0415 -- only here

    monkeypatch.setattr(module, "DESCRIBE_SECONDS", 0.05)
    now = [NodeDescription(hostname="a")]
    one = client("w1", manager, describe=lambda: now[0])
    await one.register("w1", now[0])
    entries = manager.log.last_index
    await asyncio.sleep(0.3)
    assert entries == manager.log.last_index
    now[0] = NodeDescription(hostname="b")
    await eventually(lambda: manager.store.view().nodes.get("w1").description.hostname == "b")


async def test_agents_come_back_to_a_manager_that_was_restarted(start_manager, client, tmp_path):
    """Nothing is written for a node that returns as it was, and none is taken for dead."""
    manager = await start_manager()
    one = client("w1", manager)
    await one.register("w1", NodeDescription(hostname="w1"))
    messages = one.assignments("w1")
    await anext(messages)
    port = manager.port
    await manager.stop()
    with pytest.raises(UnavailableError):
        await anext(messages)
    with pytest.raises(UnavailableError):
        await one.register("w1", NodeDescription(hostname="w1"))
    again = await start_manager(port=port)
    assert again.directory == tmp_path / "a"
    entries = again.log.last_index
    await one.register("w1", NodeDescription(hostname="w1"))
    assert again.state("w1") is NodeState.READY
    assert entries == again.log.last_index
    await asyncio.sleep(4)
    assert again.state("w1") is NodeState.READY


class Proxy:
    """Passes bytes between an agent and a manager until it is told to swallow them."""

    def __init__(self, port):
        self.node_id = "manager"
        self.is_cut = False
        self._target = port
        self._tasks = []

    async def start(self):
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._tasks += [
            asyncio.create_task(self._pass(reader, back)),
            asyncio.create_task(self._pass(there, writer)),
        ]

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(65_536):
                if not self.is_cut:
                    writer.write(data)
        finally:
            writer.close()

    async def stop(self):
        """End."""
        self._server.close()
        await self._server.wait_closed()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def proxy(manager):
    """Give a proxy to the manager."""
    made = await Proxy(manager.port).start()
    yield made
    await made.stop()


async def test_a_silent_manager_is_noticed(proxy, client):
    """A manager from which nothing comes any more is left within three seconds."""
    one = client("w1", proxy)
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")
    await anext(messages)
    await asyncio.sleep(1)
    proxy.is_cut = True
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        await anext(messages)
    assert time.monotonic() - began < 3.5


async def test_a_report_that_is_not_stored_is_not_confirmed(manager, client, monkeypatch):
    """The agent hears nothing, and sends it again."""
    from manager.dispatcher import client as module  # noqa: PLC0415 -- only here

    async def full(_session, _updates):
        raise ResourceExhaustedError("the disk is full")

    monkeypatch.setattr(module, "ACK_SECONDS_MAX", 0.3)
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    with monkeypatch.context() as patch:
        patch.setattr(manager.core, "update_statuses", full)
        with pytest.raises(UnavailableError, match="did not confirm"):
            await one.update_statuses("w1", [])
    await one.update_statuses("w1", [])


async def test_a_client_without_a_session_says_so(manager, client):
    """Nothing is sent into the void."""
    one = client("w1", manager)
    with pytest.raises(UnavailableError):
        await one.update_statuses("w1", [])
    with pytest.raises(UnavailableError):
        await anext(one.assignments("w1"))
    nobody = client("w1")
    with pytest.raises(UnavailableError, match="knows no manager"):
        await nobody.register("w1", NodeDescription())


async def test_an_interrupted_session_ends(manager, client):
    """The agent is made to look for another manager, or to show a new certificate."""
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")
    await anext(messages)
    one.interrupt("the certificate changed")
    with pytest.raises(UnavailableError, match="the certificate changed"):
        await anext(messages)
    await one.register("w1", NodeDescription())


async def test_a_denied_node_hears_why(manager, client):
    """A node that is not in the cluster is not merely unreachable."""
    one = client("stranger", manager)
    with pytest.raises(DeniedError, match="stranger is not in this cluster"):
        await one.register("stranger", NodeDescription())
    assert isinstance(manager.store.view().nodes.get("w1"), Node)

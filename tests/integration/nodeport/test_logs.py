"""Lines of logs between real nodes: from a worker to whichever manager wished for them."""

import asyncio
import random
from contextlib import aclosing

import pytest

from manager.dispatcher.client import DispatcherClient
from manager.logbroker import collector as collector_module
from manager.logbroker.publisher import LogPublisher
from manager.nodeport.remotes import ManagerPeer, Remotes
from proto.clock import SystemClock
from proto.errors import UnavailableError
from proto.logs import LogOptions, LogRecord
from proto.objects import NodeDescription, ServiceSpec, ServiceSpecVersion, Task, TaskStatus
from proto.states import TaskState

pytestmark = pytest.mark.integration

CLUSTER = "cluster1"
SECOND = 10**9


class Worker:
    """A node with a session, whose tasks print what the test says."""

    def __init__(self, node_id, authority, managers):
        self.node_id = node_id
        self.credentials = authority.issue(node_id)
        self.output = {}
        self.readings = 0
        self.ended = 0
        self.printed = asyncio.Event()
        self.publisher = LogPublisher(CLUSTER, lambda: self.credentials, self.read)
        self.client = DispatcherClient(
            node_id,
            CLUSTER,
            lambda: self.credentials,
            Remotes(ManagerPeer(m.node_id, m.address) for m in managers),
            clock=SystemClock(),
            rng=random.Random(node_id),
            on_session=lambda _session: None,
            on_wish=self.publisher.take,
            describe=lambda: NodeDescription(hostname=node_id),
        )

    def prints(self, task_id, *lines):
        """Let a task print; a line's time is its number, but three share one."""
        output = self.output.setdefault(task_id, [])
        for line in lines:
            moment = SECOND * (1 + len(output) // 3)
            output.append(LogRecord(moment, "stdout", f"{line}\n".encode()))
        self.printed.set()
        self.printed = asyncio.Event()

    async def read(self, task_id, options):
        """Read as an agent does."""
        self.readings += 1
        at = 0
        try:
            while True:
                output = self.output.get(task_id, [])
                if at < len(output):
                    record = output[at]
                    at += 1
                    if record.time_ns >= options.since_ns:
                        yield record
                elif not options.follow or (output and output[-1].data == b"end\n"):
                    return
                else:
                    await self.printed.wait()
        finally:
            self.ended += 1

    async def start(self):
        """Open a session."""
        await self.client.register(self.node_id, NodeDescription(hostname=self.node_id))

    async def stop(self):
        """End."""
        await self.publisher.close()
        await self.client.close()


@pytest.fixture
async def worker(authority):
    """Make workers; they end with the test."""
    made = []

    async def make(node_id, *managers):
        one = Worker(node_id, authority, managers)
        made.append(one)
        await one.start()
        return one

    yield make
    for one in made:
        await one.stop()


async def assign(manager, **nodes):
    """Put tasks on nodes."""

    def write(tx):
        spec = ServiceSpec(name="web")
        tx.create(ServiceSpecVersion(id="s.1", service_id="s", spec_version=1, spec=spec))
        for task_id, node_id in nodes.items():
            status = TaskStatus(state=TaskState.RUNNING)
            task = Task(id=task_id, service_id="s", spec_version=1, node_id=node_id, status=status)
            tx.create(task)

    await manager.store.update(write)


async def text_of(manager, task_id, **options):
    """Read a task to its end."""
    lines = manager.collector.read(task_id, LogOptions(**options))
    return [line.data.decode().strip() async for line in lines]


class Following:
    """A reading that goes on beside the test."""

    def __init__(self, manager, task_id):
        self.lines = []
        self._came = asyncio.Event()
        self.running = asyncio.create_task(self._run(manager, task_id))

    async def _run(self, manager, task_id):
        async with aclosing(manager.collector.read(task_id, LogOptions(follow=True))) as lines:
            async for line in lines:
                self.lines.append(line.data.decode().strip())
                self._came.set()

    async def has(self, count):
        """Wait until so many lines have come."""
        async with asyncio.timeout(5):
            while len(self.lines) < count:
                self._came.clear()
                await self._came.wait()

    async def stop(self):
        """Leave."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


@pytest.fixture
async def pair(start_manager, follower):
    """Give a leader, and a follower that knows the same tasks and who leads."""
    leader = await start_manager("a")
    other = await start_manager("b", kind=follower, node_id="peer")
    leader.remotes.add([ManagerPeer("peer", other.address)])
    other.remotes.add([ManagerPeer("manager", leader.address)])
    # What both have by replication is only the rows that matter here.
    other.collector._view = leader.store.view
    return leader, other


async def test_the_leader_reads_a_worker(manager, worker):
    """All that was printed, in order; then what a tail and a time leave of it."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    one.prints("t1", *range(10))
    assert await text_of(manager, "t1") == [str(n) for n in range(10)]
    assert await text_of(manager, "t1", since_ns=3 * SECOND) == ["6", "7", "8", "9"]
    assert one.ended == one.readings == 2


async def test_a_follower_reads_a_worker(pair, worker):
    """It tells the leader what it wishes, and gets the lines itself."""
    leader, other = pair
    await assign(leader, t1="w1", t2="w2")
    one = await worker("w1", leader)
    two = await worker("w2", leader)
    one.prints("t1", "a", "b")
    two.prints("t2", "c")
    assert await asyncio.gather(text_of(other, "t1"), text_of(other, "t2")) == [["a", "b"], ["c"]]


async def test_many_lines_of_many_tasks(pair, worker, eventually):
    """Over one connection; messages are far fewer than lines."""
    leader, other = pair
    tasks = {f"t{n}": "w1" for n in range(20)}
    await assign(leader, **tasks)
    one = await worker("w1", leader)
    for task_id in tasks:
        one.prints(task_id, *range(2_000))
    results = await asyncio.gather(*(text_of(other, task_id) for task_id in tasks))
    assert all(result == [str(n) for n in range(2_000)] for result in results)
    await eventually(lambda: not one.publisher._channels)


async def test_a_long_line(manager, worker):
    """Larger than a message is meant to be, whole."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    one.prints("t1", "x" * 3_000_000, "y")
    assert [len(line) for line in await text_of(manager, "t1")] == [3_000_000, 1]


async def test_lines_come_as_they_are_printed(manager, worker, eventually):
    """A reading that follows ends with the container."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    one.prints("t1", "a")
    reading = Following(manager, "t1")
    await eventually(lambda: reading.lines == ["a"])
    one.prints("t1", "b")
    await eventually(lambda: reading.lines == ["a", "b"])
    one.prints("t1", "end")
    await asyncio.wait_for(reading.running, 5)
    assert reading.lines == ["a", "b", "end"]


async def test_who_leaves_ends_the_work_on_the_node(manager, worker, eventually):
    """The node's reading, its stream, its connection and the leader's wish."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    one.prints("t1", "a")
    reading = Following(manager, "t1")
    await eventually(lambda: reading.lines == ["a"])
    await reading.stop()
    await eventually(lambda: one.ended == 1)
    await eventually(lambda: not one.publisher._running)
    assert not one.publisher._channels
    assert not manager.collector._wishes
    await eventually(lambda: not manager.core._wishes._by_id)


async def test_a_client_that_does_not_read_holds_the_node_back(manager, worker):
    """What waits between file and client is bounded."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    line = "x" * 10_000
    one.prints("t1", *([line] * 5_000))
    produced = 0
    read = one.publisher._read

    async def counted(task_id, options):
        nonlocal produced
        async for record in read(task_id, options):
            produced += 1
            yield record

    one.publisher._read = counted
    lines = manager.collector.read("t1", LogOptions())
    await anext(lines)
    await asyncio.sleep(1.0)
    assert produced < 2_500
    left = [line async for line in lines]
    assert len(left) == 4_999


async def test_a_node_that_is_away(manager, worker):
    """Without `follow` it is named at once; with it, waited for."""
    await assign(manager, t1="w1")
    with pytest.raises(UnavailableError, match="node w1 has no connection with the managers"):
        await asyncio.wait_for(text_of(manager, "t1"), 2)
    reading = Following(manager, "t1")
    await asyncio.sleep(0.3)
    assert not reading.running.done()
    one = await worker("w1", manager)
    one.prints("t1", "a", "end")
    await asyncio.wait_for(reading.running, 5)
    assert reading.lines == ["a", "end"]


async def test_a_broken_stream_goes_on_where_it_was(manager, worker):
    """However often it breaks, and amid the lines of one moment: no gap, no repetition."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    reading = Following(manager, "t1")
    for begin, end in ((0, 1), (1, 3), (3, 7), (7, 8)):
        one.prints("t1", *range(begin, end))
        await reading.has(end)
        await one.publisher.close()
    one.prints("t1", "end")
    await asyncio.wait_for(reading.running, 10)
    assert reading.lines == [*map(str, range(8)), "end"]


async def test_another_leader_is_told_everything(pair, worker, eventually):
    """While nobody leads, streams go on; a new reading waits."""
    leader, other = pair
    await assign(leader, t1="w1", t2="w1")
    one = await worker("w1", leader)
    one.prints("t1", "a")
    reading = Following(other, "t1")
    await eventually(lambda: reading.lines == ["a"])
    leader.running.cancel()
    await asyncio.gather(leader.running, return_exceptions=True)
    one.prints("t1", "b")
    await eventually(lambda: reading.lines == ["a", "b"])
    later = Following(other, "t2")
    one.prints("t2", "end")
    await asyncio.sleep(0.5)
    assert later.lines == []
    leader.running = asyncio.gather(leader.core.run(), leader.collector.run())
    await eventually(leader.core._started.is_set)
    await one.start()
    await asyncio.wait_for(later.running, 5)
    assert later.lines == ["end"]
    one.prints("t1", "end")
    await asyncio.wait_for(reading.running, 5)
    assert reading.lines == ["a", "b", "end"]
    assert one.readings == 2


async def test_without_a_leader_it_is_said(pair, monkeypatch):
    """After a while in which an election has room."""
    leader, other = pair
    await assign(leader, t1="w1")
    monkeypatch.setattr(collector_module, "LEADER_SECONDS_MAX", 0.5)
    leader.store.follow()
    with pytest.raises(UnavailableError, match="no manager leads"):
        await asyncio.wait_for(text_of(other, "t1"), 5)


async def test_a_node_that_was_told_and_does_nothing_is_named(manager, client, monkeypatch):
    """It has a session, but sends nothing."""
    await assign(manager, t1="w1")
    monkeypatch.setattr(collector_module, "START_SECONDS_MAX", 0.5)
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    with pytest.raises(UnavailableError, match="node w1 was asked and sent nothing"):
        await asyncio.wait_for(text_of(manager, "t1"), 5)


@pytest.mark.parametrize("case", ["another node", "twice", "unknown", "unnamed"])
async def test_lines_of_others_are_refused(manager, worker, authority, dial, case):
    """A worker sends the lines of its own tasks, for wishes that there are, once."""
    await assign(manager, t1="w1")
    one = await worker("w1", manager)
    one.prints("t1", "a")
    reading = Following(manager, "t1")
    await reading.has(1)
    (wish_id,) = manager.collector._wishes
    if case == "another node":
        manager.collector._wishes[wish_id].is_open = False
    who = "w2" if case == "another node" else "w1"
    key = "nobody" if case == "unknown" else wish_id
    metadata = () if case == "unnamed" else (("swarm-log-request", key),)
    stream = dial(manager, authority.issue(who)).stream_unary("/swarm.v1.Logs/Publish")(
        metadata=metadata
    )
    expected = {
        "another node": "task t1 is not one of node w2",
        "twice": "comes already",
        "unknown": "log request nobody not found",
        "unnamed": "names the wish",
    }
    assert not [key for key, _ in await stream.initial_metadata() if key == "swarm-admitted"]
    assert expected[case] in await stream.details()
    assert reading.lines == ["a"]
    await reading.stop()


async def test_a_manager_wishes_for_itself_only(manager, authority, dial):
    """Nobody can have lines sent to a third."""
    from proto.v1 import logs_pb2  # noqa: PLC0415 -- only here

    stream = dial(manager, authority.issue("peer", role="swarm-manager")).stream_stream(
        "/swarm.v1.Logs/Ask"
    )()
    await stream.initial_metadata()
    wish = logs_pb2.LogRequest(id="x", options=b"\x80", manager_id="manager")
    await stream.write(logs_pb2.LogAsk(wish=wish).SerializeToString())
    assert "for itself only" in await stream.details()
    assert not manager.core._wishes._by_id

"""A group of members in one process: virtual time, a network that is cut, disks that lose power."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from proto.errors import NotLeaderError, ResourceExhaustedError, SwarmError, UnavailableError
from raft import lane as lanes
from raft.keys import KeyRing
from raft.node import RaftNode, Settings
from raft.simdisk import SimFiles

HOME = Path("/manager")


class _VirtualSelector(selectors.SelectSelector):
    """Never waits: what it would have waited is added to the loop's time."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for something that never comes"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """One thread, virtual time."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time."""
        return self._virtual.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Do a thread's work here and now."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- handed to whoever waits
            future.set_exception(error)
        return future


class LoopClock:
    """The loop's time, as both clocks."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def wall(self) -> float:
        """Return some date."""
        return 1.7e9 + self._loop.time()

    def monotonic(self) -> float:
        """Return the loop's time."""
        return self._loop.time()


class SimLane(lanes.Lane):
    """Jobs one after the other, each at one moment, until the machine dies."""

    owner: Any = None

    def __init__(self, _name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
        self.peer: Peer = SimLane.owner
        self.peer.lanes.append(self)

    def submit(self, job: Any, report: Any) -> None:
        """Queue a job."""
        self._jobs.append((job, report))
        if len(self._jobs) == 1:
            self._loop.call_later(self.peer.disk_seconds(), self._work, self.peer.life)

    def _work(self, life: int) -> None:
        if life != self.peer.life:
            return
        job, report = self._jobs.pop(0)
        error: BaseException | None = None
        try:
            job()
        except BaseException as caught:  # noqa: BLE001 -- as the real lane does
            error = caught
        self._loop.call_soon(report, error)
        if self._jobs:
            self._loop.call_later(self.peer.disk_seconds(), self._work, life)

    async def close(self) -> None:
        """Do what is queued."""
        await self.run(lambda: None)


class Machine:
    """A list of all entries, applied as the store does it."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.index = 0
        self.line: list[tuple[asyncio.Future[int], bytes]] = []
        self.roles: list[int] = []
        self.installs = 0
        self.failed: SwarmError | None = None

    def propose(self, node: RaftNode, data: bytes) -> asyncio.Future[int]:
        """Propose, and take it when its turn comes."""
        future = node.propose(data)
        self.line.append((future, data))
        future.add_done_callback(lambda _: self.settle())
        return future

    def settle(self) -> None:
        """Take own proposals that are done."""
        while self.line and self.line[0][0].done():
            future, data = self.line.pop(0)
            if not future.cancelled() and future.exception() is None:
                assert future.result() > self.index, "committed out of order"
                self.index = future.result()
                self.entries.append(data)

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Take others' entries."""
        self.settle()
        assert first > self.index, "committed out of order"
        assert not self.line or not any(entries)
        self.entries += [data for data in entries if data]
        self.index = first + len(entries) - 1

    async def install(self, index: int, chunks: Iterator[bytes]) -> None:
        """Take a whole state."""
        self.settle()
        entries = list(chunks)
        await asyncio.sleep(0.01)
        self.entries, self.index = entries, index
        self.installs += 1

    def lead(self, term: int) -> None:
        """Note it."""
        self.settle()
        assert not self.line
        self.roles.append(term)

    def follow(self) -> None:
        """Note it; the futures are done."""
        self.settle()
        assert not self.line
        self.roles.append(0)

    def fail(self, error: SwarmError) -> None:
        """Note it."""
        self.failed = error

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the whole state as of now."""
        return _each(list(self.entries))


async def _each(entries: list[bytes]) -> AsyncIterator[bytes]:
    for data in entries:
        yield data


class Peer:
    """One machine: its disk lives longer than its member."""

    def __init__(self, group: Group, name: str) -> None:
        self.group = group
        self.name = name
        self.home = HOME
        self.files = SimFiles(random.Random(f"{group.seed}/{name}"))
        self.rng = random.Random(f"{group.seed}/{name}/rng")
        self.keys = KeyRing.create(HOME, self.rng.randbytes, files=self.files)
        self.node: RaftNode | None = None
        self.machine = Machine()
        self.wire: Wire | None = None
        self.life = 0
        self.lanes: list[SimLane] = []
        self.slow_seconds = 0.0

    @property
    def is_locked(self) -> bool:
        """Tell whether somebody has the log open."""
        return self.files.is_locked(HOME / "log.lock")

    def live_tasks(self) -> list[str]:
        """Name the tasks of members that still run, but for the test's own."""
        return [
            task.get_name()
            for task in asyncio.all_tasks()
            if "Shell" in task.get_coro().__qualname__
        ]

    def disk_seconds(self) -> float:
        """Draw how long a job takes."""
        return self.rng.uniform(0.0002, 0.002) + self.slow_seconds

    async def start(self, how: str = "open", **more: Any) -> RaftNode:
        """Start the member on what the disk holds."""
        SimLane.owner = self
        opener = getattr(RaftNode, how)
        self.machine = Machine()
        node = await opener(
            HOME,
            self.keys,
            node_id=self.name,
            address=f"{self.name}:1",
            clock=self.group.clock,
            rng=self.rng,
            settings=self.group.settings,
            files=self.files,
            segment_bytes=20_000,
            **more,
        )
        node._new_lane = self._new_lane
        chunks, entries = node.restore()
        self.machine.entries = list(chunks)
        self.machine.index = node.snapshot_index
        for entry in entries:
            assert entry.index == self.machine.index + 1
            self.machine.index = entry.index
            if entry.data:
                self.machine.entries.append(entry.data)
        node.attach(self.machine)
        self.wire = Wire(self)
        node.connect(self.wire)
        self.node = node
        return node

    def _new_lane(self, name: str) -> SimLane:
        SimLane.owner = self
        return SimLane(name, self.group.loop)

    def kill(self, *, is_power_lost: bool = True) -> None:
        """End the member at this moment."""
        self.life += 1
        node, self.node = self.node, None
        if node is not None:
            node._is_closed = True
            for timer in (node._timer, node._hold_timer):
                if timer is not None:
                    timer.cancel()
            for task in tuple(node._tasks):
                task.cancel()
        self.lanes.clear()
        if is_power_lost:
            self.files.lose_power()
        else:
            self.files.kill_process()
        self.keys = KeyRing.open(HOME, rng_bytes=self.rng.randbytes, files=self.files)

    async def restart(self, **more: Any) -> RaftNode:
        """Start after a kill."""
        return await self.start("open", **more)

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Propose through the machine."""
        assert self.node is not None
        return self.machine.propose(self.node, data)

    async def snapshot(self) -> None:
        """Save what the machine has."""
        assert self.node is not None
        await self.node.save_snapshot(self.machine.index, self.machine.chunks())


class Wire:
    """A member's transport on the group's network."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.life = peer.life
        self.linked: dict[str, str] = {}
        self.ever_linked: set[str] = set()
        self.snapshots_begun = 0

    def set_peer(self, node_id: str, address: str) -> None:
        """Note it."""
        self.ever_linked.add(node_id)
        self.linked[node_id] = address

    def remove_peer(self, node_id: str) -> None:
        """Note it."""
        del self.linked[node_id]

    def send(self, node_id: str, messages: Sequence[bytes], *, lane: Any = None) -> None:
        """Deliver later, or never."""
        if node_id in self.linked:
            self.peer.group.carry(self.peer, node_id, list(messages), lane)

    async def send_snapshot(self, node_id: str, header: bytes, chunks: Any) -> None:
        """Deliver whole, or not."""
        self.snapshots_begun += 1
        group = self.peer.group
        target = group.peers[node_id]

        async def stream() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                await asyncio.sleep(0.001)
                if not group.is_open(self.peer.name, node_id) or target.node is None:
                    raise UnavailableError("the stream was cut")
                yield chunk

        if target.node is None or not group.is_open(self.peer.name, node_id):
            raise UnavailableError("not reached")
        life = target.life
        work = asyncio.ensure_future(target.node.on_snapshot(self.peer.name, header, stream()))
        # Should the sender die meanwhile, nobody asks how it went.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        while not work.done():
            if target.life != life:
                work.cancel()
                raise UnavailableError("the receiver died")
            await asyncio.sleep(0.01)
        work.result()

    async def close(self) -> None:
        """Nothing to close."""


class Group:
    """All of them."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.seed = seed
        self.loop = loop
        self.clock = LoopClock(loop)
        self.rng = random.Random(seed)
        self.settings = Settings()
        self.peers: dict[str, Peer] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.loss = 0.0
        self._arrivals: dict[tuple[str, str, Any], float] = {}

    def __getitem__(self, name: str) -> Peer:
        return self.peers[name]

    def new_peer(self, name: str) -> Peer:
        """Set up a machine that is no member."""
        return Peer(self, name)

    def is_open(self, source: str, target: str) -> bool:
        """Tell whether messages pass."""
        return (source, target) not in self.cuts

    def carry(self, source: Peer, name: str, messages: list[bytes], lane: Any) -> None:
        """Deliver after a while, in order within a lane."""
        if not self.is_open(source.name, name) or self.rng.random() < self.loss:
            return
        key = (source.name, name, lane)
        at = max(self.loop.time() + self.rng.uniform(0.0002, 0.003), self._arrivals.get(key, 0.0))
        self._arrivals[key] = at
        target = self.peers[name]
        self.loop.call_at(at, self._deliver, source.name, target, target.life, messages)

    def _deliver(self, source: str, target: Peer, life: int, messages: list[bytes]) -> None:
        is_there = target.life == life and target.node is not None
        if is_there and self.is_open(source, target.name) and target.node.is_allowed(source):
            target.node.on_messages(source, messages)

    def isolate(self, name: str) -> None:
        """Cut a member off, both ways."""
        for other in self.peers:
            if other != name:
                self.cuts |= {(name, other), (other, name)}

    def heal(self) -> None:
        """Mend all links."""
        self.cuts.clear()
        self.loss = 0.0

    async def form(self, names: str) -> Peer:
        """Begin with the first, let the others join; return the first, which leads."""
        for name in names:
            self.peers[name] = Peer(self, name)
        await self[names[0]].start("create")
        for name in names[1:]:
            await self.join(name)
        return self[names[0]]

    async def join(self, name: str) -> None:
        """Let one join, and wait until it votes."""
        leader = (await self.leader()).node
        member_id = await leader.add_learner(name, f"{name}:1")
        peers = leader.membership.members
        await self[name].start("join", member_id=member_id, peers=peers)
        await self.until(lambda: self.is_voter(leader, name))

    @staticmethod
    def is_voter(node: RaftNode, name: str) -> bool:
        """Tell whether a node votes."""
        return any(m.node_id == name and m.is_voter for m in node.membership.members)

    async def until(self, condition: Callable[[], Any], within: float = 30.0) -> Any:
        """Wait for a condition, in virtual time."""
        deadline = self.loop.time() + within
        while not (value := condition()):
            assert self.loop.time() < deadline, "it did not come true in time"
            await asyncio.sleep(0.005)
        return value

    async def leader(self, among: str = "", within: float = 30.0) -> Peer:
        """Wait for the leader of the newest term."""
        names = among or "".join(self.peers)

        def found() -> Peer | None:
            leaders = [
                self[name]
                for name in names
                if (node := self[name].node) is not None and node.is_leader
            ]
            return max(leaders, key=lambda peer: peer.node.term) if leaders else None

        return await self.until(found, within)

    async def commit(self, data: bytes, among: str = "") -> Peer:
        """Commit through whoever leads, trying again when it is refused."""
        while True:
            peer = await self.leader(among)
            with contextlib.suppress(NotLeaderError, ResourceExhaustedError):
                await peer.propose(data)
                return peer
            await asyncio.sleep(0.01)

    async def agree(self, names: str = "", within: float = 30.0) -> list[bytes]:
        """Wait until all have applied the same."""
        peers = [self[name] for name in names or "".join(self.peers)]

        def same() -> bool:
            states = [(p.machine.entries, p.machine.index) for p in peers if p.node]
            return all(state == states[0] for state in states)

        try:
            await self.until(same, within)
        except AssertionError as error:
            raise AssertionError("\n".join(map(_describe, peers))) from error
        return peers[0].machine.entries


def _describe(peer: Peer) -> str:
    node = peer.node
    if node is None:
        return f"{peer.name}: not running"
    core = node._core
    return (
        f"{peer.name}: {core.role.value} of term {core.term} under {core.leader}, "
        f"log {core.log.start}-{core.log.last}, durable {core.log.durable}, "
        f"commit {core.log.commit}, delivered {core.log.delivered}, applied {node.applied_index}, "
        f"machine {peer.machine.index} ({len(peer.machine.entries)} entries), "
        f"backlog {len(node._backlog)}, installing {node._installing}, "
        f"writing {len(node._writing)}, unstored {len(node._unstored)}, "
        f"recovery {node._recovery}, failure {node._failure!r}"
        + "".join(
            f"; to {p}: {q.stance.value} match {q.match} next {q.next} snapshot {q.snapshot_index}"
            for p, q in core._peers.items()
        )
        + f"; tasks {[str(t.get_coro()) for t in node._tasks]}"
    )


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Play a story in virtual time: `play(story, seed)` with `async def story(group)`."""
    monkeypatch.setattr(lanes, "Lane", SimLane)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))

    def run(story: Callable[[Group], Coroutine[Any, Any, Any]], seed: int = 1) -> Any:
        loop = VirtualLoop()
        errors: list[Any] = []

        def note(_loop: Any, context: dict[str, Any]) -> None:
            # Tasks of a killed member wait for ever for a disk that is gone.
            if not context["message"].startswith("Task was destroyed"):
                errors.append(context)

        loop.set_exception_handler(note)

        async def main() -> Any:
            group = Group(seed, loop)
            try:
                result = await story(group)
            finally:
                for peer in group.peers.values():
                    if peer.node is not None:
                        peer.kill(is_power_lost=False)
                await asyncio.sleep(0)
            return result

        try:
            result = loop.run_until_complete(main())
        finally:
            loop.close()
        assert errors == []
        return result

    yield run
    structlog.reset_defaults()

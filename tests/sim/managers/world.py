"""Several managers in one process: the real log, store and control API, and all that fails them.

Time is virtual, disks and the network are pretended, everything is drawn from the seed. A manager
that is killed runs not one line more (`tests.sim.node.loop`); what it had sent arrives.

The links are TCP's: in order within a lane. A link may be cut, in one direction or both, so that
what is sent is lost; or it stalls, and what was sent arrives when it goes on, which is how the
last acknowledgement of an entry reaches a leader that was replaced long ago. A machine may be
paused: nothing of it goes on, its clock may stand meanwhile, and it goes on believing to lead.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from manager.controlapi import Control
from manager.store import Store
from proto.errors import UnavailableError
from proto.ids import ClusterID
from proto.objects import Cluster, ClusterSpec
from raft import lane as lanes
from raft.keys import KeyRing
from raft.node import RaftNode, Settings
from tests.sim.node.disk import Disk
from tests.sim.node.loop import EPOCH, PROGRAM, VirtualLoop

NAMES = "abc"
HOME = Path("/manager")
LINK_SECONDS = (0.0002, 0.003)
# Little enough that snapshots are made, and sent to who fell behind.
SNAPSHOT_INTERVAL = 25
SETTINGS = Settings(entries_kept=10)


class KilledError(Exception):
    """The manager died before it answered."""


class MachineClock:
    """The clocks of a machine, which stand while it is paused."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._behind = 0.0
        self._stands_at: float | None = None

    def wall(self) -> float:
        """Return some date."""
        return EPOCH + self._loop.time()

    def monotonic(self) -> float:
        """Return the time since some moment."""
        if self._stands_at is not None:
            return self._stands_at
        return self._loop.time() - self._behind

    def stop(self) -> None:
        """Stand."""
        self._stands_at = self.monotonic()

    def go_on(self, *, is_pause_counted: bool) -> None:
        """Run again, from where it stood or from where it would be."""
        assert self._stands_at is not None
        if not is_pause_counted:
            self._behind = self._loop.time() - self._stands_at
        self._stands_at = None


class Manager:
    """One machine: its disk outlives the program.

    Attributes:
        program: the number of this life.
        is_paused: nothing of it goes on; whoever asks it waits.
        node: the member of the log, while the program runs and is up.
        store: its store.
        control: its control API.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = MachineClock(world.loop)
        self.is_paused = False
        self.disk = Disk(random.Random(f"{world.seed}/{name}/disk"))
        self.program = 0
        self.node: RaftNode | None = None
        self.store: Store
        self.control: Control
        self._keys: KeyRing | None = None
        self._calls: set[asyncio.Future[Any]] = set()

    @property
    def is_leader(self) -> bool:
        """Whether it believes to lead."""
        return self.node is not None and self.node.is_leader

    async def start(self, how: str = "open", **more: Any) -> None:
        """Start the program on what the disk holds, and wait until it is up, or killed."""
        assert self.node is None
        self.program = self.world.next_program()
        rng = random.Random(f"{self.world.seed}/{self.name}/{self.program}")
        files = self.disk.files

        async def main() -> None:
            if how == "open":
                self._keys = KeyRing.open(HOME, rng_bytes=rng.randbytes, files=files)
            else:
                self._keys = KeyRing.create(HOME, rng.randbytes, files=files)
            node = await getattr(RaftNode, how)(
                HOME,
                self._keys,
                node_id=self.name,
                address=f"{self.name}:1",
                clock=self.clock,
                rng=rng,
                settings=SETTINGS,
                files=files,
                segment_bytes=20_000,
                **more,
            )
            self.store = Store.open(node, self.clock)
            self.control = Control(self.store, self.clock, rng)
            node.connect(Wire(self))
            self.node = node

        await self._within(main)

    async def call(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run what a client asks for, in the program.

        Raises:
            KilledError: the program died before it was done.
        """

        async def main() -> Any:
            return await work()

        return await self._within(main)

    async def _within(self, main: Callable[[], Any]) -> Any:
        outcome: asyncio.Future[Any] = self.world.loop.create_future()
        self._calls.add(outcome)

        async def run() -> None:
            try:
                result = await main()
            except Exception as error:  # noqa: BLE001 -- handed to the client
                self._settle(outcome, None, error)
            else:
                self._settle(outcome, result, None)

        self.world.loop.start(self.program, run)
        try:
            return await outcome
        finally:
            self._calls.discard(outcome)

    def _settle(self, outcome: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        """Tell the client, who is no part of the program."""
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    def kill(self, *, is_power_lost: bool) -> None:
        """End the program at this moment."""
        self.world.loop.kill(self.program)
        self.node = None
        for call in tuple(self._calls):
            if not call.done():
                call.set_exception(KilledError())
        self.disk.crash(is_power_lost=is_power_lost)


class Wire:
    """A member's transport."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._linked: dict[str, str] = {}

    def set_peer(self, node_id: str, address: str) -> None:
        """Note it."""
        self._linked[node_id] = address

    def remove_peer(self, node_id: str) -> None:
        """Note it."""
        self._linked.pop(node_id, None)

    def send(self, node_id: str, messages: Sequence[bytes], *, lane: Any = None) -> None:
        """Deliver later, or never."""
        if node_id in self._linked:
            self._manager.world.carry(self._manager.name, node_id, lane, list(messages))

    async def send_snapshot(
        self, node_id: str, header: bytes, chunks: AsyncIterator[bytes]
    ) -> None:
        """Deliver whole, or not."""
        world, name = self._manager.world, self._manager.name
        target = world.managers[node_id]
        content = [chunk async for chunk in chunks]

        async def stream() -> AsyncIterator[bytes]:
            for chunk in content:
                await asyncio.sleep(0.001)
                if not world.is_open(name, node_id):
                    raise UnavailableError("the stream was cut")
                yield chunk

        node = target.node
        if node is None or not world.is_open(name, node_id):
            raise UnavailableError("not reached")
        try:
            await target.call(lambda: node.on_snapshot(name, header, stream()))
        except KilledError:
            raise UnavailableError("the receiver died") from None

    async def close(self) -> None:
        """Nothing to close."""


class World:
    """All managers, and the network between them."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.seed = seed
        self.loop = loop
        self.rng = random.Random(f"{seed}/world")
        self.managers = {name: Manager(self, name) for name in NAMES}
        # Directed: what is sent is lost.
        self.cuts: set[tuple[str, str]] = set()
        # Directed: what is sent waits.
        self.stalls: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
        self._programs = 0
        self._arrivals: dict[tuple[str, str, Any], float] = {}
        # Messages on their way belong to no program.
        self._context = contextvars.copy_context()
        assert self._context.get(PROGRAM, 0) == 0

    def next_program(self) -> int:
        """Number a life."""
        self._programs += 1
        return self._programs

    async def form(self) -> None:
        """Begin with the first manager, and let the others join until they vote."""
        first, *others = self.managers.values()
        await first.start("create")
        spec = ClusterSpec(raft_snapshot_interval=SNAPSHOT_INTERVAL)
        cluster = Cluster(id=ClusterID("c"), spec=spec)
        await first.call(lambda: first.store.update(lambda tx: tx.create(cluster)))
        for other in others:
            node = first.node
            assert node is not None
            member_id = await first.call(
                lambda node=node, name=other.name: node.add_learner(name, f"{name}:1")
            )
            await other.start("join", member_id=member_id, peers=node.membership.members)
            await self._votes(node, other.name)

    @staticmethod
    async def _votes(node: RaftNode, name: str) -> None:
        for _ in range(3_000):
            if any(m.node_id == name and m.is_voter for m in node.membership.members):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} does not vote")

    def leaders(self) -> list[Manager]:
        """Return all that believe to lead."""
        return [manager for manager in self.managers.values() if manager.is_leader]

    # The network.

    def is_open(self, source: str, target: str) -> bool:
        """Tell whether something sent now arrives soon."""
        return (source, target) not in self.cuts and (source, target) not in self.stalls

    def carry(self, source: str, target: str, lane: Any, messages: list[bytes]) -> None:
        """Deliver after a while, in order within a lane."""
        link = (source, target)
        if link in self.cuts:
            return
        if link in self.stalls:
            self.stalls[link].append((lane, messages, self.managers[target].program))
            return
        self._deliver_later(link, lane, messages, self.managers[target].program)

    def _deliver_later(
        self, link: tuple[str, str], lane: Any, messages: list[bytes], life: int
    ) -> None:
        key = (*link, lane)
        now = self.loop.time()
        at = max(now + self.rng.uniform(*LINK_SECONDS), self._arrivals.get(key, 0.0))
        self._arrivals[key] = at
        self.loop.call_at(at, self._deliver, *link, messages, life, context=self._context)

    def _deliver(self, source: str, target: str, messages: list[bytes], life: int) -> None:
        """Hand over what was sent to this very life: a connection does not outlive its ends."""
        manager = self.managers[target]
        node = manager.node
        if manager.program != life or node is None or (source, target) in self.cuts:
            return
        if node.is_allowed(source):
            self.loop.call_in(manager.program, lambda: node.on_messages(source, messages))

    async def pause(self, name: str, seconds: float, *, is_counted: bool) -> None:
        """Pause a machine; on return it goes on, and what was sent to it meanwhile comes soon.

        Args:
            name: the manager's.
            seconds: how long.
            is_counted: whether its clock tells of the pause afterwards.
        """
        manager = self.managers[name]
        manager.is_paused = True
        manager.clock.stop()
        for other in NAMES:
            if other != name:
                self.stall(name, other)
                self.stall(other, name)
        await asyncio.sleep(seconds)
        manager.clock.go_on(is_pause_counted=is_counted)
        manager.is_paused = False

    def isolate(self, name: str) -> None:
        """Cut a manager off, both ways."""
        for other in NAMES:
            if other != name:
                self.cuts |= {(name, other), (other, name)}

    def stall(self, source: str, target: str) -> None:
        """Hold back what is sent on a link."""
        self.stalls.setdefault((source, target), [])

    def heal(self) -> None:
        """Mend all links; what was held back arrives."""
        self.cuts.clear()
        stalls, self.stalls = self.stalls, {}
        for link, held in stalls.items():
            for lane, messages, life in held:
                self._deliver_later(link, lane, messages, life)

    # The real lanes are threads.

    def lane(self, name: str, loop: asyncio.AbstractEventLoop) -> lanes.Lane:
        """Make a lane on the disk of the manager whose program asks."""
        program = PROGRAM.get()
        owner = next(one for one in self.managers.values() if one.program == program)
        return owner.disk.lane(name, loop)


def play(seed: int, story: Callable[[World], Awaitable[Any]]) -> Any:
    """Run a story in a world of its own.

    Raises:
        AssertionError: the story's, or something failed that nobody waited for.
    """
    loop = VirtualLoop()
    errors: list[str] = []
    loop.set_exception_handler(lambda _, context: errors.append(_described(context)))
    world = World(seed, loop)

    async def main() -> Any:
        try:
            return await story(world)
        finally:
            for manager in world.managers.values():
                if manager.program:
                    manager.kill(is_power_lost=False)
            loop.bury()

    try:
        with _lanes_of(world):
            result = loop.run_until_complete(main())
    finally:
        loop.close()
    assert errors == []
    return result


def _described(context: dict[str, Any]) -> str:
    return f"{context['message']}: {context.get('exception')!r}"


@contextmanager
def _lanes_of(world: World) -> Iterator[None]:
    with mock.patch.object(lanes, "Lane", world.lane):
        yield

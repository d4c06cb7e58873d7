"""A store in memory that leads, a clock that follows virtual time, and a core on both."""

import asyncio
import random
import selectors

import pytest

from manager.dispatcher.core import DispatcherCore
from manager.store import Entry, Store
from proto.objects import (
    Cluster,
    ClusterSpec,
    Node,
    NodeDescription,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskStatus,
)
from proto.states import TaskState


class _VirtualSelector(selectors.SelectSelector):
    """Never waits: what it would have waited is added to the loop's time."""

    elapsed = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        assert timeout is not None, "the test waits for something that never comes"
        self.elapsed += timeout if not ready else 0.0
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing else is to do."""

    def __init__(self):
        self.virtual = _VirtualSelector()
        super().__init__(self.virtual)
        self.turns = 0

    def time(self):
        """Return the virtual time."""
        return 1000.0 + self.virtual.elapsed

    def _run_once(self):
        self.turns += 1
        super()._run_once()


class LoopClock:
    """The running loop's time, as both clocks."""

    def wall(self):
        """Return some date."""
        return 1_700_000_000.0 + self.monotonic()

    def monotonic(self):
        """Return the loop's time."""
        return asyncio.get_running_loop().time()


class Log:
    """A log in memory: entries are durable after a while."""

    def __init__(self):
        self.entries = []
        self.waiting = []
        self.seconds = 0.001
        self.error = None
        self.last_index = self.snapshot_index = 0
        self.listener = None

    def propose(self, data):
        """Take an entry."""
        if self.error is not None:
            raise self.error
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((data, future))
        asyncio.get_running_loop().call_later(self.seconds, self._commit)
        return future

    def _commit(self):
        data, future = self.waiting.pop(0)
        if future.done():
            return
        self.last_index += 1
        self.entries.append(Entry(self.last_index, data))
        future.set_result(self.last_index)

    def restore(self):
        """Hold nothing."""
        return iter(()), iter(())

    def attach(self, listener):
        """Lead from the start."""
        self.listener = listener
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    def refusal(self):
        """Say who leads."""
        from proto.errors import NotLeaderError  # noqa: PLC0415 -- only here

        return NotLeaderError("10.0.0.9:2378")


class World:
    """A leader with three nodes, and the tools of a test."""

    def __init__(self):
        self.clock = LoopClock()
        self.log = Log()
        self.store = Store.open(self.log, self.clock)
        self.peers = ()
        self.renew = set()
        self.unheard = set()
        self.core = self.new_core()
        self.running = None

    def new_core(self):
        """Make a dispatcher."""
        return DispatcherCore(
            self.store,
            clock=self.clock,
            rng=random.Random(1),
            managers=lambda: self.peers,
            must_renew=lambda node: node.id in self.renew,
            is_unheard=lambda node_id: node_id in self.unheard,
        )

    async def start(self, **settings):
        """Found the cluster and run the core."""
        await self.store.update(lambda tx: tx.create(Cluster(id="c", spec=ClusterSpec(**settings))))
        await self.add_nodes("n1", "n2", "n3")
        await self.run()

    async def add_nodes(self, *names):
        """Add nodes."""
        await self.store.batch(names, lambda tx, name: tx.create(Node(id=name)))

    async def run(self):
        """Run the core."""
        self.running = asyncio.create_task(self.core.run())
        await asyncio.sleep(0)

    async def stop(self):
        """End the core, as when the leadership is lost."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    async def register(self, name, **options):
        """Open a session."""
        return await self.core.register(name, NodeDescription(hostname=name), **options)

    async def beat(self, session, seconds):
        """Give signs of life for so long."""
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.core.heartbeat(session)
            await asyncio.sleep(0.5)

    def node(self, name):
        """Return a node's row."""
        return self.store.view().nodes.get(name)

    async def change(self, row):
        """Update a row."""
        await self.store.update(lambda tx: tx.update(row))

    async def assign(self, *names, node="n1", state=TaskState.ASSIGNED):
        """Make tasks of a node."""

        def write(tx):
            if "svc.1" not in tx.spec_versions:
                spec = ServiceSpec(name="web")
                tx.create(
                    ServiceSpecVersion(id="svc.1", service_id="svc", spec_version=1, spec=spec)
                )
            for name in names:
                status = TaskStatus(state=state)
                tx.create(
                    Task(id=name, service_id="svc", spec_version=1, node_id=node, status=status)
                )

        await self.store.update(write)


@pytest.fixture
def play():
    """Run a scenario in virtual time."""

    def play_it(scenario, **settings):
        async def main():
            world = World()
            await world.start(**settings)
            await scenario(world)
            if world.running.done():
                world.running.result()
            await world.stop()
            world.core._deaths.check()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())

    return play_it

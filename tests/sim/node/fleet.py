"""A manager and several workers from a seed: they crash, lose each other, drain, go and come.

The manager is a real store on a real log, with the real control API, orchestrator and dispatcher;
each worker a real agent on a machine of its own. Only the wire between them is pretended.

story     users, operators and faults, drawn from the seed; checks after every step
recovery  links are healed, daemons started, nodes made active; everything must settle in time
calm      nothing is written any more
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import structlog

from manager.controlapi import Control
from manager.controlapi.ports import allocate_ports
from manager.dispatcher.core import DispatcherCore
from manager.orchestrator.loop import Orchestrator
from manager.store import Store, View
from manager.store.watch import Change
from proto.errors import SequenceConflictError, SwarmError, UnavailableError
from proto.ids import ClusterID, ContainerID, NodeID, TaskID
from proto.objects import (
    Cluster,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Platform,
    Resources,
    TaskStatus,
)
from raft import lane as lanes
from raft.keys import KeyRing
from raft.node import RaftNode
from worker.agent import Agent

from . import checks
from .disk import Disk
from .fleetuser import FleetUser, changed_node
from .loop import LoopClock, VirtualLoop
from .machine import WITHDRAW_SECONDS_MAX, Machine
from .trace import SimulationError, Trace
from .user import is_troubled, repaired
from .wire import Link, Operation, Wire

WORKERS_MIN, WORKERS_MAX = 2, 4
STEPS_MIN, STEPS_MAX = 15, 40
SERVICES_FIRST = 3
RECOVERY_SECONDS_MAX = 900.0
# What was drawn in rough times may end by itself until then.
REST_SECONDS = 120.0
CALM_SECONDS = 90.0
# Old statuses and retries may be under way.
SETTLE_SECONDS = 30.0
TRACE_LINES = 40
_ADDRESS = "10.0.0.1:2377"
_MANAGER = NodeID("manager")


class Manager:
    """One start of the manager's program."""

    def __init__(self, program: int) -> None:
        self.program = program
        self.store: Store | None = None
        self.control: Control | None = None
        self.core: DispatcherCore | None = None
        self.orchestrator: Orchestrator | None = None


class Worker:
    """A node: its machine, its link, and its agent while one runs.

    Attributes:
        is_up: its daemon runs.
        is_removed: it was removed from the cluster.
    """

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.node_id = NodeID(name)
        self.name = name
        self.rng = random.Random(f"{fleet.seed}/{name}")
        root = fleet.root / name
        root.mkdir()
        self.machine = Machine(fleet.clock, random.Random(f"{fleet.seed}/{name}/machine"), root)
        self.machine.violations = fleet.violations
        self.machine.runtime.on_start = fleet.check_slot
        self.link = Link()
        self.program = 0
        self.agent: Agent | None = None
        self.wire: Wire | None = None
        self.is_up = False
        self.is_removed = False
        self.started_at = 0.0


class NodeSpy(checks.Spy):
    """Also notes which tasks were on a node that was given up: two of their slot may run."""

    given_up: set[TaskID]

    def publish(self, changes: tuple[Change, ...]) -> None:
        """Check the changes of one transaction."""
        for change in changes:
            row = change.new or change.old
            if not isinstance(row, Node):
                continue
            if change.new is None or row.status.state is NodeState.DOWN:
                tasks = self.committed_view().tasks.find("node_id", row.id)
                self.given_up.update(task.id for task in tasks)
        super().publish(changes)


class Fleet(Trace):
    """The cluster and its world."""

    def __init__(self, seed: int, root: Path, loop: VirtualLoop) -> None:
        super().__init__(loop, root)
        self.seed = seed
        self.clock = LoopClock(loop)
        self.rng = random.Random(f"{seed}/story")
        self.disk = Disk(random.Random(f"{seed}/disk"))
        self.user = FleetUser(random.Random(f"{seed}/user"))
        self.manager: Manager | None = None
        self.workers: list[Worker] = []
        self.outcomes: Counter[str] = Counter()
        self.ended: Counter[Any] = Counter()
        self.statuses: dict[TaskID, list[TaskStatus]] = {}
        self.services: set[str] = set()
        self.given_up: set[TaskID] = set()
        self._programs = 0
        self._names = 0
        self._possible: list[View] = []
        self._calls: dict[asyncio.Future[Any], None] = {}
        self._requests: dict[asyncio.Task[str], None] = {}

    # --- the manager ---

    @property
    def store(self) -> Store:
        """The manager's open store."""
        assert self.manager is not None
        assert self.manager.store is not None
        return self.manager.store

    def core(self) -> DispatcherCore | None:
        """Return the dispatcher, if the manager is up."""
        return None if self.manager is None else self.manager.core

    def do(self, function: Callable[[], Any]) -> None:
        """Call a function as a part of the manager's program."""
        assert self.manager is not None
        self.loop.call_in(self.manager.program, function)

    def ask(self, operation: Operation) -> asyncio.Future[Any]:
        """Let the dispatcher do something."""
        core = self.core()
        return self._begin(None if core is None else lambda: operation(core))

    def _begin(self, operation: Callable[[], Awaitable[Any]] | None) -> asyncio.Future[Any]:
        """Let the manager do something; the outcome fails when it dies."""
        outcome: asyncio.Future[Any] = self.loop.create_future()
        manager = self.manager
        if manager is None or operation is None:
            _fail(outcome, UnavailableError("no manager can be reached"))
            return outcome

        async def work() -> None:
            try:
                result = await operation()
            except SwarmError as error:
                _fail(outcome, error)
            else:
                if not outcome.done():
                    outcome.set_result(result)
            self._calls.pop(outcome, None)

        self._calls[outcome] = None
        self.loop.start(manager.program, work)
        return outcome

    async def found(self, workers: int) -> None:
        """Lay a new cluster on the manager's disk, and set up the workers."""
        rng = random.Random(f"{self.seed}/cluster")
        files, directory = self.disk.files, self.root / "raft"
        keys = KeyRing.create(directory, rng.randbytes, files=files)
        log = await RaftNode.create(
            directory, keys, node_id=_MANAGER, address=_ADDRESS, clock=self.clock, rng=rng,
            files=files,
        )  # fmt: skip
        store = Store.open(log, self.clock)
        await store.update(lambda tx: tx.create(Cluster(id=ClusterID("thecluster"))))
        for _ in range(workers):
            worker = self._new_worker()
            await store.update(lambda tx, worker=worker: tx.create(self._row_of(worker)))
        await store.close()
        await log.close()
        keys.close()
        self._possible = [store.view()]

    def _new_worker(self) -> Worker:
        self._names += 1
        worker = Worker(self, f"node{self._names}")
        self.workers.append(worker)
        return worker

    def _row_of(self, worker: Worker) -> Node:
        is_manager = worker.name == "node1"
        role = NodeRole.MANAGER if is_manager else NodeRole.WORKER
        labels = {"disk": "ssd"} if int(worker.name[4:]) % 2 else {}
        return Node(
            id=worker.node_id,
            spec=NodeSpec(role=role, labels=labels),
            role=role,
            status=NodeStatus(addr=self._address_of(worker)),
        )

    @staticmethod
    def _address_of(worker: Worker) -> str:
        return f"10.0.0.{worker.name[4:]}"

    async def start_manager(self) -> None:
        """Start the manager; compare what it restored."""
        assert self.manager is None
        self._programs += 1
        manager = self.manager = Manager(self._programs)
        self.note("manager starts", program=manager.program)
        started: asyncio.Future[None] = self.loop.create_future()
        self._calls[started] = None
        self.loop.start(manager.program, lambda: self._run_manager(manager, started))
        await started
        self._calls.pop(started, None)

    async def _run_manager(self, manager: Manager, started: asyncio.Future[None]) -> None:
        rng = random.Random(f"{self.seed}/manager/{manager.program}")
        files, directory = self.disk.files, self.root / "raft"
        keys = KeyRing.open(directory, None, rng_bytes=rng.randbytes, files=files)
        log = await RaftNode.open(
            directory, keys, node_id=_MANAGER, address=_ADDRESS, clock=self.clock, rng=rng,
            files=files,
        )  # fmt: skip
        store = manager.store = Store.open(log, self.clock)
        self._look(store)
        manager.control = Control(store, self.clock, rng)
        orchestrator = manager.orchestrator = Orchestrator(
            store, clock=self.clock, rng=rng, allocate_ports=allocate_ports
        )
        core = manager.core = DispatcherCore(
            store,
            clock=self.clock,
            rng=rng,
            managers=lambda: (),
            must_renew=lambda _node: False,
        )
        started.set_result(None)
        try:
            await asyncio.gather(orchestrator.run(), core.run())
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not happen
            self.violate(f"the manager's program ended: {error!r}")

    def _look(self, store: Store) -> None:
        wrong = checks.restored(store.view(), self._possible)
        if wrong is not None:
            self.violate(f"after a restart {wrong}")
        spy = NodeSpy(
            store.view,
            violate=self.violate,
            unlock_keys=[],
            ended=self.ended,
            statuses=self.statuses,
            services=self.services,
            exit_code_of=self._exit_code_of,
        )
        spy.given_up = self.given_up
        store._watches.insert(0, spy)

    def _exit_code_of(self, container_id: ContainerID) -> int | None:
        codes = (worker.machine.runtime.exit_code_of(container_id) for worker in self.workers)
        return next((code for code in codes if code is not None), None)

    def kill_manager(self, *, is_power_lost: bool = False) -> None:
        """Let the manager end at this very moment."""
        manager = self.manager
        assert manager is not None
        self.note("manager dies", program=manager.program, is_power_lost=is_power_lost)
        if manager.store is not None:
            line = [proposed.view for proposed in manager.store._line]
            self._possible = [manager.store.view(), *line]
        self.loop.kill(manager.program)
        self.manager = None
        self.disk.crash(is_power_lost=is_power_lost)
        calls, self._calls = self._calls, {}
        for call in calls:
            _fail(call, UnavailableError("connection reset by peer"))
        for worker in self.workers:
            if worker.wire is not None:
                worker.wire.manager_died()

    async def send(self, name: str, operation: Callable[[Control], Awaitable[Any]]) -> str:
        """Send a user's operation; return what became of it."""
        manager = self.manager
        if manager is None or manager.control is None:
            return "nobody there"
        control = manager.control
        self.note("ask", what=name)
        try:
            await self._begin(lambda: operation(control))
        except SwarmError as error:
            outcome = type(error).__name__
        else:
            outcome = "done"
        self.note("answer", what=name, outcome=outcome)
        self.outcomes[outcome] += 1
        return outcome

    # --- workers ---

    def start_agent(self, worker: Worker) -> None:
        """Start a worker's daemon."""
        assert not worker.is_up
        worker.is_up = True
        self._programs += 1
        worker.program = self._programs
        worker.started_at = self.loop.time()
        self.note("agent starts", node=worker.name, program=worker.program)
        rng = random.Random(f"{self.seed}/agent/{worker.program}")
        wire = worker.wire = Wire(self, worker.link, rng, self._address_of(worker))

        async def main() -> None:
            agent = worker.agent = Agent(
                worker.machine.root,
                worker.node_id,
                NodeDescription(
                    hostname=worker.name,
                    platform=Platform(os="linux", architecture="x86_64"),
                    resources=Resources(nano_cpus=2 * 10**9, memory_bytes=4 << 30),
                ),
                runtime=worker.machine.runtime,
                images=worker.machine.images,
                network=worker.machine.network,
                dispatcher=wire,
                clock=self.clock,
                rng=rng,
            )
            try:
                await agent.run()
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not happen
                self.violate(f"the agent of {worker.name} ended: {error!r}")

        self.loop.start(worker.program, main)

    def kill_agent(self, worker: Worker) -> None:
        """Let a worker's daemon end at this very moment."""
        self.note("agent dies", node=worker.name, program=worker.program)
        self.loop.kill(worker.program)
        agent, worker.agent = worker.agent, None
        worker.is_up = False
        if agent is not None and agent._db is not None:
            agent._db.close()
        worker.machine.crash()
        if worker.wire is not None:
            worker.wire.agent_died()
            worker.wire = None

    def members(self) -> list[Worker]:
        """List the workers that were not removed."""
        return [worker for worker in self.workers if not worker.is_removed]

    # --- checks ---

    def check_slot(self, config: Any) -> None:
        """See that a process is the only one of its slot, unless there is a reason."""
        service_id = config.labels["com.docker.swarm.service.id"]
        slot = config.labels["com.docker.swarm.task.name"].split(".")[1]
        tasks = [
            other.labels["com.docker.swarm.task.id"]
            for worker in self.members()
            for other in worker.machine.runtime.running().values()
            if other.labels["com.docker.swarm.service.id"] == service_id
            and other.labels["com.docker.swarm.task.name"].split(".")[1] == slot
        ]
        known = [task_id for task_id in tasks if task_id not in self.given_up]
        own = config.labels["com.docker.swarm.task.id"]
        others = [task_id for task_id in known if task_id != own]
        if others and own not in self.given_up and not self._is_start_first(service_id):
            self.violate(f"two processes of slot {slot} run: {own} and {others}")

    def _is_start_first(self, service_id: str) -> bool:
        if self.manager is None or self.manager.store is None:
            return True
        view = self.store.view()
        service = view.services.get(service_id)
        specs = [row.spec for row in view.spec_versions.find("service_id", service_id)]
        if service is not None:
            specs += [s for s in (service.spec, service.previous_spec) if s is not None]
        configs = [c for spec in specs for c in (spec.update, spec.rollback)]
        return any(config is not None and config.order == "start-first" for config in configs)

    def check(self) -> None:
        """Raise what was found, and look at what can be looked at now."""
        if self.manager is not None and self.manager.store is not None:
            self.store.check()
            for what in checks.overbooked(self.store.view()):
                self.violate(what)
            self._check_orchestrator()
        for worker in self.workers:
            if worker.agent is None:
                continue
            worker.agent._table.check()
            if self.loop.time() > worker.started_at + WITHDRAW_SECONDS_MAX:
                worker.machine.network.check("meanwhile")
        self.raise_violations()

    def _check_orchestrator(self) -> None:
        """See what has to be so when all events have been taken in, and all steps made."""
        assert self.manager is not None
        orchestrator = self.manager.orchestrator
        queued = [w for w in self.store._watches if getattr(w, "_batches", None)]
        if orchestrator is None or orchestrator._usage is None or queued:
            return
        view = self.store.view()
        orchestrator._usage.check(view.tasks)
        due = [at for at in orchestrator._wakes.values() if at <= self.clock.wall()]
        if not orchestrator._dirty and not due and view is self.store.head():
            for what in checks.unplaced(view, self.clock.wall()):
                self.violate(what)

    # --- the story ---

    async def play(self) -> None:
        """Run the whole."""
        await self.found(self.rng.randint(WORKERS_MIN, WORKERS_MAX))
        await self.start_manager()
        for worker in self.workers:
            self.start_agent(worker)
        for _ in range(SERVICES_FIRST):
            await self.send(*self.user.create())
        for _ in range(self.rng.randint(STEPS_MIN, STEPS_MAX)):
            await self._step()
            self.check()
        await self._recover()
        self.check()

    async def _step(self) -> None:
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self._ask: 45,
            self._rest: 10,
            self._crash_agent: 6,
            self._start_one: 8,
            self._reboot: 3,
            self._cut: 7,
            self._heal_one: 8,
            self._crash_manager: 4,
            self._change_node: 12,
            self._remove_node: 2,
            self._add_node: 3,
            self._end_one: 6,
        }
        step = self.rng.choices(tuple(kinds), tuple(kinds.values()))[0]
        await step()
        if self.rng.random() < 0.6:
            await asyncio.sleep(self.rng.choice((0.01, 1.0, 1.0, 10.0)) * self.rng.random())

    async def _ask(self) -> None:
        name, operation = self.user.draw()
        request = asyncio.ensure_future(self.send(name, operation))
        self._requests[request] = None
        request.add_done_callback(self._requests.pop)
        if self.rng.random() < 0.7:
            await request

    async def _rest(self) -> None:
        await asyncio.sleep(self.rng.uniform(1.0, 40.0))

    async def _crash_agent(self) -> None:
        worker = self._draw(worker for worker in self.workers if worker.is_up)
        if worker is None:
            return
        for _ in range(self.rng.randint(0, 30)):
            await asyncio.sleep(self.rng.choice((0.0, 0.001, 0.01)))
        if not worker.is_up:
            return
        self.kill_agent(worker)
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0.0, 6.0))
            if not worker.is_up:
                self.start_agent(worker)

    async def _start_one(self) -> None:
        worker = self._draw(w for w in self.members() if not w.is_up)
        if worker is not None:
            self.start_agent(worker)

    async def _reboot(self) -> None:
        """The machine goes down with all that runs on it."""
        worker = self._draw(self.members())
        if worker is None:
            return
        if worker.is_up:
            self.kill_agent(worker)
        self.note("reboot", node=worker.name)
        worker.machine.reboot()
        await asyncio.sleep(self.rng.uniform(0.0, 10.0))
        if self.rng.random() < 0.6 and not worker.is_up:
            self.start_agent(worker)

    async def _cut(self) -> None:
        worker = self._draw(worker for worker in self.workers if not worker.link.is_cut)
        if worker is None:
            return
        self.note("cut", node=worker.name)
        worker.link.cut()
        if self.rng.random() < 0.6:
            await asyncio.sleep(self.rng.choice((0.2, 1.0, 3.0, 8.0)) * self.rng.uniform(0.5, 1.0))
            self._heal(worker)

    async def _heal_one(self) -> None:
        worker = self._draw(worker for worker in self.workers if worker.link.is_cut)
        if worker is not None:
            self._heal(worker)

    def _heal(self, worker: Worker) -> None:
        self.note("heal", node=worker.name)
        worker.link.heal()

    async def _crash_manager(self) -> None:
        for _ in range(self.rng.randint(0, 40)):
            await asyncio.sleep(self.rng.choice((0.0, 0.0001, 0.001, 0.01)))
        self.kill_manager(is_power_lost=self.rng.random() < 0.4)
        if self.rng.random() < 0.6:
            await asyncio.sleep(self.rng.choice((1.0, 5.0, 30.0)) * self.rng.random())
        await self.start_manager()

    async def _change_node(self) -> None:
        worker = self._draw(self.members())
        if worker is None:
            return
        if self.rng.random() < 0.3:
            await self._relabel(worker)
            return
        wish = self.rng.choice(tuple(NodeAvailability))
        await self.send(
            f"node {worker.name} {wish.name}",
            lambda control: changed_node(control, worker.node_id, availability=wish),
        )

    async def _relabel(self, worker: Worker) -> None:
        labels = self.rng.choice(({}, {"disk": "ssd"}))
        await self.send(
            f"node {worker.name} labels {labels}",
            lambda control: changed_node(control, worker.node_id, labels=labels),
        )

    async def _remove_node(self) -> None:
        worker = self._draw(worker for worker in self.members() if worker.name != "node1")
        if worker is None:
            return
        name = f"remove node {worker.name}"
        outcome = await self.send(
            name, lambda control: control.remove_node(worker.node_id, force=True)
        )
        # Without an answer nobody knows: the operator looks when the manager is back.
        if outcome != "done" and worker.node_id in {n.id for n in self.store.view().nodes}:
            return
        worker.is_removed = True
        await asyncio.sleep(self.rng.uniform(0.0, 10.0))
        if worker.is_up:
            self.kill_agent(worker)
        worker.machine.reboot()

    async def _add_node(self) -> None:
        worker = self._new_worker()
        self.note("join", node=worker.name)
        row = self._row_of(worker)

        async def join() -> None:
            await self.store.update(lambda tx: tx.create(row))

        await self._begin(join)
        self.start_agent(worker)

    async def _end_one(self) -> None:
        running = sorted(
            (container_id, worker.name, worker)
            for worker in self.members()
            for container_id in worker.machine.runtime.running()
        )
        if running:
            container_id, name, worker = self.rng.choice(running)
            self.note("process ends", container=container_id[:12], node=name)
            worker.machine.runtime.end(container_id, self.rng.choice((0, 1)))

    def _draw(self, workers: Any) -> Worker | None:
        found = list(workers)
        return self.rng.choice(found) if found else None

    # --- the end ---

    async def _recover(self) -> None:
        self.note("recovery")
        for worker in self.workers:
            worker.machine.is_rough = False
            if worker.link.is_cut:
                self._heal(worker)
        for worker in self.members():
            if not worker.is_up:
                self.start_agent(worker)
        if self._requests:
            await asyncio.wait(self._requests)
        await asyncio.sleep(SETTLE_SECONDS)
        for worker in self.members():
            await self._insist(
                f"node {worker.name} ACTIVE",
                lambda c, w=worker: changed_node(
                    c, w.node_id, availability=NodeAvailability.ACTIVE
                ),
            )
        await self._repair()
        await self._settle()
        await self._be_calm()

    async def _repair(self) -> None:
        for service in sorted(self.store.view().services, key=lambda s: s.spec.name):
            if is_troubled(service) or self.rng.random() < 0.3:
                await self._insist(
                    f"repair {service.spec.name}", lambda c, s=service: repaired(c, s)
                )

    async def _settle(self) -> None:
        deadline = self.loop.time() + RECOVERY_SECONDS_MAX
        while wrong := self._unsettled():
            self.check()
            if self.loop.time() > deadline:
                self._show_state()
                raise SimulationError("it never settled: " + "; ".join(wrong))
            await asyncio.sleep(5.0)
        self.note("settled")

    async def _be_calm(self) -> None:
        await asyncio.sleep(REST_SECONDS)
        before = self.store.applied_index
        await asyncio.sleep(CALM_SECONDS)
        wrong = self._unsettled()
        if wrong:
            self._show_state()
            raise SimulationError("it did not stay settled: " + "; ".join(wrong))
        if self.store.applied_index != before:
            raise SimulationError("something was written though nothing happened")

    async def _insist(self, name: str, operation: Callable[[Control], Awaitable[Any]]) -> None:
        """Repeat an operation that meets another change; everything else is a violation."""
        outcome = SequenceConflictError.__name__
        while outcome == SequenceConflictError.__name__:
            outcome = await self.send(name, operation)
        if outcome != "done":
            self.violate(f"{name}: {outcome}")

    def _unsettled(self) -> list[str]:
        view = self.store.view()
        found = checks.unsettled(view, self.ended)
        for worker in self.members():
            node = view.nodes.get(worker.node_id)
            if node is None or node.status.state is not NodeState.READY:
                found.append(f"node {worker.name} is not ready")
            found += [
                f"{worker.name}: {what}"
                for what in checks.leftovers(view, worker.machine, worker.node_id)
            ]
        return found

    def _show_state(self) -> None:
        """Put the nodes, services and tasks into the trace, for whoever has to find out why."""
        view = self.store.view()
        for node in sorted(view.nodes, key=lambda n: n.id):
            self.note("node", id=node.id, state=node.status.state.name, spec=node.spec)
        for service in view.services:
            self.note("service", id=service.id, spec=service.spec, status=service.update_status)
        for task in sorted(view.tasks, key=lambda t: (t.service_id, t.slot, t.created_at)):
            self.note("task", task=task)


def _fail(outcome: asyncio.Future[Any], error: SwarmError) -> None:
    if not outcome.done():
        outcome.set_exception(error)
        outcome.exception()  # Whoever asked may be dead.


def run_fleet(
    seed: int, root: Path, play: Callable[[Fleet], Awaitable[None]] = Fleet.play
) -> Fleet:
    """Play a seed's story, or another, to its end.

    Raises:
        SimulationError: with the seed and the last lines of the trace.
    """
    loop = VirtualLoop()
    fleet = Fleet(seed, root, loop)

    async def main() -> None:
        try:
            await play(fleet)
        finally:
            for worker in fleet.workers:
                if worker.is_up:
                    fleet.kill_agent(worker)
            if fleet.manager is not None:
                fleet.kill_manager()
            loop.bury()

    with _installed(fleet):
        try:
            loop.run_until_complete(main())
        except Exception as error:
            message = fleet.story_of(seed, error, TRACE_LINES)
            raise SimulationError(message) from error
        finally:
            loop.close()
    return fleet


@contextmanager
def _installed(fleet: Fleet) -> Iterator[None]:
    """Take the product's log, and put simulated lanes where raft makes threads."""
    before = structlog.get_config()
    structlog.configure(processors=[fleet.log], cache_logger_on_first_use=False)
    try:
        with mock.patch.object(lanes, "Lane", fleet.disk.lane):
            yield
    finally:
        structlog.configure(**before)

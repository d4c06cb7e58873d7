"""The daemon on its machine: started, asked, killed; what it does goes into a trace.

The real `SwarmNode` runs on a simulated disk and machine. After every start what was restored is
compared with what had been committed, and a spy looks at every transaction.
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

from manager.ca.credentials import NodeCredentials
from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import RootCA, create_root
from manager.controlapi import Control
from manager.daemon import manager as manager_module
from manager.daemon.config import DaemonConfig
from manager.daemon.identity import Identity, write_identity
from manager.daemon.machine import Machine as MachineFacts
from manager.daemon.machine import RuntimeFacts
from manager.daemon.node import SwarmNode
from manager.daemon.tlskey import TLS_KEY
from manager.orchestrator.loop import Orchestrator
from manager.store import Store, View
from proto.errors import (
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
)
from proto.ids import ClusterID, NodeID, TaskID, container_id_of
from proto.objects import (
    Cluster,
    ClusterSpec,
    Node,
    NodeRole,
    NodeSpec,
    NodeStatus,
    TaskStatus,
)
from raft import lane as lanes
from raft.kek import KEY_BYTES
from raft.keys import Kek, KeyRing
from raft.node import RaftNode
from raft.transport.identity import MANAGER_ROLE

from . import checks
from .disk import Disk
from .loop import LoopClock, VirtualLoop
from .machine import WITHDRAW_SECONDS_MAX, Machine
from .trace import Trace
from .user import User

NODE = NodeID("thenode")
ADDRESS = "10.0.0.1:2377"
_FACTS = MachineFacts(
    hostname="host1",
    kernel="6.1",
    architecture="x86_64",
    operating_system="Linux",
    cpus=4,
    memory_bytes=8 << 30,
    version="1",
)
_RUNTIME_FACTS = RuntimeFacts(name="sim", path="", cgroup_version="2")


class KilledError(Exception):
    """The daemon died before it answered."""


class Host(Trace):
    """A node and its world.

    Attributes:
        seed: what everything is drawn from.
        node: the daemon, while one runs.
        store: its open store, if it leads.
        orchestrators: its loops, newest last.
        outcomes: how often users got which answer.
    """

    def __init__(self, seed: int, root: Path, loop: VirtualLoop) -> None:
        super().__init__(loop, root)
        self.seed = seed
        self.clock = LoopClock(loop)
        self.rng = random.Random(f"{seed}/story")
        self.machine = Machine(self.clock, random.Random(f"{seed}/machine"), root)
        self.machine.violations = self.violations
        self.disk = Disk(random.Random(f"{seed}/disk"))
        self.user = User(random.Random(f"{seed}/user"))
        self.config = DaemonConfig(state_dir=root)
        self.unlock_keys: list[str] = []
        self.ended: Counter[Any] = Counter()
        self.statuses: dict[TaskID, list[TaskStatus]] = {}
        self.services: set[str] = set()
        self.node: SwarmNode | None = None
        self.store: Store | None = None
        self.outcomes: Counter[str] = Counter()
        self.orchestrators: list[Orchestrator] = []
        self._possible: list[View] = []
        self._doubtful: list[View] = []
        self._program = 0
        self._active_since = 0.0
        self._calls: set[asyncio.Future[Any]] = set()
        self._requests: set[asyncio.Task[str]] = set()
        self._slots: dict[tuple[str, str], str] = {}
        self.machine.runtime.on_start = self._check_slot

    # --- the daemon ---

    async def found(self) -> None:
        """Lay a new cluster on the disk."""
        rng = random.Random(f"{self.seed}/cluster")
        files, directory = self.disk.files, self.config.raft_dir
        keys = KeyRing.create(directory, rng.randbytes, files=files)
        log = await RaftNode.create(
            directory, keys, node_id=NODE, address=ADDRESS, clock=self.clock, rng=rng, files=files
        )
        store = Store.open(log, self.clock)
        root = create_root(self.clock.wall())
        cluster = Cluster(
            id=ClusterID("thecluster"),
            spec=ClusterSpec(),
            root_ca_certificate_pem=root.certificate_pem,
            root_ca_key_pem=root.key_pem,
        )
        self._certify(keys, rng, root)

        def write(tx: Any) -> None:
            tx.create(cluster)
            spec, status = NodeSpec(role=NodeRole.MANAGER), NodeStatus(addr="10.0.0.1")
            tx.create(Node(id=NODE, spec=spec, status=status, role=NodeRole.MANAGER))

        await store.update(write)
        await store.close()
        await log.close()
        keys.close()
        self._possible = [store.view()]
        identity = Identity(
            node_id=NODE,
            cluster_id=ClusterID("thecluster"),
            role="manager",
            advertise_addr=ADDRESS,
            listen_addr="0.0.0.0:2377",
        )
        write_identity(self.config.identity_file, identity)

    def _certify(self, keys: KeyRing, rng: random.Random, root: RootCA) -> None:
        """Give the node its certificate, sealed as a manager's is."""
        secret = rng.randbytes(KEY_BYTES)
        keys.seal(TLS_KEY, secret)
        key_pem, csr_pem = new_key_and_csr()
        NodeCredentials.save_new(
            self.config.certificates_dir,
            certificate_pem=issue_certificate(
                root.certificate_pem,
                root.key_pem,
                csr_pem,
                node_id=NODE,
                role=MANAGER_ROLE,
                cluster_id=ClusterID("thecluster"),
                expiry_seconds=90 * 86_400.0,
                now=self.clock.wall(),
            ),
            key_pem=key_pem,
            roots_pem=root.certificate_pem.encode(),
            kek=Kek(secret),
            files=self.disk.files,
        )

    async def start(self) -> None:
        """Start the daemon, and compare what it restored."""
        assert self.node is None
        self._program += 1
        self.note("start", program=self._program)
        started: asyncio.Future[None] = self.loop.create_future()

        async def main() -> None:
            node = SwarmNode(
                self.config,
                _FACTS,
                images=self.machine.images,
                runtime=self.machine.runtime,
                runtime_facts=_RUNTIME_FACTS,
                network=self.machine.network,
                clock=self.clock,
                rng=random.Random(f"{self.seed}/daemon/{self._program}"),
                files=self.disk.files,
            )
            self.node = node
            await node.start()
            started.set_result(None)

        self._calls.add(started)
        self.loop.start(self._program, main)
        await started
        self._calls.discard(started)
        assert self.node is not None
        if self.node.state == "error" and not self.disk.files.fail_sync:
            self.violate(f"the daemon did not start: {self.node._error}")

    def look(self, store: Store) -> None:
        """Begin to watch a store that the node has just opened."""
        if self.store is not None:
            self._possible = self._views()
        self._doubtful = []
        self._active_since = self.loop.time()
        self.store = store
        wrong = checks.restored(self.store.view(), self._possible)
        if wrong is not None:
            self.violate(f"after a restart {wrong}")
        spy = checks.Spy(
            self.store.view,
            violate=self.violate,
            unlock_keys=self.unlock_keys,
            ended=self.ended,
            statuses=self.statuses,
            services=self.services,
            exit_code_of=self.machine.runtime.exit_code_of,
        )
        self.store._watches.insert(0, spy)

    def doubt(self, line: list[Any]) -> None:
        """Note the states of failed transactions of which nobody can tell whether they are kept."""
        for proposed in line:
            error = proposed.proposal.exception() if proposed.proposal.done() else None
            if not isinstance(error, NotLeaderError | ResourceExhaustedError):
                self._doubtful.append(proposed.view)

    def _views(self) -> list[View]:
        """Return the states one of which has to be restored."""
        assert self.store is not None
        return [self.store.view(), *(p.view for p in self.store._line), *self._doubtful]

    def kill(self, *, is_power_lost: bool = False) -> None:
        """Let the daemon end at this very moment."""
        self.note("kill", program=self._program, is_power_lost=is_power_lost)
        if self.store is not None:
            self._possible = self._views()
        self.loop.kill(self._program)
        database = self._database()
        self.node, self.store = None, None
        self.orchestrators.clear()
        if database is not None:
            database.close()
        self.disk.crash(is_power_lost=is_power_lost)
        self.machine.crash()
        for call in self._calls:
            if not call.done():
                call.set_exception(KilledError())

    def _database(self) -> Any:
        agent = None if self.node is None else self.node.agent
        return None if agent is None else agent._db

    async def stop(self) -> None:
        """End the daemon in an orderly way."""
        self.note("stop", program=self._program)
        node = self.node
        assert node is not None
        await asyncio.gather(self.loop.start(self._program, node.close))
        if self.store is not None:
            self._possible = self._views()
        self.loop.kill(self._program)
        self.node, self.store = None, None
        self.orchestrators.clear()
        self.disk.crash(is_power_lost=self.rng.random() < 0.5)
        for call in self._calls:
            if not call.done():
                call.set_exception(KilledError())

    async def call(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        """Let the daemon do something, as a request of its API; wait for its answer."""
        outcome: asyncio.Future[Any] = self.loop.create_future()

        async def work() -> None:
            try:
                result = await operation()
            except (SwarmError, AssertionError) as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        self._calls.add(outcome)
        self.loop.start(self._program, work)
        try:
            return await outcome
        finally:
            self._calls.discard(outcome)

    async def ask(self, name: str, operation: Callable[[Control], Awaitable[Any]]) -> str:
        """Send a user's operation; return what became of it."""
        node = self.node
        if node is None:
            return "nobody there"
        self.note("ask", what=name)

        async def work() -> Any:
            return await operation(node.control())

        try:
            created = await self.call(work)
            assert created in {None, *self.services}, "the new service"
        except SwarmError as error:
            outcome = type(error).__name__
        except KilledError:
            outcome = "killed"
        except AssertionError as error:
            self.violate(f"{name} was acknowledged, but is not there: {error}")
            outcome = "violation"
        else:
            outcome = "done"
        self.note("answer", what=name, outcome=outcome)
        self.outcomes[outcome] += 1
        return outcome

    # --- what is checked at once ---

    def _check_slot(self, config: Any) -> None:
        """See that a process is the only one of its slot, unless the service starts first."""
        service_id = config.labels["com.docker.swarm.service.id"]
        slot = config.labels["com.docker.swarm.task.name"].split(".")[1]
        others = [
            other
            for other in self.machine.runtime.running().values()
            if other.id != config.id
            and other.labels["com.docker.swarm.service.id"] == service_id
            and other.labels["com.docker.swarm.task.name"].split(".")[1] == slot
        ]
        if others and not self._is_start_first(service_id):
            names = [o.labels["com.docker.swarm.task.name"] for o in (config, *others)]
            self.violate(f"two processes of a slot run: {' and '.join(names)}")

    def _check_adopted(self) -> None:
        """See that the worker knows every process though it has no manager."""
        assert self.node is not None
        assert self.node.agent is not None
        known = {container_id_of(task_id) for task_id in self.node.agent._table.machines}
        for container_id in sorted(self.machine.runtime.running().keys() - known):
            self.violate(f"the worker does not know container {container_id[:12]}")

    def _is_start_first(self, service_id: str) -> bool:
        """Tell whether one version of the service, past ones included, starts first."""
        if self.store is None:
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
        if self.store is not None:
            self.store.check()
            if self.node is not None and self.node.agent is not None:
                self.node.agent._table.check()
            for what in checks.overbooked(self.store.view()):
                self.violate(what)
            if self._is_attentive():
                self.machine.network.check("meanwhile")
            for orchestrator in self.orchestrators[-1:]:  # one for each leadership
                self._check_usage(orchestrator)
        self.raise_violations()

    def _is_attentive(self) -> bool:
        """Tell whether the daemon has had the time to see what happened to containers."""
        is_active = self.node is not None and self.node.state == "active"
        return is_active and self.loop.time() > self._active_since + WITHDRAW_SECONDS_MAX

    def _check_usage(self, orchestrator: Orchestrator) -> None:
        """Compare the usage with a full count, when all events have been taken in."""
        usage = orchestrator._usage
        store = orchestrator._store
        if usage is None or store is not self.store:
            return
        queued = [w for w in store._watches if getattr(w, "_batches", None)]
        if not queued:
            usage.check(store.view().tasks)


@contextmanager
def installed(host: Host) -> Iterator[None]:
    """Put the simulated parts where the product makes its own, and take its log."""
    before = structlog.get_config()
    structlog.configure(processors=[host.log], cache_logger_on_first_use=False)

    def orchestrator(*args: Any, **kwargs: Any) -> Orchestrator:
        made = Orchestrator(*args, **kwargs)
        host.orchestrators.append(made)
        return made

    begin, fall_back, drop_line = SwarmNode._begin_manager, Store._fall_back, Store._drop_line

    async def begun(node: SwarmNode, identity: Any, membership: Any, credentials: Any) -> None:
        host.look(membership.store)
        await begin(node, identity, membership, credentials)

    def fallen_back(store: Store, first: Any, error: BaseException) -> None:
        if not host.loop.is_dead():
            host.doubt([first, *store._line])
        fall_back(store, first, error)

    def line_dropped(store: Store) -> None:
        if not host.loop.is_dead():
            host.doubt(list(store._line))
        drop_line(store)

    try:
        with (
            mock.patch.object(SwarmNode, "_begin_manager", begun),
            mock.patch.object(Store, "_fall_back", fallen_back),
            mock.patch.object(Store, "_drop_line", line_dropped),
            mock.patch.object(lanes, "Lane", host.disk.lane),
            mock.patch.object(manager_module, "Orchestrator", orchestrator),
        ):
            yield
    finally:
        structlog.configure(**before)

"""What the orchestrator costs the manager's event loop: 1,000 nodes, 10,000 tasks.

Prints one JSON line of milliseconds of processor time, medians of some runs. Of one service with
all the tasks, a step with what it reads of the store: `quiet` (nothing to do), `down` (one of its
nodes died), `down100` (a hundred did: 500 of the 1,000 tasks are replaced in the first step),
`update` (one task of an older spec is replaced), `scale` (to half), `create` (its first 500 tasks),
`pending` (none of 10,000 finds a node), `history` (five rows a slot). `global`: a service on 1,000
nodes. Of 100 services with 100 tasks each on a real store: `turn`, the longest turn of the loop
while a node with 10 tasks of 10 services dies and they are replaced; `turn_burst`, the same with 50
nodes at once; `services`, how many were looked at when the one died.
"""

import asyncio
import gc
import json
import random
import statistics
import time

import msgspec
import structlog

from manager.orchestrator import loop as loop_module
from manager.orchestrator.loop import Orchestrator, state_of
from manager.orchestrator.nodes import Nodes
from manager.orchestrator.step import step
from manager.store import Store
from manager.store.tables import TABLES, TableView, View
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import (
    Cluster,
    GlobalMode,
    Node,
    NodeDescription,
    NodeState,
    NodeStatus,
    ReplicatedMode,
    Resources,
    Service,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskSpec,
    TaskStatus,
    UpdateStatus,
    spec_version_id,
)
from proto.states import TaskState
from scheduler import Usage, needs_of

NODES = 1000
TASKS = 10_000
RUNS = 7
NOW = 2000.0


def node(number, *, state=NodeState.READY):
    return Node(
        id=NodeID(f"n{number:04}"),
        description=NodeDescription(
            hostname=f"h{number}", resources=Resources(nano_cpus=8 * 10**9, memory_bytes=2**34)
        ),
        status=NodeStatus(state=state),
    )


def service_rows(name, mode, *, stale):
    spec = ServiceSpec(name=name, mode=mode)
    specs = [spec, msgspec.structs.replace(spec, task=TaskSpec(force_update=1))][: 1 + stale]
    status = UpdateStatus(state="updating", started_at=500.0) if stale else None
    row = Service(id=ServiceID(name), spec=specs[-1], spec_version=len(specs), update_status=status)
    versions = [
        ServiceSpecVersion(
            id=spec_version_id(row.id, number), service_id=row.id, spec_version=number, spec=one
        )
        for number, one in enumerate(specs, 1)
    ]
    return row, versions


def task(number, service_id, slot, *, state=TaskState.RUNNING, desired=TaskState.RUNNING):
    has_node = state is not TaskState.PENDING
    return Task(
        id=TaskID(f"t{number:06}"),
        created_at=100.0 + number,
        service_id=service_id,
        spec_version=1,
        slot=slot,
        node_id=NodeID(f"n{number % NODES:04}") if has_node else NodeID(""),
        desired_state=desired,
        status=TaskStatus(
            state=state,
            timestamp=110.0,
            running_at=110.0 * has_node,
            err="" if has_node else "no suitable node (1000 nodes are not available for new tasks)",
        ),
    )


def view_of(services, tasks, nodes=()):
    nodes = nodes or [node(number) for number in range(NODES)]
    rows = {
        "clusters": {},
        "nodes": {one.id: one for one in nodes},
        "services": {row.id: row for row, _ in services},
        "spec_versions": {one.id: one for _, versions in services for one in versions},
        "tasks": {one.id: one for one in tasks},
    }
    return View(1, tuple(TableView.load(spec, rows[spec.name]) for spec in TABLES))


def one_service(replicas=TASKS, *, stale=False, is_global=False, tasks=None, **states):
    mode = GlobalMode() if is_global else ReplicatedMode(replicas=replicas)
    row, versions = service_rows("web", mode, stale=stale)
    if tasks is None:
        tasks = [task(n, row.id, 0 if is_global else n + 1, **states) for n in range(replicas)]
    return view_of([(row, versions)], tasks)


def with_history(rows):
    numbers = range(TASKS, TASKS * 5)
    ended = {"state": TaskState.FAILED, "desired": TaskState.SHUTDOWN}
    return [
        *(task(n, ServiceID("web"), n % TASKS + 1, **ended) for n in numbers),
        *rows.tasks,
    ]


def step_ms(view, *, down=0):
    usage = Usage(
        view.tasks,
        lambda one: needs_of(
            view.spec_versions.get(spec_version_id(one.service_id, one.spec_version)).spec
        ),
    )
    nodes = Nodes(
        node(n, state=NodeState.DOWN if n < down else NodeState.READY) for n in range(NODES)
    )
    gc.collect()
    gc.freeze()
    times = []
    for _ in range(RUNS):
        begin = time.process_time()
        step(
            state_of(view, ServiceID("web")),
            nodes=nodes,
            usage=usage,
            history_limit=5,
            now=NOW,
            rng=random.Random(1),
        )
        times.append((time.process_time() - begin) * 1000)
    return round(statistics.median(times), 1)


def steps():
    quiet = one_service()
    halved = one_service(TASKS // 2, tasks=list(quiet.tasks))
    return {
        "quiet": step_ms(quiet),
        "down": step_ms(quiet, down=1),
        "down100": step_ms(quiet, down=100),
        "update": step_ms(one_service(stale=True)),
        "scale": step_ms(halved),
        "create": step_ms(one_service(tasks=[])),
        "pending": step_ms(one_service(state=TaskState.PENDING), down=NODES),
        "history": step_ms(one_service(tasks=with_history(quiet))),
        "global": step_ms(one_service(NODES, is_global=True)),
    }


class MemoryLog:
    """Commits in the next turn."""

    snapshot_index = 0
    last_index = 0

    def propose(self, _data):
        self.last_index += 1
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, self.last_index)
        return future

    def attach(self, listener):
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    def restore(self):
        return iter(()), iter(())


class StandingClock:
    """Time does not pass."""

    def wall(self):
        return NOW

    def monotonic(self):
        return 0.0


class SlowestTurn(asyncio.SelectorEventLoop):
    """Measures the processor time of each turn."""

    longest = 0.0

    def _run_once(self):
        begin = time.process_time()
        super()._run_once()
        self.longest = max(self.longest, time.process_time() - begin)


async def settled(store):
    version = None
    while version != store.head().version:
        version = store.head().version
        for _ in range(200):
            await asyncio.sleep(0)


async def turns(down):
    services = [
        service_rows(f"s{n}", ReplicatedMode(replicas=100), stale=False) for n in range(100)
    ]
    tasks = [task(n, services[n % 100][0].id, n // 100 + 1) for n in range(TASKS)]
    nodes = [node(n) for n in range(NODES)]
    # The ten tasks of a node are of ten services.
    tasks = [
        msgspec.structs.replace(one, node_id=NodeID(f"n{(n + n // 1000 * 7) % NODES:04}"))
        for n, one in enumerate(tasks)
    ]
    store = Store(MemoryLog(), StandingClock(), view_of(services, tasks, nodes), 0)
    store.lead(1)
    await store.update(lambda tx: tx.create(Cluster(id="cluster")))
    looked_at = []
    real = loop_module.step

    def counting(state, **arguments):
        looked_at.append(state.service_id)
        return real(state, **arguments)

    loop_module.step = counting
    orchestrator = Orchestrator(
        store, clock=StandingClock(), rng=random.Random(1), allocate_ports=lambda *_: ()
    )
    working = asyncio.create_task(orchestrator.run())
    await settled(store)
    gc.collect()
    gc.freeze()
    looked_at.clear()
    loop = asyncio.get_running_loop()
    loop.longest = 0.0

    def die(tx):
        for number in range(down):
            tx.update(
                msgspec.structs.replace(
                    tx.nodes.get(f"n{number:04}"), status=NodeStatus(state=NodeState.DOWN)
                )
            )

    await store.update(die)
    await settled(store)
    longest, seen = loop.longest, set(looked_at)
    moved = [t for t in store.view().tasks if t.desired_state is TaskState.RUNNING]
    assert len(moved) == TASKS
    assert all(int(t.node_id[1:]) >= down for t in moved)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    loop_module.step = real
    return round(longest * 1000, 1), len(seen)


def run_turns(down):
    with asyncio.Runner(loop_factory=SlowestTurn) as runner:
        return runner.run(turns(down))


def drop(*_):
    raise structlog.DropEvent


if __name__ == "__main__":
    structlog.configure(processors=[drop])
    figures = steps()
    figures["turn"], figures["services"] = run_turns(1)
    figures["turn_burst"], _ = run_turns(50)
    print(json.dumps(figures))

"""The leader's loop on a real store whose log commits when the test says so."""

import asyncio
import random

import msgspec
import pytest

from manager.orchestrator import draft as draft_module
from manager.orchestrator import loop as loop_module
from manager.orchestrator.loop import Orchestrator
from manager.store import Entry, Store
from proto.errors import InUseError
from proto.ids import ClusterID, NodeID, ServiceID
from proto.objects import (
    NANOSECONDS,
    Cluster,
    Endpoint,
    EndpointSpec,
    GlobalMode,
    Node,
    NodeDescription,
    NodeState,
    NodeStatus,
    PortConfig,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    Service,
    ServiceSpec,
    ServiceSpecVersion,
    TaskSpec,
    TaskStatus,
    UpdateConfig,
    UpdateStatus,
    spec_version_id,
)
from proto.states import TaskState

# Far more turns of the loop than any of these scenarios needs.
TURNS = 200


def allocate(view, service_id, spec, old=()):
    """Refuse the port 81; give all others as they were asked for."""
    del view, service_id, old
    ports = spec.ports if spec is not None else ()
    if any(port.published_port == 81 for port in ports):
        raise InUseError("port '81' is already in use by service 'other'")
    return ports


class StandingClock:
    """Time does not pass."""

    def wall(self):
        """Return a date."""
        return 1_700_000_000.0

    def monotonic(self):
        """Return a moment."""
        return 0.0


class HeldLog:
    """A log in memory that commits in the next turn, or when `release` is called."""

    snapshot_index = 0

    def __init__(self):
        self.proposed = 0
        self.committed = 0
        self.is_held = False
        self._waiting = []

    @property
    def last_index(self):
        """Return the newest index."""
        return self.proposed

    def propose(self, _data):
        """Queue an entry."""
        self.proposed += 1
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self.is_held:
            asyncio.get_running_loop().call_soon(self.release)
        return future

    def release(self):
        """Commit all that waits."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            self.committed += 1
            future.set_result(self.committed)

    def attach(self, listener):
        """Lead from the start."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0

    def restore(self):
        """Hold nothing."""
        return iter(()), iter(tuple[Entry, ...]())


def service(name, *, replicas, nano_cpus=0, spec_version=1):
    """Make a service and the row of its spec."""
    spec = ServiceSpec(
        name=name,
        mode=ReplicatedMode(replicas=replicas),
        task=TaskSpec(resources=ResourceRequirements(reservations=Resources(nano_cpus=nano_cpus))),
    )
    row_id = spec_version_id(ServiceID(name), spec_version)
    return (
        Service(id=ServiceID(name), spec=spec, spec_version=spec_version),
        ServiceSpecVersion(
            id=row_id, service_id=ServiceID(name), spec_version=spec_version, spec=spec
        ),
    )


def write(*rows):
    """Return a transaction that creates rows."""

    def change(tx):
        for row in rows:
            tx.create(row)

    return change


async def settle():
    """Let the loop turn."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


@pytest.fixture
async def led():
    """A store with one node of four cores, and the loop at work on it."""
    log = HeldLog()
    store = Store.open(log, StandingClock())
    node = Node(
        id=NodeID("n1"),
        description=NodeDescription(resources=Resources(nano_cpus=4 * NANOSECONDS)),
        status=NodeStatus(state=NodeState.READY),
    )
    await store.update(write(Cluster(id=ClusterID("c1")), node))
    loop = Orchestrator(store, clock=StandingClock(), rng=random.Random(1), allocate_ports=allocate)
    running = asyncio.create_task(loop.run())
    await settle()
    yield store, log
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_change_on_its_way_to_the_disk_does_not_make_the_loop_spin(led):
    """While somebody's change is not durable yet, the loop plans upon it once and waits."""
    store, log = led
    await store.update(write(*service("web", replicas=1)))
    await settle()
    (task,) = store.view().tasks
    steps = []
    update = store.update_without_barrier
    store.update_without_barrier = lambda fn: (steps.append(fn), update(fn))[1]
    scaled, _ = service("web", replicas=0)
    version = store.view().services.get(ServiceID("web")).version
    accepted = TaskStatus(state=TaskState.ACCEPTED)

    log.is_held = True
    scaling = update(lambda tx: tx.update(msgspec.structs.replace(scaled, version=version)))
    log.release()  # the loop will see this, and meanwhile a report is on its way to the disk
    report = update(lambda tx: tx.update(msgspec.structs.replace(task, status=accepted)))
    await settle()

    assert 0 < len(steps) <= 2
    log.is_held = False
    log.release()
    await asyncio.gather(scaling, report)
    await settle()
    assert [task.desired_state for task in store.view().tasks] == [TaskState.REMOVE]


async def test_services_of_one_turn_do_not_reserve_the_same_cores(led):
    """What one service's step has placed counts in the next one's."""
    store, _ = led
    first = service("web", replicas=3, nano_cpus=NANOSECONDS)
    second = service("db", replicas=3, nano_cpus=NANOSECONDS)

    await store.update(write(*first, *second))
    await settle()

    placed = [task for task in store.view().tasks if task.node_id]
    assert (len(placed), len(store.view().tasks)) == (4, 6)


async def test_the_specs_of_a_removed_service_without_tasks_go(led):
    """No plan has to be written for the service's spec rows to be dropped."""
    store, _ = led
    await store.update(write(*service("web", replicas=0)))
    await settle()
    assert len(store.view().spec_versions) == 1

    await store.update(lambda tx: tx.delete(Service, "web"))
    await settle()

    assert len(store.view().spec_versions) == 0


async def test_spec_rows_that_an_earlier_manager_left_go_at_the_start():
    """A manager that died between removing a service and pruning leaves nothing for ever."""
    store = Store.open(HeldLog(), StandingClock())
    await store.update(write(service("web", replicas=0)[1]))
    loop = Orchestrator(store, clock=StandingClock(), rng=random.Random(1), allocate_ports=allocate)
    running = asyncio.create_task(loop.run())
    await settle()

    assert len(store.view().spec_versions) == 0

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("port", "state"), [(80, "rollback_started"), (81, "paused")])
async def test_a_failed_update_takes_its_ports_back_or_says_why_not(led, port, state):
    """A service that is rolled back has the ports of the spec that it went back to."""
    store, _ = led
    await store.update(write(*service("web", replicas=1)))
    await settle()
    (task,) = store.view().tasks

    def endpoint(number):
        return EndpointSpec(ports=(PortConfig(target_port=80, published_port=number),))

    def fail(tx):
        row = tx.services.get(ServiceID("web"))
        spec = msgspec.structs.replace(
            row.spec, endpoint=endpoint(8080), update=UpdateConfig(failure_action="rollback")
        )
        tx.update(
            msgspec.structs.replace(
                row,
                spec=spec,
                endpoint=Endpoint(ports=endpoint(8080).ports),
                previous_spec=msgspec.structs.replace(row.spec, endpoint=endpoint(port)),
                previous_spec_version=7,
                update_status=UpdateStatus(state="updating", started_at=0.0),
            )
        )
        status = TaskStatus(state=TaskState.FAILED, timestamp=StandingClock().wall())
        tx.update(msgspec.structs.replace(tx.tasks.get(task.id), status=status))

    await store.update(fail)
    await settle()

    after = store.view().services.get(ServiceID("web"))
    assert after.update_status.state == state
    assert after.endpoint.ports == after.spec.endpoint.ports
    assert (after.spec.endpoint == endpoint(port)) == (state != "paused")
    assert ("port '81'" in after.update_status.message) == (state == "paused")


def global_service(name):
    """Make a global service and the row of its spec."""
    row, version = service(name, replicas=0)
    spec = msgspec.structs.replace(row.spec, mode=GlobalMode())
    return (
        msgspec.structs.replace(row, spec=spec),
        msgspec.structs.replace(version, spec=spec),
    )


async def change_node(store, node_id, **changes):
    """Change a node's row."""
    await store.update(
        lambda tx: tx.update(msgspec.structs.replace(tx.nodes.get(node_id), **changes))
    )
    await settle()


@pytest.fixture
def looked_at(monkeypatch):
    """The services that the loop makes a step for, in order."""
    seen = []
    real = loop_module.step

    def spying(state, **arguments):
        seen.append(state.service_id)
        return real(state, **arguments)

    monkeypatch.setattr(loop_module, "step", spying)
    return seen


async def test_a_change_of_a_node_looks_at_whom_it_concerns_only(led, looked_at):
    """Those with tasks there, those with a task that waits, and those that are everywhere."""
    store, _ = led
    second = Node(
        id=NodeID("n2"),
        description=NodeDescription(resources=Resources(nano_cpus=NANOSECONDS)),
        status=NodeStatus(state=NodeState.DOWN),
    )
    rows = (
        *service("here", replicas=1),
        *service("empty", replicas=0),
        *service("short", replicas=1, nano_cpus=9 * NANOSECONDS),
        *global_service("everywhere"),
    )
    await store.update(write(second, *rows))
    await settle()
    looked_at.clear()

    await change_node(store, "n2", status=NodeStatus(state=NodeState.READY))

    assert {"short", "everywhere"} == set(looked_at)
    assert sorted(t.node_id for t in store.view().tasks if t.service_id == "everywhere") == [
        "n1",
        "n2",
    ]

    looked_at.clear()
    await change_node(store, "n1", status=NodeStatus(state=NodeState.DOWN))
    assert {"here", "short", "everywhere"} == set(looked_at)
    moved = [t for t in store.view().tasks if t.service_id == "here"]
    assert {("n1", TaskState.SHUTDOWN), ("n2", TaskState.RUNNING)} == {
        (task.node_id, task.desired_state) for task in moved
    }


async def test_what_says_nothing_of_tasks_wakes_nobody(led, looked_at):
    """Certificates, a manager's reachability, tokens: rows change, plans do not."""
    store, _ = led
    await store.update(write(*service("web", replicas=1), *global_service("all")))
    await settle()
    looked_at.clear()

    await change_node(store, "n1", certificate_until=5.0)
    await store.update(
        lambda tx: tx.update(
            msgspec.structs.replace(tx.clusters.get("c1"), root_ca_certificate_pem="x")
        )
    )
    await settle()

    assert looked_at == []


async def test_a_removed_node_s_tasks_are_orphaned_by_the_loop(led, looked_at):
    """Their services are found by the node that is gone."""
    store, _ = led
    await store.update(write(*service("web", replicas=1), *service("other", replicas=0)))
    await settle()
    looked_at.clear()

    await store.update(lambda tx: tx.delete(Node, "n1"))
    await settle()

    assert {"web"} == set(looked_at)
    assert sorted(task.status.state for task in store.view().tasks) == [
        TaskState.PENDING,
        TaskState.ORPHANED,
    ]


async def test_a_service_with_more_tasks_than_a_pass_makes_is_gone_on_with(led, monkeypatch):
    """Pass after pass, until all are there."""
    store, _ = led
    monkeypatch.setattr(draft_module, "CREATED_MAX", 3)

    await store.update(write(*service("web", replicas=10)))
    await settle()

    assert sorted(task.slot for task in store.view().tasks) == list(range(1, 11))

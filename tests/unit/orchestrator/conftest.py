"""A cluster in a dict: applies plans as the store would, and plays the agents."""

import itertools
import random
from collections.abc import Callable

import msgspec
import pytest

from manager.orchestrator.nodes import Nodes
from manager.orchestrator.plan import ServicePlan, ServiceState
from manager.orchestrator.step import step
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import (
    GlobalMode,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    Platform,
    ReplicatedMode,
    Resources,
    RestartPolicy,
    Service,
    ServiceSpec,
    Task,
    TaskStatus,
    UpdateConfig,
)
from proto.states import TaskState
from scheduler import Usage, needs_of


def _architecture(name: str) -> str:
    """Let every third node be of another kind."""
    return "aarch64" if name.endswith(("2", "5", "8")) else "x86_64"


def _node(name: str) -> Node:
    return Node(
        id=NodeID(name),
        spec=NodeSpec(),
        description=NodeDescription(
            hostname=name.replace("node", "host"),
            platform=Platform(os="linux", architecture=_architecture(name)),
            resources=Resources(nano_cpus=4 * 10**9, memory_bytes=2**33),
        ),
        status=NodeStatus(state=NodeState.READY),
    )


class World:
    """One service on some nodes, advanced by hand."""

    def __init__(
        self, *, replicas: int = 3, nodes: int = 1, seed: int = 1, is_global: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.is_global = is_global
        # Of nodes that are added.
        self.numbers = itertools.count(10)
        self.now = 1000.0
        self.history_limit = 5
        self.service: Service | None = Service(
            id=ServiceID("svc"),
            spec=ServiceSpec(
                name="web", mode=GlobalMode() if is_global else ReplicatedMode(replicas=replicas)
            ),
            spec_version=1,
        )
        self.specs = {1: self.service.spec}
        self.tasks: dict[TaskID, Task] = {}
        self.nodes = [_node(f"node{i}") for i in range(nodes)]

    def state(self) -> ServiceState:
        """Return what a step is given."""
        return ServiceState("svc", self.service, tuple(self.tasks.values()), dict(self.specs))

    def usage(self) -> Usage:
        """Count what is taken of the nodes."""
        return Usage(self.tasks.values(), lambda task: needs_of(self.specs[task.spec_version]))

    def step(self) -> ServicePlan:
        """Run one step, thoroughly and with the shortcut, and apply its plan."""
        usage = self.usage()
        thorough = random.Random()
        thorough.setstate(self.rng.getstate())
        plans = [
            step(
                self.state(),
                nodes=Nodes(self.nodes),
                usage=usage,
                history_limit=self.history_limit,
                now=self.now,
                rng=rng,
                is_thorough=rng is thorough,
            )
            for rng in (thorough, self.rng)
        ]
        assert plans[0] == plans[1], "the shortcut comes to another plan"
        plan = plans[1]
        usage.check(self.tasks.values())
        for task in plan.deleted:
            del self.tasks[task.id]
        for old, new in plan.updated:
            assert self.tasks[old.id] is old
            self.tasks[new.id] = new
        for task in plan.created:
            assert task.id not in self.tasks
            self.tasks[task.id] = task
        if plan.service is not None:
            self.service = plan.service
        return plan

    def report(self, task: Task, state: TaskState, *, err: str = "") -> None:
        """Play the agent: report a state of a task."""
        current = self.tasks[task.id]
        running_at = current.status.running_at
        if state is TaskState.RUNNING:
            running_at = self.now
        status = TaskStatus(state=state, timestamp=self.now, err=err, running_at=running_at)
        self.tasks[task.id] = msgspec.structs.replace(current, status=status)

    def obey(self) -> None:
        """Play good agents: run what is wanted, stop what is not."""
        for task in list(self.tasks.values()):
            if task.status.state < TaskState.ASSIGNED or task.status.state.is_terminal:
                continue
            if not self.reachable(task):
                continue
            if task.desired_state > TaskState.RUNNING:
                self.report(task, TaskState.SHUTDOWN)
            elif task.desired_state is TaskState.READY:
                self.report(task, max(task.status.state, TaskState.READY))
            elif task.status.state is not TaskState.RUNNING:
                self.report(task, TaskState.RUNNING)

    def settle(self, rounds: int = 50) -> None:
        """Step and obey until a step changes nothing, jumping to wake-ups (at most 5 minutes)."""
        for _ in range(rounds):
            plan = self.step()
            before = dict(self.tasks)
            self.obey()
            if plan.is_empty and before == self.tasks:
                if plan.wake_at is None or plan.wake_at > self.now + 300:
                    return
                self.now = max(plan.wake_at, self.now)
        raise AssertionError("the service did not settle")

    def drain(self, node: int, *, availability: str = "drain") -> None:
        """Give a node another availability."""
        old = self.nodes[node]
        spec = msgspec.structs.replace(
            old.spec, availability=NodeAvailability[availability.upper()]
        )
        self.nodes[node] = msgspec.structs.replace(old, spec=spec)

    def set_node(self, node: int, *, state: NodeState | None = None, labels=None) -> None:
        """Give a node another state or other labels."""
        old = self.nodes[node]
        if state is not None:
            old = msgspec.structs.replace(old, status=NodeStatus(state=state))
        if labels is not None:
            old = msgspec.structs.replace(
                old, spec=msgspec.structs.replace(old.spec, labels=labels)
            )
        self.nodes[node] = old

    def remove_node(self, node: int) -> None:
        """Remove a node from the cluster."""
        del self.nodes[node]

    def add_node(self, name: str) -> None:
        """Add a node that is like the first."""
        self.nodes.append(_node(name))

    def reachable(self, task: Task) -> bool:
        """Tell whether a task's node is there to do what it is told."""
        return any(n.id == task.node_id and n.status.state is NodeState.READY for n in self.nodes)

    def wanted(self) -> list[Task]:
        """Return the tasks that are wanted, by slot."""
        tasks = [t for t in self.tasks.values() if t.desired_state <= TaskState.RUNNING]
        return sorted(tasks, key=lambda t: (t.slot, t.node_id))

    def running(self) -> list[Task]:
        """Return the tasks that run, by slot."""
        tasks = [t for t in self.tasks.values() if t.status.state is TaskState.RUNNING]
        return sorted(tasks, key=lambda t: (t.slot, t.node_id))

    def scale(self, replicas: int) -> None:
        """Ask for another number of replicas."""
        assert self.service is not None
        spec = msgspec.structs.replace(self.service.spec, mode=ReplicatedMode(replicas=replicas))
        self.service = msgspec.structs.replace(self.service, spec=spec)

    def change(
        self,
        *,
        image: str | None = None,
        restart: RestartPolicy | None = None,
        update: UpdateConfig | None = None,
        rollback: UpdateConfig | None = None,
        resources: Resources | None = None,
        constraints: tuple[str, ...] | None = None,
        platforms: tuple[Platform, ...] | None = None,
    ) -> None:
        """Make a new version of the spec."""
        assert self.service is not None
        spec = self.service.spec
        task = spec.task
        if image is not None:
            container = msgspec.structs.replace(task.container, image=image)
            task = msgspec.structs.replace(task, container=container)
        if restart is not None:
            task = msgspec.structs.replace(task, restart=restart)
        if resources is not None:
            requirements = msgspec.structs.replace(task.resources, reservations=resources)
            task = msgspec.structs.replace(task, resources=requirements)
        if constraints is not None:
            placement = msgspec.structs.replace(task.placement, constraints=constraints)
            task = msgspec.structs.replace(task, placement=placement)
        if platforms is not None:
            placement = msgspec.structs.replace(task.placement, platforms=platforms)
            task = msgspec.structs.replace(task, placement=placement)
        spec = msgspec.structs.replace(
            spec, task=task, update=update or spec.update, rollback=rollback or spec.rollback
        )
        version = max(self.specs) + 1
        self.specs[version] = spec
        self.service = msgspec.structs.replace(
            self.service,
            spec=spec,
            spec_version=version,
            previous_spec=self.service.spec,
            previous_spec_version=self.service.spec_version,
            update_status=None,
        )


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Return the class, so that a test says what it starts from."""
    return World

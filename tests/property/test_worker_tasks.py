"""The task table against a model of a node, with random events, failures, crashes and restarts."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from overlay.api import PublishedPort
from proto.ids import ContainerID, NodeID, ServiceID, TaskID, container_id_of
from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    EndpointSpec,
    HealthConfig,
    PortConfig,
    PortMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from proto.states import DESIRED_STATES, Actor, TaskState, is_transition
from worker.api import Assignment, AssignmentChanges, CompleteAssignments
from worker.runtime.api import ContainerState, ExitStatus
from worker.task.events import (
    CancelPrepare,
    Detach,
    Detached,
    Event,
    Exited,
    Forget,
    HealthcheckDone,
    Instruction,
    Kill,
    PortsApplied,
    PortsFailed,
    Prepare,
    PrepareCancelled,
    Prepared,
    PrepareDone,
    PrepareFailed,
    PublishPorts,
    Remove,
    Removed,
    RemoveFailed,
    RemoveStray,
    Report,
    ReportBug,
    RunHealthcheck,
    Start,
    Started,
    StartFailed,
    Wait,
    WaitFailed,
)
from worker.task.table import Remains, TaskTable

TASKS = [TaskID(f"t{n}") for n in range(4)]
HEALTHCHECK = HealthConfig(test=("CMD", "x"), interval_ns=NANOSECONDS, retries=2)
# Per task: no port, an ingress port of a shared service, a host port, an open host port.
PORTS = {
    TASKS[0]: (),
    TASKS[1]: (PortConfig(target_port=80, published_port=8080),),
    TASKS[2]: (PortConfig(target_port=80, published_port=8080, publish_mode=PortMode.HOST),),
    TASKS[3]: (PortConfig(target_port=80, publish_mode=PortMode.HOST),),
}
task_ids = st.sampled_from(TASKS)


def assignment_of(task_id: TaskID, desired: TaskState, status: TaskStatus) -> Assignment:
    """Make the assignment of one of the tasks."""
    task = Task(
        id=task_id,
        service_id=ServiceID("s" + task_id),
        spec_version=1,
        slot=1,
        node_id=NodeID("n"),
        desired_state=desired,
        status=status,
    )
    spec = ServiceSpec(
        task=TaskSpec(container=ContainerSpec(image="i")),
        endpoint=EndpointSpec(ports=PORTS[task_id]),
    )
    return Assignment(task=task, spec=spec)


MOSTLY = st.sampled_from([True, True, True, True, False])


class Node(RuleBasedStateMachine):
    """A node whose operations end when and how the test likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = TaskTable()
        # The world, which outlives a crash.
        self.containers: dict[ContainerID, str] = {}
        self.addresses: dict[ContainerID, str] = {}
        self.kernel_ports: tuple[PublishedPort, ...] = ()
        self.killed: set[ContainerID] = set()
        self.ports_failed = False
        self.has_session = False
        # The database: what is assigned, and the last statuses.
        self.stored: dict[TaskID, Assignment] = {}
        self.statuses: dict[TaskID, TaskStatus] = {}
        # What the manager wants and was told.
        self.wanted: dict[TaskID, Assignment] = {}
        self.reported: dict[TaskID, TaskState] = {}
        self.pending: list[Instruction] = []
        self.follow(self.table.adopt([], {}, self.now))

    # --- what the shell does ---

    def give(self, event: Event) -> None:
        """Hand over an event."""
        self.follow(self.table.handle(event, self.now))

    def follow(self, instructions: list[Instruction]) -> None:
        """Begin what the table says."""
        for instruction in instructions:
            assert not isinstance(instruction, ReportBug), instruction.story
            match instruction:
                case Report(task_id=task_id, status=status):
                    self.report(task_id, status)
                case Forget(task_id=task_id):
                    assert container_id_of(task_id) not in self.containers
                case CancelPrepare(task_id=task_id):
                    assert any(
                        isinstance(p, Prepare) and p.task_id == task_id for p in self.pending
                    )
                case Kill(task_id=task_id, signal=signal):
                    self.check_kill(task_id, signal)
                case RemoveStray(container_id=container_id):
                    self.check_unpublished(container_id)
                    self.purge(container_id)
                case PublishPorts():
                    assert not any(isinstance(p, PublishPorts) for p in self.pending)
                    self.pending.append(instruction)
                case _:
                    self.pending.append(instruction)

    def report(self, task_id: TaskID, status: TaskStatus) -> None:
        """Check that the state goes forward, as an agent may."""
        old = self.reported.get(task_id, TaskState.ASSIGNED)
        assert status.state is old or is_transition(Actor.AGENT, old, status.state), (old, status)
        self.reported[task_id] = status.state
        self.statuses[task_id] = status

    def check_kill(self, task_id: TaskID, signal: str) -> None:
        """No port may lead to a process that is asked to stop (one that is lost may have some)."""
        if signal != "SIGKILL":
            self.check_unpublished(container_id_of(task_id))
        self.killed.add(container_id_of(task_id))

    def check_unpublished(self, container_id: ContainerID) -> None:
        """Check that no port leads to the container, unless the kernel refused a change."""
        backends = {b for port in self.kernel_ports for b in port.backends}
        assert self.ports_failed or self.addresses.get(container_id) not in backends

    def purge(self, container_id: ContainerID) -> None:
        """Remove a container."""
        self.containers.pop(container_id, None)
        self.addresses.pop(container_id, None)

    # --- the manager ---

    def assign_one(self, task_id: TaskID, desired: TaskState) -> Assignment:
        """Let the manager want a task."""
        state = self.reported.get(task_id, TaskState.ASSIGNED)
        known = self.wanted.get(task_id)
        if known is not None:
            desired = max(desired, known.task.desired_state)
        one = assignment_of(task_id, desired, TaskStatus(state=state))
        self.wanted[task_id] = self.stored[task_id] = one
        return one

    @rule(task_id=task_ids, desired=st.sampled_from(DESIRED_STATES))
    def assign(self, task_id: TaskID, desired: TaskState) -> None:
        """Assign or change a task."""
        self.open_session()
        self.give(AssignmentChanges(updated=(self.assign_one(task_id, desired),)))

    @rule(task_id=task_ids)
    def run(self, task_id: TaskID) -> None:
        """Assign a task that shall run."""
        self.assign(task_id, TaskState.RUNNING)

    @rule(task_id=task_ids)
    def unassign(self, task_id: TaskID) -> None:
        """Take a task away."""
        self.open_session()
        self.forget(task_id)
        self.give(AssignmentChanges(removed=(task_id,)))

    def forget(self, task_id: TaskID) -> None:
        """Drop all records of a task."""
        for record in (self.wanted, self.stored, self.statuses, self.reported):
            record.pop(task_id, None)

    def open_session(self) -> None:
        """Begin with the complete set, as every session does."""
        if not self.has_session:
            self.new_session(set())

    @rule(gone=st.sets(task_ids))
    def new_session(self, gone: set[TaskID]) -> None:
        """Say everything anew."""
        self.has_session = True
        for task_id in sorted(gone):
            self.forget(task_id)
        again = [self.assign_one(i, self.wanted[i].task.desired_state) for i in sorted(self.wanted)]
        self.give(CompleteAssignments(tuple(again)))

    # --- the world ---

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), is_success=MOSTLY)
    def end_operation(self, data: st.DataObject, *, is_success: bool) -> None:
        """Let one operation end, most often well."""
        ready = [p for p in self.pending if not isinstance(p, Wait) or self.has_ended(p.task_id)]
        if ready:
            self.end(data.draw(st.sampled_from(ready)), is_success=is_success)

    @rule(task_id=task_ids)
    def bring_up(self, task_id: TaskID) -> None:
        """Assign a task and let all end well, to get to deeper states sooner."""
        self.assign(task_id, TaskState.RUNNING)
        for _ in range(4):
            for instruction in [p for p in self.pending if not isinstance(p, Wait)]:
                self.end(instruction, is_success=True)

    def has_ended(self, task_id: TaskID) -> bool:
        """Tell whether the process is gone."""
        return self.containers.get(container_id_of(task_id)) != "running"

    def end(self, instruction: Instruction, *, is_success: bool) -> None:
        """Let an operation end."""
        self.pending.remove(instruction)
        for event in self.outcome(instruction, is_success=is_success):
            self.give(event)

    def outcome(self, instruction: Instruction, *, is_success: bool) -> list[Event]:  # noqa: C901, PLR0911, PLR0912 -- a table
        """Change the world; return the event."""
        if isinstance(instruction, PublishPorts):
            self.ports_failed = not is_success
            if not is_success:
                return [PortsFailed("no")]
            self.kernel_ports = instruction.ports
            return [PortsApplied()]
        task_id = instruction.task_id
        container_id = container_id_of(task_id)
        match instruction:
            case Prepare():
                if instruction.is_anew:
                    self.purge(container_id)
                self.addresses.setdefault(container_id, self.free_address())
                if not is_success:
                    machine = self.table.machines[task_id]
                    is_cancelled = machine.phase.value == "cancelling"
                    return [
                        PrepareCancelled(task_id) if is_cancelled else PrepareFailed(task_id, "no")
                    ]
                assert self.containers.get(container_id) != "running"
                self.containers[container_id] = "created"
                return [PrepareDone(task_id, self.prepared(container_id))]
            case Start():
                assert self.containers[container_id] == "created"
                if not is_success:
                    return [StartFailed(task_id, "no")]
                self.containers[container_id] = "running"
                return [Started(task_id, 7)]
            case Wait():
                if not is_success:
                    return [WaitFailed(task_id, "lost")]
                return [Exited(task_id, ExitStatus(exit_code=1, finished_at=1.0))]
            case RunHealthcheck():
                return [HealthcheckDone(task_id, 0 if is_success else 1)]
            case Detach():
                self.check_unpublished(container_id)
                self.addresses.pop(container_id, None)
                return [Detached(task_id)]
            case Remove():
                if not is_success:
                    return [RemoveFailed(task_id, "busy")]
                self.purge(container_id)
                return [Removed(task_id)]
            case _:
                raise AssertionError(instruction)

    def free_address(self) -> str:
        """Find one."""
        used = set(self.addresses.values())
        return next(a for a in (f"172.18.0.{n}" for n in range(2, 99)) if a not in used)

    def prepared(self, container_id: ContainerID) -> Prepared:
        """Say what a container was prepared with."""
        has_check = container_id == container_id_of(TASKS[0])
        return Prepared(
            address=self.addresses.get(container_id, ""),
            healthcheck=HEALTHCHECK if has_check else None,
            grace_seconds=2,
        )

    @rule(task_id=task_ids)
    def process_ends(self, task_id: TaskID) -> None:
        """A process ends by itself."""
        container_id = container_id_of(task_id)
        if self.containers.get(container_id) == "running":
            self.containers[container_id] = "exited"

    @rule(task_id=task_ids)
    def process_obeys(self, task_id: TaskID) -> None:
        """A process ends because it was asked to."""
        if container_id_of(task_id) in self.killed:
            self.process_ends(task_id)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        """Let timers come due."""
        self.now += seconds
        self.follow(self.table.tick(self.now))

    @rule(data=st.data(), is_db_lost=st.booleans(), breaks=st.sets(task_ids, max_size=1))
    def crash(self, data: st.DataObject, *, is_db_lost: bool, breaks: set[TaskID]) -> None:
        """Lose everything but the world and the database; operations may or may not have worked."""
        for instruction in self.pending:
            if not isinstance(instruction, Wait) and data.draw(st.booleans()):
                self.outcome(instruction, is_success=data.draw(st.booleans()))
        for task_id in breaks:
            container_id = container_id_of(task_id)
            if container_id in self.containers:
                self.containers[container_id] = "broken"
        if is_db_lost:
            self.stored, self.statuses = {}, {}
        self.pending = []
        self.now += 5
        self.has_session = False
        # Until ports are applied anew, they may lead to what ended in the meantime.
        self.ports_failed = True
        self.table = TaskTable()
        live = {i for i, state in self.containers.items() if state in {"created", "running"}}
        self.addresses = {i: a for i, a in self.addresses.items() if i in live}
        stored = [(one, self.statuses.get(i)) for i, one in sorted(self.stored.items())]
        remains = {i: self.remains(i) for i in sorted(self.containers)}
        self.follow(self.table.adopt(stored, remains, self.now))

    def remains(self, container_id: ContainerID) -> Remains:
        """Say what the runtime lists."""
        state = self.containers[container_id]
        ended = ExitStatus(exit_code=0, finished_at=1.0) if state == "exited" else None
        container = ContainerState(id=container_id, name="", state=state, pid=7, exit=ended)
        return Remains(container=container, prepared=self.prepared(container_id))

    # --- what holds ---

    @invariant()
    def table_is_sound(self) -> None:
        """Check the indexes after each step."""
        self.table.check()

    def teardown(self) -> None:
        """When the manager forgets everything, nothing is left in the end."""
        for task_id in TASKS:
            self.forget(task_id)
        self.give(CompleteAssignments(()))
        for _ in range(200):
            for container_id, state in self.containers.items():
                if state == "running" and container_id in self.killed:
                    self.containers[container_id] = "exited"
            ready = [
                p for p in self.pending if not isinstance(p, Wait) or self.has_ended(p.task_id)
            ]
            for instruction in ready:
                self.end(instruction, is_success=True)
            self.time_passes(5.0)
            if not self.table.machines and not self.pending:
                break
        assert self.table.machines == {}
        assert self.containers == {}
        assert self.addresses == {}
        assert self.kernel_ports == ()


Node.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_node = Node.TestCase

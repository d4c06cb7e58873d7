"""What must hold: of every transaction, after every step, and when all is quiet again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from manager.store import View
from manager.store.watch import Change, Watch
from proto.ids import ContainerID, NodeID, TaskID, container_id_of
from proto.objects import (
    NANOSECONDS,
    Cluster,
    Node,
    NodeAvailability,
    NodeState,
    ReplicatedMode,
    RestartCondition,
    Service,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    TaskStatus,
    spec_version_id,
)
from proto.states import TRANSITIONS, TaskState
from scheduler import meets_constraints

_S = TaskState


def _reachable() -> frozenset[tuple[TaskState, TaskState]]:
    """Chain the transitions: one transaction may make several."""
    pairs = set().union(*TRANSITIONS.values())
    grown = True
    while grown:
        more = {(a, d) for a, b in pairs for c, d in pairs if b is c} - pairs
        pairs |= more
        grown = bool(more)
    return frozenset(pairs)


_BY_ITSELF = (_S.COMPLETE, _S.FAILED, _S.REJECTED)
JITTER = 0.1
_MOMENT = 0.001
REACHABLE = _reachable()
_FIXED = ("service_id", "spec_version", "slot", "created_at", "not_before")


def slot_of(task: Task) -> int | str:
    """Return the number of a replicated service's slot, or the node that is a global one's."""
    return task.slot or task.node_id


def is_given(task: Task) -> bool:
    """Tell whether a node has been told of the task, and has not yet said that it ended."""
    return _S.ASSIGNED <= task.status.state <= _S.RUNNING


class Spy(Watch):
    """Looks at every committed transaction, at once.

    Attributes:
        violate: is told what is wrong.
        unlock_keys: every unlock key that was ever in force, oldest first.
        ended: tasks that ended, by service, slot and version of the spec.
        statuses: every status that was stored of a task, oldest first.
        services: every service that was ever stored.
    """

    def __init__(
        self,
        committed: Callable[[], View],
        *,
        violate: Callable[[str], None],
        unlock_keys: list[str],
        ended: Counter[Any],
        statuses: dict[TaskID, list[TaskStatus]],
        services: set[str],
        exit_code_of: Callable[[ContainerID], int | None],
    ) -> None:
        self.committed_view = committed
        self.violate = violate
        self.unlock_keys = unlock_keys
        self.ended = ended
        self.statuses = statuses
        self.services = services
        self.exit_code_of = exit_code_of

    def publish(self, changes: tuple[Change, ...]) -> None:
        """Check the changes of one transaction."""
        for change in changes:
            old, new = change.old, change.new
            if isinstance(new, Cluster) and new.unlock_key not in {"", *self.unlock_keys[-1:]}:
                self.unlock_keys.append(new.unlock_key)
            if isinstance(new, Service):
                self.services.add(new.id)
            if isinstance(new, Task):
                self.statuses.setdefault(new.id, []).append(new.status)
                self._check_task(old, new)
            elif isinstance(old, Task) and is_given(old) and self._has_node(old):
                self._bad(old, f"was deleted while {old.status.state.name}")

    def _has_node(self, task: Task) -> bool:
        return task.node_id in self.committed_view().nodes

    def _check_task(self, old: Task | None, new: Task) -> None:
        before = _S.NEW if old is None else old.status.state
        after = new.status.state
        if before is not after and (before, after) not in REACHABLE:
            self._bad(new, f"went from {before.name} to {after.name}")
        if old is None:
            self._check_successor(new)
        else:
            self._check_change(old, new)
        if after.is_terminal and not before.is_terminal:
            self.ended[new.service_id, slot_of(new), new.spec_version] += 1
        if after is _S.COMPLETE and self.exit_code_of(container_id_of(new.id)) not in {0, None}:
            self._bad(new, "is COMPLETE, but its process failed")
        if before < after and after >= _S.RUNNING and new.status.running_at > new.status.timestamp:
            self._bad(new, "ran after it ended")

    def _check_change(self, old: Task, new: Task) -> None:
        """Compare a task with its former self."""
        if new.desired_state < old.desired_state:
            self._bad(new, f"is wanted {new.desired_state.name}, not {old.desired_state.name}")
        if old.node_id not in {"", new.node_id}:
            self._bad(new, "moved to another node")
        for name in _FIXED:
            if getattr(old, name) != getattr(new, name):
                self._bad(new, f"changed its {name}")

    def _check_successor(self, new: Task) -> None:
        """Compare a new task with its restart policy and with the tasks before it."""
        if new.status.state > _S.ASSIGNED:
            self._bad(new, f"began as {new.status.state.name}")
        view = self.committed_view()
        slot = [
            task
            for task in view.tasks.find("slot", (new.service_id, new.slot))
            if task.desired_state is not _S.REMOVE
            and task.id != new.id
            and slot_of(task) == slot_of(new)
        ]
        if not slot:
            return
        last = max(slot, key=lambda task: task.created_at)
        policy = _row(view, new).spec.task.restart
        is_restart = last.spec_version == new.spec_version and last.status.state in _BY_ITSELF
        service = view.services.get(new.service_id)
        status = None if service is None else service.update_status
        since = 0.0 if status is None else status.started_at or 0.0
        if not is_restart or since > last.created_at:
            return  # What a user changed is tried at once, and counted anew.
        due = last.status.timestamp + policy.delay_ns / NANOSECONDS * (1 - JITTER)
        if max(new.not_before, new.created_at) < due - _MOMENT:
            self._bad(new, "does not wait for its restart delay")
        if policy.condition is RestartCondition.NONE:
            self._bad(new, "follows a task that is never restarted")
        if policy.condition is RestartCondition.ON_FAILURE and last.status.state is _S.COMPLETE:
            self._bad(new, "follows a task that completed")
        tries = sum(t.spec_version == new.spec_version and t.created_at >= since for t in slot)
        if policy.max_attempts and not policy.window_ns and tries > policy.max_attempts:
            self._bad(new, f"is restart {tries} of at most {policy.max_attempts}")

    def _bad(self, task: Task, what: str) -> None:
        self.violate(f"task {task.id} of slot {slot_of(task)} {what}")

    def close(self) -> None:
        """Nothing waits."""


def rows_of(view: View) -> dict[tuple[str, str], Any]:
    """Return all rows by table and ID."""
    return {(table.spec.name, row.id): row for table in view.tables for row in table}


def restored(found: View, possible: Iterable[View]) -> str | None:
    """Tell what is wrong with a state that was read from the disk after a crash."""
    candidates = list(possible)
    got = rows_of(found)
    if any(view.version == found.version and rows_of(view) == got for view in candidates):
        return None
    versions = sorted(view.version for view in candidates)
    wanted = rows_of(candidates[0])
    keys = sorted(key for key in wanted.keys() | got.keys() if wanted.get(key) != got.get(key))
    return f"version {found.version} was restored, not one of {versions}; other rows: {keys}"


def unsettled(view: View, ended: Mapping[Any, int]) -> list[str]:
    """Tell what is not yet, or never, as the specs want it."""
    found: list[str] = []
    for service in view.services:
        found += _unsettled_service(view, service, ended)
    limit = next(iter(view.clusters)).spec.task_history_retention_limit
    for task in view.tasks:
        if task.service_id not in view.services:
            found.append(f"task {task.id} of a removed service is left")
        elif task.desired_state is _S.REMOVE:
            found.append(f"task {task.id} is still to be removed")
        elif task.desired_state > _S.RUNNING and is_given(task):
            found.append(f"task {task.id} has not stopped")
    found += _history(view, limit)
    found += _spec_rows(view)
    return found


def _history(view: View, limit: int) -> list[str]:
    found = []
    slots: dict[tuple[str, int | str], list[Task]] = {}
    for task in view.tasks:
        slots.setdefault((task.service_id, slot_of(task)), []).append(task)
    for (service_id, slot), tasks in slots.items():
        service = view.services.get(service_id)
        if service is None:
            continue  # Its tasks are found elsewhere.
        attempts = max(_row(view, task).spec.task.restart.max_attempts for task in tasks)
        # Beside a task of an older spec the newest one of the present spec is kept.
        older = any(
            task.desired_state <= _S.RUNNING and task.spec_version != service.spec_version
            for task in tasks
        )
        allowed = max(limit, attempts + 1 if attempts else 0, 1) + older
        if len(tasks) > allowed:
            found.append(f"slot {slot} of {service_id} has {len(tasks)} rows, not {allowed}")
    return found


def _spec_rows(view: View) -> list[str]:
    named = {spec_version_id(s.id, s.spec_version) for s in view.services}
    named |= {spec_version_id(t.service_id, t.spec_version) for t in view.tasks}
    held = {row.id for row in view.spec_versions}
    return [
        *(f"spec version {row} is missing" for row in sorted(named - held)),
        *(f"spec version {row} is named by nothing" for row in sorted(held - named)),
    ]


def _unsettled_service(view: View, service: Service, ended: Mapping[Any, int]) -> list[str]:
    found: list[str] = []
    name = service.spec.name
    state = "" if service.update_status is None else service.update_status.state
    if any(_may_wait(view, task) for task in view.tasks.find("service_id", service.id)):
        return []  # An update cannot end either.
    slots: dict[Any, list[Task]] = {}
    for task in sorted(view.tasks.find("service_id", service.id), key=_age):
        if task.desired_state is not _S.REMOVE:
            slots.setdefault(slot_of(task), []).append(task)
    if not isinstance(service.spec.mode, ReplicatedMode):
        found += _misplaced(view, service, slots)
    given_up = {n for n, tasks in slots.items() if _is_given_up(view, service, tasks, ended)}
    if state in {"updating", "rollback_started"} and not given_up:
        found.append(f"service {name} is {state}")
    mode = service.spec.mode
    if isinstance(mode, ReplicatedMode) and len(slots) != mode.replicas:
        found.append(f"service {name} has {len(slots)} slots, not {mode.replicas}")
    for slot, tasks in sorted(slots.items()):
        is_excused = "paused" in state or slot in given_up
        what = _unsettled_slot(view, service, tasks, ended, is_excused=is_excused)
        found += [f"slot {name}.{slot} {what}"] if what else []
    return found


def _age(task: Task) -> tuple[bool, float]:
    return (task.desired_state <= _S.RUNNING, task.created_at)


def _misplaced(view: View, service: Service, slots: dict[Any, list[Task]]) -> list[str]:
    """Compare the nodes that have a task of a global service with those that should.

    Slots of nodes that should have none are left out from then on.
    """
    found = []
    eligible = {node.id for node in view.nodes if _takes(service.spec, node)}
    for node_id, tasks in list(slots.items()):
        if node_id not in eligible:
            del slots[node_id]
            if any(task.desired_state <= _S.RUNNING for task in tasks):
                found.append(f"service {service.spec.name} has a task on node {node_id}")
    return found + [
        f"service {service.spec.name} has no task on node {node_id}"
        for node_id in sorted(eligible - slots.keys())
    ]


def _takes(spec: ServiceSpec, node: Node) -> bool:
    """Tell whether a task may be given to a node, if there is room."""
    is_up = node.status.state is NodeState.READY
    is_active = node.spec.availability is NodeAvailability.ACTIVE
    return is_up and is_active and meets_constraints(spec.task, node)


def _unsettled_slot(
    view: View, service: Service, tasks: list[Task], ended: Mapping[Any, int], *, is_excused: bool
) -> str:
    """Tell what a slot lacks; `is_excused` lets it run an older spec."""
    wanted = [task for task in tasks if task.desired_state <= _S.RUNNING]
    if len(wanted) > 1:
        return f"has {len(wanted)} wanted tasks"
    if not wanted:
        rests = _may_rest(view, tasks[-1], ended)
        return "" if rests else "rests though its policy wants a task"
    (task,) = wanted
    if task.status.state is not _S.RUNNING:
        return "" if _may_wait(view, task) else f"is {task.status.state.name}"
    is_right = is_excused or _is_present(view, service, task)
    return "" if is_right else "runs an older spec"


def _is_given_up(view: View, service: Service, tasks: list[Task], ended: Mapping[Any, int]) -> bool:
    """Tell whether a start-first update left a slot's old task because its new one may not return.

    The new one never ran, and its restart policy wants no other.
    """
    tried = [
        task
        for task in tasks
        if task.spec_version == service.spec_version and task.status.state.is_terminal
    ]
    configs = (service.spec.update, service.spec.rollback)
    return (
        bool(tried)
        and any(config is not None and config.order == "start-first" for config in configs)
        and not tried[-1].status.running_at
        and _may_rest(view, tried[-1], ended)
    )


def _row(view: View, task: Task) -> ServiceSpecVersion:
    row = view.spec_versions.get(spec_version_id(task.service_id, task.spec_version))
    assert row is not None
    return row


def _is_present(view: View, service: Service, task: Task) -> bool:
    """Tell whether a task is as the present spec wants it.

    Its constraints may be older ones if its node meets the present ones.
    """
    spec, wanted = _row(view, task).spec, service.spec
    placement = msgspec.structs.replace(
        spec.task.placement, constraints=wanted.task.placement.constraints
    )
    template = msgspec.structs.replace(spec.task, placement=placement)
    node = view.nodes.get(task.node_id)
    return (
        template == wanted.task
        and spec.endpoint == wanted.endpoint
        and node is not None
        and meets_constraints(wanted.task, node)
    )


def unplaced(view: View, now: float) -> list[str]:
    """Tell which tasks are wanted where they may not be, or wait for what will not come."""
    found = []
    for task in view.tasks:
        service = view.services.get(task.service_id)
        if task.desired_state > _S.RUNNING:
            continue
        if service is None:
            found.append(f"task {task.id} of a removed service is wanted")
            continue
        if task.node_id and not _may_stay(view, service, task):
            found.append(f"task {task.id} is wanted on node {task.node_id}")
        before = [
            other
            for other in view.tasks.find("slot", (task.service_id, task.slot))
            if slot_of(other) == slot_of(task) and other.id != task.id
        ]
        may_go = task.not_before <= now and not any(_is_awaited(view, t) for t in before)
        if task.desired_state is _S.READY and may_go:
            found.append(f"task {task.id} is held though nothing is in its way")
    return found


def _may_stay(view: View, service: Service, task: Task) -> bool:
    node = view.nodes.get(task.node_id)
    if node is None or node.status.state is NodeState.DOWN:
        return False
    availability = node.spec.availability
    if availability is not NodeAvailability.ACTIVE:
        return availability is NodeAvailability.PAUSE
    # Those of an older spec are the updater's.
    is_older = task.spec_version != service.spec_version
    return is_older or meets_constraints(service.spec.task, node)


def _is_awaited(view: View, task: Task) -> bool:
    node = view.nodes.get(task.node_id)
    return is_given(task) and node is not None and node.status.state is not NodeState.DOWN


def overbooked(view: View) -> list[str]:
    """Tell which nodes promised more than they have."""
    found = []
    for node in view.nodes:
        taken = sum(
            _row(view, task).spec.task.resources.reservations.nano_cpus
            for task in view.tasks.find("node_id", node.id)
            if is_given(task)
        )
        if taken > node.description.resources.nano_cpus:
            found.append(f"node {node.id} has {taken} billionths of a core reserved")
    return found


def _may_rest(view: View, newest: Task, ended: Mapping[Any, int]) -> bool:
    """Tell whether the restart policy lets the slot's newest task be its last."""
    policy = _row(view, newest).spec.task.restart
    if policy.condition is RestartCondition.NONE:
        return True
    if policy.condition is RestartCondition.ON_FAILURE and newest.status.state is _S.COMPLETE:
        return True
    tries = ended[newest.service_id, slot_of(newest), newest.spec_version]
    return bool(policy.max_attempts) and tries > policy.max_attempts


def _may_wait(view: View, task: Task) -> bool:
    """Tell whether a PENDING task waits for a reason: no node may take it and has the room."""
    if task.status.state is not _S.PENDING:
        return False
    spec = _row(view, task).spec
    return not any(
        _takes(spec, node) and _has_room(view, spec, node)
        for node in view.nodes
        if task.node_id in {"", node.id}
    )


def _has_room(view: View, spec: ServiceSpec, node: Node) -> bool:
    taken = sum(
        _row(view, task).spec.task.resources.reservations.nano_cpus
        for task in view.tasks.find("node_id", node.id)
        if is_given(task)
    )
    wanted = spec.task.resources.reservations.nano_cpus
    return not wanted or taken + wanted <= node.description.resources.nano_cpus


def leftovers(view: View, machine: Any, node_id: NodeID | None = None) -> list[str]:
    """Tell what is on the machine and should not be, or the other way round.

    The machine is that of a node; with none given it has all tasks.
    """
    tasks = {
        container_id_of(task.id): task
        for task in view.tasks
        if node_id is None or (task.node_id == node_id and task.status.state >= _S.ASSIGNED)
    }
    running = {i for i, t in tasks.items() if t.status.state is _S.RUNNING}
    # An ended container keeps an address that could not be freed until it is removed itself.
    kept = machine.network.kept & (tasks.keys() - running)
    found: list[str] = []
    for noun, held, wanted in (
        ("container", machine.runtime.all_ids() - tasks.keys(), set()),
        ("process", set(machine.runtime.running()), running),
        ("attachment", set(machine.network.attachments) - kept, running),
    ):
        found += [f"a {noun} of {tasks.get(i, i)} is left" for i in sorted(held - wanted)]
        found += [f"the {noun} of {tasks.get(i, i)} is missing" for i in sorted(wanted - held)]
    return found + _ports(view, machine, tasks)


def _ports(view: View, machine: Any, tasks: Mapping[Any, Task]) -> list[str]:
    """Compare what is published with the services' ports."""
    wanted: set[tuple[int, str]] = set()
    allowed: set[tuple[int, str]] = set()
    # Tasks of an older spec whose number was drawn, and is not in the service any more.
    drawn: set[str] = set()
    addresses = {i: a.address for i, a in machine.network.attachments.items()}
    for container_id, task in tasks.items():
        if task.status.state is not _S.RUNNING or container_id not in addresses:
            continue
        service = view.services.get(task.service_id)
        assert service is not None
        endpoint = _row(view, task).spec.endpoint
        fixed = {p.published_port for p in (endpoint.ports if endpoint else ())}
        numbers = {p.published_port for p in service.endpoint.ports}
        numbers |= {p.published_port for p in task.status.host_ports}
        pairs = {(number, addresses[container_id]) for number in numbers - {0}}
        if _is_present(view, service, task):
            wanted |= pairs
        elif 0 in fixed:
            drawn.add(addresses[container_id])
        # A task of an older spec may keep its port, unless that leads elsewhere by now.
        allowed |= pairs | {(number, addresses[container_id]) for number in fixed - {0}}
    got = {
        (port.published_port, address)
        for port in machine.network.published[-1]
        for address in port.backends
    }
    if wanted <= got and all(address in drawn for _, address in got - allowed):
        return []
    return [f"published is {sorted(got)}, not {sorted(wanted)}"]

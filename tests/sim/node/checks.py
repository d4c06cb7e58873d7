"""What must hold: of every transaction, after every step, and when all is quiet again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from manager.store import View
from manager.store.watch import Change, Watch
from proto.ids import container_id_of
from proto.objects import (
    Cluster,
    ReplicatedMode,
    RestartCondition,
    Service,
    ServiceSpecVersion,
    Task,
    spec_version_id,
)
from proto.states import TRANSITIONS, TaskState

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


REACHABLE = _reachable()
_FIXED = ("service_id", "spec_version", "slot", "created_at", "not_before")


class Spy(Watch):
    """Looks at every committed transaction, at once.

    Attributes:
        violations: where to put what is wrong.
        unlock_keys: every unlock key that was ever in force, oldest first.
        ended: tasks that ended, by service, slot and version of the spec.
    """

    def __init__(self, violations: list[str], unlock_keys: list[str], ended: Counter) -> None:
        self.violations = violations
        self.unlock_keys = unlock_keys
        self.ended = ended

    def publish(self, changes: tuple[Change, ...]) -> None:
        """Check the changes of one transaction."""
        for change in changes:
            old, new = change.old, change.new
            if isinstance(new, Cluster) and new.unlock_key not in {"", *self.unlock_keys[-1:]}:
                self.unlock_keys.append(new.unlock_key)
            if isinstance(new, Task):
                self._check_task(old, new)
            elif isinstance(old, Task) and old.node_id and not old.status.state.is_terminal:
                self._bad(old, f"was deleted while {old.status.state.name}")

    def _check_task(self, old: Task | None, new: Task) -> None:
        before = _S.NEW if old is None else old.status.state
        after = new.status.state
        if before is not after and (before, after) not in REACHABLE:
            self._bad(new, f"went from {before.name} to {after.name}")
        if old is None and after > _S.ASSIGNED:
            self._bad(new, f"began as {after.name}")
        if old is not None:
            if new.desired_state < old.desired_state:
                self._bad(new, f"is wanted {new.desired_state.name}, not {old.desired_state.name}")
            if old.node_id not in {"", new.node_id}:
                self._bad(new, "moved to another node")
            for name in _FIXED:
                if getattr(old, name) != getattr(new, name):
                    self._bad(new, f"changed its {name}")
        if after.is_terminal and not before.is_terminal:
            self.ended[new.service_id, new.slot, new.spec_version] += 1
        if after >= _S.RUNNING and after is not before and new.status.running_at > (
            new.status.timestamp
        ):
            self._bad(new, "ran after it ended")

    def _bad(self, task: Task, what: str) -> None:
        self.violations.append(f"task {task.id} of slot {task.slot} {what}")

    def close(self) -> None:
        """Nothing waits."""


def rows_of(view: View) -> dict[tuple[str, str], Any]:
    """Return all rows by table and ID."""
    return {(table.spec.name, row.id): row for table in view.tables for row in table}


def restored(found: View, possible: Iterable[View]) -> str | None:
    """Tell what is wrong with a state that was read from the disk after a crash."""
    versions = {view.version: view for view in possible}
    if found.version not in versions:
        return f"version {found.version} was restored, not one of {sorted(versions)}"
    wanted, got = rows_of(versions[found.version]), rows_of(found)
    for key in sorted(wanted.keys() | got.keys()):
        if wanted.get(key) != got.get(key):
            return f"{key} was restored as {got.get(key)}, it was {wanted.get(key)}"
    return None


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
        elif task.desired_state > _S.RUNNING and not task.status.state.is_terminal:
            found.append(f"task {task.id} has not stopped")
    found += _history(view, limit)
    found += _spec_rows(view)
    return found


def _history(view: View, limit: int) -> list[str]:
    found = []
    slots = Counter((task.service_id, task.slot) for task in view.tasks)
    for (service_id, slot), count in sorted(slots.items()):
        service = view.services.get(service_id)
        attempts = 0 if service is None else service.spec.task.restart.max_attempts
        allowed = max(limit, attempts + 1 if attempts else 0, 1)
        if count > allowed:
            found.append(f"slot {slot} of {service_id} has {count} rows, allowed are {allowed}")
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
    assert isinstance(service.spec.mode, ReplicatedMode)
    found: list[str] = []
    name = service.spec.name
    state = "" if service.update_status is None else service.update_status.state
    if state in {"updating", "rollback_started"}:
        found.append(f"service {name} is {state}")
    slots: dict[int, list[Task]] = {}
    for task in sorted(view.tasks.find("service_id", service.id), key=lambda t: t.created_at):
        if task.desired_state is not _S.REMOVE:
            slots.setdefault(task.slot, []).append(task)
    if len(slots) != service.spec.mode.replicas:
        found.append(f"service {name} has {len(slots)} slots, not {service.spec.mode.replicas}")
    for slot, tasks in sorted(slots.items()):
        wanted = [task for task in tasks if task.desired_state <= _S.RUNNING]
        if len(wanted) > 1:
            found.append(f"slot {name}.{slot} has {len(wanted)} wanted tasks")
        elif not wanted:
            if not _may_rest(view, tasks[-1], ended):
                found.append(f"slot {name}.{slot} rests though its policy wants a task")
        elif wanted[0].status.state is not _S.RUNNING:
            if not _may_wait(view, wanted[0]):
                found.append(f"slot {name}.{slot} is {wanted[0].status.state.name}")
        elif "paused" not in state and not _is_present(view, service, wanted[0]):
            found.append(f"slot {name}.{slot} runs an older spec")
    return found


def _row(view: View, task: Task) -> ServiceSpecVersion:
    row = view.spec_versions.get(spec_version_id(task.service_id, task.spec_version))
    assert row is not None
    return row


def _is_present(view: View, service: Service, task: Task) -> bool:
    spec = _row(view, task).spec
    return spec.task == service.spec.task and spec.endpoint == service.spec.endpoint


def _may_rest(view: View, newest: Task, ended: Mapping[Any, int]) -> bool:
    """Tell whether the restart policy lets the slot's newest task be its last."""
    policy = _row(view, newest).spec.task.restart
    if policy.condition is RestartCondition.NONE:
        return True
    if policy.condition is RestartCondition.ON_FAILURE and newest.status.state is _S.COMPLETE:
        return True
    tries = ended[newest.service_id, newest.slot, newest.spec_version]
    return bool(policy.max_attempts) and tries > policy.max_attempts


def _may_wait(view: View, task: Task) -> bool:
    """Tell whether a PENDING task waits for a reason: what it reserves is not free."""
    if task.status.state is not _S.PENDING:
        return False
    wanted = _row(view, task).spec.task.resources.reservations.nano_cpus
    taken = sum(
        _row(view, t).spec.task.resources.reservations.nano_cpus
        for t in view.tasks
        if t.node_id and not t.status.state.is_terminal
    )
    total = sum(node.description.resources.nano_cpus for node in view.nodes)
    return taken + wanted > total


def leftovers(view: View, machine: Any) -> list[str]:
    """Tell what is on the machine and should not be, or the other way round."""
    tasks = {container_id_of(t.id): t for t in view.tasks}
    running = {i for i, t in tasks.items() if t.status.state is _S.RUNNING}
    found: list[str] = []
    for noun, held, wanted in (
        ("container", machine.runtime.all_ids() - tasks.keys(), set()),
        ("process", set(machine.runtime.running()), running),
        ("attachment", set(machine.network.attachments), running),
    ):
        found += [f"a {noun} of {tasks.get(i, i)} is left" for i in sorted(held - wanted)]
        found += [f"the {noun} of {tasks.get(i, i)} is missing" for i in sorted(wanted - held)]
    return found + _ports(view, machine, tasks)


def _ports(view: View, machine: Any, tasks: Mapping[Any, Task]) -> list[str]:
    """Compare what is published with the services' ports."""
    wanted: set[tuple[int, str]] = set()
    addresses = {i: a.address for i, a in machine.network.attachments.items()}
    for container_id, task in tasks.items():
        if task.status.state is _S.RUNNING and container_id in addresses:
            service = view.services.get(task.service_id)
            assert service is not None
            numbers = {p.published_port for p in service.endpoint.ports if p.published_port}
            numbers |= {p.published_port for p in task.status.host_ports}
            wanted |= {(number, addresses[container_id]) for number in numbers}
    got = {
        (port.published_port, address)
        for port in machine.network.published[-1]
        for address in port.backends
    }
    return [] if wanted == got else [f"published is {sorted(got)}, not {sorted(wanted)}"]

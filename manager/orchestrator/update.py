"""The updater: replaces tasks of an older spec, a few at a time. Level-based, like all of a pass.

A slot is *dirty* when its wanted task was made from another task template than the service's
present one; placement constraints make no difference while the task's node meets the new ones. A
slot of a global service on a node that takes no tasks now is left alone until it does, since its
next task could not be placed. A slot is *in flight* when its task of the present spec is not
RUNNING yet, has been for less than the update's delay, or is yet to be made after a restart delay.
As many dirty slots are switched as `parallelism` leaves room beside those in flight. A task of the
present spec that ends within `monitor` of RUNNING, or never gets there, is a failure; too many
pause the update, roll it back, or count for nothing, as the spec says.
Source of defaults and rules: swarm semantics of updates (swarmkit manager/orchestrator/update).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop

import msgspec

from manager.orchestrator.difference import Difference
from manager.orchestrator.draft import Draft
from manager.orchestrator.plan import Slot, is_wanted, slot_of
from manager.orchestrator.restart import is_replaced, restart_delay_seconds
from proto.objects import NANOSECONDS, Service, Task, UpdateConfig, UpdateStatus
from proto.states import TaskState
from scheduler import meets_constraints

UPDATING = "updating"
PAUSED = "paused"
COMPLETED = "completed"
ROLLBACK_STARTED = "rollback_started"
ROLLBACK_PAUSED = "rollback_paused"
ROLLBACK_COMPLETED = "rollback_completed"
_HALTED = (PAUSED, ROLLBACK_PAUSED)
_ACTIVE = (UPDATING, ROLLBACK_STARTED)


def is_dirty(draft: Draft, task: Task) -> bool:
    """Tell whether a task is to be replaced because its spec is not the service's present one."""
    assert draft.service is not None
    if task.spec_version == draft.service.spec_version:
        return False
    difference = draft.difference(task.spec_version)
    if difference is Difference.CONSTRAINTS and task.status.state >= TaskState.ASSIGNED:
        node = draft.nodes.by_id.get(task.node_id)
        return node is None or not meets_constraints(draft.service.spec.task, node)
    return difference is not Difference.NONE


def config_of(service: Service) -> UpdateConfig:
    """Return the settings that hold now: those of a roll-back while one is under way."""
    is_rollback = _state(service).startswith("rollback")
    config = service.spec.rollback if is_rollback else service.spec.update
    return config or UpdateConfig()


def is_start_first(service: Service) -> bool:
    """Tell whether a new task starts before the old one stops."""
    return config_of(service).order == "start-first"


def _state(service: Service) -> str:
    return service.update_status.state if service.update_status else ""


def update(draft: Draft) -> None:
    """Do what is due of a rolling update."""
    assert draft.service is not None
    slots = {
        slot: [task for task in tasks if is_wanted(task)] for slot, tasks in draft.slots().items()
    }
    slots = {slot: _present_last(draft, tasks) for slot, tasks in slots.items() if tasks}
    _finish_start_first(draft, slots)
    if _state(draft.service) in _HALTED:
        return
    newest = {slot: tasks[-1] for slot, tasks in slots.items()}
    dirty = {
        slot: task
        for slot, task in newest.items()
        if is_dirty(draft, task) and _is_replaceable(draft, slot)
    }
    dirty |= {slot: task for slot, task in draft.stale.items() if _is_replaceable(draft, slot)}
    if dirty and _state(draft.service) not in _ACTIVE:
        _set_status(draft, UPDATING, "update in progress")
    if _state(draft.service) not in _ACTIVE:
        return
    newest |= draft.quiet
    newest |= draft.stale
    if _has_failed(draft, len(newest) + len(draft.waiting)):
        return
    busy = len(draft.waiting) + sum(
        _is_in_flight(draft, task) for slot, task in newest.items() if slot not in dirty
    )
    if dirty:
        _switch(draft, dirty, busy=busy)
    elif not busy:
        _complete(draft, newest.values())


def _is_replaceable(draft: Draft, slot: Slot) -> bool:
    """Tell whether a slot could have another task now."""
    return not draft.is_global or slot[1] in draft.nodes.taking


def _present_last(draft: Draft, tasks: list[Task]) -> list[Task]:
    """Put a task of the present spec last: it is the newest, whatever the clock said meanwhile."""
    if len(tasks) == 1:
        return tasks
    return sorted(tasks, key=lambda task: not is_dirty(draft, task))


def _finish_start_first(draft: Draft, slots: dict[Slot, list[Task]]) -> None:
    """Stop the older of two wanted tasks of a slot once the newer one runs."""
    for tasks in slots.values():
        if len(tasks) > 1 and tasks[-1].status.state is TaskState.RUNNING:
            for task in tasks[:-1]:
                draft.want(task, TaskState.SHUTDOWN)


def _is_in_flight(draft: Draft, task: Task) -> bool:
    assert draft.service is not None
    if task.status.state < TaskState.RUNNING:
        return True
    free_at = task.status.running_at + config_of(draft.service).delay_ns / NANOSECONDS
    status = draft.service.update_status
    is_of_this_update = status is not None and task.created_at >= (status.started_at or 0.0)
    if is_of_this_update and free_at > draft.now:
        draft.wake(free_at)
        return True
    return False


def _switch(draft: Draft, dirty: dict[Slot, Task], *, busy: int) -> None:
    assert draft.service is not None
    config = config_of(draft.service)
    room = len(dirty) if config.parallelism == 0 else config.parallelism - busy
    if room <= 0:
        return
    # Tasks that do not run are replaced first: they lose nothing by it.
    order = [(task.status.state is TaskState.RUNNING, slot) for slot, task in dirty.items()]
    heapify(order)
    while order and room > 0 and draft.has_room():
        _, slot = heappop(order)
        rows = draft.open(slot)
        old = [task for task in rows if is_wanted(task)]
        if config.order == "start-first":
            room -= _start_beside(draft, slot, old, rows)
            continue
        room -= 1
        for task in old:
            draft.want(task, TaskState.SHUTDOWN)
        draft.create(slot, desired=TaskState.READY)


def _start_beside(draft: Draft, slot: Slot, old: list[Task], rows: list[Task]) -> bool:
    """Start a slot's task of the present spec beside the old one; tell whether that takes room.

    A task of the present spec that ended before it ran leaves the old one in its place. It is
    followed by another as the restart policy says; if that wants none, the slot stays as it is
    until the user helps, and the others get their turn.
    """
    assert draft.service is not None
    attempts = _attempts(draft, rows)
    if attempts:
        newest = attempts[-1]
        if newest.status.running_at:
            # It ran, and ended before anybody looked: its slot is decided without the old one.
            for task in old:
                draft.want(task, TaskState.SHUTDOWN)
            return True
        policy = draft.spec_of(newest).task.restart
        if not is_replaced(attempts, policy):
            return False
        delay = restart_delay_seconds(attempts, policy, draft.rng)
        if newest.status.timestamp + delay > draft.now:
            draft.wake(newest.status.timestamp + delay)
            return True
    # Of an update that another overtook, only the task that runs is worth keeping till then.
    running = [task for task in old if task.status.state is TaskState.RUNNING]
    kept = running[-1] if running else old[-1]
    for task in old:
        if task is not kept:
            draft.want(task, TaskState.SHUTDOWN)
    draft.create(slot)
    return True


def _attempts(draft: Draft, rows: list[Task]) -> list[Task]:
    """List a slot's tasks by which this update tried the present spec and that have ended."""
    service = draft.service
    assert service is not None
    started_at = service.update_status.started_at if service.update_status else None
    return [
        task
        for task in rows
        if task.spec_version == service.spec_version
        and task.status.state.is_terminal
        and task.created_at >= (started_at or 0.0)
    ]


def _has_failed(draft: Draft, slot_count: int) -> bool:
    """Count failures of this update and, when there are too many, take the configured action."""
    service = draft.service
    assert service is not None
    config = config_of(service)
    failed = [t for t in (*draft.tasks(), *draft.history()) if _is_failure(t, service, config)]
    failed.sort(key=lambda task: (task.created_at, task.id))
    if not failed or config.failure_action == "continue":
        return False
    if len(set(map(slot_of, failed))) / max(slot_count, 1) <= config.max_failure_ratio:
        return False
    is_rollback = _state(service) == ROLLBACK_STARTED
    verb = "rollback" if is_rollback else "update"
    cause = f"due to failure or early termination of task {failed[0].id}"
    if config.failure_action == "rollback" and not is_rollback and service.previous_spec:
        _roll_back(draft, f"update rolled back {cause}")
    else:
        state = ROLLBACK_PAUSED if is_rollback else PAUSED
        _set_status(draft, state, f"{verb} paused {cause}")
    return True


def _is_failure(task: Task, service: Service, config: UpdateConfig) -> bool:
    status = service.update_status
    assert status is not None
    if task.spec_version != service.spec_version or task.created_at < (status.started_at or 0.0):
        return False
    if task.status.state not in (TaskState.FAILED, TaskState.REJECTED, TaskState.COMPLETE):
        return False
    lived = task.status.timestamp - task.status.running_at
    return not task.status.running_at or lived <= config.monitor_ns / NANOSECONDS


def _roll_back(draft: Draft, message: str) -> None:
    """Make the previous spec the present one; its row is kept while it is named."""
    service = draft.service
    assert service is not None
    assert service.previous_spec is not None
    draft.service = msgspec.structs.replace(
        service,
        spec=service.previous_spec,
        spec_version=service.previous_spec_version,
        previous_spec=None,
        previous_spec_version=0,
    )
    _set_status(draft, ROLLBACK_STARTED, message)


def rollback_refused(service: Service, reason: str) -> Service:
    """Return the service with its failed update paused, since it cannot be rolled back."""
    assert service.update_status is not None
    status = msgspec.structs.replace(
        service.update_status,
        state=PAUSED,
        message=f"update paused since it cannot be rolled back: {reason}",
    )
    return msgspec.structs.replace(service, update_status=status)


def _complete(draft: Draft, newest: Iterable[Task]) -> None:
    """End the update when every task of the present spec has outlived its monitoring time."""
    service = draft.service
    assert service is not None
    monitor = config_of(service).monitor_ns / NANOSECONDS
    due = max((task.status.running_at for task in newest), default=0.0) + monitor
    if due > draft.now:
        draft.wake(due)
        return
    if _state(service) == ROLLBACK_STARTED:
        _set_status(draft, ROLLBACK_COMPLETED, "rollback completed")
    else:
        _set_status(draft, COMPLETED, "update completed")


def _set_status(draft: Draft, state: str, message: str) -> None:
    service = draft.service
    assert service is not None
    started_at = service.update_status.started_at if service.update_status else None
    if state in _ACTIVE:
        started_at = draft.now
    is_end = state in (COMPLETED, ROLLBACK_COMPLETED)
    draft.service = msgspec.structs.replace(
        service,
        update_status=UpdateStatus(
            state=state,
            started_at=started_at,
            completed_at=draft.now if is_end else None,
            message=message,
        ),
    )

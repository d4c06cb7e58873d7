"""The replicated orchestrator keeps `replicas` slots filled: one pass over one service, pure.

Every slot is in one of these buckets; the names are used throughout:

* *runnable*: it has a task that is wanted (desired READY or RUNNING);
* *finished*: its newest task has ended and its restart policy wants no other;
* *vacant*: its newest task has ended, or is being stopped, and another is to follow.

The order of a pass: ended tasks, and those on a drained node, are no longer wanted; slots over the
number are removed, vacant ones first; vacant slots get a successor, held READY until its delay is
over and its predecessor gone; missing slots are made; then the updater replaces tasks of older
specs; then tasks that may start are let go. Events only wake: the same pass serves start-up,
fail-over and every change.
"""

from __future__ import annotations

import random
from collections.abc import Container

import msgspec

from manager.orchestrator.draft import Draft, ServicePlan, ServiceState
from manager.orchestrator.reaper import reap
from manager.orchestrator.restart import is_moved, is_replaced, restart_delay_seconds
from manager.orchestrator.update import is_dirty, is_start_first, update
from proto.ids import NodeID
from proto.objects import ReplicatedMode, Task
from proto.states import TaskState


class Slots(msgspec.Struct):
    """The buckets of one service, each by slot number, tasks oldest first."""

    runnable: dict[int, list[Task]] = {}
    finished: dict[int, list[Task]] = {}
    vacant: dict[int, list[Task]] = {}


def reconcile(
    state: ServiceState,
    *,
    history_limit: int,
    now: float,
    rng: random.Random,
    drained: Container[NodeID] = (),
) -> Draft:
    """Run one pass; the caller schedules what is PENDING in the draft and takes its plan.

    Args:
        state: the service, its tasks and their specs.
        history_limit: tasks kept per slot.
        now: seconds since the epoch.
        rng: draws IDs and jitter.
        drained: nodes on which no task is to run.
    """
    draft = Draft(state, now=now, rng=rng)
    if draft.service is None:
        _remove_all(draft)
    else:
        _retire(draft, drained)
        _scale(draft, rng)
        update(draft)
        _release_ready(draft)
    reap(draft, history_limit=history_limit)
    return draft


def plan(state: ServiceState, *, history_limit: int, now: float, rng: random.Random) -> ServicePlan:
    """Run one pass and return its plan, without scheduling."""
    return reconcile(state, history_limit=history_limit, now=now, rng=rng).plan()


def _remove_all(draft: Draft) -> None:
    for task in draft.tasks():
        draft.want(task, TaskState.REMOVE)


def _retire(draft: Draft, drained: Container[NodeID]) -> None:
    """A task that has ended, or is on a drained node, is not wanted: its slot is decided afresh."""
    for task in draft.tasks():
        is_over = task.status.state.is_terminal or (task.node_id and task.node_id in drained)
        if is_over and task.desired_state <= TaskState.RUNNING:
            draft.want(task, TaskState.SHUTDOWN)


def sort_slots(draft: Draft) -> Slots:
    """Put every slot into its bucket."""
    slots = Slots(runnable={}, finished={}, vacant={})
    for number, tasks in draft.slots().items():
        newest = tasks[-1]
        if any(task.desired_state <= TaskState.RUNNING for task in tasks):
            slots.runnable[number] = tasks
        elif not is_dirty(draft, newest) and not _is_followed(draft, tasks):
            slots.finished[number] = tasks
        else:
            slots.vacant[number] = tasks
    return slots


def _is_followed(draft: Draft, slot: list[Task]) -> bool:
    """Tell whether a restart policy lets the slot's newest task have a successor."""
    policy = draft.spec_of(slot[-1]).task.restart
    if slot[-1].status.state.is_terminal:
        return is_replaced(slot, policy)
    return is_moved(policy)


def _scale(draft: Draft, rng: random.Random) -> None:
    """Make the number of slots what the spec asks for."""
    assert draft.service is not None
    mode = draft.service.spec.mode
    assert isinstance(mode, ReplicatedMode), "the control API admits no other mode yet"
    slots = sort_slots(draft)
    kept = {**slots.runnable, **slots.finished, **slots.vacant}
    for number in _surplus(slots, mode.replicas):
        for task in kept.pop(number):
            draft.want(task, TaskState.REMOVE)
    for number, tasks in slots.vacant.items():
        if number in kept:
            _succeed(draft, number, tasks, rng)
    number = 0
    for _ in range(mode.replicas - len(kept)):
        number += 1
        while number in kept:
            number += 1
        # READY first: a removed task may still run in a slot of this number.
        draft.create(number, desired=TaskState.READY)


def _surplus(slots: Slots, replicas: int) -> list[int]:
    """Choose the slots to remove: first those that do not run, then the highest numbers."""
    numbers = [*slots.runnable, *slots.finished, *slots.vacant]

    def is_running(number: int) -> bool:
        tasks = slots.runnable.get(number, [])
        return any(task.status.state is TaskState.RUNNING for task in tasks)

    numbers.sort(key=lambda number: (not is_running(number), number))
    return numbers[replicas:]


def _succeed(draft: Draft, number: int, tasks: list[Task], rng: random.Random) -> None:
    """Give a vacant slot its next task, delayed if the one before ended by itself.

    The successor of a task that ran is prepared while it waits. That of one which never ran is
    made when the wait is over: its preparation would fail as the last one did, at once, and again.
    """
    newest = tasks[-1]
    not_before = 0.0
    if newest.status.state.is_terminal and not is_dirty(draft, newest):
        policy = draft.spec_of(newest).task.restart
        delay = restart_delay_seconds(tasks, policy, rng)
        not_before = newest.status.timestamp + delay
        if not newest.status.running_at and not_before > draft.now:
            draft.waiting.add(number)
            draft.wake(not_before)
            return
    draft.create(number, desired=TaskState.READY, not_before=not_before)


def _release_ready(draft: Draft) -> None:
    """Let the READY tasks go whose delay is over and whose predecessors are gone.

    So are tasks that are being removed, of a slot that was scaled away and is needed again.
    """
    assert draft.service is not None
    start_first = is_start_first(draft.service)
    leaving = {
        task.slot
        for task in draft.tasks()
        if task.desired_state is TaskState.REMOVE and not _is_gone(task)
    }
    for number, tasks in draft.slots().items():
        for position, task in enumerate(tasks):
            if task.desired_state is not TaskState.READY:
                continue
            if task.not_before > draft.now:
                draft.wake(task.not_before)
            elif start_first or (number not in leaving and all(map(_is_gone, tasks[:position]))):
                draft.want(task, TaskState.RUNNING)


def _is_gone(task: Task) -> bool:
    """Tell whether a task runs no more, or never got to a node."""
    return task.status.state.is_terminal or not task.node_id

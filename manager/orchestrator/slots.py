"""The slots of a service: which bucket each is in, and how it gets its next task.

Every open slot is in one of these buckets; the names are used throughout:

* *runnable*: it has a task that is wanted (desired READY or RUNNING);
* *finished*: its newest task is not wanted and its restart policy wants no other;
* *vacant*: its newest task is not wanted, and another is to follow.
"""

from __future__ import annotations

import msgspec

from manager.orchestrator.draft import Draft
from manager.orchestrator.plan import Slot, is_over, is_wanted, slot_of
from manager.orchestrator.restart import is_ended_by_itself, is_replaced, restart_delay_seconds
from manager.orchestrator.update import is_dirty, is_start_first
from proto.objects import Task
from proto.states import TaskState


class Slots(msgspec.Struct):
    """The buckets of one service, each by slot, tasks oldest first."""

    runnable: dict[Slot, list[Task]] = {}
    finished: dict[Slot, list[Task]] = {}
    vacant: dict[Slot, list[Task]] = {}


def sort_slots(draft: Draft) -> Slots:
    """Put every open slot into its bucket."""
    slots = Slots(runnable={}, finished={}, vacant={})
    for slot, tasks in draft.slots().items():
        newest = tasks[-1]
        if any(map(is_wanted, tasks)):
            slots.runnable[slot] = tasks
        elif is_dirty(draft, newest) or is_replaced(tasks, draft.spec_of(newest).task.restart):
            slots.vacant[slot] = tasks
        else:
            slots.finished[slot] = tasks
    return slots


def succeed(draft: Draft, slot: Slot, tasks: list[Task]) -> None:
    """Give a vacant slot its next task, delayed if the one before ended by itself.

    The successor of a task that ran is prepared while it waits. That of one which never ran is
    made when the wait is over: its preparation would fail as the last one did, at once, and again.
    """
    if not draft.has_room():
        draft.waiting.add(slot)
        return
    newest = tasks[-1]
    not_before = 0.0
    if is_dirty(draft, newest):
        pass
    elif is_ended_by_itself(newest):
        policy = draft.spec_of(newest).task.restart
        delay = restart_delay_seconds(tasks, policy, draft.rng)
        not_before = newest.status.timestamp + delay
        if not newest.status.running_at and not_before > draft.now:
            draft.waiting.add(slot)
            draft.wake(not_before)
            return
    elif newest.not_before > draft.now:
        # It was itself waiting when its node was lost: its successor waits in its place.
        not_before = newest.not_before
    draft.create(slot, desired=TaskState.READY, not_before=not_before)


def release(draft: Draft) -> None:
    """Let the READY tasks go whose delay is over and whose predecessors are gone.

    So are tasks that are being removed, of a slot that was scaled away and is needed again.
    """
    assert draft.service is not None
    start_first = is_start_first(draft.service)
    leaving = {
        slot_of(task)
        for task in draft.tasks()
        if task.desired_state is TaskState.REMOVE and not is_gone(draft, task)
    }
    for slot, tasks in draft.slots().items():
        for position, task in enumerate(tasks):
            if task.desired_state is not TaskState.READY:
                continue
            if task.not_before > draft.now:
                draft.wake(task.not_before)
                continue
            is_free = slot not in leaving and all(is_gone(draft, t) for t in tasks[:position])
            if start_first or is_free:
                draft.want(task, TaskState.RUNNING)


def is_gone(draft: Draft, task: Task) -> bool:
    """Tell whether a task runs no more, or never got to its node, or nobody will ever tell."""
    return is_over(task) or task.node_id not in draft.nodes.answering

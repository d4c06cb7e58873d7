"""A replicated service has `replicas` slots, numbered from 1: which go, are filled, are made."""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from operator import itemgetter

from manager.orchestrator.draft import REMOVED_MAX, Draft
from manager.orchestrator.plan import NO_NODE, Slot, is_wanted
from manager.orchestrator.slots import Slots, sort_slots, succeed
from proto.ids import NodeID
from proto.objects import ReplicatedMode
from proto.states import TaskState


def scale(draft: Draft) -> None:
    """Make the number of slots what the spec asks for, and fill the vacant ones."""
    assert draft.service is not None
    mode = draft.service.spec.mode
    assert isinstance(mode, ReplicatedMode)
    slots = sort_slots(draft)
    kept = {**slots.runnable, **slots.finished, **slots.vacant}
    count = len(kept) + len(draft.quiet) + len(draft.stale)
    if count > mode.replicas:
        surplus = count - mode.replicas
        if surplus > REMOVED_MAX:
            surplus = REMOVED_MAX
            draft.is_partial = True
        for slot in _surplus(draft, slots, surplus):
            kept.pop(slot, None)
            for task in draft.open(slot):
                draft.want(task, TaskState.REMOVE)
    for slot, tasks in slots.vacant.items():
        if slot in kept:
            succeed(draft, slot, tasks)
    number = 0
    for _ in range(mode.replicas - count):
        number += 1
        while (number, NO_NODE) in kept or draft.has_slot((number, NO_NODE)):
            number += 1
        if not draft.has_room():
            break
        # READY first: a removed task may still run in a slot of this number.
        draft.create((number, NO_NODE), desired=TaskState.READY)


def _surplus(draft: Draft, slots: Slots, count: int) -> list[Slot]:
    """Choose so many slots that go.

    First those that do not run, then those of the nodes that have the most tasks of the service, so
    that what stays is spread; of equal ones the highest numbers. Source: swarmkit
    manager/orchestrator/replicated (slots by running state and by index on their node).
    """
    running: dict[Slot, NodeID] = {}
    idle: list[Slot] = [*slots.finished, *slots.vacant]
    for slot, tasks in slots.runnable.items():
        runs = [t for t in tasks if is_wanted(t) and t.status.state is TaskState.RUNNING]
        if runs:
            running[slot] = runs[-1].node_id
        else:
            idle.append(slot)
    for closed in (draft.quiet, draft.stale):
        for slot, task in closed.items():
            if task.status.state is TaskState.RUNNING:
                running[slot] = task.node_id
            else:
                idle.append(slot)
    chosen = nlargest(count, idle)
    if len(chosen) == count:
        return chosen
    on_node: Counter[NodeID] = Counter()
    ranked: list[tuple[int, Slot]] = []
    for slot in sorted(running, key=itemgetter(0)):
        node_id = running[slot]
        on_node[node_id] += 1
        ranked.append((on_node[node_id], slot))
    chosen += [slot for _, slot in nlargest(count - len(chosen), ranked)]
    return chosen

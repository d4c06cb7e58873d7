"""A replicated service has `replicas` slots, numbered from 1: which go, are filled, are made."""

from __future__ import annotations

from collections import Counter

from manager.orchestrator.draft import Draft, Slot, is_wanted
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
    for slot in _surplus(slots, mode.replicas):
        for task in kept.pop(slot):
            draft.want(task, TaskState.REMOVE)
    for slot, tasks in slots.vacant.items():
        if slot in kept:
            succeed(draft, slot, tasks)
    number = 0
    for _ in range(mode.replicas - len(kept)):
        number += 1
        while (number, NodeID("")) in kept:
            number += 1
        # READY first: a removed task may still run in a slot of this number.
        draft.create((number, NodeID("")), desired=TaskState.READY)


def _surplus(slots: Slots, replicas: int) -> list[Slot]:
    """Choose the slots to remove.

    First those that do not run, then those of the nodes that have the most tasks of the service, so
    that what stays is spread; of equal ones the highest numbers. Source: swarmkit
    manager/orchestrator/replicated (slots by running state and by index on their node).
    """
    buckets = (slots.runnable, slots.finished, slots.vacant)
    count = sum(map(len, buckets))
    if count <= replicas:
        return []
    running: dict[Slot, NodeID] = {}
    for slot, tasks in slots.runnable.items():
        for task in tasks:
            if is_wanted(task) and task.status.state is TaskState.RUNNING:
                running[slot] = task.node_id
    idle = sorted((s for bucket in buckets for s in bucket if s not in running), reverse=True)
    on_node: Counter[NodeID] = Counter()
    ranked: list[tuple[int, Slot]] = []
    for slot, node_id in sorted(running.items()):
        on_node[node_id] += 1
        ranked.append((on_node[node_id], slot))
    ranked.sort(reverse=True)
    return [*idle, *(slot for _, slot in ranked)][: count - replicas]

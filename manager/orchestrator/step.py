"""One step of the leader's loop over one service: orchestrate, allocate, schedule. Pure.

A new task passes NEW, PENDING and ASSIGNED inside one step, hence inside one transaction: each
transition is made and asserted, but the log holds only the last. That is a third of the latency
and of the log of one entry each. A task that cannot be placed stays PENDING with the reason.
"""

from __future__ import annotations

import random

from manager.orchestrator.draft import PLACED_MAX, Draft
from manager.orchestrator.nodes import Nodes
from manager.orchestrator.plan import ServicePlan, ServiceState, is_wanted, slot_of
from manager.orchestrator.reconcile import reconcile
from proto.ids import ServiceID
from proto.objects import Task
from proto.states import Actor, TaskState
from scheduler import Decision, Placement, Refusal, TaskGroup, Usage, confirm, needs_of, place


def step(
    state: ServiceState,
    *,
    nodes: Nodes,
    usage: Usage,
    history_limit: int,
    now: float,
    rng: random.Random,
    is_thorough: bool = False,
) -> ServicePlan:
    """Return everything that is to change for one service.

    Args:
        state: the service, its tasks and their specs, of one view of the store.
        nodes: all nodes of that view, sorted out.
        usage: what tasks take of the nodes; the caller adds the plan to it before the next service.
        history_limit: tasks kept per slot.
        now: seconds since the epoch.
        rng: draws IDs and jitter.
        is_thorough: look at every slot, though it be quiet; the plan is the same.
    """
    draft = Draft(
        state, nodes, history_limit=history_limit, now=now, rng=rng, is_thorough=is_thorough
    )
    reconcile(draft, history_limit=history_limit)
    _allocate(draft)
    _schedule(draft, nodes, usage)
    return draft.plan()


def _allocate(draft: Draft) -> None:
    """Move NEW tasks on: what they need is allocated with their service (published ports)."""
    for task in draft.tasks():
        if task.status.state is TaskState.NEW:
            message = "pending task scheduling"
            draft.advance(task, Actor.ALLOCATOR, TaskState.PENDING, message)


def _schedule(draft: Draft, nodes: Nodes, usage: Usage) -> None:
    """Place the PENDING tasks that are wanted, the oldest slots first."""
    pending = [t for t in draft.tasks() if t.status.state is TaskState.PENDING and is_wanted(t)]
    pending += [t for t in draft.quiet.values() if t.status.state is TaskState.PENDING]
    if not pending:
        return
    waiting: dict[int, list[Task]] = {}
    for task in sorted(pending, key=lambda t: (t.slot, t.node_id, t.created_at, t.id)):
        waiting.setdefault(task.spec_version, []).append(task)
    with usage.trial():
        # What this pass wants no more makes room in the spread.
        for old, new in draft.changes():
            usage.apply(old, new)
        room = PLACED_MAX
        for spec_version, tasks in sorted(waiting.items()):
            room -= _place(draft, spec_version, tasks, nodes, usage, room)


def _place(  # noqa: PLR0917 -- all that a decision depends on
    draft: Draft, spec_version: int, tasks: list[Task], nodes: Nodes, usage: Usage, room: int
) -> int:
    """Place tasks of one version, as many as there is room for; return how many were."""
    chosen = tasks if draft.is_global else tasks[:room]
    placed = 0
    reason = ""
    by_id = {task.id: task for task in chosen}
    for decision in _decide(draft, spec_version, chosen, nodes, usage):
        task = by_id[decision.task_id]
        match decision:
            case Placement():
                placed += 1
                draft.open(slot_of(task))
                # The next version's tasks find what this one's have taken.
                usage.apply(task, draft.assign(task, decision.node_id))
            case Refusal():
                reason = decision.reason
                draft.is_short = True
                _explain(draft, task, reason)
    others = tasks[len(chosen) :]
    if reason:
        # They are all alike.
        for task in others:
            _explain(draft, task, reason)
    elif others:
        draft.is_partial = True
    return placed


def _explain(draft: Draft, task: Task, reason: str) -> None:
    if task.status.err != reason:
        draft.open(slot_of(task))
        draft.explain(task, reason)


def _decide(
    draft: Draft, spec_version: int, tasks: list[Task], nodes: Nodes, usage: Usage
) -> list[Decision]:
    spec = draft.state.specs[spec_version]
    group = TaskGroup(
        service_id=ServiceID(draft.state.service_id),
        spec=spec.task,
        task_ids=tuple(task.id for task in tasks),
        host_ports=needs_of(spec).host_ports,
    )
    if draft.is_global:
        own = [task.node_id for task in tasks]
        return confirm(group, own, nodes.by_id, usage)
    return place(group, nodes.all, usage)

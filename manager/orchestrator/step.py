"""One step of the leader's loop over one service: orchestrate, allocate, schedule. Pure.

A new task passes NEW, PENDING and ASSIGNED inside one step, hence inside one transaction: each
transition is made and asserted, but the log holds only the last. That is a third of the latency
and of the log of one entry each. A task that cannot be placed stays PENDING with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from manager.orchestrator.draft import Draft
from manager.orchestrator.nodes import Nodes
from manager.orchestrator.plan import ServicePlan, ServiceState, is_wanted, slot_of
from manager.orchestrator.reconcile import reconcile
from proto.ids import ServiceID, TaskID
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
    waiting: dict[int, dict[TaskID, Task]] = {}
    pending = [t for t in draft.tasks() if t.status.state is TaskState.PENDING and is_wanted(t)]
    if not pending:
        return
    for task in sorted(pending, key=lambda t: (slot_of(t), t.created_at, t.id)):
        waiting.setdefault(task.spec_version, {})[task.id] = task
    with usage.trial():
        # What this pass wants no more makes room in the spread.
        for old, new in draft.changes():
            usage.apply(old, new)
        for spec_version, tasks in sorted(waiting.items()):
            for decision in _decide(draft, spec_version, tasks, nodes, usage):
                task = tasks[decision.task_id]
                match decision:
                    case Placement():
                        # The next version's tasks find what this one's have taken.
                        usage.apply(task, draft.assign(task, decision.node_id))
                    case Refusal():
                        draft.explain(task, decision.reason)
                        draft.is_short = True


def _decide(
    draft: Draft, spec_version: int, tasks: Mapping[TaskID, Task], nodes: Nodes, usage: Usage
) -> list[Decision]:
    spec = draft.state.specs[spec_version]
    group = TaskGroup(
        service_id=ServiceID(draft.state.service_id),
        spec=spec.task,
        task_ids=tuple(tasks),
        host_ports=needs_of(spec).host_ports,
    )
    if draft.is_global:
        own = [task.node_id for task in tasks.values()]
        return confirm(group, own, nodes.by_id, usage)
    return place(group, nodes.all, usage)

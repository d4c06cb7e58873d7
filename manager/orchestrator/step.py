"""One step of the leader's loop over one service: orchestrate, allocate, schedule. Pure.

A new task passes NEW, PENDING and ASSIGNED inside one step, hence inside one transaction: each
transition is made and asserted, but the log holds only the last. That is a third of the latency
and of the log of one entry each. A task that cannot be placed stays PENDING with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from manager.orchestrator.draft import Draft, ServicePlan, ServiceState
from manager.orchestrator.replicated import reconcile
from proto.ids import ServiceID, TaskID
from proto.objects import Node, NodeAvailability, Task
from proto.states import Actor, TaskState
from scheduler import Placement, Refusal, TaskGroup, Usage, needs_of, place


def step(
    state: ServiceState,
    *,
    nodes: Sequence[Node],
    usage: Usage,
    history_limit: int,
    now: float,
    rng: random.Random,
) -> ServicePlan:
    """Return everything that is to change for one service.

    Args:
        state: the service, its tasks and their specs, of one view of the store.
        nodes: all nodes of that view.
        usage: what tasks take of the nodes; the caller adds the plan to it before the next service.
        history_limit: tasks kept per slot.
        now: seconds since the epoch.
        rng: draws IDs and jitter.
    """
    drained = {node.id for node in nodes if node.spec.availability is NodeAvailability.DRAIN}
    draft = reconcile(state, history_limit=history_limit, now=now, rng=rng, drained=drained)
    _allocate(draft)
    _schedule(draft, nodes, usage)
    return draft.plan()


def _allocate(draft: Draft) -> None:
    """Move NEW tasks on: what they need is allocated with their service (published ports)."""
    for task in draft.tasks():
        if task.status.state is TaskState.NEW:
            message = "pending task scheduling"
            draft.advance(task, Actor.ALLOCATOR, TaskState.PENDING, message)


def _schedule(draft: Draft, nodes: Sequence[Node], usage: Usage) -> None:
    """Place the PENDING tasks that are wanted, the oldest slots first."""
    waiting: dict[int, dict[TaskID, Task]] = {}
    for task in sorted(draft.tasks(), key=lambda t: (t.slot, t.created_at, t.id)):
        if task.status.state is TaskState.PENDING and task.desired_state <= TaskState.RUNNING:
            waiting.setdefault(task.spec_version, {})[task.id] = task
    placed: list[Task] = []
    for spec_version, tasks in sorted(waiting.items()):
        spec = draft.state.specs[spec_version]
        group = TaskGroup(
            service_id=ServiceID(draft.state.service_id),
            spec=spec.task,
            task_ids=tuple(tasks),
            host_ports=needs_of(spec).host_ports,
        )
        for decision in place(group, nodes, usage):
            match decision:
                case Placement():
                    placed.append(draft.assign(tasks[decision.task_id], decision.node_id))
                case Refusal():
                    draft.refuse(tasks[decision.task_id], decision.reason)
                    draft.is_short = True
        # The next version's tasks find what this one's have taken, ...
        for task in placed:
            usage.apply(None, task)
    # ... but what counts for others is what will have been written.
    for task in placed:
        usage.apply(task, None)

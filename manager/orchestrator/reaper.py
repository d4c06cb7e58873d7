"""The task reaper: which rows of ended tasks go.

A slot keeps `history_limit` tasks, the running one included (Docker's `--task-history-limit`, 5),
and as many more as a restart policy's `max_attempts` needs to count. A removed task's row goes
once it has ended or never reached its node: only then does its node forget it, container and all.
Of a global service the rows of a node that was removed go too: nothing will follow there.
Source: swarmkit manager/orchestrator/taskreaper.
"""

from __future__ import annotations

from manager.orchestrator.draft import Draft
from manager.orchestrator.plan import is_over, is_wanted
from proto.objects import Task
from proto.states import TaskState


def reap(draft: Draft, *, history_limit: int) -> None:
    """Drop the rows that are no longer needed; a negative limit keeps all history."""
    for task in draft.tasks():
        is_useless = task.desired_state is TaskState.REMOVE or _is_slot_gone(draft, task)
        if is_useless and is_over(task):
            draft.delete(task)
    if history_limit < 0:
        return
    for tasks in draft.slots().values():
        limit = max(history_limit, _attempts_needed(draft, tasks[-1]))
        surplus = len(tasks) - limit
        kept = (tasks[-1], _newest_attempt(draft, tasks))
        for task in tasks:
            if surplus <= 0:
                break
            if not is_wanted(task) and is_over(task) and task not in kept:
                draft.delete(task)
                surplus -= 1


def _is_slot_gone(draft: Draft, task: Task) -> bool:
    return not task.slot and task.node_id not in draft.nodes.by_id


def _newest_attempt(draft: Draft, tasks: list[Task]) -> Task | None:
    """Return the newest task of the present spec: by it an update sees how long to wait."""
    version = draft.service.spec_version if draft.service is not None else 0
    return next((task for task in reversed(tasks) if task.spec_version == version), None)


def _attempts_needed(draft: Draft, newest: Task) -> int:
    policy = draft.spec_of(newest).task.restart
    return policy.max_attempts + 1 if policy.max_attempts else 0

"""One pass over one service: what its tasks shall become. Pure.

The order: tasks of removed nodes are ended; tasks that ended, or may not stay where they are, are
no longer wanted; the mode's own module removes, fills and makes slots; then the updater replaces
tasks of older specs; then tasks that may start are let go; then rows that nobody needs go. Events
only wake: the same pass serves start-up, fail-over and every change.
"""

from __future__ import annotations

from manager.orchestrator.draft import Draft
from manager.orchestrator.globally import spread
from manager.orchestrator.reaper import reap
from manager.orchestrator.replicated import scale
from manager.orchestrator.retire import orphan, retire
from manager.orchestrator.slots import release
from manager.orchestrator.update import update
from proto.states import TaskState


def reconcile(draft: Draft, *, history_limit: int) -> None:
    """Run one pass; the caller schedules what is PENDING in the draft and takes its plan."""
    orphan(draft)
    if draft.service is None:
        for task in draft.tasks():
            draft.want(task, TaskState.REMOVE)
    else:
        retire(draft)
        if draft.is_global:
            spread(draft)
        else:
            scale(draft)
        update(draft)
        release(draft)
    reap(draft, history_limit=history_limit)

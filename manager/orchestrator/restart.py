"""When an ended task is replaced, and how long that waits.

The delay doubles with every failure in a row of the slot (up to `DELAY_SECONDS_MAX`, or the
policy's own delay where that is longer), with a tenth of jitter, so that a crashing service does
not eat its node; a task that ran for `STABLE_SECONDS` starts the count again. Docker Swarm waits
a constant delay and keeps its count in the leader's memory; ours is read off the slot's tasks, so
that a fail-over forgets nothing. Source of the conditions: swarmkit manager/orchestrator/restart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from proto.objects import NANOSECONDS, RestartCondition, RestartPolicy, Task
from proto.states import TaskState

DELAY_SECONDS_MAX = 60.0
STABLE_SECONDS = 60.0
JITTER = 0.1


_BY_ITSELF = frozenset({TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED})


def is_ended_by_itself(task: Task) -> bool:
    """Tell whether a task ended though nobody wanted it to: only this is what policies are for.

    A task that was stopped because of its node, or whose node will never tell, has done nothing
    that a delay or a count of attempts should answer.
    """
    return task.status.state in _BY_ITSELF


def is_replaced(slot: Sequence[Task], policy: RestartPolicy) -> bool:
    """Tell whether the slot's newest task, which is not wanted, is to be followed by another.

    Args:
        slot: the slot's tasks, oldest first.
        policy: of the newest task's own spec version.
    """
    newest = slot[-1]
    if not is_ended_by_itself(newest):
        return is_moved(policy)
    match policy.condition:
        case RestartCondition.NONE:
            return False
        case RestartCondition.ON_FAILURE if newest.status.state is TaskState.COMPLETE:
            return False
        case _:
            return not _is_exhausted(slot, policy)


def is_moved(policy: RestartPolicy) -> bool:
    """Tell whether a task that is stopped because of its node is followed by another.

    One that must never be restarted is not begun anew elsewhere. Source: swarmkit restarts tasks
    of a drained or dead node by their policy.
    """
    return policy.condition is not RestartCondition.NONE


def _is_exhausted(slot: Sequence[Task], policy: RestartPolicy) -> bool:
    """Tell whether the slot has had `max_attempts` restarts (within the window, if any)."""
    if policy.max_attempts == 0:
        return False
    newest = slot[-1]
    window = policy.window_ns / NANOSECONDS
    since = newest.status.timestamp - window if window else float("-inf")
    # The first task of a spec version is no restart; the others are.
    restarts = [t for t in slot if t.spec_version == newest.spec_version][1:]
    return sum(t.created_at >= since for t in restarts) >= policy.max_attempts


def restart_delay_seconds(slot: Sequence[Task], policy: RestartPolicy, rng: random.Random) -> float:
    """Return how long after the newest task's end its successor starts."""
    base = policy.delay_ns / NANOSECONDS
    if base <= 0:
        return 0.0
    failures = 0
    for task in reversed(slot):
        if not _is_quick_failure(task):
            break
        failures += 1
    doubled = base * 2.0 ** max(failures - 1, 0)
    delay = min(doubled, max(DELAY_SECONDS_MAX, base))
    if failures > 1:
        delay *= 1 + JITTER * (2 * rng.random() - 1)
    return delay


def _is_quick_failure(task: Task) -> bool:
    status = task.status
    if status.state not in (TaskState.FAILED, TaskState.REJECTED):
        return False
    return not status.running_at or status.timestamp - status.running_at < STABLE_SECONDS

"""Task states, desired states, and who may make which transition.

The numbers are SwarmKit's (`api/types.proto`); the transitions are those of its TLA+ model
(`design/tla/Tasks.tla`), so that a wrong one is a bug of ours and raises at once. States never go
back.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from proto.errors import InvariantViolationError


class TaskState(IntEnum):
    """Where a task is in its one-way life; also the type of a desired state."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    ORPHANED = 832

    @property
    def is_terminal(self) -> bool:
        """Tell whether a task in this observed state will never run again."""
        return self > TaskState.RUNNING


class Actor(Enum):
    """Who makes a transition of a task's observed state."""

    ORCHESTRATOR = "orchestrator"
    ALLOCATOR = "allocator"
    SCHEDULER = "scheduler"
    AGENT = "agent"
    LEADER = "leader"


_S = TaskState
_FORWARD = (_S.ASSIGNED, _S.ACCEPTED, _S.PREPARING, _S.READY, _S.STARTING, _S.RUNNING)
_ENDS = (_S.COMPLETE, _S.SHUTDOWN, _S.FAILED)


def _agent_transitions() -> frozenset[tuple[TaskState, TaskState]]:
    """List what an agent may report.

    Statuses are batched, so a report may skip states in between; it may end a task before RUNNING
    with SHUTDOWN (stopped on request) or FAILED (died while STARTING), as SwarmKit's agent does.
    """
    pairs = {(old, new) for i, old in enumerate(_FORWARD) for new in _FORWARD[i + 1 :]}
    pairs |= {(old, _S.REJECTED) for old in _FORWARD[:-1]}
    pairs |= {(old, end) for old in _FORWARD for end in _ENDS}
    return frozenset(pairs)


TRANSITIONS: dict[Actor, frozenset[tuple[TaskState, TaskState]]] = {
    Actor.ORCHESTRATOR: frozenset(),  # only creates: nothing -> NEW
    Actor.ALLOCATOR: frozenset({(_S.NEW, _S.PENDING)}),
    Actor.SCHEDULER: frozenset({(_S.PENDING, _S.ASSIGNED)}),
    Actor.AGENT: _agent_transitions(),
    Actor.LEADER: frozenset((old, _S.ORPHANED) for old in _FORWARD),
}

DESIRED_STATES = (_S.READY, _S.RUNNING, _S.COMPLETE, _S.SHUTDOWN, _S.REMOVE)

REAPABLE_STATES = frozenset({_S.NEW, _S.PENDING, _S.REJECTED, *_ENDS, _S.ORPHANED})


def is_transition(actor: Actor, old: TaskState, new: TaskState) -> bool:
    """Tell whether `actor` may move a task's observed state from `old` to `new`."""
    return (old, new) in TRANSITIONS[actor]


def check_transition(actor: Actor, old: TaskState, new: TaskState, task_id: str) -> None:
    """Raise `InvariantViolationError` unless `actor` may make this transition."""
    if not is_transition(actor, old, new):
        message = f"{actor.value} may not move task {task_id} from {old.name} to {new.name}"
        raise InvariantViolationError(message)

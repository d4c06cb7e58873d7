"""Whether a history of operations on one key is linearizable.

The search of Wing and Gong with the memory of Lowe: pick, again and again, an operation that may
be first among those left (it began before any of them ended), apply it to the state, go back when
an answer does not fit, and never visit the same set of operations with the same state twice.
An operation whose outcome is not known may take effect at any time after its beginning, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

FOREVER = 1 << 62
VISITS_MAX = 500_000

State = tuple[int, ...]


class Operation(msgspec.Struct):
    """One call of a client, as the client saw it.

    Attributes:
        id: names it, and is the value that it writes or adds.
        kind: "write" replaces the register, "append" adds to the list, "read" returns either;
            "enqueue" adds to the end of the queue, "dequeue" takes from its beginning.
        key: what it works on.
        begun: the moment of the call; moments are distinct whole numbers.
        ended: the moment of the answer; `FOREVER` if none came.
        result: what a read returned, or a dequeue: one value, or none from an empty queue.
    """

    id: int
    kind: str
    key: int
    begun: int
    ended: int = FOREVER
    result: State | None = None


class UndecidedError(Exception):
    """The history is too wild to be decided within the allowed visits."""


def applied(state: State, operation: Operation) -> State | None:
    """Return the state after an operation, or None if its answer does not fit the state."""
    if operation.kind == "read":
        return state if operation.result == state else None
    if operation.kind == "dequeue":
        # Without an answer it may have taken anything.
        return state[1:] if operation.result in (None, state[:1]) else None
    return changed(state, operation)


def changed(state: State, operation: Operation) -> State:
    """Return the state after an operation that changes it."""
    if operation.kind == "write":
        return (operation.id,)
    if operation.kind == "dequeue":
        return state[1:]
    return (*state, operation.id)


Apply = Callable[[State, Operation], State | None]
"""Returns the state after an operation, or None if its answer does not fit the state."""


def is_linearizable(history: Sequence[Operation], apply: Apply = applied) -> bool:
    """Decide for the operations of one key; unanswered reads are left out by the caller.

    Args:
        history: the operations, in any order.
        apply: what they do; `()` is the state before the first.

    Raises:
        UndecidedError: after `VISITS_MAX` visits.
    """
    operations = sorted(history, key=lambda each: each.begun)
    answered = sum(1 << i for i, each in enumerate(operations) if each.ended != FOREVER)
    everything = (1 << len(operations)) - 1
    stack: list[tuple[int, State]] = [(everything, ())]
    visited: set[tuple[int, State]] = set(stack)
    while stack:
        left, state = stack.pop()
        if not left & answered:
            return True
        if len(visited) > VISITS_MAX:
            raise UndecidedError(f"{len(operations)} operations")
        # The stack reverses the order: those that began first are tried first.
        for place in reversed(_candidates(operations, left)):
            after = apply(state, operations[place])
            if after is None:
                continue
            following = (left & ~(1 << place), after)
            if following not in visited:
                visited.add(following)
                stack.append(following)
    return False


def _candidates(operations: list[Operation], left: int) -> list[int]:
    """Return the places of operations that began before any of those left ended."""
    first_end = FOREVER
    found: list[int] = []
    unanswered: list[int] = []
    place = 0
    while left >> place:
        if left >> place & 1:
            operation = operations[place]
            if operation.begun > first_end:
                break
            first_end = min(first_end, operation.ended)
            (unanswered if operation.ended == FOREVER else found).append(place)
        place += 1
    # Those of unknown outcome are tried last: most of them are not needed.
    return [p for p in found if operations[p].begun < first_end] + [
        p for p in unanswered if operations[p].begun < first_end
    ]

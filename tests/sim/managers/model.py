"""What a service and a label are to those who use them: registers, for the linearizability check.

A service's state is `(incarnation, value, version)`, or `()` while there is none: its ID, a label,
and the version of its row. What a client is not told, such as the version that its own update
made, is 0 until a later answer says it, and is that from then on.
"""

from __future__ import annotations

from enum import Enum

from raft.sim.linear import FOREVER, Operation, State

SERVICE, LABEL = 0, 1
UNKNOWN = 0


class Answer(Enum):
    """How a call on a service ended, if it was told."""

    NONE = 0
    DONE = 1
    NOT_FOUND = 2
    CONFLICT = 3
    """The name is taken, or the version is not the one."""


class Call(Operation):
    """A call of the control API, or a read.

    Attributes:
        incarnation: the number of the service that it makes.
        version: the version that it was made for.
        answer: what it was told.
    """

    incarnation: int = 0
    version: int = 0
    answer: Answer = Answer.NONE


def applied(state: State, call: Operation) -> State | None:
    """Return the state after a call, or None if its answer does not fit the state. Pure."""
    assert isinstance(call, Call)
    if call.kind == "read":
        return _read(state, call)
    expected, after = _outcome(state, call)
    if call.answer in (Answer.NONE, expected):
        return after
    # The version that is not known yet may be another than the one given, or that very one.
    if call.kind == "update" and state and state[2] == UNKNOWN and call.answer is Answer.CONFLICT:
        return state
    return None


def _outcome(state: State, call: Call) -> tuple[Answer, State]:
    """Return how a call ends in this state, and the state after it."""
    if call.kind == "put":  # a label, whatever it was
        return Answer.DONE, (call.id,)
    if call.kind == "create":
        made = (call.incarnation, call.id, UNKNOWN)
        return (Answer.CONFLICT, state) if state else (Answer.DONE, made)
    if not state:
        return Answer.NOT_FOUND, state
    if call.kind == "remove":
        return Answer.DONE, ()
    assert call.kind == "update"
    incarnation, _, version = state
    if version not in {UNKNOWN, call.version}:
        return Answer.CONFLICT, state
    # The same value as before may make a new version, or not.
    return Answer.DONE, (incarnation, call.id, UNKNOWN)


def _read(state: State, call: Call) -> State | None:
    """Return the state if this is what was read, with the version learnt from it."""
    result = call.result
    if result == state:
        return state
    is_learnt = state and result and state[-1] == UNKNOWN and state[:2] == result[:2]
    return result if is_learnt and len(state) > 1 else None


def told(history: list[Call]) -> str:
    """Describe a history for whoever has to understand a failure."""
    lines = []
    for call in sorted(history, key=lambda one: one.begun):
        what = "" if call.result is None else f" = {call.result}"
        given = f" {call.id}" if call.kind != "read" else ""
        version = f" for version {call.version}" if call.version else ""
        ended = "?" if call.ended == FOREVER else call.ended
        lines.append(f"{call.begun}-{ended} {call.kind}{given}{version}{what} {call.answer.name}")
    return "\n".join(lines)

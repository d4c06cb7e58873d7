"""Decides what becomes of a request that an attempt did not settle. Pure.

A client shall see a fail-over as a pause, not as an error; and nothing may be done twice. So the
decision rests on two questions: was surely nothing done, and is it harmless to do it again? What
makes a repetition harmless is in the requests themselves: a creation carries the ID of its object,
an update the version that it was made for, and what is gone is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

import msgspec

from manager.httpapi.backend import LeaderInfo, Quorum
from proto.ids import NodeID

# First parts of the paths of objects that only the leader changes.
_OBJECTS = frozenset({"nodes", "services"})
_ROTATIONS = ("rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey")
# Whoever knows that a majority is gone has waited for it already; this is for one that comes back.
LOST_SECONDS_MAX = 1.0
_NO = frozenset({"", "0", "no", "false", "none"})


class Kind(Enum):
    """What repeating a request may do."""

    READ = auto()
    """It changes nothing."""
    REPEATABLE = auto()
    """Doing it a second time is noticed, and changes nothing more."""
    ONCE = auto()
    """Doing it a second time would change something again."""


class Ended(Enum):
    """How an attempt ended that gave no answer."""

    NOTHING_DONE = auto()
    """Nobody led, or nobody could be reached."""
    UNKNOWN = auto()
    """It may have succeeded, or may yet."""


class Place(Enum):
    """Where to try."""

    HERE = auto()
    THERE = auto()
    NOWHERE = auto()


class Step(Enum):
    """What to do next."""

    REPEAT = auto()
    STOP_WITHOUT_LEADER = auto()
    STOP_IN_DOUBT = auto()


class Progress(msgspec.Struct, frozen=True):
    """What is known of the attempts so far."""

    is_in_doubt: bool = False


def kind_of(method: str, path: str, query: Mapping[str, str]) -> Kind | None:
    """Tell what kind of request of the leader this is; None if this manager answers itself.

    Args:
        method: of HTTP.
        path: without a version.
        query: decoded.
    """
    parts = path.strip("/").split("/")
    if method in {"GET", "HEAD"}:
        # Who is reachable is known to the leader only.
        is_live = parts[0] == "nodes" and query.get("consistency") != "stale"
        return Kind.READ if is_live else None
    if parts == ["join", "v1", "certificate"]:
        return Kind.ONCE
    if parts == ["join", "v1", "node"]:
        return Kind.REPEATABLE
    if parts == ["swarm", "update"]:
        rotates = any(query.get(name, "").strip().lower() not in _NO for name in _ROTATIONS)
        return Kind.ONCE if rotates else Kind.REPEATABLE
    if parts[0] in _OBJECTS and method in {"POST", "DELETE"}:
        return Kind.ONCE if query.get("rollback") else Kind.REPEATABLE
    return None


def place_of(own: NodeID, leader: LeaderInfo | None, *, is_leader: bool) -> Place:
    """Tell where the next attempt goes."""
    if is_leader:
        return Place.HERE
    if leader is None or leader.node_id == own or not leader.address:
        return Place.NOWHERE  # an election, or its result is not settled yet
    return Place.THERE


def next_attempt(
    ended: Ended,
    kind: Kind,
    progress: Progress,
    *,
    waited: float,
    limit: float,
    is_majority_lost: bool = False,
) -> tuple[Step, Progress]:
    """Decide after an attempt that gave no answer.

    Args:
        ended: how it ended.
        kind: of the request.
        progress: of the attempts before.
        waited: seconds since the request came.
        limit: how long it may take.
        is_majority_lost: no election can succeed, as far as this manager can see.
    """
    if is_majority_lost:
        limit = min(limit, LOST_SECONDS_MAX)
    is_in_doubt = progress.is_in_doubt or (ended is Ended.UNKNOWN and kind is not Kind.READ)
    after = Progress(is_in_doubt)
    if is_in_doubt and kind is Kind.ONCE:
        return Step.STOP_IN_DOUBT, after
    if waited >= limit:
        return (Step.STOP_IN_DOUBT if is_in_doubt else Step.STOP_WITHOUT_LEADER), after
    return Step.REPEAT, after


def no_leader(quorum: Quorum) -> str:
    """Say why writes are not served, and the way out."""
    state = (
        f"the swarm does not have a leader: {quorum.reachable} of {quorum.total} managers reachable"
    )
    if quorum.is_reachable:
        return f"{state}; none was elected in time, try again"
    return (
        f"{state}, and it takes {quorum.majority}. Start the others again; if they are lost for "
        "good, run on one manager that is left: swarm init --force-new-cluster"
    )


def in_doubt(sentence: str) -> str:
    """Say that a change may have been made."""
    return (
        f"{sentence}; whether the change was made is not known: look, and repeat it if it was not"
    )

"""The arithmetic of majorities. Pure functions over plain values; no state."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from raft.core.values import RaftID


class Outcome(enum.Enum):
    """How an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voters: int) -> int:
    """Return how many of so many voters decide."""
    return voters // 2 + 1


def reached_by_majority(values: Sequence[int]) -> int:
    """Return the largest number that a majority of the values has reached; 0 without voters.

    Args:
        values: one for each voter, how far it has come.
    """
    if not values:
        return 0
    return sorted(values)[(len(values) - 1) // 2]


def vote_outcome(voters: Sequence[RaftID], votes: Mapping[RaftID, bool]) -> Outcome:
    """Count the votes of those who have one."""
    needed = majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if voters and granted >= needed:
        return Outcome.WON
    if len(voters) - refused < needed:
        return Outcome.LOST
    return Outcome.PENDING

"""How much of something each node may ask for: a bucket of tokens for each. Pure."""

from __future__ import annotations

import msgspec

from proto.ids import NodeID


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """At most `burst` at once, and `per_second` for as long as it goes on."""

    burst: float
    per_second: float


class Allowance:
    """Counts what nodes take; a node that has not taken anything for a while costs nothing."""

    def __init__(self, rate: Rate) -> None:
        """Let everybody have a full bucket."""
        self._rate = rate
        # For each node until when it has to wait before its bucket is full again; oldest first.
        self._full_at: dict[NodeID, float] = {}

    def take(self, node_id: NodeID, now: float, count: float = 1.0) -> float:
        """Take `count` tokens if they are there, and return 0.0; else return the seconds to wait.

        More than a bucket holds are given when it is full, and leave it in debt.

        Args:
            node_id: who takes.
            now: seconds, monotonic.
            count: how many.
        """
        rate = self._rate
        self._forget(now)
        full_at = max(self._full_at.get(node_id, now), now)
        had = rate.burst - (full_at - now) * rate.per_second
        missing = min(count, rate.burst) - had
        if missing > 0.0:
            return missing / rate.per_second
        self._full_at.pop(node_id, None)
        self._full_at[node_id] = full_at + count / rate.per_second
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget who took longest ago while that one's bucket is full."""
        while self._full_at:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now:
                return
            del self._full_at[oldest]

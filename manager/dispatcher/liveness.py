"""Which nodes are alive, by when they were heard. Pure.

Heartbeats come by the thousand a second, so hearing one is an assignment to a slot of a dict, and
nothing is sorted: nodes stand in a wheel of buckets of a quarter of a second, in the one where
their time would be up. When a bucket is due, those heard since are moved on, the others are dead.
"""

from __future__ import annotations

import random
from collections import deque

import msgspec

from proto.ids import NodeID
from proto.objects import NANOSECONDS, ClusterSpec

BUCKET_SECONDS = 0.25

# Source: swarmkit manager/dispatcher/dispatcher.go (rateLimitCount, rateLimitPeriod).
REGISTRATIONS_MAX = 3
REGISTRATION_SECONDS = 8.0

GRACE_FACTOR = 2.0
GRACE_SECONDS_MAX = 60.0
# A handshake and a registration take a manager a few milliseconds. Nodes that come faster wait for
# each other until all of them give up, and come again.
RETURNS_PER_SECOND = 200
SPREAD_NODES_MIN = 32
HEARTBEAT_SECONDS_MIN = 0.1
JITTER = 0.1


class Beat(msgspec.Struct, frozen=True):
    """The rhythm of a cluster's heartbeats.

    Attributes:
        period_seconds: between two of a node.
        dead_seconds: of silence, then the node is dead.
    """

    period_seconds: float
    dead_seconds: float

    @classmethod
    def of(cls, spec: ClusterSpec) -> Beat:
        """Read the cluster's settings."""
        period = max(spec.dispatcher_heartbeat_ns / NANOSECONDS, HEARTBEAT_SECONDS_MIN)
        return cls(period, period * max(spec.dispatcher_heartbeats_missed_max, 1))

    def drawn(self, rng: random.Random) -> float:
        """Draw one node's period, so that nodes do not beat in step."""
        return self.period_seconds * rng.uniform(1 - JITTER, 1 + JITTER)


def spread_seconds(nodes: int) -> float:
    """Return over how long that many nodes spread their return to a manager.

    In steps of a quarter, so that a growing cluster does not tell all nodes with each new one.
    """
    if nodes <= SPREAD_NODES_MIN:
        return 0.0
    step = 1 << max(nodes.bit_length() - 3, 0)
    return float(-(-nodes // step) * step) / RETURNS_PER_SECOND


class Liveness:
    """Nodes that are believed alive, and until when."""

    def __init__(self, dead_seconds: float) -> None:
        """Watch nobody yet."""
        self._dead_seconds = dead_seconds
        self._until: dict[NodeID, float] = {}
        self._places: dict[NodeID, int] = {}
        self._wheel: dict[int, list[NodeID]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, node_id: NodeID) -> bool:
        return node_id in self._until

    def set_dead_seconds(self, seconds: float) -> None:
        """Change what silence means death, from each node's next sign of life on."""
        self._dead_seconds = seconds

    def heard(self, node_id: NodeID, now: float) -> None:
        """Note a sign of life; it begins to watch a node, too."""
        until = now + self._dead_seconds
        self._until[node_id] = until
        # Mostly it stands in an earlier bucket already, and is moved on when that is due.
        place = self._places.get(node_id)
        if place is None or until < place * BUCKET_SECONDS:
            self._place(node_id, until)

    def expect(self, node_id: NodeID, until: float) -> None:
        """Believe a node alive until then, or longer if it is already."""
        if until > self._until.get(node_id, until - 1):
            self._until[node_id] = until
            if node_id not in self._places:
                self._place(node_id, until)

    def forget(self, node_id: NodeID) -> None:
        """Watch a node no more."""
        self._until.pop(node_id, None)
        self._places.pop(node_id, None)

    def next_at(self) -> float | None:
        """Return when `due` has to be asked next; None if nobody is watched."""
        if not self._until:
            return None
        return (min(self._wheel) + 1) * BUCKET_SECONDS

    def due(self, now: float) -> list[NodeID]:
        """Return those whose time is up, and watch them no more."""
        dead: list[NodeID] = []
        current = int(now / BUCKET_SECONDS)
        for bucket in sorted(bucket for bucket in self._wheel if bucket < current):
            for node_id in self._wheel.pop(bucket):
                if self._places.get(node_id) != bucket:
                    continue  # It was forgotten or moved since.
                until = self._until[node_id]
                if until > now:
                    self._place(node_id, until)
                else:
                    self.forget(node_id)
                    dead.append(node_id)
        return dead

    def check(self) -> None:
        """Verify that each watched node stands in one bucket, which is not too late."""
        assert self._until.keys() == self._places.keys()
        for node_id, bucket in self._places.items():
            assert node_id in self._wheel[bucket], node_id
            assert bucket <= int(self._until[node_id] / BUCKET_SECONDS), node_id

    def _place(self, node_id: NodeID, until: float) -> None:
        bucket = int(until / BUCKET_SECONDS)
        self._places[node_id] = bucket
        self._wheel.setdefault(bucket, []).append(node_id)


class Grace:
    """How long nodes that have not come back to a new leader are believed alive.

    Twice the silence that else means death, and longer while nodes keep coming back: a leader that
    has thousands to greet does not take the last of them for dead.
    """

    def __init__(self, now: float, dead_seconds: float) -> None:
        """Begin when leadership does."""
        self._dead_seconds = dead_seconds
        self._latest = now + max(GRACE_SECONDS_MAX, GRACE_FACTOR * dead_seconds)
        self.until = now + GRACE_FACTOR * dead_seconds

    def returned(self, now: float) -> None:
        """A node came back: the others have at least as long as silence may last."""
        if now < self.until:
            self.until = min(self._latest, max(self.until, now + self._dead_seconds))


class RegistrationLimit:
    """Refuses a node that registers again and again."""

    def __init__(self) -> None:
        """Know nobody."""
        self._times: dict[NodeID, deque[float]] = {}

    def is_allowed(self, node_id: NodeID, now: float) -> bool:
        """Count an attempt; tell whether it is one of the first three within 8 seconds."""
        since = now - REGISTRATION_SECONDS
        # The one that came last stands last, so what is old is in front.
        while self._times:
            oldest = next(iter(self._times))
            if self._times[oldest][-1] > since:
                break
            del self._times[oldest]
        times = self._times.pop(node_id, deque())
        while times and times[0] <= since:
            times.popleft()
        if len(times) < REGISTRATIONS_MAX:
            times.append(now)
            self._times[node_id] = times
            return True
        self._times[node_id] = times
        return False

"""Every number that bounds the transport, in one value. Pure."""

from __future__ import annotations

import enum
import random

import msgspec

KIB = 1024
MIB = 1024 * KIB


class Lane(enum.Enum):
    """Messages of one lane arrive in order; the lanes do not wait for each other.

    Each lane has a TCP connection of its own, so a heartbeat stands behind no megabytes, neither
    in our queue nor in HTTP/2's windows nor in the kernel's buffers.
    """

    CONTROL = "control"
    """Heartbeats, votes and all replies: small and urgent; the newest count."""

    ENTRIES = "entries"
    """Appends: large, and of use only without gaps, so the oldest count."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What is bounded, and by how much.

    Attributes:
        message_bytes_max: one encoded message; a proposal has at most 1.5 MiB.
        frame_bytes: messages are gathered into one frame up to this; a larger one goes alone.
        control_messages_max: queued for one peer on the control lane.
        control_bytes_max: the same, in bytes.
        control_messages_kept: what the control lane keeps while the peer cannot be reached.
        entries_messages_max: queued for one peer on the entries lane.
        entries_bytes_max: the same, in bytes.
        window_bytes: what a receiver that does not read lets the sender have under way, a stream.
            At 100 ms there and back that allows 40 MiB/s.
        snapshot_header_bytes_max: the first piece of a snapshot's stream.
        snapshot_chunk_bytes: the others; a larger chunk is cut.
        snapshot_stall_seconds_max: a snapshot's stream that does not move for so long is given up.
        snapshot_finish_seconds_max: what the receiver may take between last chunk and answer.
        connect_seconds_max: from nothing to an accepted stream.
        retry_seconds_first: the first retry comes after half of this to this.
        retry_seconds_max: no retry waits longer than this.
        keepalive_seconds: a connection that is silent for so long is asked for a sign of life.
        keepalive_answer_seconds: which must come within this, or the connection is dead.
        server_keepalive_seconds: the same as a server, which has nothing to say to a thousand
            workers and need not be quick: who dials looks after the connection.
        server_keepalive_answer_seconds: likewise.
        handshake_seconds_max: a stranger may hold a connection so long before it proved itself.
        idle_seconds_max: a connection without streams is closed.
    """

    message_bytes_max: int = 4 * MIB
    frame_bytes: int = 256 * KIB
    control_messages_max: int = 4_096
    control_bytes_max: int = 8 * MIB
    control_messages_kept: int = 64
    entries_messages_max: int = 8_192
    entries_bytes_max: int = 32 * MIB
    window_bytes: int = 4 * MIB
    snapshot_header_bytes_max: int = 64 * KIB
    snapshot_chunk_bytes: int = 256 * KIB
    snapshot_stall_seconds_max: float = 30.0
    snapshot_finish_seconds_max: float = 120.0
    connect_seconds_max: float = 2.0
    retry_seconds_first: float = 0.01
    retry_seconds_max: float = 0.5
    keepalive_seconds: float = 0.5
    keepalive_answer_seconds: float = 0.5
    server_keepalive_seconds: float = 5.0
    server_keepalive_answer_seconds: float = 5.0
    handshake_seconds_max: float = 15.0
    idle_seconds_max: float = 60.0

    @property
    def received_bytes_max(self) -> int:
        """The largest frame that a peer which keeps to the limits can send."""
        return self.message_bytes_max + self.frame_bytes + 64 * KIB


def retry_seconds(attempt: int, limits: Limits, rng: random.Random) -> float:
    """Return how long to wait after the failure number `attempt` (0 is the first) in a row.

    Doubles from `retry_seconds_first` to `retry_seconds_max`; between half and all of it is
    drawn, so that members that lost the same peer do not come back in step.
    """
    assert attempt >= 0
    # More doublings than these would overflow a float and change nothing.
    longest = min(limits.retry_seconds_max, limits.retry_seconds_first * 2.0 ** min(attempt, 30))
    return longest * rng.uniform(0.5, 1.0)

"""What a member is given: its numbers, and what carries its messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from raft.transport.limits import Lane as Way

NodeName = str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a member that are not the cluster's.

    Attributes:
        tick_seconds: what a tick of the core is.
        election_ticks: see `raft.core.Config`.
        heartbeat_ticks: the same.
        has_lease_reads: the same. Unsafe on machines that can be paused from outside.
        in_flight_bytes_max: proposals that are not committed yet may take so much memory.
        batch_bytes_max: proposals go into the log in batches of about this.
        entries_kept: how many entries a snapshot leaves for slow followers.
        kept_bytes_max: unless they have more bytes than this.
        awaited_bytes_max: what a peer on its way up is about to need is kept as well, unless it has
            more bytes than this.
        unstored_bytes_max: a member whose disk hangs reads no more of a leader's entries than this.
        ship_seconds_first: the pause after a snapshot that could not be sent; it doubles.
        ship_seconds_max: no such pause is longer.
    """

    tick_seconds: float = 0.1
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    has_lease_reads: bool = False
    in_flight_bytes_max: int = 64 << 20
    batch_bytes_max: int = 1 << 20
    entries_kept: int = 500
    kept_bytes_max: int = 16 << 20
    awaited_bytes_max: int = 64 << 20
    unstored_bytes_max: int = 16 << 20
    ship_seconds_first: float = 0.1
    ship_seconds_max: float = 30.0


class Transport(Protocol):
    """What carries messages; `raft.transport.transport.Transport` does."""

    def set_peer(self, node_id: str, address: str, /) -> None:
        """Keep connections to a peer at this address."""

    def remove_peer(self, node_id: str, /) -> None:
        """End them."""

    def send(self, node_id: str, messages: Sequence[bytes], /, *, lane: Way = ...) -> None:
        """Queue messages; some may be lost, but those of one lane keep their order."""

    async def send_snapshot(
        self, node_id: str, header: bytes, chunks: AsyncIterator[bytes], /
    ) -> None:
        """Send a snapshot; return when the peer has taken it."""

    async def close(self) -> None:
        """End all connections."""

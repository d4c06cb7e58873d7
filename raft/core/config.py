"""The settings of a core. Times are ticks of the caller's, sizes are bytes of entries' data."""

from __future__ import annotations

import msgspec

from raft.core.values import RaftID


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What one member is told at its start.

    Attributes:
        id: its number.
        election_ticks: without a leader for this long, up to twice as long, it asks for votes; a
            leader without a majority for this long steps down.
        heartbeat_ticks: between two heartbeats.
        has_lease_reads: a leader that a majority followed lately serves reads without asking.
            They rest on the ticks of its caller: one whose clock may stand still (a virtual
            machine that its host pauses) may serve what is long out of date.
        entries_bytes_max: in one message, unless a single entry is larger.
        entries_max: in one message.
        probe_bytes_max: in one message to a peer of whom it is not known where it stands.
        under_way_messages_max: batches sent to a peer and not answered.
        under_way_bytes_max: their sum; one batch may go over it.
        uncommitted_bytes_max: proposals beyond it are refused until some are committed.
        apply_bytes_max: committed entries in one `Ready`, unless a single one is larger.
        store_ticks_max: a leader whose disk takes longer steps down; 0 for `election_ticks`.
        reads_waiting_max: reads that wait for a round of heartbeats; more fail at once.
        promotion_lag_entries_max: how far behind a learner may be to become a voter.
        catch_up_ticks_max: a peer that came no nearer for so long is not waited for when old
            entries are dropped.
    """

    id: RaftID
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    has_lease_reads: bool = False
    entries_bytes_max: int = 1 << 20
    entries_max: int = 4096
    probe_bytes_max: int = 64 << 10
    under_way_messages_max: int = 64
    under_way_bytes_max: int = 4 << 20
    uncommitted_bytes_max: int = 64 << 20
    apply_bytes_max: int = 8 << 20
    store_ticks_max: int = 0
    reads_waiting_max: int = 1 << 16
    promotion_lag_entries_max: int = 500
    catch_up_ticks_max: int = 1800

    @property
    def lease_ticks(self) -> int:
        """How long after sending a heartbeat its answers are a lease.

        Voters refuse others for more than `election_ticks - 1` ticks of their clocks. A fifth
        less bears clocks that differ by that much.
        """
        return max(0, self.election_ticks - 1 - self.election_ticks // 5)

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.id <= 0:
            raise ValueError(f"a member's number is above 0, not {self.id}")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError(
                f"heartbeats every {self.heartbeat_ticks} ticks do not hold off elections "
                f"after {self.election_ticks}"
            )

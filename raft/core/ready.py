"""What a core asks its caller to do."""

from __future__ import annotations

import msgspec

from raft.core.messages import Message
from raft.core.values import Entries, HardState, ReadState, Snapshot


class Ready(msgspec.Struct, frozen=True, gc=False):
    """The work of one round, as data. The order of duties is the contract:

    1. Send `messages` (any time from now; a lost one is harmless).
    2. Store, in this order: `snapshot` (install it, replacing log and state), `hard_state`,
       `entries` (first cut whatever is stored at or after `entries.first`). A crash may leave any
       beginning of that order. Sync once. Readys are stored in the order of their numbers, and
       several may share one sync.
    3. Only after this Ready *and all earlier ones* are durable: call `core.persisted(number)` and
       send `messages_after`.
    4. Apply `committed`, in order; they are durable here already, and may be applied before 2 is
       done, but after the `snapshot` of this or an earlier Ready is installed.
    5. Serve each of `reads` once everything up to its index is applied; fail `reads_failed`.

    `core.ready()` may be called again before any of this is done.

    Attributes:
        number: ascending.
        hard_state: changed, or due with entries; None if there is nothing to store of it.
        entries: to append; None without.
        snapshot: to install; its content came before the message that brought it here.
        messages: to send now, heartbeats first.
        messages_after: to send once it is all durable: they promise it.
        committed: to apply; None without.
        reads: reads that may go on.
        reads_failed: contexts of reads that must be asked for again.
    """  # noqa: D415 -- the first line introduces the list

    number: int
    hard_state: HardState | None
    entries: Entries | None
    snapshot: Snapshot | None
    messages: list[Message]
    messages_after: list[Message]
    committed: Entries | None
    reads: list[ReadState]
    reads_failed: list[int]

    @property
    def has_to_store(self) -> bool:
        """Whether duty 2 is anything at all, and `persisted` is waited for."""
        return not (self.hard_state is None and self.entries is None and self.snapshot is None)

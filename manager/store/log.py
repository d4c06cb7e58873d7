"""What the store needs of a replicated log; `raft.node.RaftNode` fits.

The store serialises a transaction into one entry and proposes it. Entries are committed in the
order of the proposals; the future of each resolves with its index when it is durable on a
majority, or fails:

* `NotLeaderError`: surely not in the log, another manager leads;
* `ResourceExhaustedError`: surely not in the log, the disk or a queue is full;
* `UnavailableError`: unknown, leadership or the disk was lost meanwhile.

What others proposed, and who may propose, is told to the listener that was attached.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from proto.errors import SwarmError
from raft.entry import Entry
from raft.listener import Listener

__all__ = ["Entry", "Listener", "ReplicatedLog"]


class ReplicatedLog(Protocol):
    """An ordered, durable list of entries with snapshots."""

    @property
    def last_index(self) -> int:
        """The index of the newest entry, committed or not."""

    @property
    def snapshot_index(self) -> int:
        """The last entry that the newest durable snapshot contains; 0 without one."""

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Append an entry; never blocks.

        Raises:
            ResourceExhaustedError: too many bytes are in flight.
        """

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Return the newest snapshot's chunks, if any, and the entries after it; once, at start.

        Entries without data are the log's own and change nothing.
        """

    def attach(self, listener: Listener) -> None:
        """Tell this one everything after what `restore` returned, beginning with who leads."""

    def refusal(self) -> SwarmError:
        """Return why nothing can be proposed here now."""

    async def read_barrier(self) -> int:
        """Wait until everything committed before this call is applied here.

        Raises:
            NotLeaderError: no leader is known.
            UnavailableError: no majority answers.
        """

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a snapshot of the state at `index`, durable on return; then drop older segments."""

    async def close(self) -> None:
        """Finish what was proposed and close the files."""

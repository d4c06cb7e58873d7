"""What a replicated log tells the one above it, besides the outcome of its own proposals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from proto.errors import SwarmError


class Listener(Protocol):
    """The state machine. Everything is told on the event loop, in the order of the log.

    An own proposal's future is done before anything that follows it in the log is told, so
    whoever looks at its futures first sees one order.
    """

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Take committed entries that nobody here waits for; empty ones change nothing.

        Args:
            first: the index of the first; there is no gap to what was told before.
            entries: their data.
        """

    async def install(self, index: int, chunks: Iterator[bytes]) -> None:
        """Replace the whole state by a snapshot of it at `index`; nothing else comes meanwhile.

        The iterator reads a file: use it in a thread.
        """

    def lead(self, term: int) -> None:
        """Propose from now on: everything from former leaders was told."""

    def follow(self) -> None:
        """Propose no more: leadership is lost. The futures under way are done, with errors."""

    def fail(self, error: SwarmError) -> None:
        """The log is broken; only opening it anew can help."""


class Deaf:
    """A listener that wants to know nothing."""

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Ignore it."""

    async def install(self, index: int, chunks: Iterator[bytes]) -> None:
        """Ignore it."""

    def lead(self, term: int) -> None:
        """Ignore it."""

    def follow(self) -> None:
        """Ignore it."""

    def fail(self, error: SwarmError) -> None:
        """Ignore it."""

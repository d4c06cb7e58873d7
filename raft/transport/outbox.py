"""What waits to be sent to one peer on one lane: a queue that cannot grow. Pure.

When it is full something has to go, and Raft stands it: every message is repeated or made
superfluous by a later one. On the control lane the oldest goes, since a newer heartbeat says all
that the older one did. On the entries lane the newest is refused, since appends behind a gap
would only be rejected.

Invariants: `length <= messages_max`, `size <= bytes_max`, and `size` is the sum of the lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raft.transport.limits import Lane, Limits


class Outbox:
    """A queue of encoded messages, bounded in number and bytes."""

    def __init__(self, lane: Lane, limits: Limits) -> None:
        """Begin empty."""
        self._keeps_newest = lane is Lane.CONTROL
        self._messages_max = limits.control_messages_max
        self._bytes_max = limits.control_bytes_max
        self._messages_kept = limits.control_messages_kept
        if lane is Lane.ENTRIES:
            self._messages_max = limits.entries_messages_max
            self._bytes_max = limits.entries_bytes_max
            self._messages_kept = 0
        assert self._bytes_max >= limits.message_bytes_max
        self._frame_bytes = limits.frame_bytes
        self._messages: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def size(self) -> int:
        """Bytes in the queue."""
        return self._bytes

    def put(self, messages: Sequence[bytes]) -> int:
        """Add messages at the end; return how many, of these or older ones, were dropped."""
        dropped = 0
        for position, message in enumerate(messages):
            size = len(message)
            if not self._fits(size) and not self._keeps_newest:
                return len(messages) - position
            while not self._fits(size):
                self._bytes -= len(self._messages.popleft())
                dropped += 1
            self._messages.append(message)
            self._bytes += size
        return dropped

    def take(self) -> list[bytes]:
        """Remove and return the next frame's messages: at least one unless the queue is empty."""
        messages = self._messages
        if self._bytes <= self._frame_bytes:
            frame = list(messages)
            messages.clear()
            self._bytes = 0
            return frame
        frame = []
        size = 0
        while messages and (not frame or size + len(messages[0]) <= self._frame_bytes):
            size += len(messages[0])
            frame.append(messages.popleft())
        self._bytes -= size
        return frame

    def clip(self) -> int:
        """Forget what is not worth keeping for a peer that is away; return how many."""
        dropped = 0
        while len(self._messages) > self._messages_kept:
            self._bytes -= len(self._messages.popleft())
            dropped += 1
        return dropped

    def clear(self) -> int:
        """Forget everything: it was for a peer that may be no more; return how many."""
        dropped = len(self._messages)
        self._messages.clear()
        self._bytes = 0
        return dropped

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self._messages) <= self._messages_max
        assert self._bytes <= self._bytes_max
        assert self._bytes == sum(map(len, self._messages))

    def _fits(self, size: int) -> bool:
        return len(self._messages) < self._messages_max and self._bytes + size <= self._bytes_max

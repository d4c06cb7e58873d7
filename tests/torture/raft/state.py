"""The state machine of both systems: lists of numbers under keys. Pure.

Next to each list runs a digest of its beginning, so that a read can say what it saw in two
numbers and the checker can still tell whether that was the list of the others.
"""

from __future__ import annotations

import zlib

EMPTY_DIGEST = 0


def next_digest(digest: int, value: int) -> int:
    """Return the digest of a list that got one more value."""
    return zlib.crc32(value.to_bytes(8, "big"), digest)


class Lists:
    """What a member has applied."""

    def __init__(self, lists: dict[str, list[int]] | None = None) -> None:
        """Begin with what a snapshot held, or with nothing."""
        self.lists: dict[str, list[int]] = lists or {}
        self._digests: dict[str, int] = {}
        for key, values in self.lists.items():
            digest = EMPTY_DIGEST
            for value in values:
                digest = next_digest(digest, value)
            self._digests[key] = digest

    def append(self, key: str, value: int) -> None:
        """Add a value to the end of a key's list."""
        self.lists.setdefault(key, []).append(value)
        self._digests[key] = next_digest(self._digests.get(key, EMPTY_DIGEST), value)

    def read(self, key: str) -> tuple[int, int]:
        """Return how many values a key has and the digest of them all."""
        return len(self.lists.get(key, ())), self._digests.get(key, EMPTY_DIGEST)

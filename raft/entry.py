"""What a replicated log hands to the one above it."""

from __future__ import annotations

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """A committed entry: `index` counts from 1 without gaps."""

    index: int
    data: bytes

"""What a member promises once its disk has caught up: of each kind the newest promise says it all.

Pure. While a disk hangs a leader asks again and again how far its follower is; without this every
answer would wait in memory for the disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core import Message, RaftID
from raft.core.messages import AppendReply


def newest(older: Sequence[Message], newer: Sequence[Message]) -> list[Message]:
    """Join promises, all of which hold when the newer do; keep the farthest of each kind."""
    kept: list[Message] = []
    places: dict[tuple[RaftID, int], int] = {}
    for message in (*older, *newer):
        if not isinstance(message, AppendReply) or message.is_rejected:
            if message not in kept:
                kept.append(message)
            continue
        key = (message.to, message.term)
        place = places.get(key)
        if place is None:
            places[key] = len(kept)
            kept.append(message)
        else:
            before = kept[place]
            assert isinstance(before, AppendReply)
            if message.index > before.index:
                kept[place] = message
    return kept

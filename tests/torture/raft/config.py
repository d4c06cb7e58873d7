"""What the harness tells a member at its start, in a file of JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

PLAIN_TEXT = b"TORTURE-PLAIN-TEXT-"
"""Begins every entry's padding: a file that contains it is not encrypted."""


class MemberConfig(msgspec.Struct):
    """One member.

    Attributes:
        id: its place, from 0.
        addresses: where all members of the beginning listen, `host:port`.
        address: where this one does; it joins a running group if that is none of them.
        directory: for all that it stores.
        socket: where its clients connect.
        entry_bytes: an append is padded to about this size.
        snapshot_entries: a snapshot after so many entries; 0 for never.
        batching: PySyncObj's own setting of this name.
        seed: for its random numbers.
    """

    id: int
    addresses: list[str]
    address: str
    directory: str
    socket: str
    entry_bytes: int = 200
    snapshot_entries: int = 2_000
    batching: bool = False
    seed: int = 0

    def padding(self) -> bytes:
        """Return what makes an entry as large as it should be; it is no secret."""
        return (PLAIN_TEXT * (self.entry_bytes // len(PLAIN_TEXT) + 1))[: self.entry_bytes]


def load() -> MemberConfig:
    """Read the file that the command line names."""
    return msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=MemberConfig)

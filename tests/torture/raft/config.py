"""What the harness tells a member at its start, in a file of JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

PLAIN_TEXT = b"TORTURE-PLAIN-TEXT-"
"""Begins every entry's padding: a file that contains it is not encrypted."""

DISK_FULL_EXIT = 75
"""How a member ends that cannot start for want of room: no crash."""


def node_name(host: int) -> str:
    """Return the name of the node on a host."""
    return f"node{host}"


class MemberConfig(msgspec.Struct):
    """One member.

    Attributes:
        id: its place, from 0.
        addresses: where all members of the beginning listen, `host:port`.
        address: where this one does; it joins a running group if that is none of them.
        directory: for all that it stores.
        hang: while there is a file of this name its disk hangs.
        socket: where its clients connect.
        entry_bytes: an append is padded to about this size.
        snapshot_entries: a snapshot after so many entries; 0 for never.
        machine: the state machine of ours: the managers' "store", or the "lists" alone.
        batching: PySyncObj's own setting of this name.
        seed: for its random numbers.
        how: a first start of ours is to "create" or to "join".
        member_id: the number to join with.
        peers: who was a member then: number, whether it votes, node, address.
        certificate: ours; the next two go with it.
        key: its private key.
        roots: whom to trust.
    """

    id: int
    addresses: list[str]
    address: str
    directory: str
    socket: str
    hang: str = ""
    entry_bytes: int = 200
    snapshot_entries: int = 2_000
    machine: str = "store"
    batching: bool = False
    seed: int = 0
    how: str = "create"
    member_id: int = 0
    peers: list[tuple[int, bool, str, str]] = []
    certificate: str = ""
    key: str = ""
    roots: str = ""

    @property
    def node_id(self) -> str:
        """The node's name."""
        return node_name(self.id)

    def padding(self) -> bytes:
        """Return what makes an entry as large as it should be; it is no secret."""
        return (PLAIN_TEXT * (self.entry_bytes // len(PLAIN_TEXT) + 1))[: self.entry_bytes]


def load() -> MemberConfig:
    """Read the file that the command line names."""
    return msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=MemberConfig)

"""The managers that this node knows, kept on disk: a worker finds its cluster again by them.

Nothing in the file is secret, and nothing depends on it being newest: whoever is reached tells the
rest. Which of them is trusted is the certificates' affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from manager.daemon.identity import sync_directory
from proto.errors import CorruptError
from proto.ids import NodeID
from raft.core import Member, RaftID


class RememberedMember(msgspec.Struct, frozen=True, kw_only=True):
    """A manager: `address` is its node port; `member_id` is its number in the log, 0 if unknown."""

    node_id: NodeID
    address: str
    member_id: int = 0
    is_voter: bool = True


_DECODER = msgspec.json.Decoder(tuple[RememberedMember, ...])


def read_remembered(path: Path) -> tuple[RememberedMember, ...]:
    """Return what `write_remembered` wrote; nothing if there is no file.

    Raises:
        CorruptError: it is not readable.
    """
    try:
        return _DECODER.decode(path.read_bytes())
    except FileNotFoundError:
        return ()
    except msgspec.DecodeError as error:
        raise CorruptError(str(path), 0, f"not a list of managers ({error})") from error


def write_remembered(path: Path, members: Iterable[RememberedMember]) -> None:
    """Write the file whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(tuple(members))))
    temporary.rename(path)
    sync_directory(path.parent)


def to_raft(members: Iterable[RememberedMember]) -> tuple[Member, ...]:
    """Return those whose number is known as members of the log's group."""
    return tuple(
        Member(RaftID(member.member_id), member.is_voter, member.node_id, member.address)
        for member in members
        if member.member_id
    )

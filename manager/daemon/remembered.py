"""The managers that this node knows, kept on disk: a worker finds its cluster again by them.

Nothing in the file is secret, and nothing depends on it being newest: whoever is reached tells the
rest. Which of them is trusted is the certificates' affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from disk.replace import replace_file
from proto.errors import reason_of
from proto.ids import NodeID
from raft.core import Member, RaftID
from raft.files import disk_error

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class RememberedMember(msgspec.Struct, frozen=True, kw_only=True):
    """A manager: `address` is its node port; `member_id` is its number in the log, 0 if unknown."""

    node_id: NodeID
    address: str
    member_id: int = 0
    is_voter: bool = True


_DECODER = msgspec.json.Decoder(tuple[RememberedMember, ...])


def read_remembered(path: Path) -> tuple[RememberedMember, ...]:
    """Return what `write_remembered` wrote; nothing if there is no file, or a damaged one.

    Nobody needs it who can do without it: a manager knows the others by its log, and what a worker
    cannot find by it, it could not find without it either.
    """
    try:
        return _DECODER.decode(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, OSError) as error:
        log.warning("managers_file_damaged", path=str(path), error=reason_of(error))
        return ()


def write_remembered(path: Path, members: Iterable[RememberedMember]) -> None:
    """Write the file whole or not at all, durable on return.

    Raises:
        ResourceExhaustedError, UnavailableError: the disk failed.
    """
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(tuple(members))))
    except OSError as error:
        raise disk_error(path, error) from error


def to_raft(members: Iterable[RememberedMember]) -> tuple[Member, ...]:
    """Return those whose number is known as members of the log's group."""
    return tuple(
        Member(RaftID(member.member_id), member.is_voter, member.node_id, member.address)
        for member in members
        if member.member_id
    )

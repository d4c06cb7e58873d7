"""What members say to each other, and how it is written down.

Every message has `sender`, `to` and the sender's `term`. `README.md` has the table of who sends
what when. Encoding is msgpack arrays with a number for the kind, many messages at a time;
decoding checks every type, so a stranger's bytes raise `msgspec.DecodeError`, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from raft.core.values import Entries, RaftID, Snapshot


class PreVote(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Would you vote for me in term + 1? Changes nobody's state."""

    sender: RaftID
    to: RaftID
    term: int
    last_index: int
    last_term: int


class PreVoteReply(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The answer; `asked` is the term it was asked about."""

    sender: RaftID
    to: RaftID
    term: int
    asked: int
    is_granted: bool


class Vote(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Vote for me in this term; `is_forced` if the leader itself asked for the election."""

    sender: RaftID
    to: RaftID
    term: int
    last_index: int
    last_term: int
    is_forced: bool


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The answer; a granted one leaves only after the vote is durable."""

    sender: RaftID
    to: RaftID
    term: int
    is_granted: bool


class Append(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Entries that follow `previous_index`, and how far the leader has committed."""

    sender: RaftID
    to: RaftID
    term: int
    previous_index: int
    previous_term: int
    commit: int
    entries: Entries


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """How far the follower's log equals the leader's, durably; or that it does not.

    Attributes:
        index: accepted up to here; the `previous_index` that did not fit if rejected.
        is_rejected: the entries did not fit.
        hint_index: the last place where the logs may still agree.
        hint_term: the follower's term there.
    """

    sender: RaftID
    to: RaftID
    term: int
    index: int
    is_rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """I lead; a round other than 0 wants an answer. `commit` is no further than what matches."""

    sender: RaftID
    to: RaftID
    term: int
    commit: int
    round: int


class HeartbeatReply(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """I follow you, as of this round."""

    sender: RaftID
    to: RaftID
    term: int
    round: int


class Install(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Take this snapshot. The caller sends the content before it, on a stream of its own."""

    sender: RaftID
    to: RaftID
    term: int
    snapshot: Snapshot


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Start an election at once: I hand over to you."""

    sender: RaftID
    to: RaftID
    term: int


class ReadRequest(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """A follower wants an index that makes a read linearizable; `life` is its present one."""

    sender: RaftID
    to: RaftID
    term: int
    context: int
    life: int


class ReadReply(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """The index for the read, to the life that asked."""

    sender: RaftID
    to: RaftID
    term: int
    context: int
    index: int
    life: int


Message = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | Install
    | TimeoutNow
    | ReadRequest
    | ReadReply
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])


def encode(messages: Sequence[Message]) -> bytes:
    """Write a batch of messages."""
    return _ENCODER.encode(messages)


def decode(data: bytes) -> list[Message]:
    """Read a batch of messages.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _DECODER.decode(data)

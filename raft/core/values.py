"""The values that a core stores and hands out: entries, hard state, snapshots, answers.

All are frozen and encode with msgspec as arrays. The lists inside are never changed after they
were made, by nobody: they are shared between the log, messages and records for the disk.
"""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

RaftID = NewType("RaftID", int)
"""A member's number: drawn at random when it joins, never used again after it was removed."""

NOBODY = RaftID(0)
"""Stands for "no leader" and "no vote"; no member has it."""

LIFE_BITS = 62
"""A life is drawn from so many bits at a member's start: none has had it before."""

NO_OP = b""
"""The entry with which a leader opens its term; users cannot propose it."""


class Role(enum.Enum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One member of the group; a learner receives entries and does not count.

    Attributes:
        id: its Raft number.
        is_voter: counts for quorums; a learner otherwise.
        node_id: the cluster's name for the machine; stays when the Raft number changes.
        address: where its peers reach it.
    """

    id: RaftID
    is_voter: bool
    node_id: str = ""
    address: str = ""


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """Who belongs to the group, whole: every change entry carries the complete new one.

    Attributes:
        members: ascending by number.
        removed: the newest numbers that left, in that order; they are not listened to.
    """

    members: tuple[Member, ...] = ()
    removed: tuple[RaftID, ...] = ()

    @property
    def voters(self) -> tuple[RaftID, ...]:
        """The numbers that count, ascending."""
        return tuple(member.id for member in self.members if member.is_voter)

    def find(self, member_id: RaftID) -> Member | None:
        """Return the member with this number."""
        return next((member for member in self.members if member.id == member_id), None)


class Entries(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run of consecutive log entries, at least one where it is stored or committed.

    Terms are kept by runs, so that a batch of entries costs nothing for each of them.

    Attributes:
        first: the index of the first.
        data: what each holds; empty for the one that opens a term.
        terms: (index, term) where a term begins, ascending; the first is at `first`.
        changes: the indexes of entries whose data is a membership, ascending.
    """

    first: int
    data: list[bytes]
    terms: tuple[tuple[int, int], ...]
    changes: tuple[int, ...] = ()

    @property
    def last(self) -> int:
        """The index of the last."""
        return self.first + len(self.data) - 1

    def term(self, index: int) -> int:
        """Return the term of one of these entries."""
        return next(term for start, term in reversed(self.terms) if start <= index)


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a member must not forget in a crash.

    Attributes:
        term: the newest term it has seen.
        vote: whom it voted for in that term.
        commit: a lower bound of the commit index: a hint, its loss is harmless.
    """

    term: int = 0
    vote: RaftID = NOBODY
    commit: int = 0


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The description of a snapshot; its content never passes through the core.

    Attributes:
        index: the last entry that it contains; 0 for the empty state of a new member.
        term: that entry's term.
        membership: the group as of that entry.
    """

    index: int = 0
    term: int = 0
    membership: Membership = Membership()


class ReadState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A read that may be served as soon as everything up to `index` is applied."""

    context: int
    index: int


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The proposal is in the leader's log, not yet committed.

    It is committed when an entry with that index *and* term is; it is lost for good when an entry
    of another term is committed there; until one of the two, its outcome is unknown.
    """

    first: int
    last: int
    term: int


class NotLeader(msgspec.Struct, frozen=True, gc=False):
    """Surely not in any log; `leader` is where to go, or nobody."""

    leader: RaftID


class RefusalCode(enum.Enum):
    """Why a leader refuses something that it could have accepted at another time."""

    HANDING_OVER = "handing over"
    BUSY = "busy"
    NOT_READY = "not ready"
    CHANGE_PENDING = "change pending"
    QUORUM_LOSS = "quorum loss"
    LAGGING = "lagging"
    INVALID = "invalid"


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Surely not in any log, and `reason` is a clause that says why."""

    code: RefusalCode
    reason: str


class InFavour(msgspec.Struct, frozen=True, gc=False):
    """A request without an entry of its own (a transfer) was taken up."""

"""Changes of the membership and the rules that guard them. Pure.

One change at a time moves at most one voter, so that any majority before and after it share a
member. A change counts from the moment when it is in the log, committed or not; hence the next
one waits until it is committed, and a new leader waits until it has committed an entry of its own
term (else two leaders of different terms could each change away from the same group and commit
without sharing a member).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import assert_never

import msgspec

from raft.core.quorum import majority
from raft.core.values import Entries, HardState, Member, Membership, RaftID, RefusalCode, Refused

BOOTSTRAP_TERM = 1
# So many of the numbers that left are remembered; `DESIGN.md` says why older ones do no harm.
REMOVED_MAX = 256


class AddLearner(msgspec.Struct, frozen=True):
    """A new member that receives entries and does not count yet."""

    member_id: RaftID
    node_id: str = ""
    address: str = ""


class Promote(msgspec.Struct, frozen=True):
    """A learner that has caught up becomes a voter."""

    member_id: RaftID


class Demote(msgspec.Struct, frozen=True):
    """A voter becomes a learner."""

    member_id: RaftID


class Remove(msgspec.Struct, frozen=True):
    """A member leaves for ever."""

    member_id: RaftID


class Readdress(msgspec.Struct, frozen=True):
    """A member is reached at another address."""

    member_id: RaftID
    address: str


Change = AddLearner | Promote | Demote | Remove | Readdress

_MEMBERSHIP = msgspec.msgpack.Decoder(Membership)
_ENCODER = msgspec.msgpack.Encoder()


def encode_membership(membership: Membership) -> bytes:
    """Write a membership as an entry's data."""
    return _ENCODER.encode(membership)


def decode_membership(data: bytes) -> Membership:
    """Read an entry's data."""
    return _MEMBERSHIP.decode(data)


def changed(  # noqa: C901, PLR0911 -- one for each way to make no sense
    membership: Membership, change: Change
) -> Membership | Refused:
    """Return the membership after the change, or why it makes no sense."""
    member = membership.find(change.member_id)
    others = tuple(other for other in membership.members if other.id != change.member_id)
    if isinstance(change, AddLearner):
        if member is not None or change.member_id in membership.removed:
            return _invalid(f"the number {change.member_id} was given before")
        if change.member_id <= 0:
            return _invalid("a member's number is above 0")
        return _with(
            membership,
            others,
            Member(change.member_id, False, change.node_id, change.address),
        )
    if member is None:
        return _invalid(f"there is no member {change.member_id}")
    match change:
        case Promote():
            if member.is_voter:
                return _invalid(f"member {member.id} is a voter already")
            changed_member = msgspec.structs.replace(member, is_voter=True)
        case Demote():
            if not member.is_voter:
                return _invalid(f"member {member.id} is a learner already")
            changed_member = msgspec.structs.replace(member, is_voter=False)
        case Readdress():
            changed_member = msgspec.structs.replace(member, address=change.address)
        case Remove():
            return Membership(others, _with_removed(membership, (member.id,)))
        case _:
            assert_never(change)
    return _with(membership, others, changed_member)


def quorum_refusal(after: Membership, reachable: Collection[RaftID]) -> Refused | None:
    """Return why the group could not go on after a change, or None if it can.

    Args:
        after: the membership that the change makes.
        reachable: the members that answered lately, and the leader itself.
    """
    voters = after.voters
    if not voters:
        return Refused(RefusalCode.QUORUM_LOSS, "the last voter cannot leave")
    needed = majority(len(voters))
    alive = sum(1 for voter in voters if voter in reachable)
    if alive < needed:
        return Refused(
            RefusalCode.QUORUM_LOSS,
            f"{alive} of the {len(voters)} voters that would be left can be reached, "
            f"{needed} are needed; bring others back first",
        )
    return None


def moves_voters(before: Membership, after: Membership) -> bool:
    """Whether a change gives or takes a vote."""
    return before.voters != after.voters


def bootstrap(membership: Membership) -> tuple[HardState, Entries]:
    """Return what each first member stores before its first start.

    The membership is the log's first entry, so that whoever joins later gets it like any other.
    """
    data = [encode_membership(membership)]
    return HardState(BOOTSTRAP_TERM, RaftID(0), 1), Entries(1, data, ((1, BOOTSTRAP_TERM),), (1,))


def force_new_cluster(
    hard_state: HardState, last_index: int, membership: Membership, survivor: Member
) -> tuple[HardState, Entries]:
    """Make a group of one from what a survivor has stored.

    Everything in its log will be committed with its first entry as the leader of itself: nobody
    else is left to say otherwise. Entries that others had acknowledged and the survivor never
    received are lost; that is the price. A crash between storing the two results changes nothing:
    the old group is still in the log, and this may be done again.

    Args:
        hard_state: as stored.
        last_index: the last entry in the survivor's log, or of its snapshot.
        membership: the newest one in its log, or of its snapshot.
        survivor: as it shall be from now; the number may be a new one.

    Returns:
        The hard state and the one entry to append before the next start.
    """
    term = hard_state.term + 1
    gone = tuple(member.id for member in membership.members if member.id != survivor.id)
    removed = tuple(left for left in _with_removed(membership, gone) if left != survivor.id)
    after = Membership((msgspec.structs.replace(survivor, is_voter=True),), removed)
    index = last_index + 1
    entries = Entries(index, [encode_membership(after)], ((index, term),), (index,))
    return HardState(term, RaftID(0), hard_state.commit), entries


def _with(membership: Membership, others: tuple[Member, ...], member: Member) -> Membership:
    members = tuple(sorted((*others, member), key=lambda each: each.id))
    return Membership(members, membership.removed)


def _with_removed(membership: Membership, gone: tuple[RaftID, ...]) -> tuple[RaftID, ...]:
    """Return the numbers that left, these last; the oldest are forgotten."""
    removed = (*membership.removed, *gone)
    return removed[max(0, len(removed) - REMOVED_MAX) :]


def _invalid(reason: str) -> Refused:
    return Refused(RefusalCode.INVALID, reason)

"""Changes of the membership and of the leader, as the leader decides on them."""

from __future__ import annotations

from raft.core.membership import (
    Change,
    Promote,
    changed,
    encode_membership,
    moves_voters,
    quorum_refusal,
)
from raft.core.replication import Replication
from raft.core.values import (
    NOBODY,
    Accepted,
    InFavour,
    NotLeader,
    RaftID,
    RefusalCode,
    Refused,
    Role,
)


class Changing(Replication):
    """The layer of changes; see the module."""

    def propose_change(self, change: Change) -> Accepted | NotLeader | Refused:
        """Change the membership by one member; it counts at once, and for good once committed."""
        if self.role is not Role.LEADER:
            return NotLeader(self.leader)
        after = changed(self._membership, change)
        if isinstance(after, Refused):
            return after
        refusal = (
            self._transfer_refusal()
            or self._own_term_refusal()
            or self._pending_refusal()
            or self._lag_refusal(change)
        )
        if refusal is None and moves_voters(self._membership, after):
            refusal = quorum_refusal(after, self._reachable())
        if refusal is not None:
            return refusal
        self.log.append_change(self.term, encode_membership(after), after)
        self._membership_changed()
        self._is_dirty = True
        return Accepted(self.log.last, self.log.last, self.term)

    def transfer_leader(self, to: RaftID) -> InFavour | NotLeader | Refused:
        """Hand over to a voter: it gets what it lacks, then starts an election at once.

        Proposals are refused meanwhile. After `election_ticks` without success the leader goes on.
        """
        if self.role is not Role.LEADER:
            return NotLeader(self.leader)
        if to == self.id:
            return Refused(RefusalCode.INVALID, f"member {to} leads already")
        progress = self._peers.get(to)
        if progress is None or not progress.is_voter:
            return Refused(RefusalCode.INVALID, f"member {to} is no voter")
        if to not in self._reachable():
            return Refused(RefusalCode.NOT_READY, f"member {to} did not answer lately")
        if self._transferee != NOBODY:
            return self._handing_over()
        self._transferee = to
        self._transfer_clock = self.clock
        self._is_dirty = True
        self._hand_over_if_ready()
        return InFavour()

    def _transfer_refusal(self) -> Refused | None:
        return None if self._transferee == NOBODY else self._handing_over()

    def _handing_over(self) -> Refused:
        return Refused(
            RefusalCode.HANDING_OVER, f"leadership is being handed over to {self._transferee}"
        )

    def _own_term_refusal(self) -> Refused | None:
        """A new leader first commits an entry of its own: it may lack a predecessor's change."""
        if self.log.commit >= self._term_start:
            return None
        return Refused(
            RefusalCode.NOT_READY,
            f"the leader has committed nothing in term {self.term} yet; try again",
        )

    def _pending_refusal(self) -> Refused | None:
        """One change at a time: the next may not share a majority with the one before last."""
        index = self.log.membership_index
        if index <= self.log.commit:
            return None
        return Refused(
            RefusalCode.CHANGE_PENDING,
            f"the change of entry {index} is not committed yet; try again",
        )

    def _lag_refusal(self, change: Change) -> Refused | None:
        """A voter that lacks much would hold up every commit that needs it."""
        if not isinstance(change, Promote):
            return None
        progress = self._peers.get(change.member_id)
        lag = self.log.last - (progress.match if progress else 0)
        allowed = self.config.promotion_lag_entries_max
        if change.member_id not in self._reachable():
            return Refused(RefusalCode.LAGGING, f"member {change.member_id} did not answer lately")
        if progress is not None and progress.match > 0 and lag <= allowed:
            return None
        return Refused(
            RefusalCode.LAGGING,
            f"member {change.member_id} is {lag} entries behind, at most {allowed} are allowed",
        )

    def _reachable(self) -> list[RaftID]:
        """The members that answered within an election time-out, and we."""
        horizon = self.clock - self.config.election_ticks
        peers = self._peers.items()
        return [self.id, *(peer for peer, progress in peers if progress.heard > horizon)]

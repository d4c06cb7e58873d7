"""Elections: time-outs, pre-votes, votes, and the promise that protects a living leader.

A member that heard from a leader lately refuses to help anybody else to an election, unless the
leader itself asked for it. Thus one that was cut off, or was removed, cannot disturb the others;
and a leader that a majority followed lately knows that nobody else can lead.
"""

from __future__ import annotations

from proto.errors import InvariantViolationError
from raft.core.messages import PreVote, PreVoteReply, TimeoutNow, Vote, VoteReply
from raft.core.quorum import Outcome, vote_outcome
from raft.core.state import CoreState
from raft.core.values import NOBODY, RaftID, Role


class Elections(CoreState):
    """The layer of elections; see the module."""

    def _tick_follower(self) -> None:
        self._elapsed += 1
        if self._elapsed >= self._timeout:
            # A disk that hangs could not store our own vote either.
            if self._can_stand() and not self._is_store_overdue():
                self._start_election()
            else:
                self._draw_timeout()

    def _can_stand(self) -> bool:
        """Whether we may have to lead.

        A voter may, and also one whose removal is in its log and not known to be committed: it may
        be the only one that has this entry, and then no other can win the votes that are needed.
        """
        if self._is_voter:
            return True
        log = self.log
        return log.membership_index > log.commit and self.id in log.membership_before.voters

    def _is_store_overdue(self) -> bool:
        """Whether the caller has not reported something as durable for too long."""
        if not self._marks:
            return False
        ticks = self.config.store_ticks_max or self.config.election_ticks
        return self.clock - self._marks[0].clock >= ticks

    def _start_election(self) -> None:
        """Ask first whether an election could be won; nobody's term grows by asking."""
        self.role = Role.PRE_CANDIDATE
        self.leader = NOBODY
        self._draw_timeout()
        self._votes = {self.id: True}
        last, last_term = self.log.last, self.log.last_term
        for voter in self._voters:
            if voter != self.id:
                self._messages.append(PreVote(self.id, voter, self.term, last, last_term))
        self._tally()

    def _stand(self, *, is_forced: bool) -> None:
        """Become a candidate of the next term. Requests leave once term and vote are durable.

        The log's end that they name is durable by then too: a candidate that forgot part of its
        log must not win with votes that were given to the longer one.
        """
        if not self._can_stand():
            raise InvariantViolationError(f"member {self.id} has no vote and stands in an election")
        self.role = Role.CANDIDATE
        self.leader = NOBODY
        self.term += 1
        self.vote = self.id
        self._votes = {}
        self._draw_timeout()
        last, last_term = self.log.last, self.log.last_term
        for voter in self._voters:
            if voter != self.id:
                self._promise(Vote(self.id, voter, self.term, last, last_term, is_forced))

    def _count_own_vote(self) -> None:
        """Our vote counts, like anybody's, once it is durable."""
        if self._durable_term == self.term and self.id not in self._votes:
            self._votes[self.id] = True
            self._tally()

    def _tally(self) -> None:
        outcome = vote_outcome(self._voters, self._votes)
        if outcome is Outcome.WON:
            if self.role is Role.PRE_CANDIDATE:
                self._stand(is_forced=False)
            else:
                self._become_leader()
        elif outcome is Outcome.LOST:
            self._become_follower(self.term, NOBODY)

    def _hear(self, leader: RaftID) -> None:
        """A leader of this term spoke: follow it, and promise it not to help others."""
        if self.leader != leader:
            self._recognise(leader)
        self._elapsed = 0
        self._promised_until = self.clock + self.config.election_ticks

    def _recognise(self, leader: RaftID) -> None:
        if self.leader != NOBODY or self.role is Role.LEADER:
            raise InvariantViolationError(
                f"members {self.leader} and {leader} both lead term {self.term}"
            )
        self._become_follower(self.term, leader)

    def _is_protected(self) -> bool:
        """Whether somebody leads who may count on us."""
        return self.role is Role.LEADER or self.clock < self._promised_until

    def _may_help(self, message: PreVote | Vote) -> bool:
        """Whether the promise to a leader leaves us free to help a candidate, in whatever term.

        Asked for every vote and pre-vote. The term says nothing about the promise: an answer to
        us, or anything else, may have raised it since the leader was heard. Only the leader itself
        can release us, by telling the candidate to stand.
        """
        is_released = isinstance(message, Vote) and message.is_forced
        return is_released or not self._is_protected()

    def _is_up_to_date(self, message: PreVote | Vote) -> bool:
        """Whether the candidate has every entry that we may have helped to commit."""
        return self.log.is_up_to_date(message.last_index, message.last_term)

    def _may_vote(self, candidate: RaftID) -> bool:
        """Whether our vote of this term is free, or the candidate's already."""
        return self.vote == candidate or (self.vote == NOBODY and self.leader == NOBODY)

    def _on_pre_vote(self, message: PreVote) -> None:
        is_granted = (
            message.term >= self.term and self._may_help(message) and self._is_up_to_date(message)
        )
        self._messages.append(
            PreVoteReply(self.id, message.sender, self.term, message.term + 1, is_granted)
        )

    def _on_pre_vote_reply(self, message: PreVoteReply) -> None:
        if self.role is Role.PRE_CANDIDATE and message.asked == self.term + 1:
            self._votes[message.sender] = message.is_granted
            self._tally()

    def _on_vote(self, message: Vote) -> None:
        is_free = self._may_vote(message.sender) and self._may_help(message)
        if is_free and self._is_up_to_date(message):
            self.vote = message.sender
            self._draw_timeout()
            self._promise(VoteReply(self.id, message.sender, self.term, True))
        else:
            self._messages.append(VoteReply(self.id, message.sender, self.term, False))

    def _on_vote_reply(self, message: VoteReply) -> None:
        if self.role is Role.CANDIDATE:
            self._votes[message.sender] = message.is_granted
            self._tally()

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over: no need to ask first, or to wait for its lease."""
        if self._can_stand() and self.role is not Role.LEADER and message.term == self.term:
            self._stand(is_forced=True)

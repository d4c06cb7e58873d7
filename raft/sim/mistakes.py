"""More known mistakes, planted like those of `bugs`: most of them with no scenario in mind.

Each is what a hurried change might make of one small method.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

from msgspec import structs
from typing_extensions import override

from raft.core import NOBODY, Core, Entries, HardState, Snapshot
from raft.core.log import Log
from raft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    ReadReply,
    Vote,
)
from raft.core.progress import Progress
from raft.core.ready import Ready
from raft.core.state import Asked
from raft.core.values import ReadState, Role

# Terms.


class PromiseEndsWithTerm(Core):
    """Asks itself whether it may help only if the request brings a newer term."""

    @override
    def _may_help(self, message: PreVote | Vote) -> bool:
        return message.term == self.term or super()._may_help(message)


class NoPromise(Core):
    """Helps anybody to an election, whoever leads."""

    @override
    def _is_protected(self) -> bool:
        return self.role is Role.LEADER


class VoteNotStoredAlone(Core):
    """Stores a vote along with a new term only."""

    @override
    def ready(self) -> Ready | None:
        if self._emitted_term == self.term:
            self._emitted_vote = self.vote
        return super().ready()


class VoteForgotten(Core):
    """Starts without knowing whom it voted for."""

    def __init__(self, *args: Any, **stored: Any) -> None:
        super().__init__(*args, **stored)
        self.vote = self._emitted_vote = NOBODY


class TermForgotten(Core):
    """Starts in the term of its last entry."""

    def __init__(self, *args: Any, hard_state: HardState = HardState(), **stored: Any) -> None:  # noqa: B008 -- immutable
        entries: Entries | None = stored.get("entries")
        snapshot: Snapshot = stored.get("snapshot", Snapshot())
        term = entries.terms[-1][1] if entries is not None else snapshot.term
        super().__init__(*args, hard_state=structs.replace(hard_state, term=term), **stored)


class RequestBeforePersist(Core):
    """Asks for votes before its own is durable."""

    @override
    def _promise(self, message: Message) -> None:
        if isinstance(message, Vote):
            self._messages.append(message)
        else:
            super()._promise(message)


class OwnVoteAtOnce(Core):
    """Counts its own vote before it is durable."""

    @override
    def _stand(self, *, is_forced: bool) -> None:
        super()._stand(is_forced=is_forced)
        self._votes[self.id] = True
        self._tally()


# Majorities.


class HalfElects(Core):
    """Takes half of the voters for a majority in an election."""

    @override
    def _tally(self) -> None:
        granted = sum(self._votes.get(voter) is True for voter in self._voters)
        if self.role is Role.CANDIDATE and granted * 2 >= len(self._voters) > 1:
            self._become_leader()
        else:
            super()._tally()


class HalfCommits(Core):
    """Takes half of the voters for a majority that has an entry."""

    @override
    def _advance_commit(self) -> None:
        reached = sorted(progress.match for progress in self._voting_peers)
        if self._is_voter and len(reached) % 2 and len(reached) > 1:
            index = min(reached[len(reached) // 2 + 1], self.log.durable)
            if index > self.log.commit and self._may_commit(index):
                self.log.commit_to(index)
        super()._advance_commit()


class LearnersCount(Core):
    """Counts learners for its majorities."""

    @override
    def _track_peers(self) -> None:
        super()._track_peers()
        self._voting_peers = list(self._peers.values())


class RemovedCountOn(Core):
    """Goes on counting those who left for its majorities."""

    @override
    def _track_peers(self) -> None:
        before = [each for each in self._voting_peers if each.is_voter]
        super()._track_peers()
        self._voting_peers += [each for each in before if each not in self._voting_peers]


class NeverStepsDown(Core):
    """Leads on, whoever answers."""

    @override
    def _has_majority(self) -> bool:
        return True


# Entries.


class FollowerCommitsItsEnd(Core):
    """Commits up to the end of its own log, though the message says less about it."""

    @override
    def _on_append(self, message: Append) -> None:
        super()._on_append(message)
        log = self.log
        if log.term(message.previous_index) == message.previous_term:
            log.commit_to(max(log.commit, min(message.commit, log.last)))
            self._commit_moved()


class AcknowledgesItsEnd(Core):
    """Acknowledges its whole log, though the message says less about it."""

    @override
    def _promise(self, message: Message) -> None:
        if isinstance(message, AppendReply) and not message.is_rejected:
            message = structs.replace(message, index=max(message.index, self.log.last))
        super()._promise(message)


class _BlindLog(Log):
    __slots__ = ()

    @override
    def merge(self, previous_index: int, previous_term: int, entries: Entries) -> int:
        term = self.term(previous_index)
        return super().merge(previous_index, previous_term if term < 0 else term, entries)


class PreviousTermIgnored(Core):
    """Takes entries behind a place of whatever term."""

    _log_class: ClassVar[type[Log]] = _BlindLog


class _EagerLog(Log):
    __slots__ = ()

    @override
    def take_committed(self, bytes_max: int) -> Entries | None:
        durable, self.durable = self.durable, self.emitted
        taken = super().take_committed(bytes_max)
        self.durable = durable
        return taken


class AppliesBeforeDurable(Core):
    """Applies what is committed before its own disk has it."""

    _log_class: ClassVar[type[Log]] = _EagerLog


class SnapshotOfNewestMembership(Core):
    """Writes the newest membership into a snapshot, also if it came later."""

    @override
    def describe_snapshot(self, index: int) -> Snapshot:
        snapshot = super().describe_snapshot(index)
        return structs.replace(snapshot, membership=self._membership)


# Reads.


class FollowerReadsItsOwn(Core):
    """Serves reads at its own commit index while it follows somebody."""

    @override
    def read_index(self, context: int) -> bool:
        if self.role is Role.FOLLOWER and self.leader != NOBODY:
            self._reads_done.append(ReadState(context, self.log.commit))
            return True
        return super().read_index(context)


class OldRoundAnswered(Core):
    """Answers any heartbeat with the newest round that it has heard of."""

    _newest = 0

    @override
    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._newest = max(self._newest, message.round) + 1
        super()._on_heartbeat(structs.replace(message, round=self._newest))


class OneAnswerConfirms(Core):
    """Where it asks for each read, takes the first answer of anybody for that of a majority."""

    @override
    def _confirm_rounds(self) -> None:
        if not self.config.has_lease_reads:
            newest = max(self._voting_peers, key=attrgetter("round"), default=None)
            voting, self._voting_peers = self._voting_peers, [newest] if newest else []
            super()._confirm_rounds()
            self._voting_peers = voting
        else:
            super()._confirm_rounds()


class JoinsRoundUnderWay(Core):
    """Takes answers to what was sent before a read began for an answer to the read."""

    @override
    def _read(self, read: Asked) -> None:
        unanswered = int(self._confirmed < self._round)
        self._round -= unanswered
        super()._read(read)
        self._round += unanswered


class AnswersFormerLife(Core):
    """Takes an answer to a read of a former life for one to its own."""

    @override
    def _on_read_reply(self, message: ReadReply) -> None:
        super()._on_read_reply(structs.replace(message, life=self._life))


# Progress.


class _DeafProgress(Progress):
    __slots__ = ()

    @override
    def answered(self) -> bool:
        return False


class LostProbeNeverRepeated(Core):
    """Waits for ever for the answer to a probe."""

    @override
    def _track_peers(self) -> None:
        super()._track_peers()
        for progress in self._peers.values():
            progress.__class__ = _DeafProgress


class HeartbeatsCommitAll(Core):
    """Takes the leader's heartbeat for a word about its own whole log."""

    @override
    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        super()._on_heartbeat_reply(message)
        progress = self._peers.get(message.sender)
        if progress is not None and progress.match < progress.next - 1:
            progress.match = progress.next - 1


MISTAKES: dict[str, type[Core]] = {
    "promise-ends-with-term": PromiseEndsWithTerm,
    "no-promise": NoPromise,
    "vote-not-stored-alone": VoteNotStoredAlone,
    "vote-forgotten": VoteForgotten,
    "term-forgotten": TermForgotten,
    "request-before-persist": RequestBeforePersist,
    "own-vote-at-once": OwnVoteAtOnce,
    "half-elects": HalfElects,
    "half-commits": HalfCommits,
    "learners-count": LearnersCount,
    "removed-count-on": RemovedCountOn,
    "never-steps-down": NeverStepsDown,
    "follower-commits-its-end": FollowerCommitsItsEnd,
    "acknowledges-its-end": AcknowledgesItsEnd,
    "previous-term-ignored": PreviousTermIgnored,
    "applies-before-durable": AppliesBeforeDurable,
    "snapshot-of-newest-membership": SnapshotOfNewestMembership,
    "follower-reads-its-own": FollowerReadsItsOwn,
    "old-round-answered": OldRoundAnswered,
    "one-answer-confirms": OneAnswerConfirms,
    "joins-round-under-way": JoinsRoundUnderWay,
    "answers-former-life": AnswersFormerLife,
    "lost-probe-never-repeated": LostProbeNeverRepeated,
    "heartbeats-commit-all": HeartbeatsCommitAll,
}

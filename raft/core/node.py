"""One member's consensus: the public face of the core.

    core = Core(config, rng, hard_state=..., snapshot=..., entries=...)   # from storage
    each tick:          core.tick()
    each message:       core.step(message)
    each batch:         core.propose([...])
    after any of them:  while (ready := core.ready()) is not None: do its duties
    after each sync:    core.persisted(ready.number)

No clock, no I/O, no threads, and no randomness but the `rng` that is passed in: the same calls
give the same results. A broken invariant raises `InvariantViolationError`: the member must stop.
`README.md` tells a caller all it needs; `DESIGN.md` derives why it is safe.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import assert_never

from proto.errors import InvariantViolationError
from raft.core.changing import Changing
from raft.core.config import Config
from raft.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Install,
    Message,
    PreVote,
    PreVoteReply,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    Vote,
    VoteReply,
)
from raft.core.ready import Ready
from raft.core.state import Asked, Mark
from raft.core.values import (
    NOBODY,
    Accepted,
    Entries,
    HardState,
    Membership,
    NotLeader,
    RaftID,
    RefusalCode,
    Refused,
    Role,
    Snapshot,
)


class Core(Changing):
    """One member; see the module."""

    def __init__(
        self,
        config: Config,
        rng: random.Random,
        *,
        hard_state: HardState = HardState(),  # noqa: B008 -- immutable
        snapshot: Snapshot = Snapshot(),  # noqa: B008 -- immutable
        entries: Entries | None = None,
    ) -> None:
        """Start as a follower from what was stored; a joining member has stored nothing.

        Args:
            config: the settings.
            rng: draws the election time-outs, and what tells this life from former ones.
            hard_state: the stored one.
            snapshot: the newest stored one.
            entries: all stored entries; they may begin before the snapshot ends.
        """
        super().__init__(config, rng, hard_state=hard_state, snapshot=snapshot, entries=entries)

    # Input.

    def tick(self) -> None:
        """Let one tick of time pass."""
        self.clock += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        else:
            self._tick_follower()

    def step(self, message: Message) -> None:  # noqa: C901, PLR0912 -- one case a message
        """Take a message from a peer, whose identity the caller has checked."""
        if message.to != self.id:
            raise InvariantViolationError(f"member {self.id} got a message to {message.to}")
        if message.sender in self._removed:
            return
        if message.term > self.term:
            if not self._adopt_term(message):
                return
        elif message.term < self.term and not self._takes_older(message):
            return
        match message:
            case Append():
                self._on_append(message)
            case AppendReply():
                self._on_append_reply(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case HeartbeatReply():
                self._on_heartbeat_reply(message)
            case ReadRequest():
                self._on_read_request(message)
            case ReadReply():
                self._on_read_reply(message)
            case PreVote():
                self._on_pre_vote(message)
            case PreVoteReply():
                self._on_pre_vote_reply(message)
            case Vote():
                self._on_vote(message)
            case VoteReply():
                self._on_vote_reply(message)
            case Install():
                self._on_install(message)
            case TimeoutNow():
                self._on_timeout_now(message)
            case _:
                assert_never(message)

    def propose(self, data: list[bytes]) -> Accepted | NotLeader | Refused:
        """Append entries, none of them empty; all or none are taken."""
        if self.role is not Role.LEADER:
            return NotLeader(self.leader)
        if self._transferee != NOBODY:
            return self._handing_over()
        if not data or not all(data):
            raise InvariantViolationError("an empty entry was proposed; only a leader makes those")
        log = self.log
        first = log.last + 1
        if (
            log.commit < log.last
            and log.size(log.commit + 1, log.last) >= self.config.uncommitted_bytes_max
        ):
            return Refused(
                RefusalCode.BUSY,
                f"{log.last - log.commit} entries wait to be committed; try again",
            )
        log.append(self.term, data)
        self._is_dirty = True
        return Accepted(first, log.last, self.term)

    def read_index(self, context: int) -> bool:
        """Ask for an index that makes a read linearizable; the answer is in a later `Ready`.

        On a follower the leader is asked; a lost message leaves it unanswered, so the caller
        repeats it, with the same context or another. Contexts need to differ within one life of
        the member only: an answer to a former life is dropped.

        Returns:
            Whether there is anybody to ask.
        """
        if self.role is Role.LEADER:
            self._read(Asked(context, NOBODY, self._life))
        elif self.leader != NOBODY:
            self._messages.append(ReadRequest(self.id, self.leader, self.term, context, self._life))
        else:
            return False
        return True

    def campaign(self) -> None:
        """Start an election now, as if no leader had been heard for too long."""
        if self._can_stand() and self.role is not Role.LEADER:
            self._start_election()

    def persisted(self, number: int) -> None:
        """Everything in the Readys up to this number is durable."""
        marks = self._marks
        if number > self._number:
            raise InvariantViolationError(f"Ready {number} is said to be stored: there is none")
        while marks and marks[0].number <= number:
            mark = marks.popleft()
            self.log.stored_to(mark.last)
            self._durable_term = mark.term
        if self.role is Role.LEADER:
            self._advance_commit()
        elif self.role is Role.CANDIDATE:
            self._count_own_vote()

    def compact(self, index: int, entries_kept: int) -> None:
        """A snapshot of the state at `index` is durable: drop older entries but some.

        Args:
            index: an entry that was handed out to be applied.
            entries_kept: how many of the entries in the snapshot stay for slow followers.
        """
        if index <= self.snapshot.index:
            return
        self.snapshot = self.describe_snapshot(index)
        self.log.compact(self.snapshot, entries_kept)

    def describe_snapshot(self, index: int) -> Snapshot:
        """Return what describes a snapshot of the state at an index, to store along with it."""
        term = self.log.term(index)
        if term < 0 or index > self.log.commit:
            raise InvariantViolationError(
                f"a snapshot of {index}: the log has {self.log.start} to {self.log.commit}"
            )
        return Snapshot(index, term, self.log.membership_at(index))

    def snapshot_sent(self, to: RaftID, *, is_sent: bool) -> None:
        """An `Install` and its content were sent, or could not be: go on with the peer."""
        progress = self._peers.get(to)
        if progress is not None and progress.snapshot_index:
            progress.snapshot_done(is_sent=is_sent)

    def unreachable(self, to: RaftID) -> None:
        """The link to a peer broke: what was under way is probably lost.

        It gets nothing but heartbeats until it answers one.
        """
        progress = self._peers.get(to)
        if progress is not None and not progress.snapshot_index:
            progress.lost()

    # Output.

    def ready(self) -> Ready | None:
        """Return what there is to do, each thing once; None if there is nothing."""
        if self._is_dirty:
            self._broadcast()
        log = self.log
        entries = log.take_unstored()
        install = self._install
        hard_state = None
        if (
            entries is not None
            or install is not None
            or self.term != self._emitted_term
            or self.vote != self._emitted_vote
        ):
            hard_state = HardState(self.term, self.vote, self._commit_to_store(entries))
            self._emitted_term = self.term
            self._emitted_vote = self.vote
        committed = None
        if log.delivered < log.commit:
            committed = log.take_committed(self.config.apply_bytes_max)
        messages = self._messages
        after = self._after
        reads = self._reads_done
        failed = self._reads_failed
        if not (messages or after or hard_state or committed or reads or failed):
            return None
        self._number = number = self._number + 1
        if hard_state is not None:
            self._marks.append(Mark(number, log.last, self.term, self.clock))
        self._messages = []
        self._after = []
        if reads:
            self._reads_done = []
        if failed:
            self._reads_failed = []
        self._install = None
        return Ready(
            number, hard_state, entries, install, messages, after, committed, reads, failed
        )

    # Observation.

    @property
    def membership(self) -> Membership:
        """The newest membership in the log: the one that counts."""
        return self._membership

    @property
    def membership_index(self) -> int:
        """The entry that brought it; committed once `log.commit` has reached it."""
        return self.log.membership_index

    @property
    def has_lease(self) -> bool:
        """Whether a read would be served without asking anybody."""
        return self.role is Role.LEADER and self._has_lease()

    @property
    def is_handing_over(self) -> bool:
        """Whether a transfer is under way: proposals are refused."""
        return self._transferee != NOBODY

    def matched(self) -> Sequence[tuple[RaftID, int]]:
        """As the leader, return how far each peer's log equals ours."""
        return [(peer, progress.match) for peer, progress in self._peers.items()]

    def check(self) -> None:
        """Verify every invariant that one member can see; for tests and the simulator."""
        log = self.log
        log.check()
        assert log.last_term <= self.term
        assert self._durable_term <= self._emitted_term <= self.term
        assert self._membership is log.membership
        assert self._voters == self._membership.voters
        assert self._is_voter == (self.id in self._voters)
        assert (self.leader == self.id) == (self.role is Role.LEADER)
        if self.role is not Role.LEADER:
            assert not self._peers
            assert not self._reads_waiting
            return
        assert self._durable_term == self.term
        assert self.vote == self.id
        assert log.last_term == self.term
        assert log.term(self._term_start) in (self.term, -1)
        assert self._confirmed <= self._round
        members = {member.id for member in self._membership.members} - {self.id}
        assert set(self._peers) == members
        for progress in self._peers.values():
            progress.check(log.last)

    # Terms.

    def _adopt_term(self, message: Message) -> bool:
        """Take a newer term from a message; return whether to go on with the message."""
        match message:
            case PreVote():
                return True
            case Vote():
                if not self._may_help(message):
                    return False
                self._become_follower(message.term, NOBODY)
                return True
            case Append() | Heartbeat() | Install():
                self._become_follower(message.term, message.sender)
                return True
            case _:
                # A leader does not step down because of somebody who is no member.
                if self.role is Role.LEADER and message.sender not in self._peers:
                    return False
                self._become_follower(message.term, NOBODY)
                return True

    def _takes_older(self, message: Message) -> bool:
        """Whether to go on with a message of an older term; whoever lags is told ours."""
        match message:
            case PreVote() | PreVoteReply():
                return True
            case Append() | Heartbeat() | Install():
                self._messages.append(
                    AppendReply(self.id, message.sender, self.term, 0, is_rejected=True)
                )
            case Vote():
                self._messages.append(VoteReply(self.id, message.sender, self.term, False))
            case _:
                pass
        return False

"""The state of a core and the steps that all its parts share.

The machine is written in layers, each a class on top of the former: this one, `elections`,
`reading`, `replication`, `changing`, and `node` with the public interface. Methods whose name
starts with one underscore are the seam between layers, and the one where the simulator plants its
bugs.
"""

from __future__ import annotations

import random
from collections import deque
from typing import ClassVar

import msgspec

from proto.errors import InvariantViolationError
from raft.core.config import Config
from raft.core.log import Log
from raft.core.messages import Message, TimeoutNow
from raft.core.progress import Progress
from raft.core.values import (
    LIFE_BITS,
    NO_OP,
    NOBODY,
    Entries,
    HardState,
    RaftID,
    ReadState,
    Role,
    Snapshot,
)

_BOOTSTRAP_TERM = 1


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A read that waits for its index: whose (`NOBODY` for our own), in which of its lives."""

    context: int
    origin: RaftID
    life: int


class Mark:
    """A Ready that the caller has not reported as durable yet."""

    __slots__ = ("clock", "last", "number", "term")

    def __init__(self, number: int, last: int, term: int, clock: int) -> None:
        """Keep what becomes durable with it: entries up to `last`, the term and its vote."""
        self.number = number
        self.last = last
        self.term = term
        self.clock = clock


class CoreState:
    """What a member knows; see the module.

    Attributes:
        config: the settings.
        log: entries and marks.
        term: the newest term seen.
        vote: whom it voted for in that term.
        role: what it is now.
        leader: who leads in `term`, or nobody.
        clock: ticks since the start.
        snapshot: the newest durable one, offered to peers that lag behind the log.
    """

    _log_class: ClassVar[type[Log]] = Log

    def __init__(
        self,
        config: Config,
        rng: random.Random,
        *,
        hard_state: HardState,
        snapshot: Snapshot,
        entries: Entries | None,
    ) -> None:
        """Start as a follower from what was stored."""
        self.config = config
        self.id = config.id
        self._rng = rng
        self.log = self._log_class(snapshot, entries, hard_state.commit)
        self.snapshot = snapshot
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.clock = 0
        if self.log.last_term > self.term:
            raise InvariantViolationError(
                f"the stored log has term {self.log.last_term}, the hard state {self.term}"
            )
        # What goes out with the next Ready.
        self._number = 0
        self._marks: deque[Mark] = deque()
        self._emitted_term = self._durable_term = self.term
        self._emitted_vote = self.vote
        self._messages: list[Message] = []
        self._after: list[Message] = []
        self._reads_done: list[ReadState] = []
        self._reads_failed: list[int] = []
        self._install: Snapshot | None = None
        # Elections. A promise to a leader does not survive a restart in memory, so a restarted
        # member keeps the one that it may have made.
        self._elapsed = self._timeout = 0
        self._votes: dict[RaftID, bool] = {}
        self._promised_until = config.election_ticks if self.term > _BOOTSTRAP_TERM else 0
        self._is_forced = False
        # Leadership.
        self._peers: dict[RaftID, Progress] = {}
        self._voting_peers: list[Progress] = []
        self._is_dirty = False
        self._term_start = 0
        self._heartbeat_elapsed = 0
        self._round = 0
        self._round_clocks: deque[tuple[int, int]] = deque()
        self._confirmed = 0
        self._lease_until = 0
        self._transferee = NOBODY
        self._transfer_clock = 0
        self._has_handed_over = False
        self._reads_waiting: deque[tuple[int, int, Asked]] = deque()
        self._reads_early: list[Asked] = []
        # Membership: recomputed whenever the log's newest one is another object.
        self._membership = self.log.membership
        self._voters: tuple[RaftID, ...] = ()
        self._is_voter = False
        self._removed: frozenset[RaftID] = frozenset()
        self._removed_index = -1
        self._membership_changed()
        self._removed = frozenset(self.log.membership_before.removed)
        self._commit_moved()
        self._draw_timeout()
        # Contexts of reads are the caller's, and it may count them from the same number in every
        # life; an answer that was under way, or kept for us, while we were away must not fit.
        self._life = rng.getrandbits(LIFE_BITS)

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.role is Role.LEADER

    def _draw_timeout(self) -> None:
        ticks = self.config.election_ticks
        self._elapsed = 0
        self._timeout = ticks + int(self._rng.random() * ticks)

    def _membership_changed(self) -> None:
        """Follow the newest membership in the log."""
        self._membership = membership = self.log.membership
        self._voters = membership.voters
        self._is_voter = self.id in self._voters
        if self.role is Role.LEADER:
            self._track_peers()

    def _track_peers(self) -> None:
        """Begin with new peers, forget those that left."""
        config = self.config
        peers: dict[RaftID, Progress] = {}
        for member in self._membership.members:
            if member.id == self.id:
                continue
            progress = self._peers.get(member.id) or Progress(
                self.log.last + 1,
                self.clock,
                config.under_way_messages_max,
                config.under_way_bytes_max,
            )
            progress.is_voter = member.is_voter
            peers[member.id] = progress
        self._peers = peers
        self._voting_peers = [progress for progress in peers.values() if progress.is_voter]
        self._is_dirty = True

    def _become_follower(self, term: int, leader: RaftID) -> None:
        """Follow, in this or a newer term; whatever a leader had under way ends."""
        if term < self.term:
            raise InvariantViolationError(f"term {term} after term {self.term}")
        if term > self.term:
            self.term = term
            self.vote = NOBODY
        if self.role is Role.LEADER:
            self._end_leadership()
        self.role = Role.FOLLOWER
        self.leader = leader
        self._draw_timeout()

    def _end_leadership(self) -> None:
        self._peers = {}
        self._voting_peers = []
        self._is_dirty = False
        self._transferee = NOBODY
        self._lease_until = 0
        self._round_clocks.clear()
        asked = [read for _, _, read in self._reads_waiting] + self._reads_early
        self._reads_failed += [read.context for read in asked if read.origin == NOBODY]
        self._reads_waiting.clear()
        self._reads_early.clear()

    def _become_leader(self) -> None:
        """Lead: an empty entry opens the term, and nothing older is committed without it."""
        if self.role is not Role.CANDIDATE:
            raise InvariantViolationError(f"a {self.role.value} cannot lead term {self.term}")
        self.role = Role.LEADER
        self.leader = self.id
        self._peers = {}
        self._track_peers()
        self._heartbeat_elapsed = 0
        self._confirmed = self._round
        self._lease_until = 0
        self._has_handed_over = False
        self.log.append(self.term, [NO_OP])
        self._term_start = self.log.last
        self._is_dirty = True

    def _commit_to_store(self, entries: Entries | None) -> int:
        """Return the commit index that may be stored before these entries.

        Not theirs: after a crash in between, others could still be stored in their places.
        """
        commit = self.log.commit
        return commit if entries is None else min(commit, entries.first - 1)

    def _promise(self, message: Message) -> None:
        """Say something that is only true once everything so far is durable."""
        self._after.append(message)

    def _commit_moved(self) -> None:
        """Act on what the newly committed entries mean for the group."""
        log = self.log
        if self._removed_index < log.membership_index <= log.commit:
            self._removed_index = log.membership_index
            self._removed = frozenset(log.membership.removed)
            if self.role is Role.LEADER and not self._is_voter:
                # We led our own removal to its end.
                self._give_way()

    def _give_way(self) -> None:
        """Stop to lead, and let the best follower begin at once."""
        best = NOBODY
        match = -1
        horizon = self.clock - self.config.election_ticks
        for peer_id, progress in self._peers.items():
            if progress.is_voter and progress.heard > horizon and progress.match > match:
                best, match = peer_id, progress.match
        if best != NOBODY:
            self._messages.append(TimeoutNow(self.id, best, self.term))
        self._become_follower(self.term, NOBODY)

    def _cap_marks(self, index: int) -> None:
        """Entries from `index` on were cut: what is being stored of them does not count."""
        for mark in self._marks:
            mark.last = min(mark.last, index - 1)

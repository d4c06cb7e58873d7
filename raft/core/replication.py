"""Replication: appends, answers, what is committed, and snapshots for those too far behind."""

from __future__ import annotations

from raft.core.messages import Append, AppendReply, Heartbeat, HeartbeatReply, Install, TimeoutNow
from raft.core.progress import Progress, Stance
from raft.core.quorum import reached_by_majority
from raft.core.reading import Reading
from raft.core.values import NOBODY, Entries, RaftID, Role, Snapshot


class Replication(Reading):
    """The layer of replication; see the module."""

    # The leader's side.

    def _tick_leader(self) -> None:
        if not self._has_majority():
            self._become_follower(self.term, NOBODY)
            return
        if self._is_store_overdue():
            self._give_way()
            return
        ticks = self.config.election_ticks
        if self._transferee != NOBODY and self.clock - self._transfer_clock >= ticks:
            self._transferee = NOBODY
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._send_heartbeats()
            if not self._voting_peers:
                self._confirm_rounds()

    def _has_majority(self) -> bool:
        """Whether a majority of voters answered within an election time-out."""
        heard = [progress.heard for progress in self._voting_peers]
        if self._is_voter:
            heard.append(self.clock)
        return reached_by_majority(heard) > self.clock - self.config.election_ticks

    def _may_commit(self, index: int) -> bool:
        """Whether a majority's having an entry commits it: only one of our own term.

        An older one, even on a majority, could still be overwritten by a leader that a member
        elected that has a newer entry in its place. It is committed along with ours.
        """
        return index >= self._term_start

    def _advance_commit(self) -> None:
        log = self.log
        reached = [progress.match for progress in self._voting_peers]
        if self._is_voter:
            reached.append(log.durable)
        index = reached_by_majority(reached)
        if index <= log.commit or not self._may_commit(index):
            return
        log.commit_to(index)
        self._is_dirty = True
        if self._reads_early and index >= self._term_start:
            self._read_early()
        self._commit_moved()

    def _broadcast(self) -> None:
        """Send every peer what it lacks and may get, and what is committed."""
        self._is_dirty = False
        self._start_round_for_reads()
        for peer_id, progress in self._peers.items():
            self._replicate_to(peer_id, progress)

    def _replicate_to(self, peer_id: RaftID, progress: Progress) -> None:
        log = self.log
        config = self.config
        if self._is_silent(progress):
            return
        while progress.next <= log.last and not progress.is_paused:
            first = progress.next
            previous_term = log.term(first - 1)
            if previous_term < 0:
                self._offer_snapshot(peer_id, progress)
                return
            bytes_max = config.entries_bytes_max
            if progress.stance is not Stance.REPLICATE:
                bytes_max = min(bytes_max, config.probe_bytes_max)
            last = log.limit(first, bytes_max, config.entries_max)
            if progress.stance is not Stance.REPLICATE and log.size(first, last) > bytes_max:
                # Even one entry is large: ask first.
                self._ask(peer_id, progress)
                progress.sent(first - 1, 0)
                return
            progress.commit_sent = min(log.commit, last)
            self._messages.append(
                Append(
                    self.id,
                    peer_id,
                    self.term,
                    first - 1,
                    previous_term,
                    log.commit,
                    log.entries(first, last),
                )
            )
            progress.sent(last, log.size(first, last))
        known = min(log.commit, progress.match)
        if known > progress.commit_sent:
            progress.commit_sent = known
            self._messages.append(Heartbeat(self.id, peer_id, self.term, known, 0))

    def _offer_snapshot(self, peer_id: RaftID, progress: Progress) -> None:
        """The entries it needs are gone."""
        progress.to_snapshot(self.snapshot.index)
        self._messages.append(Install(self.id, peer_id, self.term, self.snapshot))

    def _is_silent(self, progress: Progress) -> bool:
        """Whether a peer gets nothing but heartbeats, since it answers none."""
        return progress.is_lost or self.clock - progress.heard >= self.config.election_ticks

    def _ask(self, peer_id: RaftID, progress: Progress) -> None:
        """Ask whether everything sent has arrived; a peer that lacks some of it says so."""
        index = progress.next - 1
        term = self.log.term(index)
        if term < 0:
            # What it may lack is gone meanwhile.
            progress.to_probe()
            self._is_dirty = True
            return
        progress.asked()
        nothing = Entries(progress.next, [], ())
        self._messages.append(
            Append(self.id, peer_id, self.term, index, term, self.log.commit, nothing)
        )

    def needed_from(self, index: int) -> int:
        """Return the first entry up to `index` that a peer on its way up is about to need.

        `index + 1` if there is none. Who does not answer is not waited for, nor who came no nearer
        for long, nor who needs a snapshot all the same.
        """
        horizon = self.clock - self.config.catch_up_ticks_max
        reached = [
            progress.reached
            for progress in self._peers.values()
            if progress.moved > horizon
            and progress.reached >= self.log.start
            and not self._is_silent(progress)
        ]
        return min([index, *reached]) + 1

    def _on_append_reply(self, message: AppendReply) -> None:
        progress = self._peers.get(message.sender)
        if progress is None or self.role is not Role.LEADER:
            return
        progress.answers(self.clock)
        if message.is_rejected:
            agreement = self.log.agreement(message.hint_index, message.hint_term)
            if progress.rejected(message.index, agreement):
                self._is_dirty = True
            return
        if progress.accepted(message.index):
            if message.index > self.log.commit and progress.is_voter:
                self._advance_commit()
            if message.sender == self._transferee:
                self._hand_over_if_ready()
        self._is_dirty = self.role is Role.LEADER

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        progress = self._peers.get(message.sender)
        if progress is None or self.role is not Role.LEADER:
            return
        progress.answers(self.clock)
        if message.round > progress.round:
            progress.round = message.round
            self._confirm_rounds()
        if progress.answered():
            self._ask(message.sender, progress)
        if progress.next <= self.log.last:
            self._is_dirty = True

    def _hand_over_if_ready(self) -> None:
        """Tell the chosen successor to start, once it has everything."""
        progress = self._peers.get(self._transferee)
        if progress is not None and progress.match == self.log.last:
            self._has_handed_over = True
            self._messages.append(TimeoutNow(self.id, self._transferee, self.term))

    # The follower's side.

    def _on_append(self, message: Append) -> None:
        self._hear(message.sender)
        log = self.log
        previous = message.previous_index
        if previous < log.start:
            # Long committed, and compacted here; all of it up to our commit index equals.
            self._promise(AppendReply(self.id, message.sender, self.term, log.commit))
            return
        cut = log.merge(previous, message.previous_term, message.entries)
        if cut < 0:
            hint = log.agreement(previous, message.previous_term)
            self._messages.append(
                AppendReply(
                    self.id, message.sender, self.term, previous, True, hint, log.term(hint)
                )
            )
            return
        if cut > 0:
            self._cap_marks(cut)
        if log.membership is not self._membership:
            self._membership_changed()
        last = previous + len(message.entries.data)
        if message.commit > log.commit and last > log.commit:
            log.commit_to(min(message.commit, last))
            self._commit_moved()
        self._promise(AppendReply(self.id, message.sender, self.term, last))

    def _is_snapshot_in_log(self, snapshot: Snapshot) -> bool:
        """Whether our own log holds exactly what the snapshot contains."""
        return self.log.term(snapshot.index) == snapshot.term

    def _on_install(self, message: Install) -> None:
        self._hear(message.sender)
        log = self.log
        snapshot = message.snapshot
        if snapshot.index <= log.commit:
            index = log.commit
        elif self._is_snapshot_in_log(snapshot):
            index = snapshot.index
            log.commit_to(index)
            self._commit_moved()
        else:
            index = snapshot.index
            self._restore(snapshot)
        self._promise(AppendReply(self.id, message.sender, self.term, index))

    def _restore(self, snapshot: Snapshot) -> None:
        self.log.reset(snapshot)
        for mark in self._marks:
            mark.last = 0
        self._install = self.snapshot = snapshot
        self._removed_index = -1
        self._membership_changed()
        self._commit_moved()

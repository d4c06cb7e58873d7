"""Linearizable reads, by a lease or by asking a majority; and the heartbeats that serve both.

A heartbeat round is numbered and its time of sending kept. When a majority has answered round `r`,
nobody else led at any moment before the round began: all reads that waited for it may go on with
the commit index that they noted. For `lease_ticks` after the round was *sent*, no voter of that
majority helps anybody else, so reads need no round at all. A leader that handed over has no lease
for the rest of its term: its `TimeoutNow` overrides the voters' promise whenever it arrives.
"""

from __future__ import annotations

from raft.core.elections import Elections
from raft.core.messages import Heartbeat, HeartbeatReply, ReadReply, ReadRequest
from raft.core.quorum import reached_by_majority
from raft.core.state import Asked
from raft.core.values import NOBODY, ReadState, Role


class Reading(Elections):
    """The layer of reads; see the module."""

    def _has_lease(self) -> bool:
        """Whether a majority is known not to help anybody else yet.

        A leader that gave up its own vote has no lease: the one voter that it leaves may lead as
        soon as it is restarted, since a lone voter asks nobody and waits for nothing.
        """
        if not self._is_voter:
            return False
        if not self._voting_peers:
            return True
        return (
            self.config.has_lease_reads
            and self.clock < self._lease_until
            and not self._has_handed_over
        )

    def _read(self, read: Asked) -> None:
        """As the leader, take up a read of our own or of a follower."""
        if len(self._reads_waiting) + len(self._reads_early) >= self.config.reads_waiting_max:
            # A follower's question stays without an answer, and is repeated.
            if read.origin == NOBODY:
                self._reads_failed.append(read.context)
        elif self.log.commit < self._term_start:
            # Until then, what former leaders committed may not be known here.
            self._reads_early.append(read)
        elif self._has_lease():
            self._release(read, self.log.commit)
        else:
            self._reads_waiting.append((self._round + 1, self.log.commit, read))
            self._is_dirty = True

    def _release(self, read: Asked, index: int) -> None:
        if read.origin == NOBODY:
            self._reads_done.append(ReadState(read.context, index))
        else:
            self._messages.append(
                ReadReply(self.id, read.origin, self.term, read.context, index, read.life)
            )

    def _read_early(self) -> None:
        """The term's first entry is committed: take up the reads that waited for it."""
        early, self._reads_early = self._reads_early, []
        for read in early:
            self._read(read)

    def _start_round_for_reads(self) -> None:
        """Begin a round unless one is unanswered: reads that come meanwhile share the next."""
        waiting = self._reads_waiting
        if waiting and waiting[-1][0] > self._round and self._confirmed >= self._round:
            self._send_heartbeats()

    def _send_heartbeats(self) -> None:
        self._round += 1
        self._round_clocks.append((self._round, self.clock))
        commit = self.log.commit
        heartbeats = []
        for peer_id, progress in self._peers.items():
            known = min(progress.match, commit)
            progress.commit_sent = max(progress.commit_sent, known)
            heartbeats.append(Heartbeat(self.id, peer_id, self.term, known, self._round))
        # They go first: nothing large may delay them.
        self._messages[:0] = heartbeats
        self._heartbeat_elapsed = 0

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._hear(message.sender)
        if message.commit > self.log.commit:
            self.log.commit_to(message.commit)
            self._commit_moved()
        if message.round:
            self._answer_round(HeartbeatReply(self.id, message.sender, self.term, message.round))

    def _answer_round(self, reply: HeartbeatReply) -> None:
        """Say that we follow: at once, but in a term that a crash cannot take back.

        The answer may make a lease, and a restarted member keeps the promise behind it only if it
        knows that it has been told of a leader.
        """
        if self._durable_term == self.term:
            self._messages.append(reply)
        else:
            self._promise(reply)

    def _confirm_rounds(self) -> None:
        """See which round a majority has answered, renew the lease, release reads."""
        rounds = [progress.round for progress in self._voting_peers]
        if self._is_voter:
            rounds.append(self._round)
        confirmed = reached_by_majority(rounds)
        if confirmed <= self._confirmed:
            return
        self._confirmed = confirmed
        clocks = self._round_clocks
        sent = -1
        while clocks and clocks[0][0] <= confirmed:
            sent = clocks.popleft()[1]
        if sent >= 0:
            self._lease_until = max(self._lease_until, sent + self.config.lease_ticks)
        waiting = self._reads_waiting
        while waiting and waiting[0][0] <= confirmed:
            _, index, read = waiting.popleft()
            self._release(read, index)
        if waiting:
            self._is_dirty = True

    def _on_read_request(self, message: ReadRequest) -> None:
        # A member that does not lead stays silent: the one who asked repeats the question.
        if self.role is Role.LEADER and message.sender in self._peers:
            self._read(Asked(message.context, message.sender, message.life))

    def _on_read_reply(self, message: ReadReply) -> None:
        if message.life == self._life:
            self._reads_done.append(ReadState(message.context, message.index))

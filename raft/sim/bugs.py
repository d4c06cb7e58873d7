"""Known mistakes, planted one at a time: the simulator is only worth what it catches.

Production code has no switch for any of them: each is a subclass that overrides one small method.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar
from unittest.mock import patch

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from msgspec import structs
from typing_extensions import override

from raft import format as layout
from raft.core import NOBODY, Core, Entries, RaftID, Refused, Snapshot
from raft.core.log import Log
from raft.core.messages import AppendReply, Heartbeat, Message, PreVote, Vote, VoteReply
from raft.core.state import Asked
from raft.core.values import Role
from raft.sim.filedisk import FileDisk
from raft.sim.mistakes import MISTAKES


class _TruncatingLog(Log):
    __slots__ = ()

    @override
    def _first_difference(self, entries: Entries, last: int) -> int:
        return min(entries.first, last + 1)


class UnconditionalTruncation(Core):
    """Cuts whatever follows the place that matched, also if it is the same."""

    _log_class: ClassVar[type[Log]] = _TruncatingLog


class NoUpToDateCheck(Core):
    """Votes for candidates that lack entries."""

    @override
    def _is_up_to_date(self, message: PreVote | Vote) -> bool:
        return True


class DoubleVote(Core):
    """Votes for everybody who asks."""

    @override
    def _may_vote(self, candidate: RaftID) -> bool:
        return True


class CommitOldTermByCounting(Core):
    """Commits an older term's entry as soon as a majority has it (Figure 8 of the paper)."""

    @override
    def _may_commit(self, index: int) -> bool:
        return True


class AcknowledgeBeforePersist(Core):
    """Acknowledges entries before they are durable."""

    @override
    def _promise(self, message: Message) -> None:
        if isinstance(message, AppendReply):
            self._messages.append(message)
        else:
            super()._promise(message)


class VoteBeforePersist(Core):
    """Gives its vote away before it is durable."""

    @override
    def _promise(self, message: Message) -> None:
        if isinstance(message, VoteReply):
            self._messages.append(message)
        else:
            super()._promise(message)


class NoPreVote(Core):
    """Stands in elections without asking first."""

    @override
    def _start_election(self) -> None:
        self._stand(is_forced=False)


class StaleReplyCounted(Core):
    """Counts answers to what it asked in an older term."""

    @override
    def _takes_older(self, message: Message) -> bool:
        return isinstance(message, AppendReply | VoteReply) or super()._takes_older(message)


class SnapshotWithoutMatch(Core):
    """Takes a snapshot's index for agreement with its own entries up to there."""

    @override
    def _is_snapshot_in_log(self, snapshot: Snapshot) -> bool:
        return self.log.last >= snapshot.index


class ConcurrentChanges(Core):
    """Begins the next change before the former is committed."""

    @override
    def _pending_refusal(self) -> Refused | None:
        return None


class LeaseAfterPartition(Core):
    """Serves reads as long as it thinks that it leads."""

    @override
    def _has_lease(self) -> bool:
        return self.role is Role.LEADER


class LeaseAfterHandOver(Core):
    """Keeps its lease although it told another to start an election."""

    @override
    def _has_lease(self) -> bool:
        return self.role is Role.LEADER and self.clock < self._lease_until


class ChangeBeforeOwnCommit(Core):
    """Changes the membership before it has committed anything in its term."""

    @override
    def _own_term_refusal(self) -> Refused | None:
        return None


class LeaseFromReceipt(Core):
    """Counts the lease from when the answers came, not from when the question was sent."""

    @override
    def _confirm_rounds(self) -> None:
        before = self._confirmed
        super()._confirm_rounds()
        if self._confirmed > before:
            self._lease_until = self.clock + self.config.lease_ticks


class ForgottenPromise(Core):
    """Helps others to an election right after a restart, whatever it promised before."""

    @override
    def _is_protected(self) -> bool:
        return self.role is Role.LEADER or (self.leader != NOBODY and super()._is_protected())


class ReadBeforeOwnCommit(Core):
    """Serves reads before it has committed anything in its term."""

    @override
    def _read(self, read: Asked) -> None:
        term_start, self._term_start = self._term_start, 0
        super()._read(read)
        self._term_start = term_start


class LeaderCountsUnstored(Core):
    """Counts its own copy of an entry before its disk has it."""

    @override
    def _advance_commit(self) -> None:
        durable, self.log.durable = self.log.durable, self.log.emitted
        super()._advance_commit()
        self.log.durable = durable


class CommitBeyondMatch(Core):
    """Tells followers the commit index although their logs are not known to match so far."""

    @override
    def _send_heartbeats(self) -> None:
        super()._send_heartbeats()
        self._messages = [
            structs.replace(each, commit=self.log.commit) if isinstance(each, Heartbeat) else each
            for each in self._messages
        ]


class RemovedNeverStands(Core):
    """Does not stand once its removal is in its log, committed or not."""

    @override
    def _can_stand(self) -> bool:
        return self._is_voter


class CommitStoredBeforeEntries(Core):
    """Stores a commit index before the entries that it covers."""

    @override
    def _commit_to_store(self, entries: Entries | None) -> int:
        return self.log.commit


class _BlindCipher:
    """Decrypts like AES-GCM, and does not look at the tag."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.encrypt = AESGCM(key).encrypt

    def decrypt(self, nonce: bytes, sealed: bytes, _: bytes) -> bytes:
        counter = CTR(nonce + (2).to_bytes(4))
        return Cipher(AES(self._key), counter).decryptor().update(sealed[: -layout.TAG_BYTES])


class ChecksumNotVerified(FileDisk):
    """Takes stored bytes for what was written, though they were changed."""

    @override
    def _reading(self) -> AbstractContextManager[object]:
        return patch.object(layout, "AESGCM", _BlindCipher)


class Bug(msgspec.Struct, frozen=True):
    """What takes the place of the real parts.

    Attributes:
        core: the consensus.
        disk: the reader and writer of files, where there are any.
    """

    core: type[Core] = Core
    disk: type[FileDisk] = FileDisk


BUGS: dict[str, Bug] = {
    "unconditional-truncation": Bug(UnconditionalTruncation),
    "no-up-to-date-check": Bug(NoUpToDateCheck),
    "double-vote": Bug(DoubleVote),
    "commit-old-term-by-counting": Bug(CommitOldTermByCounting),
    "acknowledge-before-persist": Bug(AcknowledgeBeforePersist),
    "vote-before-persist": Bug(VoteBeforePersist),
    "no-pre-vote": Bug(NoPreVote),
    "stale-reply-counted": Bug(StaleReplyCounted),
    "snapshot-without-match": Bug(SnapshotWithoutMatch),
    "concurrent-changes": Bug(ConcurrentChanges),
    "lease-after-partition": Bug(LeaseAfterPartition),
    "lease-after-hand-over": Bug(LeaseAfterHandOver),
    "change-before-own-commit": Bug(ChangeBeforeOwnCommit),
    "commit-stored-before-entries": Bug(CommitStoredBeforeEntries),
    "lease-from-receipt": Bug(LeaseFromReceipt),
    "forgotten-promise": Bug(ForgottenPromise),
    "read-before-own-commit": Bug(ReadBeforeOwnCommit),
    "leader-counts-unstored": Bug(LeaderCountsUnstored),
    "commit-beyond-match": Bug(CommitBeyondMatch),
    "removed-never-stands": Bug(RemovedNeverStands),
    "checksum-not-verified": Bug(disk=ChecksumNotVerified),
    **{name: Bug(core) for name, core in MISTAKES.items()},
}

"""What a member's directory says: records and a snapshot's description become a core's arguments.

Pure; `raft.storage` reads the files and acts on it. Invariants:

* entries that a record brings replace whatever came before from their first index on;
* a segment that does not start behind the entry before it begins the log anew: a leader's snapshot
  was put in place there;
* the newest record has the newest hard state.
"""

from __future__ import annotations

import msgspec

from proto.errors import CorruptError
from raft import format as layout
from raft.core import (
    NOBODY,
    Entries,
    HardState,
    Membership,
    RaftID,
    Snapshot,
    decode_membership,
)


class About(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot's file says of it; `is_installed` if another member made it."""

    snapshot: Snapshot
    is_installed: bool


NO_SNAPSHOT = About(Snapshot(), is_installed=False)


_ABOUT_ENCODER = msgspec.msgpack.Encoder()
_ABOUT_DECODER = msgspec.msgpack.Decoder(About)


class Stored(msgspec.Struct, frozen=True):
    """What was found at the start: the arguments of a core.

    Attributes:
        member_id: whose log it is; nobody's if it is empty.
        hard_state: the newest.
        snapshot: the description of the newest; index 0 without one.
        entries: what the log holds; None if empty.
    """

    member_id: RaftID
    hard_state: HardState
    snapshot: Snapshot
    entries: Entries | None

    @property
    def last_index(self) -> int:
        """Where the log ends."""
        return max(self.entries.last if self.entries else 0, self.snapshot.index)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing at all."""
        return self.member_id == NOBODY


class LogReader:
    """Puts together the log from its records.

    Attributes:
        member_id: whose it is; nobody's before the first record.
        hard_state: the newest.
    """

    def __init__(self) -> None:
        """Start with no record."""
        self.member_id = NOBODY
        self.hard_state = HardState()
        self._first = 1
        self._data: list[bytes] = []
        self._terms: list[tuple[int, int]] = []
        self._changes: list[int] = []

    @property
    def last(self) -> int:
        """Where the log ends."""
        return self._first + len(self._data) - 1

    def visit(self, segment_index: int, batch: layout.Batch) -> None:
        """Take the next record; `segment_index` is where its segment begins."""
        if batch.offset == layout.FILE_HEADER_BYTES and segment_index != self.last + 1:
            self._clear(segment_index)
        self.member_id = batch.states.member_id
        for step in batch.states.steps:
            self.hard_state = step.hard_state
            if step.entries is not None:
                self.add(step.entries)

    def entries(self) -> Entries | None:
        """Return what the log holds; None if it is empty."""
        if not self._data:
            return None
        return Entries(self._first, self._data, tuple(self._terms), tuple(self._changes))

    def _clear(self, first: int) -> None:
        self._first = first
        self._data, self._terms, self._changes = [], [], []

    def add(self, entries: Entries) -> None:
        """Take entries; they replace what is there from their first on."""
        keep = entries.first - self._first
        if keep <= 0:
            self._clear(entries.first)
        elif keep < len(self._data):
            del self._data[keep:]
            while self._terms and self._terms[-1][0] >= entries.first:
                self._terms.pop()
            while self._changes and self._changes[-1] >= entries.first:
                self._changes.pop()
        self._data += entries.data
        for run in entries.terms:
            if not self._terms or self._terms[-1][1] != run[1]:
                self._terms.append(run)
        self._changes += entries.changes


def encode_about(about: About) -> bytes:
    """Return what `describe_snapshot` reads."""
    return _ABOUT_ENCODER.encode(about)


def describe_snapshot(path: str, about: bytes) -> About:
    """Read what a snapshot's file says of it.

    Raises:
        CorruptError: another version wrote it.
    """
    try:
        return _ABOUT_DECODER.decode(about)
    except msgspec.DecodeError as error:
        reason = "its description is not known to this program"
        raise CorruptError(path, layout.FILE_HEADER_BYTES, reason) from error


def completed(hard_state: HardState, snapshot: Snapshot, entries: Entries | None) -> HardState:
    """Return the hard state that goes with the rest.

    After a crash between a snapshot's installation and the record after it the stored term may be
    older than the snapshot's. Having been told of a term is no promise: nobody was voted for.
    """
    term = max(hard_state.term, snapshot.term, entries.terms[-1][1] if entries else 0)
    commit = max(hard_state.commit, snapshot.index)
    vote = hard_state.vote if term == hard_state.term else NOBODY
    return HardState(term, vote, commit)


def is_void(snapshot: Snapshot, entries: Entries | None, last: int) -> bool:
    """Whether the log does not go with an installed snapshot and is to be begun anew."""
    if last < snapshot.index:
        return True
    if entries is None or snapshot.index < entries.first:
        return False
    return entries.term(snapshot.index) != snapshot.term


def newest_membership(stored: Stored) -> Membership:
    """Return the newest membership in what was found, committed or not."""
    entries = stored.entries
    if entries is None or not entries.changes or entries.changes[-1] <= stored.snapshot.index:
        return stored.snapshot.membership
    return decode_membership(entries.data[entries.changes[-1] - entries.first])

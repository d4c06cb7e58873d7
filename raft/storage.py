"""What a member keeps on disk: its steps in the log, its newest snapshot, its number.

A shell around `raft.wal` and `raft.snapshot` whose methods block; `raft.node` calls them in
threads of its own. Invariants beside theirs:

* a record holds whole steps in their order, each with the hard state as of then, so a crash leaves
  the beginning of what was asked for, and the newest record has the newest hard state;
* entries that a step brings replace whatever is stored from their first index on: segments are
  never rewritten, the later record counts;
* a segment that becomes the oldest begins with a hard state, because `roll` writes one;
* an installed snapshot is in place before the log is begun anew after it. A crash in between is
  finished at the next start: its description says that it came from elsewhere, so a log that ends
  before it, or holds something else at its index, is void.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from proto.errors import CorruptError, SwarmError, reason_of
from raft import format as layout
from raft import snapshot as snapshots
from raft.core import NOBODY, Entries, HardState, Snapshot
from raft.files import Files, Lock, RealFiles, disk_error, replace_file
from raft.keys import KeyRing, RandomBytes
from raft.stored import (
    NO_SNAPSHOT,
    About,
    LogReader,
    Stored,
    completed,
    describe_snapshot,
    encode_about,
    is_void,
    newest_membership,
)
from raft.wal import SEGMENT_BYTES, Wal

__all__ = ["Storage", "Stored", "Write", "newest_membership"]

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

LOCK_NAME = "log.lock"
WAL_NAME = "wal"
SNAPSHOTS_NAME = "snapshots"
# Names the member that may take no part any more, should this be its log.
FORGOTTEN_NAME = "forgotten"
# Entries of more bytes than this are spread over several records.
RECORD_PART_BYTES = 8 << 20


class Write(msgspec.Struct, frozen=True, gc=False):
    """One step to store; see `raft.core.Ready`.

    Attributes:
        hard_state: the new one; None if it did not change.
        entries: to append; None without.
        install: a complete snapshot to put in place before; None without.
    """

    hard_state: HardState | None
    entries: Entries | None
    install: snapshots.SnapshotWriter | None = None


class Storage:
    """One member's directory, open.

    Attributes:
        directory: where it is.
        stored: what was found when it was opened; dropped by `release`.
        hard_state: the newest durable one.
        snapshot: the newest durable snapshot's file, if there is one.
        last_index: where the durable log ends.
    """

    def __init__(
        self,
        directory: Path,
        keys: KeyRing,
        *,
        files: Files,
        rng_bytes: RandomBytes,
        segment_bytes: int,
        lock: Lock,
        received: int = 0,
    ) -> None:
        """Use `open`."""
        self.directory = directory
        self._keys = keys
        self._files = files
        self._rng_bytes = rng_bytes
        self._segment_bytes = segment_bytes
        self._lock = lock
        self.member_id = NOBODY
        # Never used twice under one lock: a writer of before a fault may still have its file.
        self._received = received
        self.snapshot: snapshots.Snapshot | None = None
        self._read()

    @classmethod
    def open(
        cls,
        directory: Path,
        keys: KeyRing,
        *,
        files: Files | None = None,
        rng_bytes: RandomBytes = os.urandom,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Storage:
        """Open or make the log in a directory; reads and checks everything in it.

        Args:
            directory: the log's own; made if missing. The ring may lie in the same one.
            keys: the open ring; stays the caller's.
            files: the disk.
            rng_bytes: for salts.
            segment_bytes: a new segment starts before one grows larger.

        Raises:
            InUseError: another daemon has the directory.
            CorruptError: something stored is damaged or missing; nothing was applied.
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        files = files or RealFiles()
        with _as_swarm_error(directory):
            files.make_directory(directory)
            lock = files.lock(directory / LOCK_NAME)
        try:
            with _as_swarm_error(directory):
                return cls(
                    directory,
                    keys,
                    files=files,
                    rng_bytes=rng_bytes,
                    segment_bytes=segment_bytes,
                    lock=lock,
                )
        except BaseException:
            lock.close()
            raise

    def reopen(self) -> Storage:
        """Read everything anew after a fault, under the lock that is held.

        Raises:
            CorruptError, ResourceExhaustedError, UnavailableError: as `open`; this one stays.
        """
        with _as_swarm_error(self.directory):
            self._wal.abandon()
            return Storage(
                self.directory,
                self._keys,
                files=self._files,
                rng_bytes=self._rng_bytes,
                segment_bytes=self._segment_bytes,
                lock=self._lock,
                received=self._received,
            )

    def _read(self) -> None:
        place = self.directory / SNAPSHOTS_NAME
        found = self.snapshot = snapshots.find_newest(self._files, place, self._keys)
        index = found.index if found else 0
        about = describe_snapshot(str(found.path), found.about) if found else NO_SNAPSHOT
        reader = LogReader()
        self._wal = Wal.open(
            self.directory / WAL_NAME,
            self._keys,
            files=self._files,
            rng_bytes=self._rng_bytes,
            snapshot_index=index,
            may_skip=about.is_installed,
            visit=reader.visit,
            segment_bytes=self._segment_bytes,
        )
        entries = reader.entries()
        self.member_id = reader.member_id
        if found is not None and self.member_id == NOBODY:
            self._wal.abandon()
            reason = "no record says whose log it is, but there is a snapshot"
            raise CorruptError(str(self.directory / WAL_NAME), 0, reason)
        self.hard_state = completed(reader.hard_state, about.snapshot, entries)
        begins_anew = about.is_installed and is_void(about.snapshot, entries, reader.last)
        if begins_anew:
            entries = None
        self.stored = Stored(self.member_id, self.hard_state, about.snapshot, entries)
        if begins_anew:
            self._begin_after(index)
        self._tidy()

    @property
    def last_index(self) -> int:
        """Where the durable log ends."""
        return self._wal.last_index

    @property
    def is_rotating(self) -> bool:
        """Whether files under an older data key are left: a snapshot of now would end that."""
        return len(self._keys.ids) > 1

    @property
    def snapshot_index(self) -> int:
        """The last entry that the newest durable snapshot contains; 0 without one."""
        return self.snapshot.index if self.snapshot else 0

    @property
    def has_forgotten(self) -> bool:
        """Whether this member was found to lack what it had confirmed; see `mark_forgotten`."""
        path = self.directory / FORGOTTEN_NAME
        if not self._files.exists(path):
            return False
        with self._files.read(path) as stream:
            return stream.read() == b"%d" % self.member_id

    def mark_forgotten(self) -> None:
        """Remember for good that this member lacks what it had confirmed.

        A member of another number, as `force_cluster_of_one` makes it, is not meant.

        Raises:
            OSError: the disk is full or fails.
        """
        replace_file(self._files, self.directory / FORGOTTEN_NAME, b"%d" % self.member_id)

    def release(self) -> None:
        """Forget what was found at the start: a core has it now."""
        self.stored = Stored(self.member_id, self.hard_state, Snapshot(), None)

    def add_to_stored(self, hard_state: HardState, entries: Entries | None) -> None:
        """Add to `stored` what was written before there is a core."""
        stored = self.stored
        joined = entries
        if stored.entries is not None and entries is not None:
            reader = LogReader()
            for run in (stored.entries, entries):
                reader.add(run)
            joined = reader.entries()
        self.stored = Stored(self.member_id, hard_state, stored.snapshot, joined or stored.entries)

    def write(self, writes: Sequence[Write]) -> None:
        """Store steps in their order; durable on return.

        Raises:
            OSError: the disk is full or fails; a beginning of them was kept, or nothing.
            UncertainError: more of them may have been kept; the next start will tell.
        """
        steps: list[layout.State] = []
        size = 0
        last = self._wal.last_index
        hard_state = self.hard_state
        for write in writes:
            hard_state = write.hard_state or hard_state
            if write.install is not None:
                self._append(steps, last)
                steps, size = [], 0
                last = self._install(write.install, hard_state)
            entries = write.entries
            if entries is None:
                steps.append(layout.State(hard_state))
                continue
            for part in _parts(entries):
                part_size = sum(map(len, part.data)) + 8 * len(part.data)
                if size and size + part_size > RECORD_PART_BYTES:
                    self._append(steps, last)
                    steps, size = [], 0
                steps.append(layout.State(hard_state, part))
                size += part_size
                last = part.last
        self._append(steps, last)

    def _append(self, steps: list[layout.State], last: int) -> None:
        if steps:
            assert self.member_id != NOBODY, "whose log it is must be known before it is written"
            packed = layout.pack_states(layout.States(self.member_id, steps))
            self._wal.append_states(packed, last)
            self.hard_state = steps[-1].hard_state

    def _install(self, writer: snapshots.SnapshotWriter, hard_state: HardState) -> int:
        """Put a received snapshot in place and begin the log after it; return its index."""
        writer.publish()
        assert writer.snapshot is not None
        self.snapshot = writer.snapshot
        self.hard_state = hard_state
        self._begin_after(self.snapshot.index)
        self._remove_older_snapshots()
        return self.snapshot.index

    def _begin_after(self, index: int) -> None:
        paths = self._wal.skip_to(index)
        self._append([layout.State(self.hard_state)], index)
        self._remove(paths)

    def roll(self) -> None:
        """Let the next record start a new segment under the current data key.

        Raises:
            OSError: the disk is full or fails.
        """
        self._wal.roll()
        self._append([layout.State(self.hard_state)], self._wal.last_index)

    def rotate_data_key(self) -> int:
        """Make a new data key and use it from now on; return where the log ends under the old.

        Raises:
            OSError: the disk is full or fails; repeat.
            ResourceExhaustedError, UnavailableError: the same, for the ring.
        """
        self._keys.add_data_key()
        self.roll()
        return self._wal.last_index

    def snapshot_writer(
        self, snapshot: Snapshot, *, is_installed: bool
    ) -> snapshots.SnapshotWriter:
        """Prepare to write a snapshot; a received one gets its name only with its step."""
        temporary_name = ""
        if is_installed:
            self._received += 1
            temporary_name = f"received-{self._received}.tmp"
        return snapshots.SnapshotWriter(
            self.directory / SNAPSHOTS_NAME,
            snapshot.index,
            self._keys,
            files=self._files,
            rng_bytes=self._rng_bytes,
            about=encode_about(About(snapshot, is_installed)),
            temporary_name=temporary_name,
        )

    def read_snapshot(self) -> Iterator[bytes]:
        """Yield the chunks of the newest snapshot, if there is one; opens it with the first.

        Raises:
            CorruptError: the disk changed since it was checked.
        """
        if self.snapshot is None:
            return iter(())
        return snapshots.read_snapshot(self._files, self.snapshot.path, self._keys)

    def take_droppable(self, entries_kept: int) -> list[Path]:
        """Forget the segments that the newest snapshot makes needless, but for some entries."""
        return self._wal.take_droppable(max(0, self.snapshot_index - entries_kept))

    def remove_older(self, segments: Sequence[Path]) -> None:
        """Remove older snapshots and segments that were taken; may run beside `write`.

        Raises:
            OSError: the disk fails; the next start or snapshot removes the rest.
        """
        self._remove_older_snapshots()
        self._remove(segments)

    def _remove(self, segments: Sequence[Path]) -> None:
        for path in segments:
            self._files.remove(path)
        self._files.sync_directory(self.directory / WAL_NAME)

    def _remove_older_snapshots(self) -> None:
        if self.snapshot is not None:
            place = self.directory / SNAPSHOTS_NAME
            snapshots.remove_older(self._files, place, self.snapshot)

    def drop_keys(self) -> None:
        """Drop the data keys that no file needs; in the thread that makes new segments."""
        snapshot_ids = {self.snapshot.key_id} if self.snapshot else set()
        self._keys.retain_data_keys(self._wal.key_ids | snapshot_ids)

    def close(self) -> None:
        """Close the files and release the directory; what was written is durable already.

        Raises:
            OSError: the synced mark could not be made exact; everything is closed.
        """
        try:
            self._wal.close()
        finally:
            self._lock.close()

    def _tidy(self) -> None:
        """Finish, at start, what a crash interrupted after a snapshot was durable."""
        self._remove_older_snapshots()
        # Before another snapshot can come: the gap behind these goes only with this one.
        void = self._wal.take_void()
        if void:
            self._remove(void)
        try:
            self.drop_keys()
        except SwarmError as error:
            # A full disk is no reason not to start; the next snapshot tries again.
            log.warning(
                "data_keys_not_dropped", directory=str(self.directory), error=reason_of(error)
            )


@contextlib.contextmanager
def _as_swarm_error(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(directory, error) from error


def _parts(entries: Entries) -> Iterator[Entries]:
    """Cut a run into parts that fit into records."""
    data = entries.data
    if sum(map(len, data)) <= RECORD_PART_BYTES:
        yield entries
        return
    start = 0
    size = 0
    for place, item in enumerate(data):
        if size and size + len(item) > RECORD_PART_BYTES:
            yield _part(entries, start, place)
            start, size = place, 0
        size += len(item)
    yield _part(entries, start, len(data))


def _part(entries: Entries, start: int, stop: int) -> Entries:
    first, following = entries.first + start, entries.first + stop
    runs = tuple(run for run in entries.terms if first < run[0] < following)
    changes = tuple(index for index in entries.changes if first <= index < following)
    return Entries(first, entries.data[start:stop], ((first, entries.term(first)), *runs), changes)

"""The write-ahead log: segment files of sealed records, appended and synced, never rewritten.

This is a shell around `raft.format`; its methods block, so they are called in one thread
(`raft.storage` by `raft.shell`).
Invariants:

* at most one record is under way, it is the last one, and the next starts after its sync;
* a file is appended to only by the process that made it, and never again after a failed write: what
  was written of it is cut away first, durably, and the next record goes to a new segment. Hence no
  nonce is ever used twice;
* segments are dropped only from the front, and the newest stays;
* the synced mark (a small file of its own, not synced itself except at close) never names more
  than what is durable, because it is written after the sync returned.

On opening, everything is read and checked once, before anything is applied. The last record of the
last segment is cut if `format.is_torn_tail` says that a crash interrupted it; anything else that
does not check is `CorruptError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proto.errors import CorruptError
from raft import format as layout
from raft.files import File, Files, replace_file, write_all
from raft.keys import KeyRing, RandomBytes

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SEGMENT_SUFFIX = ".wal"
SYNCED_NAME = "synced"
SEGMENT_BYTES = 64 << 20
_TAIL_BYTES_MAX = layout.RECORD_BYTES_MAX + layout.RECORD_HEADER_BYTES


Visit = Callable[[int, layout.Batch], None]
"""Gets the index at which a record's segment begins, and the record."""


class UncertainError(OSError):
    """A write failed and could not be cut away either: the entries may come back or not."""


class Segment:
    """What is known of one file.

    Attributes:
        path: where it is.
        header: its first bytes.
        end: the size up to which it is good.
        last_index: the last entry in it, or the one before it if it has none.
        records: how many are in it: the number of the next one.
    """

    def __init__(self, path: Path, header: layout.FileHeader) -> None:
        """Start with no record."""
        self.path = path
        self.header = header
        self.end = layout.FILE_HEADER_BYTES
        self.last_index = header.index - 1
        self.records = 0


def segment_path(directory: Path, number: int) -> Path:
    """Return where a segment is."""
    return directory / f"{number:016x}{SEGMENT_SUFFIX}"


def read_segment_header(files: Files, path: Path) -> layout.FileHeader:
    """Read and check the start of a segment.

    Raises:
        CorruptError: it is damaged, or it has the name of another one.
    """
    with files.read(path) as stream:
        data = stream.read(layout.FILE_HEADER_BYTES)
    try:
        header = layout.decode_file_header(data, layout.MAGIC_SEGMENT)
    except layout.DamagedError as error:
        raise CorruptError(str(path), error.offset, error.reason) from error
    if segment_path(path.parent, header.number).name != path.name:
        raise CorruptError(str(path), 0, f"it is segment {header.number} under a wrong name")
    return header


def data_key(keys: KeyRing, path: Path, key_id: int) -> bytes:
    """Return the key of a file.

    Raises:
        CorruptError: the ring does not hold it.
    """
    key = keys.data_key(key_id)
    if key is None:
        raise CorruptError(str(path), 0, f"its data key {key_id} is not in the key ring")
    return key


def read_batches(files: Files, path: Path, keys: KeyRing) -> Iterator[layout.Batch]:
    """Yield the records of a segment.

    Raises:
        CorruptError: the header is damaged.
        DamagedError: a record is.
    """
    header = read_segment_header(files, path)
    cipher = layout.file_cipher(data_key(keys, path, header.key_id), header)
    with files.read(path) as stream:
        stream.seek(layout.FILE_HEADER_BYTES)
        yield from layout.read_batches(stream, cipher, header.key_id)


def segment_names(files: Files, directory: Path) -> list[str]:
    """Return the names of the segments, oldest first."""
    return [name for name in files.names(directory) if name.endswith(SEGMENT_SUFFIX)]


class Wal:
    """The open log in one directory."""

    def __init__(
        self,
        directory: Path,
        keys: KeyRing,
        *,
        files: Files,
        rng_bytes: RandomBytes,
        segment_bytes: int,
    ) -> None:
        """Use `open`."""
        self._directory = directory
        self._keys = keys
        self._files = files
        self._rng_bytes = rng_bytes
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._file: File | None = None
        self._cipher: AESGCM | None = None
        self._mark: File | None = None
        self._is_dirty = False

    @classmethod
    def open(
        cls,
        directory: Path,
        keys: KeyRing,
        *,
        files: Files,
        rng_bytes: RandomBytes,
        snapshot_index: int = 0,
        may_skip: bool = False,
        visit: Visit,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Wal:
        """Check everything there is and cut a torn tail; the caller holds the directory's lock.

        Args:
            directory: made if missing.
            keys: the open ring.
            files: the disk.
            rng_bytes: for the salts.
            snapshot_index: entries up to it are not needed.
            may_skip: the snapshot came from elsewhere: the log may end before it, or go on behind
                it with other entries.
            visit: gets each record, in order.
            segment_bytes: a new segment starts before one grows larger.

        Raises:
            CorruptError: a file is damaged or missing.
            OSError: the disk failed.
        """
        wal = cls(directory, keys, files=files, rng_bytes=rng_bytes, segment_bytes=segment_bytes)
        files.make_directory(directory)
        for name in files.names(directory):
            if name.endswith(".tmp"):
                files.remove(directory / name)
        synced = wal._read_mark()
        for name in segment_names(files, directory):
            path = directory / name
            wal._segments.append(Segment(path, read_segment_header(files, path)))
        wal._check_ends(synced, snapshot_index)
        skip = snapshot_index if may_skip else -1
        for segment in wal._segments[:-1]:
            wal._check(segment, None, skip, visit)
        for segment in wal._segments[-1:]:
            wal._check(segment, synced, skip, visit)
        if wal._segments and wal.last_index < snapshot_index and not may_skip:
            last = wal._segments[-1]
            reason = f"entries up to {snapshot_index} are missing, which the snapshot contains"
            raise CorruptError(str(last.path), last.end, reason)
        wal._sync_last()
        wal._open_mark()
        return wal

    @property
    def last_index(self) -> int:
        """The last durable entry; 0 in an empty log."""
        return self._segments[-1].last_index if self._segments else 0

    @property
    def key_ids(self) -> set[int]:
        """The data keys that the segments need."""
        return {segment.header.key_id for segment in self._segments}

    def append_states(self, packed: bytes, last_index: int) -> None:
        """Write a member's states as one record and sync it.

        Args:
            packed: what `format.pack_states` returned.
            last_index: where the log ends with them.

        Raises:
            OSError: the disk is full or fails; nothing of it was kept.
            UncertainError: it may have been kept; `cut` is tried again at the next call.
        """
        segment, cipher = self._room_for(layout.RECORD_OVERHEAD_BYTES + len(packed))
        header, sealed = layout.encode_states(
            cipher, segment.header.key_id, segment.records, packed
        )
        self._write(segment, header, sealed, last_index)

    def _room_for(self, size: int) -> tuple[Segment, AESGCM]:
        """Return the segment to write so many bytes to, a new one if need be."""
        self._cut()
        if self._file is None or self._is_full(size):
            self._start_segment()
        assert self._cipher is not None
        return self._segments[-1], self._cipher

    def _write(self, segment: Segment, header: bytes, sealed: bytes, last_index: int) -> None:
        """Append a record, sync, and note it; an error leaves nothing of it, if that can be."""
        file = self._file
        assert file is not None
        try:
            self._is_dirty = True
            write_all(file, [header + sealed])
            file.sync()
        except OSError as error:
            try:
                self._cut()
            except OSError as second:
                raise UncertainError(second.errno, str(second)) from error
            raise
        self._is_dirty = False
        segment.end += len(header) + len(sealed)
        segment.last_index = last_index
        segment.records += 1
        self._note_synced()

    def roll(self) -> None:
        """Let the next entry start a new segment under the current data key.

        Raises:
            OSError: the disk is full or fails.
        """
        self._cut()
        last = self._segments[-1] if self._segments else None
        is_fresh = (
            last is not None
            and self._file is not None
            and not last.records
            and last.header.key_id == self._keys.current_id
        )
        if not is_fresh:
            self._start_segment()

    def skip_to(self, index: int) -> list[Path]:
        """Begin anew after an entry, in a segment of its own; the older ones are forgotten.

        Returns:
            Their files, to be removed oldest first, once the new segment holds a record.

        Raises:
            OSError: the disk is full or fails; nothing is changed, or (`_start_segment`) the new
                segment is there and empty.
        """
        self._cut()
        older = list(self._segments)
        self._start_segment(index)
        del self._segments[: len(older)]
        return [segment.path for segment in older]

    def take_droppable(self, index: int) -> list[Path]:
        """Forget the segments that hold nothing after `index`; return their files, oldest first.

        They must be removed in that order, so that a crash leaves no gap.
        """
        paths = []
        while len(self._segments) > 1 and self._segments[1].header.index <= index + 1:
            paths.append(self._segments.pop(0).path)
        return paths

    def abandon(self) -> None:
        """Close the files after a fault; whoever opens the log anew finds what is there."""
        if self._mark is not None:
            self._mark.close()
            self._mark = None
        self._close_file()

    def close(self) -> None:
        """Make the synced mark exact and close the files."""
        if self._mark is not None:
            self._mark.sync()
            self._mark.close()
            self._mark = None
        self._close_file()

    def _is_full(self, size: int) -> bool:
        last = self._segments[-1]
        return last.records > 0 and last.end + size > self._segment_bytes

    def _cut(self) -> None:
        """Cut away what a failed write left; the file is not written any more after that."""
        if self._is_dirty:
            assert self._file is not None
            self._file.truncate(self._segments[-1].end)
            self._file.sync()
            self._is_dirty = False
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start_segment(self, after: int | None = None) -> None:
        """Make the next segment, whole and durable, before anything refers to it."""
        last = self._segments[-1] if self._segments else None
        if after is None:
            after = last.last_index if last else 0
        header = layout.FileHeader(
            magic=layout.MAGIC_SEGMENT,
            key_id=self._keys.current_id,
            number=last.header.number + 1 if last else 1,
            index=after + 1,
            salt=self._rng_bytes(layout.SALT_BYTES),
        )
        path = segment_path(self._directory, header.number)
        # From here on the last segment is not appended to: should this fail half-way, an empty
        # segment may be left that starts at this index; it is replaced at the next attempt.
        self._close_file()
        replace_file(self._files, path, layout.encode_file_header(header))
        self._file = self._files.open(path)
        key = data_key(self._keys, path, header.key_id)
        self._cipher = layout.file_cipher(key, header)
        self._segments.append(Segment(path, header))

    def _check_ends(self, synced: layout.Synced | None, snapshot_index: int) -> None:
        """Check that no segment is missing at either end."""
        newest = self._segments[-1].header.number if self._segments else 0
        if synced is not None and synced.number > newest:
            path = segment_path(self._directory, synced.number)
            raise CorruptError(str(path), 0, "the segment is missing; it had been synced")
        first = self._segments[0] if self._segments else None
        first_index = first.header.index if first else 1
        if first_index > snapshot_index + 1:
            path = first.path if first else self._directory
            reason = f"the entries {snapshot_index + 1} to {first_index - 1} before it are missing"
            raise CorruptError(str(path), 0, reason)
        if first is None and snapshot_index:
            raise CorruptError(
                str(self._directory), 0, "all segments are missing, but there is a snapshot"
            )

    def _check(
        self, segment: Segment, synced: layout.Synced | None, skip: int, visit: Visit
    ) -> None:
        """Read a segment through; cut its torn tail if it is the last one.

        Args:
            segment: gets its size and last index.
            synced: the mark; only given for the last segment.
            skip: a segment may start after this entry, whatever came before; -1 for none.
            visit: gets the records.
        """
        place = self._segments.index(segment)
        is_last = place == len(self._segments) - 1
        if (
            place
            and segment.header.index != self._segments[place - 1].last_index + 1
            and segment.header.index != skip + 1
        ):
            expected = self._segments[place - 1].last_index + 1
            reason = f"it starts at entry {segment.header.index}, not at {expected}"
            raise CorruptError(str(segment.path), 0, reason)
        mark = synced.offset if synced and synced.number == segment.header.number else 0
        try:
            for batch in read_batches(self._files, segment.path, self._keys):
                self._follow(segment, batch)
                visit(segment.header.index, batch)
        except layout.DamagedError as error:
            if not is_last or error.is_authentic or not self._is_torn(segment, mark):
                raise CorruptError(str(segment.path), error.offset, error.reason) from error
            self._cut_tail(segment, error.reason)
        if segment.end < mark:
            reason = f"it had been synced up to byte {mark}, the rest is missing"
            raise CorruptError(str(segment.path), segment.end, reason)

    @staticmethod
    def _follow(segment: Segment, batch: layout.Batch) -> None:
        """Take a record into account; entries may only follow those that are there."""
        last = segment.last_index
        for step in batch.states.steps:
            if step.entries is not None:
                last = step.entries.last if step.entries.first <= last + 1 else -1
            if last < 0:
                break
        if last < 0:
            reason = f"entry {segment.last_index + 1} is missing"
            raise CorruptError(str(segment.path), batch.offset, reason)
        segment.last_index = last
        segment.end = batch.end
        segment.records += 1

    def _is_torn(self, segment: Segment, mark: int) -> bool:
        with self._files.read(segment.path) as stream:
            stream.seek(segment.end)
            # One byte more than any record: whether something follows it matters.
            tail = stream.read(_TAIL_BYTES_MAX + 1)
        if len(tail) > _TAIL_BYTES_MAX:
            return False
        return layout.is_torn_tail(tail, segment.end, mark, segment.header.key_id)

    def _cut_tail(self, segment: Segment, reason: str) -> None:
        log.warning(
            "torn_record_cut",
            path=str(segment.path),
            offset=segment.end,
            last_index=segment.last_index,
            reason=reason,
        )
        file = self._files.open(segment.path)
        try:
            # `_sync_last` makes it durable.
            file.truncate(segment.end)
        finally:
            file.close()

    def _sync_last(self) -> None:
        """Make durable what was read: the process before may have died between write and sync."""
        for segment in self._segments[-1:]:
            file = self._files.open(segment.path)
            try:
                file.sync()
            finally:
                file.close()
        self._files.sync_directory(self._directory)

    def _read_mark(self) -> layout.Synced | None:
        path = self._directory / SYNCED_NAME
        if not self._files.exists(path):
            return None
        with self._files.read(path) as stream:
            synced = layout.decode_synced(stream.read(layout.SYNCED_BYTES + 1))
        if synced is None:
            # It is only a help to tell damage from a torn write; without it the rest still checks.
            log.warning("synced_mark_damaged", path=str(path))
        return synced

    def _open_mark(self) -> None:
        """Write the mark anew, so that it is whole, and keep it open."""
        path = self._directory / SYNCED_NAME
        try:
            if self._read_mark() is None:
                replace_file(self._files, path, self._encoded_mark())
            self._mark = self._files.open(path)
        except OSError as error:
            log.warning("synced_mark_not_written", path=str(path), error=str(error))

    def _encoded_mark(self) -> bytes:
        last = self._segments[-1] if self._segments else None
        synced = layout.Synced(
            number=last.header.number if last else 0, offset=last.end if last else 0
        )
        return layout.encode_synced(synced)

    def _note_synced(self) -> None:
        if self._mark is None:
            return
        try:
            self._mark.write_at(0, self._encoded_mark())
        except OSError as error:
            # An old mark is always true; only the help in telling damage is lost.
            log.warning("synced_mark_not_written", path=str(self._directory), error=str(error))
            self._mark.close()
            self._mark = None

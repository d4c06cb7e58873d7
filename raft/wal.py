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

On opening, `raft.segments` checks everything; what it read and cut is made durable before anything
is applied.
"""

from __future__ import annotations

from pathlib import Path

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proto.errors import reason_of
from raft import format as layout
from raft.files import File, Files, replace_file, write_all
from raft.keys import KeyRing, RandomBytes
from raft.segments import (
    SYNCED_NAME,
    Segment,
    Visit,
    check_segments,
    data_key,
    read_mark,
    segment_path,
)

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SEGMENT_BYTES = 64 << 20


class UncertainError(OSError):
    """A write failed and could not be cut away either: the entries may come back or not."""


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
        wal._segments = check_segments(
            files,
            directory,
            keys,
            snapshot_index=snapshot_index,
            may_skip=may_skip,
            visit=visit,
        )
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

    def take_void(self) -> list[Path]:
        """Forget the segments before a place where the log was begun anew; return their files.

        A crash may have left them: a snapshot that a leader sent made them void.
        """
        segments = self._segments
        places = range(len(segments) - 1, 0, -1)
        begun_at = next(
            (at for at in places if segments[at].header.index != segments[at - 1].last_index + 1), 0
        )
        void, self._segments = segments[:begun_at], segments[begun_at:]
        return [segment.path for segment in void]

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

    def _sync_last(self) -> None:
        """Make durable what was read: the process before may have died between write and sync."""
        for segment in self._segments[-1:]:
            file = self._files.open(segment.path)
            try:
                file.sync()
            finally:
                file.close()
        self._files.sync_directory(self._directory)

    def _open_mark(self) -> None:
        """Write the mark anew, so that it is whole, and keep it open."""
        path = self._directory / SYNCED_NAME
        try:
            if read_mark(self._files, self._directory) is None:
                replace_file(self._files, path, self._encoded_mark())
            self._mark = self._files.open(path)
        except OSError as error:
            log.warning("synced_mark_not_written", path=str(path), error=reason_of(error))

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
            log.warning(
                "synced_mark_not_written", path=str(self._directory), error=reason_of(error)
            )
            self._mark.close()
            self._mark = None

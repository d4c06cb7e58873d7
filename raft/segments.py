"""Segment files of the write-ahead log: their headers and records, and their check at the start.

Everything is read and checked once, before anything is applied. The last record of the last
segment is cut if `format.is_torn_tail` says that a crash interrupted it; anything else that does
not check is `CorruptError`: damage, a missing segment or entry, less than what had been synced.
Nothing is appended here; `raft.wal` does that, and makes durable what was read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from proto.errors import CorruptError
from raft import format as layout
from raft.files import Files
from raft.keys import KeyRing

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SEGMENT_SUFFIX = ".wal"
SYNCED_NAME = "synced"
_TAIL_BYTES_MAX = layout.RECORD_BYTES_MAX + layout.RECORD_HEADER_BYTES

Visit = Callable[[int, layout.Batch], None]
"""Gets the index at which a record's segment begins, and the record."""


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


def read_mark(files: Files, directory: Path) -> layout.Synced | None:
    """Return the synced mark; None if there is none that checks."""
    path = directory / SYNCED_NAME
    if not files.exists(path):
        return None
    with files.read(path) as stream:
        synced = layout.decode_synced(stream.read(layout.SYNCED_BYTES + 1))
    if synced is None:
        # It is only a help to tell damage from a torn write; without it the rest still checks.
        log.warning("synced_mark_damaged", path=str(path))
    return synced


def check_segments(
    files: Files,
    directory: Path,
    keys: KeyRing,
    *,
    snapshot_index: int,
    may_skip: bool,
    visit: Visit,
) -> list[Segment]:
    """Read all segments through and cut a torn tail, which the caller makes durable.

    Args:
        files: the disk.
        directory: where they are.
        keys: the open ring.
        snapshot_index: entries up to it are not needed.
        may_skip: the snapshot came from elsewhere: the log may end before it, or go on behind it
            with other entries.
        visit: gets each record, in order.

    Returns:
        What is known of them, oldest first.

    Raises:
        CorruptError: a file is damaged or missing.
        OSError: the disk failed.
    """
    synced = read_mark(files, directory)
    paths = [directory / name for name in segment_names(files, directory)]
    segments = [Segment(path, read_segment_header(files, path)) for path in paths]
    _check_ends(directory, segments, synced, snapshot_index)
    if not segments:
        return []
    for segment, following in itertools.pairwise(segments):
        try:
            _follow_all(files, keys, segment, visit)
        except layout.DamagedError as error:
            raise CorruptError(str(segment.path), error.offset, error.reason) from error
        is_begun_anew = may_skip and following.header.index == snapshot_index + 1
        if following.header.index != segment.last_index + 1 and not is_begun_anew:
            expected = segment.last_index + 1
            reason = f"it starts at entry {following.header.index}, not at {expected}"
            raise CorruptError(str(following.path), 0, reason)
    last = segments[-1]
    mark = synced.offset if synced and synced.number == last.header.number else 0
    _check_last(files, keys, last, mark, visit)
    if last.last_index < snapshot_index and not may_skip:
        reason = f"entries up to {snapshot_index} are missing, which the snapshot contains"
        raise CorruptError(str(last.path), last.end, reason)
    return segments


def _check_ends(
    directory: Path, segments: list[Segment], synced: layout.Synced | None, snapshot_index: int
) -> None:
    """Check that no segment is missing at either end."""
    newest = segments[-1].header.number if segments else 0
    if synced is not None and synced.number > newest:
        path = segment_path(directory, synced.number)
        raise CorruptError(str(path), 0, "the segment is missing; it had been synced")
    first = segments[0] if segments else None
    first_index = first.header.index if first else 1
    if first_index > snapshot_index + 1:
        path = first.path if first else directory
        reason = f"the entries {snapshot_index + 1} to {first_index - 1} before it are missing"
        raise CorruptError(str(path), 0, reason)
    if first is None and snapshot_index:
        raise CorruptError(str(directory), 0, "all segments are missing, but there is a snapshot")


def _check_last(files: Files, keys: KeyRing, segment: Segment, mark: int, visit: Visit) -> None:
    """Read the last segment through and cut its torn tail; it was synced up to the mark."""
    try:
        _follow_all(files, keys, segment, visit)
    except layout.DamagedError as error:
        if error.is_authentic or not _is_torn(files, segment, mark):
            raise CorruptError(str(segment.path), error.offset, error.reason) from error
        _cut_tail(files, segment, error.reason)
    if segment.end < mark:
        reason = f"it had been synced up to byte {mark}, the rest is missing"
        raise CorruptError(str(segment.path), segment.end, reason)


def _follow_all(files: Files, keys: KeyRing, segment: Segment, visit: Visit) -> None:
    """Take the records of a segment into account, up to the first that does not check."""
    for batch in read_batches(files, segment.path, keys):
        _follow(segment, batch)
        visit(segment.header.index, batch)


def _follow(segment: Segment, batch: layout.Batch) -> None:
    """Take a record into account; entries may only follow those that are there."""
    last = segment.last_index
    for step in batch.states.steps:
        if step.entries is None:
            continue
        if step.entries.first > last + 1:
            reason = f"entry {last + 1} is missing"
            raise CorruptError(str(segment.path), batch.offset, reason)
        last = step.entries.last
    segment.last_index = last
    segment.end = batch.end
    segment.records += 1


def _is_torn(files: Files, segment: Segment, mark: int) -> bool:
    with files.read(segment.path) as stream:
        stream.seek(segment.end)
        # One byte more than any record: whether something follows it matters.
        tail = stream.read(_TAIL_BYTES_MAX + 1)
    if len(tail) > _TAIL_BYTES_MAX:
        return False
    return layout.is_torn_tail(tail, segment.end, mark, segment.header.key_id)


def _cut_tail(files: Files, segment: Segment, reason: str) -> None:
    log.warning(
        "torn_record_cut",
        path=str(segment.path),
        offset=segment.end,
        last_index=segment.last_index,
        reason=reason,
    )
    file = files.open(segment.path)
    try:
        # The log makes it durable with the rest of what was read.
        file.truncate(segment.end)
    finally:
        file.close()

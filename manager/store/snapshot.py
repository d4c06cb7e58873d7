"""Writing the whole state as chunks while the loop goes on, and reading a state back.

Writing works on an immutable view, so nothing need be locked: it encodes a bounded chunk, then
lets other tasks run. Reading is the start of a manager: rows and then entries are gathered in
plain dictionaries, and the tables with their indexes are built once at the end, which is several
times faster than applying each entry to the tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Any

from manager.store.codec import (
    DecodedEntry,
    RowChange,
    RowCreation,
    RowRemoval,
    SnapshotHeader,
    apply_operation,
    decode_header,
    decode_rows,
    encode_header,
    encode_rows,
)
from manager.store.tables import TABLES, TableView, View
from proto.errors import CorruptError

# A chunk of this size is encoded in well under a millisecond per 100 KiB; see DESIGN.md.
CHUNK_BYTES = 256 * 1024
CHUNK_ROWS_MAX = 2_000
_CHUNK_ROWS_FIRST = 50


async def snapshot_chunks(view: View) -> AsyncIterator[bytes]:
    """Encode `view`, letting the loop run between chunks."""
    counts = {spec.number: len(table) for spec, table in zip(TABLES, view.tables, strict=True)}
    yield encode_header(SnapshotHeader(view.version, counts))
    for position, table in enumerate(view.tables):
        rows = iter(table)
        row_count = _CHUNK_ROWS_FIRST
        while chunk := list(islice(rows, row_count)):
            data = encode_rows(position, chunk)
            # Aim the next chunk at the size, but grow slowly: a few small rows may be followed
            # by large ones.
            fitting = CHUNK_BYTES * len(chunk) // len(data)
            row_count = max(1, min(fitting, 4 * row_count, CHUNK_ROWS_MAX))
            yield data
            await asyncio.sleep(0)


class Restorer:
    """Gathers a snapshot and entries, then builds the state."""

    def __init__(self) -> None:
        self.version = 0
        self._rows: tuple[dict[str, Any], ...] = tuple({} for _ in TABLES)

    def load_snapshot(self, chunks: Iterable[bytes]) -> None:
        """Take the rows of a snapshot; no chunks mean there is none.

        Raises:
            CorruptError: it is damaged or incomplete.
        """
        header: SnapshotHeader | None = None
        offset = 0
        for chunk in chunks:
            if header is None:
                header = decode_header(chunk)
            else:
                position, rows = decode_rows(chunk, offset)
                self._rows[position].update((row.id, row) for row in rows)
            offset += len(chunk)
        if header is None:
            return
        for spec, rows_by_id in zip(TABLES, self._rows, strict=True):
            wanted = header.counts.get(spec.number, 0)
            if wanted != len(rows_by_id):
                reason = f"it holds {len(rows_by_id)} {spec.name}, its header says {wanted}"
                raise CorruptError("snapshot", offset, reason)
        self.version = header.version

    def apply(self, entry: DecodedEntry) -> bool:
        """Apply an entry; False if it is void.

        An entry is void if it ran on a state that never came to be: an entry before it was
        refused by the log while it was already on its way. Its transaction was reported as
        failed. Every reader decides this alike, from the versions.

        Raises:
            CorruptError: it changes an object that does not exist.
        """
        if entry.base != self.version:
            return False
        self.version += 1
        try:
            self._apply_operations(entry)
        except KeyError as error:
            reason = f"transaction {self.version} changes {error}, which does not exist"
            raise CorruptError("log", 0, reason) from error
        return True

    def _apply_operations(self, entry: DecodedEntry) -> None:
        for operation in entry.operations:
            rows = self._rows[operation.position]
            match operation:
                case RowCreation(row=row):
                    rows[row.id] = row
                case RowChange(row_id=row_id):
                    rows[row_id] = apply_operation(
                        operation, rows[row_id], version=self.version, now=entry.now
                    )
                case RowRemoval(row_id=row_id):
                    del rows[row_id]

    def to_view(self) -> View:
        """Build the tables and their indexes."""
        tables = tuple(
            TableView.load(spec, rows) for spec, rows in zip(TABLES, self._rows, strict=True)
        )
        return View(self.version, tables)

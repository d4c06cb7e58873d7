"""Applying one committed entry of another leader to a state. Pure.

The same rule as at a restart (`manager.store.snapshot.Restorer`), but on the immutable tables, and
with the changes for those who watch.
"""

from __future__ import annotations

from typing import Any

from manager.store.codec import DecodedEntry, RowCreation, RowRemoval, apply_operation
from manager.store.tables import TableView, View
from manager.store.watch import Change, Created, Deleted, Updated
from proto.errors import CorruptError


def apply_entry(view: View, entry: DecodedEntry) -> tuple[View, tuple[Change, ...]] | None:
    """Return the state after an entry, and what changed; None if the entry is void.

    Raises:
        CorruptError: it changes an object that does not exist.
    """
    if entry.base != view.version:
        return None
    version = view.version + 1
    tables: list[TableView[Any]] = list(view.tables)
    changes: list[Change] = []
    for operation in entry.operations:
        table = tables[operation.position]
        if isinstance(operation, RowCreation):
            tables[operation.position] = table.with_row(operation.row)
            changes.append(Created(new=operation.row))
            continue
        old = table.get(operation.row_id)
        if old is None:
            reason = f"transaction {version} changes {operation.row_id}, which does not exist"
            raise CorruptError("log", 0, reason)
        if isinstance(operation, RowRemoval):
            tables[operation.position] = table.without_row(operation.row_id)
            changes.append(Deleted(old=old))
            continue
        new = apply_operation(operation, old, version=version, now=entry.now)
        tables[operation.position] = table.with_row(new)
        changes.append(Updated(old=old, new=new))
    return View(version, tuple(tables)), tuple(changes)

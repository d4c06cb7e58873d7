"""A transaction: reads and changes on one state, collected until they become one log entry.

It works on immutable tables, so dropping it undoes it. Changes to one object are coalesced: the
entry and the events hold its state before and after the transaction, nothing in between. It does
no I/O and knows no log.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from manager.store.codec import encode_entry, encode_operation
from manager.store.tables import TableSpec, TableView, View, table_position
from manager.store.watch import Change, Created, Deleted, Updated
from proto.errors import ConflictError, NameConflictError, NotFoundError, SequenceConflictError
from proto.objects import Object

T = TypeVar("T", bound=Object)

_Key = tuple[int, str]

# Source: swarmkit manager/state/store/memory.go (MaxChangesPerTransaction, MaxTransactionBytes).
TRANSACTION_CHANGES_MAX = 200
TRANSACTION_BYTES_MAX = 3 * 512 * 1024


class Savepoint(msgspec.Struct, frozen=True):
    """A state of a transaction that it can go back to."""

    tables: tuple[TableView[Any], ...]
    before: dict[_Key, Any]
    operations: dict[_Key, bytes]
    operation_bytes: int


class Transaction(View):
    """A view that sees its own writes.

    Take tables from the transaction each time (`tx.tasks`): a table held in a variable stays as
    it was, which also makes it safe to change rows while iterating over them.

    Attributes:
        now: the transaction's time, seconds since the epoch.
        base: the version of the state it runs on; `version` is the one it makes.
    """

    __slots__ = ("_before", "_operation_bytes", "_operations", "base", "now")

    def __init__(self, view: View, now: float) -> None:
        super().__init__(view.version + 1, view.tables)
        self.base = view.version
        self.now = now
        self._before: dict[_Key, Any] = {}
        self._operations: dict[_Key, bytes] = {}
        self._operation_bytes = 0

    @property
    def change_count(self) -> int:
        """How many objects differ from before the transaction."""
        return len(self._operations)

    @property
    def byte_count(self) -> int:
        """About how many bytes the entry will take."""
        return self._operation_bytes

    def create(self, row: T) -> T:
        """Add an object; returns it with its version and times set.

        Raises:
            ConflictError: the ID is taken.
            NameConflictError: a unique key is taken.
        """
        position = table_position(type(row))
        table = self._tables[position]
        if row.id in table:
            raise ConflictError(f"{table.spec.noun} {row.id} already exists")
        created = msgspec.structs.replace(
            row, version=self.version, created_at=self.now, updated_at=self.now
        )
        _check_unique(table, created)
        self._put(position, None, created)
        return created

    def update(self, row: T) -> T:
        """Put an object in the place of the one that was read; returns it with its new version.

        An object equal to the stored one changes nothing and keeps its version.

        Raises:
            NotFoundError: there is none with this ID.
            SequenceConflictError: `row.version` is not the stored object's.
            NameConflictError: a unique key is taken.
        """
        position = table_position(type(row))
        table = self._tables[position]
        old = table.get(row.id)
        if old is None:
            raise NotFoundError(table.spec.noun, row.id)
        if old.version != row.version:
            raise SequenceConflictError(table.spec.noun, row.id, row.version, old.version)
        if row == old:
            return row
        updated = msgspec.structs.replace(
            row, version=self.version, created_at=old.created_at, updated_at=self.now
        )
        _check_unique(table, updated)
        self._put(position, old, updated)
        return updated

    def delete(self, kind: type[Object] | str, row_id: str) -> None:
        """Remove an object of this type (or table of this name).

        Raises:
            NotFoundError: there is none with this ID.
        """
        position = table_position(kind)
        table = self._tables[position]
        old = table.get(row_id)
        if old is None:
            raise NotFoundError(table.spec.noun, row_id)
        self._put(position, old, None)

    def _put(self, position: int, old: Any, new: Any) -> None:
        """Change one row, and note the operation that leads there from before the transaction.

        The operation is written first, because that may raise and must then leave no trace.
        """
        row_id = old.id if new is None else new.id
        key = (position, row_id)
        before = self._before.get(key, old)
        gone = before is None and new is None
        operation = b"" if gone else encode_operation(position, before, new)
        table = self._tables[position]
        table = table.without_row(row_id) if new is None else table.with_row(new)
        self._before.setdefault(key, old)
        self._operation_bytes += len(operation) - len(self._operations.pop(key, b""))
        if not gone:
            self._operations[key] = operation
        self._tables = (*self._tables[:position], table, *self._tables[position + 1 :])

    def savepoint(self) -> Savepoint:
        """Remember the present state."""
        return Savepoint(
            self._tables, dict(self._before), dict(self._operations), self._operation_bytes
        )

    def roll_back(self, savepoint: Savepoint) -> None:
        """Undo what was done since the savepoint."""
        self._tables = savepoint.tables
        self._before = dict(savepoint.before)
        self._operations = dict(savepoint.operations)
        self._operation_bytes = savepoint.operation_bytes

    def to_view(self) -> View:
        """Return the state that this transaction leads to."""
        return View(self.version, self._tables)

    def to_entry(self) -> bytes:
        """Return the log entry."""
        return encode_entry(self.base, self.now, self._operations.values())

    def to_changes(self) -> tuple[Change, ...]:
        """Return what watchers see: one change per object."""
        changes: list[Change] = []
        for position, row_id in self._operations:
            old = self._before[position, row_id]
            new = self._tables[position].get(row_id)
            if old is None:
                assert new is not None
                changes.append(Created(new=new))
            elif new is None:
                changes.append(Deleted(old=old))
            else:
                changes.append(Updated(old=old, new=new))
        return tuple(changes)


def _check_unique(table: TableView[T], row: T) -> None:
    """Refuse a row whose unique key another row has."""
    spec: TableSpec[T] = table.spec
    for index in spec.indexes:
        if index.is_unique:
            for key in index.keys(row):
                if any(row_id != row.id for row_id in table.find_ids(index.name, key)):
                    raise NameConflictError(spec.noun, str(key))

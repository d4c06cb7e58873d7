"""How transactions and snapshots are written as bytes, and read back.

An entry is one format byte and a msgpack array: the version that the transaction ran on, its
time, its operations. A create holds the whole object; an update holds only the changed fields, by
their position in the struct; a delete holds the ID. `version` and `updated_at` of a changed
object are those of the entry and are not written again. A snapshot is a list of chunks in the
same manner. Everything here is a function of its arguments.

Fields that a newer version appended to a struct are ignored by an older reader; a table or a
format that it does not know is an error, because leaving rows out would lose them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from manager.store.tables import TABLES, TableSpec
from proto.errors import CorruptError, InvalidError
from proto.objects import Object

ENTRY_FORMAT = 1
SNAPSHOT_FORMAT = 1

_CREATE, _UPDATE, _DELETE = 0, 1, 2
_OPERATIONS = 4  # a tag is table number x 4 + operation: one byte for up to 31 tables
_STAMPED = frozenset({"id", "version", "updated_at"})

_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(tuple[int, float, list[msgspec.Raw]])
_parts_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_tag_decoder = msgspec.msgpack.Decoder(int)
_id_decoder = msgspec.msgpack.Decoder(str)
_fields_decoder = msgspec.msgpack.Decoder(dict[int, msgspec.Raw])
_chunk_decoder = msgspec.msgpack.Decoder(tuple[int, list[msgspec.Raw]])


class RowCreation(msgspec.Struct, frozen=True, gc=False):
    """An operation: the whole new object."""

    position: int
    row: Any


class RowChange(msgspec.Struct, frozen=True, gc=False):
    """An operation: the fields of an object that changed, by name."""

    position: int
    row_id: str
    fields: dict[str, Any]


class RowRemoval(msgspec.Struct, frozen=True, gc=False):
    """An operation: the object is no more."""

    position: int
    row_id: str


Operation = RowCreation | RowChange | RowRemoval


class DecodedEntry(msgspec.Struct, frozen=True, gc=False):
    """A transaction as read from the log; it applies only to the state of version `base`."""

    base: int
    now: float
    operations: tuple[Operation, ...]


class _Field(msgspec.Struct, frozen=True):
    number: int
    name: str
    decode: Callable[[msgspec.Raw], Any]


class _Kind(msgspec.Struct, frozen=True):
    """What the codec knows of one table's type, computed once."""

    decode: Callable[[msgspec.Raw], Any]
    fields: tuple[_Field, ...]
    by_number: dict[int, _Field]


def _kind_of(spec: TableSpec[Any]) -> _Kind:
    fields = tuple(
        _Field(number, field.name, msgspec.msgpack.Decoder(field.type).decode)
        for number, field in enumerate(msgspec.structs.fields(spec.kind))
        if field.name not in _STAMPED
    )
    by_number = {field.number: field for field in fields}
    return _Kind(msgspec.msgpack.Decoder(spec.kind).decode, fields, by_number)


_KINDS = tuple(_kind_of(spec) for spec in TABLES)
_POSITIONS = {spec.number: position for position, spec in enumerate(TABLES)}


def encode_operation(position: int, old: Object | None, new: Object | None) -> bytes:
    """Write what leads from `old` (None: not there) to `new` (None: gone) in one table.

    The bytes are read back and compared, so that an object that could not be restored (a list
    where a tuple belongs, a number too large) never reaches the log.

    Raises:
        InvalidError: the object cannot be stored.
    """
    spec = TABLES[position]
    tag = spec.number * _OPERATIONS
    if new is None:
        assert old is not None
        return _encoder.encode((tag + _DELETE, old.id))
    try:
        if old is None:
            data = _encoder.encode((tag + _CREATE, new))
        else:
            changes = {
                field.number: value
                for field in _KINDS[position].fields
                if (value := getattr(new, field.name)) != getattr(old, field.name)
            }
            data = _encoder.encode((tag + _UPDATE, old.id, changes))
        restored = apply_operation(
            decode_operation(data), old, version=new.version, now=new.updated_at
        )
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError) as error:
        raise InvalidError(f"{spec.noun} {new.id} cannot be stored: {error}") from error
    if restored != new:
        raise InvalidError(f"{spec.noun} {new.id} cannot be stored: it would be read back changed")
    return data


def decode_operation(data: bytes | msgspec.Raw) -> Operation:
    """Read what `encode_operation` wrote."""
    parts = _parts_decoder.decode(data)
    number, operation = divmod(_tag_decoder.decode(parts[0]), _OPERATIONS)
    position = _POSITIONS.get(number)
    if position is None:
        raise CorruptError("log", 0, f"table {number} is unknown to this version of swarmd")
    kind = _KINDS[position]
    if operation == _CREATE:
        return RowCreation(position, kind.decode(parts[1]))
    row_id = _id_decoder.decode(parts[1])
    if operation == _DELETE:
        return RowRemoval(position, row_id)
    fields = {
        field.name: field.decode(raw)
        for number, raw in _fields_decoder.decode(parts[2]).items()
        if (field := kind.by_number.get(number)) is not None
    }
    return RowChange(position, row_id, fields)


def apply_operation(operation: Operation, old: Any, *, version: int, now: float) -> Any:
    """Return the object after the operation (None: gone), given the one before."""
    match operation:
        case RowCreation(row=row):
            return row
        case RowChange(fields=fields):
            return msgspec.structs.replace(old, version=version, updated_at=now, **fields)
        case RowRemoval():
            return None


def encode_entry(base: int, now: float, operations: Iterable[bytes]) -> bytes:
    """Write a transaction that ran on version `base`."""
    body = _encoder.encode((base, now, [msgspec.Raw(data) for data in operations]))
    return bytes((ENTRY_FORMAT,)) + body


def decode_entry(data: bytes, index: int) -> DecodedEntry:
    """Read a transaction; `index` is its place in the log, for the error.

    Raises:
        CorruptError: it is damaged, or of a format that this version does not know.
    """
    if not data or data[0] != ENTRY_FORMAT:
        raise CorruptError("log", 0, f"entry {index} has an unknown format")
    try:
        base, now, raws = _entry_decoder.decode(memoryview(data)[1:])
        return DecodedEntry(base, now, tuple(decode_operation(raw) for raw in raws))
    except (msgspec.MsgspecError, IndexError) as error:
        raise CorruptError("log", 0, f"entry {index} cannot be read: {error}") from error


class SnapshotHeader(msgspec.Struct, frozen=True, array_like=True):
    """The first chunk: what the rest must add up to; `counts` is by table number."""

    version: int
    counts: dict[int, int]


_header_decoder = msgspec.msgpack.Decoder(SnapshotHeader)


def encode_header(header: SnapshotHeader) -> bytes:
    """Write a snapshot's first chunk."""
    return bytes((SNAPSHOT_FORMAT,)) + _encoder.encode(header)


def decode_header(data: bytes) -> SnapshotHeader:
    """Read a snapshot's first chunk."""
    if not data or data[0] != SNAPSHOT_FORMAT:
        raise CorruptError("snapshot", 0, "it has an unknown format")
    try:
        return _header_decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as error:
        raise CorruptError("snapshot", 0, f"its header cannot be read: {error}") from error


def encode_rows(position: int, rows: list[Any]) -> bytes:
    """Write a chunk of rows of one table."""
    return _encoder.encode((TABLES[position].number, rows))


def decode_rows(data: bytes, offset: int) -> tuple[int, list[Any]]:
    """Read a chunk: the table's position and its rows; `offset` is the chunk's, for the error."""
    try:
        number, raws = _chunk_decoder.decode(data)
        position = _POSITIONS.get(number)
        if position is None:
            reason = f"table {number} is unknown to this version of swarmd"
            raise CorruptError("snapshot", offset, reason)
        decode = _KINDS[position].decode
        return position, [decode(raw) for raw in raws]
    except msgspec.MsgspecError as error:
        raise CorruptError("snapshot", offset, f"a chunk cannot be read: {error}") from error

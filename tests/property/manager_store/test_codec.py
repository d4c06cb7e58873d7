"""What is written to the log is read back as it was, for every field of every table."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.store.codec import (
    apply_operation,
    decode_entry,
    decode_operation,
    decode_rows,
    encode_entry,
    encode_operation,
    encode_rows,
)
from manager.store.tables import TABLES
from proto.errors import CorruptError

replace = msgspec.structs.replace
_POSITIONS = pytest.mark.parametrize("position", range(len(TABLES)))


@_POSITIONS
def test_creates_updates_and_deletes_round_trip(position: int, objects_of: Any):
    """A reader of the entry gets exactly the leader's object, from nothing and from an older one.

    `updated_at` and `version` come from the entry, everything else from the operations.
    """
    objects = objects_of(TABLES[position].kind)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(objects, objects)
    def check(old: Any, new: Any) -> None:
        new = replace(new, id=old.id, version=abs(new.version) // 2 + 1)
        for before, after in ((None, new), (old, new), (old, None)):
            data = encode_entry(
                new.version - 1, new.updated_at, [encode_operation(position, before, after)]
            )
            entry = decode_entry(data, 1)
            assert entry.base == new.version - 1
            restored = apply_operation(
                entry.operations[0], before, version=entry.base + 1, now=entry.now
            )
            assert restored == after
            assert type(restored) is type(after)

    check()


@_POSITIONS
def test_snapshot_rows_round_trip(position: int, objects_of: Any):
    """A chunk of rows is read back as it was."""

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(objects_of(TABLES[position].kind), max_size=3))
    def check(rows: list[Any]) -> None:
        assert decode_rows(encode_rows(position, rows), 0) == (position, rows)

    check()


@_POSITIONS
def test_fields_of_a_newer_version_are_ignored(position: int, objects_of: Any):
    """A struct with more fields than we know, and a change of one, are read without them."""

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(objects_of(TABLES[position].kind))
    def check(row: Any) -> None:
        number = TABLES[position].number
        fields = msgspec.msgpack.decode(msgspec.msgpack.encode(row))
        longer = msgspec.msgpack.encode((number, [[*fields, {"new": [1, 2]}, "newer"]]))
        assert decode_rows(longer, 0) == (position, [row])
        change = msgspec.msgpack.encode((number * 4 + 1, row.id, {len(fields): "new"}))
        operation = decode_operation(change)
        same = apply_operation(operation, row, version=row.version, now=row.updated_at)
        assert same == row

    check()


@given(st.binary(max_size=60))
def test_rubbish_is_refused_in_one_way(data: bytes):
    """Any bytes are an entry or a `CorruptError`, nothing else."""
    for candidate in (data, b"\x01" + data):
        with contextlib.suppress(CorruptError):
            decode_entry(candidate, 7)

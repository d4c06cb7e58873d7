"""The tables of the store: which there are, their indexes, and how an immutable one is changed.

`TABLES` is the whole declaration: one row per table with its number in the log, its type and its
indexes. A `TableView` is a value: a change returns another one that shares all but the touched
path (a hash array mapped trie), so that a snapshot costs nothing and is never locked. Nothing
here knows of transactions, logs or time.

Invariants: every row is under its own `id`; every index holds exactly the keys of the rows
(`check` verifies both).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

import immutables
import msgspec

from proto.errors import InvariantViolationError
from proto.objects import (
    Cluster,
    Node,
    Object,
    Service,
    ServiceSpecVersion,
    Task,
    spec_version_id,
)

T = TypeVar("T", bound=Object)

# Most keys of most indexes lead to very few rows; a tuple is then smaller and faster than a trie.
_TUPLE_BUCKET_MAX = 8

_Bucket = tuple[str, ...] | immutables.Map[str, None]
_Rows = immutables.Map[str, T]
_IndexMap = immutables.Map[Hashable, _Bucket]


class Index(msgspec.Struct, Generic[T], frozen=True):
    """A declared index: rows are found by each of the keys that `keys` computes.

    Attributes:
        name: what `TableView.find` is asked for.
        keys: a pure function of a row; a row without a key is not in the index.
        is_unique: whether a transaction refuses a second row with the same key.
        is_folded: whether a key is text whose case does not matter.
    """

    name: str
    keys: Callable[[T], tuple[Hashable, ...]]
    is_unique: bool = False
    is_folded: bool = False


class TableSpec(msgspec.Struct, Generic[T], frozen=True):
    """One table: `number` marks its rows in the log and is never reused."""

    number: int
    name: str
    noun: str
    kind: type[T]
    indexes: tuple[Index[T], ...] = ()


def _node_names(node: Node) -> tuple[Hashable, ...]:
    return (node.spec.name.lower(),) if node.spec.name else ()


def _node_hostnames(node: Node) -> tuple[Hashable, ...]:
    hostname = node.description.hostname
    return (hostname.lower(),) if hostname else ()


def _published_ports(service: Service) -> tuple[Hashable, ...]:
    keys = {
        (port.protocol, port.published_port)
        for port in service.endpoint.ports
        if port.published_port
    }
    return tuple(sorted(keys))


CLUSTERS = TableSpec(1, "clusters", "cluster", Cluster)
NODES = TableSpec(
    2,
    "nodes",
    "node",
    Node,
    (
        Index("name", _node_names, is_folded=True),
        Index("hostname", _node_hostnames, is_folded=True),
    ),
)
SERVICES = TableSpec(
    3,
    "services",
    "service",
    Service,
    (
        # Names become host names, whose case does not matter.
        Index(
            "name",
            lambda service: (service.spec.name.lower(),),
            is_unique=True,
            is_folded=True,
        ),
        Index("published_port", _published_ports),
    ),
)
SPEC_VERSIONS = TableSpec(
    4,
    "spec_versions",
    "service spec version",
    ServiceSpecVersion,
    (Index("service_id", lambda row: (row.service_id,)),),
)
TASKS = TableSpec(
    5,
    "tasks",
    "task",
    Task,
    (
        Index("service_id", lambda task: (task.service_id,)),
        Index("node_id", lambda task: (task.node_id,)),
        Index("slot", lambda task: ((task.service_id, task.slot),)),
        Index("spec_version", lambda task: (spec_version_id(task.service_id, task.spec_version),)),
    ),
)

TABLES: tuple[TableSpec[Any], ...] = (CLUSTERS, NODES, SERVICES, SPEC_VERSIONS, TASKS)

_BY_KIND: dict[type[Any], int] = {spec.kind: i for i, spec in enumerate(TABLES)}
_BY_NAME: dict[str, int] = {spec.name: i for i, spec in enumerate(TABLES)}


def table_position(kind: type[Any] | str) -> int:
    """Return the place in `TABLES` of the table that holds `kind` (a type or a table's name)."""
    position = _BY_NAME.get(kind) if isinstance(kind, str) else _BY_KIND.get(kind)
    if position is None:
        raise InvariantViolationError(f"the store has no table of {kind!r}")
    return position


def _bucket_with(bucket: _Bucket | None, row_id: str) -> _Bucket:
    if bucket is None:
        return (row_id,)
    if isinstance(bucket, tuple):
        if row_id in bucket:
            return bucket
        ids = (*bucket, row_id)
        if len(ids) <= _TUPLE_BUCKET_MAX:
            return ids
        return immutables.Map(dict.fromkeys(ids))
    return bucket.set(row_id, None)


def _bucket_without(bucket: _Bucket, row_id: str) -> _Bucket | None:
    if isinstance(bucket, tuple):
        return tuple(other for other in bucket if other != row_id) or None
    rest = bucket.delete(row_id)
    return tuple(rest) if len(rest) <= _TUPLE_BUCKET_MAX else rest


class TableView(Generic[T]):
    """An immutable table with its indexes.

    Iteration and `find` give rows in no particular order: sort where the order matters.
    """

    __slots__ = ("_indexes", "_rows", "spec")

    def __init__(self, spec: TableSpec[T], rows: _Rows[T], indexes: tuple[_IndexMap, ...]) -> None:
        self.spec = spec
        self._rows = rows
        self._indexes = indexes

    @classmethod
    def load(cls, spec: TableSpec[T], rows: dict[str, T]) -> TableView[T]:
        """Build a table of many rows at once, several times faster than row by row."""
        indexes: list[_IndexMap] = []
        for index in spec.indexes:
            buckets: dict[Hashable, list[str]] = {}
            for row in rows.values():
                for key in index.keys(row):
                    buckets.setdefault(key, []).append(row.id)
            packed: dict[Hashable, _Bucket] = {
                key: tuple(ids)
                if len(ids) <= _TUPLE_BUCKET_MAX
                else immutables.Map(dict.fromkeys(ids))
                for key, ids in buckets.items()
            }
            indexes.append(immutables.Map(packed))
        return cls(spec, immutables.Map(rows), tuple(indexes))

    def get(self, row_id: str) -> T | None:
        """Return the row with this ID."""
        return self._rows.get(row_id)

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._rows

    def __iter__(self) -> Iterator[T]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, index: str, key: Hashable) -> Iterator[T]:
        """Iterate over the rows that have this key in the index of this name."""
        rows = self._rows
        return (rows[row_id] for row_id in self.find_ids(index, key))

    def find_ids(self, index: str, key: Hashable) -> Iterable[str]:
        """Return the IDs of the rows that `find` gives."""
        for position, declared in enumerate(self.spec.indexes):
            if declared.name == index:
                if declared.is_folded:
                    key = cast("str", key).lower()
                return self._indexes[position].get(key, ())
        raise InvariantViolationError(f"table {self.spec.name} has no index {index!r}")

    def count(self, index: str, key: Hashable) -> int:
        """Count the rows that `find` gives, without visiting them."""
        ids = self.find_ids(index, key)
        assert isinstance(ids, tuple | immutables.Map)
        return len(ids)

    def with_row(self, row: T) -> TableView[T]:
        """Return this table with `row` added, or in the place of the row with the same ID."""
        old = self._rows.get(row.id)
        indexes = tuple(
            _reindexed(index, entries, old, row)
            for index, entries in zip(self.spec.indexes, self._indexes, strict=True)
        )
        return TableView(self.spec, self._rows.set(row.id, row), indexes)

    def without_row(self, row_id: str) -> TableView[T]:
        """Return this table without the row, which must exist."""
        old = self._rows[row_id]
        indexes = tuple(
            _reindexed(index, entries, old, None)
            for index, entries in zip(self.spec.indexes, self._indexes, strict=True)
        )
        return TableView(self.spec, self._rows.delete(row_id), indexes)

    def check(self) -> None:
        """Verify each row's place and each index against the rows.

        Raises:
            InvariantViolationError: the first difference found.
        """
        name = self.spec.name
        for row_id, row in self._rows.items():
            if row.id != row_id:
                raise InvariantViolationError(f"{name}: row {row.id} is stored under {row_id}")
        for index, entries in zip(self.spec.indexes, self._indexes, strict=True):
            wanted: dict[Hashable, set[str]] = {}
            for row in self._rows.values():
                for key in index.keys(row):
                    wanted.setdefault(key, set()).add(row.id)
            found = {key: set(bucket) for key, bucket in entries.items()}
            if wanted != found:
                raise InvariantViolationError(f"{name}: index {index.name} differs from the rows")
            if index.is_unique and any(len(ids) > 1 for ids in found.values()):
                raise InvariantViolationError(f"{name}: index {index.name} is not unique")


def _reindexed(index: Index[T], entries: _IndexMap, old: T | None, new: T | None) -> _IndexMap:
    """Move one row in one index; the usual change touches no key and costs two comparisons."""
    old_keys = index.keys(old) if old is not None else ()
    new_keys = index.keys(new) if new is not None else ()
    if old_keys == new_keys:
        return entries
    if old is not None:
        for key in old_keys:
            if key not in new_keys:
                bucket = _bucket_without(entries[key], old.id)
                entries = entries.delete(key) if bucket is None else entries.set(key, bucket)
    if new is not None:
        for key in new_keys:
            if key not in old_keys:
                entries = entries.set(key, _bucket_with(entries.get(key), new.id))
    return entries


class View:
    """All tables as they were after one transaction; never changes.

    Attributes:
        version: how many transactions the store had seen.
    """

    __slots__ = ("_tables", "version")

    def __init__(self, version: int, tables: tuple[TableView[Any], ...]) -> None:
        self.version = version
        self._tables = tables

    @classmethod
    def empty(cls) -> View:
        """Return the state of a store that never held anything."""
        return cls(0, tuple(TableView.load(spec, {}) for spec in TABLES))

    @property
    def tables(self) -> tuple[TableView[Any], ...]:
        """All tables, in the order of `TABLES`."""
        return self._tables

    @property
    def clusters(self) -> TableView[Cluster]:
        """The table with the one row of the cluster."""
        return self._tables[0]

    @property
    def nodes(self) -> TableView[Node]:
        """Nodes; indexes `name` and `hostname`, whatever the case."""
        return self._tables[1]

    @property
    def services(self) -> TableView[Service]:
        """Services; indexes `name` (unique) and `published_port` (key: protocol, number)."""
        return self._tables[2]

    @property
    def spec_versions(self) -> TableView[ServiceSpecVersion]:
        """Versions of services' specs, by `spec_version_id()`; index `service_id`."""
        return self._tables[3]

    @property
    def tasks(self) -> TableView[Task]:
        """Tasks; indexes `service_id`, `node_id` ("" finds the unassigned), `slot`, `spec_version`.

        The key of `slot` is (service ID, slot); that of `spec_version` is `spec_version_id()`.
        """
        return self._tables[4]

    def check(self) -> None:
        """Verify every table; raises `InvariantViolationError`."""
        for table in self._tables:
            table.check()

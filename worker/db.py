"""Keeps this node's assignments and last statuses on disk, so that it can go on without a manager.

A small SQLite database in WAL mode. With `synchronous=NORMAL` a crash of the machine may lose the
last moments, never the whole: then the runtime's containers and the manager say what happened.
Specs are stored once per service and version, as in the cluster's store. What is stored names
secrets but never holds their content.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from proto.ids import TaskID
from proto.objects import PortConfig, ServiceSpec, Task, TaskStatus, spec_version_id
from worker.api import Assignment, StatusUpdate

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SCHEMA_VERSION = 1
BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE specs (id TEXT PRIMARY KEY, spec BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    spec_id TEXT NOT NULL REFERENCES specs (id),
    task BLOB NOT NULL,
    ports BLOB NOT NULL,
    status BLOB
) WITHOUT ROWID;
CREATE INDEX tasks_by_spec ON tasks (spec_id);
"""
_SELECT = """
SELECT task, spec, ports, status FROM tasks JOIN specs ON specs.id = spec_id ORDER BY tasks.id
"""


class WorkerDB:
    """The database; used by one task of one thread at a time."""

    def __init__(self, path: Path, *, wall: float) -> None:
        """Open or create `path`; what cannot be read is set aside as `<path>.damaged-<wall>`."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _opened(path)
        except (sqlite3.DatabaseError, msgspec.MsgspecError):
            aside = path.with_name(f"{path.name}.damaged-{int(wall)}")
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.replace(aside)
            log.exception(
                "worker_db_damaged",
                path=str(path),
                set_aside_as=str(aside),
                consequence="started anew; containers are adopted when a manager is reached",
            )
            self._db = _opened(path)

    def load(self) -> list[tuple[Assignment, TaskStatus | None]]:
        """Return all assignments with their last status, sorted by task ID."""
        return [_decoded(row) for row in self._db.execute(_SELECT)]

    def replace(self, assignments: Iterable[Assignment]) -> None:
        """Make these all that is assigned; statuses of the tasks that stay are kept."""
        with self._db:
            wanted = {assignment.task.id: assignment for assignment in assignments}
            stored = {TaskID(row[0]) for row in self._db.execute("SELECT id FROM tasks")}
            self._delete(stored - wanted.keys())
            self._put(wanted.values())

    def update(self, updated: Iterable[Assignment], removed: Iterable[TaskID]) -> None:
        """Store what changed."""
        with self._db:
            self._put(updated)
            self._delete(removed)

    def put_statuses(self, updates: Iterable[StatusUpdate]) -> None:
        """Store statuses; those of tasks that are not assigned are of no interest."""
        with self._db:
            self._db.executemany(
                "UPDATE tasks SET status = ? WHERE id = ?",
                [(msgspec.msgpack.encode(u.status), u.task_id) for u in updates],
            )

    def clear(self) -> None:
        """Forget everything: the node leaves its cluster."""
        with self._db:
            self._db.execute("DELETE FROM tasks")
            self._db.execute("DELETE FROM specs")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _put(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            task = assignment.task
            spec_id = spec_version_id(task.service_id, task.spec_version)
            self._db.execute(
                "INSERT INTO specs VALUES (?, ?)"
                " ON CONFLICT (id) DO UPDATE SET spec = excluded.spec",
                (spec_id, msgspec.msgpack.encode(assignment.spec)),
            )
            self._db.execute(
                "INSERT INTO tasks (id, spec_id, task, ports) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET spec_id = excluded.spec_id,"
                " task = excluded.task, ports = excluded.ports",
                (
                    task.id,
                    spec_id,
                    msgspec.msgpack.encode(task),
                    msgspec.msgpack.encode(assignment.ports),
                ),
            )

    def _delete(self, removed: Iterable[TaskID]) -> None:
        ids = [(task_id,) for task_id in removed]
        if ids:
            self._db.executemany("DELETE FROM tasks WHERE id = ?", ids)
            self._db.execute("DELETE FROM specs WHERE id NOT IN (SELECT spec_id FROM tasks)")


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file, create the tables if need be, and read all, to know now what is damaged."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        if db.execute("PRAGMA user_version").fetchone() == (0,):
            db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        _check(db)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"its format is {version}, expected {SCHEMA_VERSION}")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    for row in db.execute(_SELECT):
        _decoded(row)


def _decoded(row: tuple[bytes, bytes, bytes, bytes | None]) -> tuple[Assignment, TaskStatus | None]:
    task, spec, ports, status = row
    assignment = Assignment(
        task=msgspec.msgpack.decode(task, type=Task),
        spec=msgspec.msgpack.decode(spec, type=ServiceSpec),
        ports=msgspec.msgpack.decode(ports, type=tuple[PortConfig, ...]),
    )
    known = None if status is None else msgspec.msgpack.decode(status, type=TaskStatus)
    return assignment, known

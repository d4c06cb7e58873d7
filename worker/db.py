"""Keeps this node's assignments and last statuses on disk, so that it can go on without a manager.

A small SQLite database in WAL mode. With `synchronous=NORMAL` a crash of the machine may lose the
last moments, never the whole: then the runtime's containers and the manager say what happened.
Specs are stored once per service and version, as in the cluster's store. What is stored names
secrets but never holds their content.

A disk that is full or fails gives up nothing: what shall be stored is kept in memory too, in
objects that the task table holds anyway, `fault` says what is wrong, and `retry` writes all of it
once the disk takes it again. Meanwhile a crash loses what a lost database would: patience.

The file is locked for this process alone, so that SQLite keeps the index of its log in memory: a
mapped file on a full disk ends the process by SIGBUS.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from proto.errors import reason_of
from proto.ids import TaskID
from proto.objects import PortConfig, ServiceSpec, Task, TaskStatus, spec_version_id
from worker.api import Assignment, StatusUpdate

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SCHEMA_VERSION = 1
BUSY_SECONDS = 5.0
# The part of an extended error code of SQLite that names the kind.
_PRIMARY = 0xFF
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
    """The database; used by one task of one thread at a time. No method raises for the disk.

    Attributes:
        fault: why the newest changes are not on the disk, as a sentence; "" when they are.
    """

    def __init__(self, path: Path, *, wall: float) -> None:
        """Open or create `path`; what cannot be read is set aside as `<path>.damaged-<wall>`."""
        self._path = path
        self._wall = wall
        self.fault = ""
        self._is_logged = False
        self._rows: dict[TaskID, tuple[Assignment, TaskStatus | None]] = {}
        # Tasks of which the disk has something else; True where more than the status differs.
        self._unsaved: dict[TaskID, bool] = {}
        # Whether the file may hold more than what is known: it could not be read, or failed.
        self._is_unknown = True
        self._is_complete = False
        self._db: sqlite3.Connection | None = None
        try:
            self._db = self._opened()
            rows = [_decoded(row) for row in self._db.execute(_SELECT)]
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        else:
            self._rows = {assignment.task.id: (assignment, known) for assignment, known in rows}
            self._is_unknown = False
            self._is_complete = True

    def load(self) -> list[tuple[Assignment, TaskStatus | None]]:
        """Return all assignments with their last status, sorted by task ID.

        Nothing, if the disk cannot be read: containers then wait for what a manager says.
        """
        return [self._rows[task_id] for task_id in sorted(self._rows)]

    def replace(self, assignments: Iterable[Assignment]) -> None:
        """Make these all that is assigned; statuses of the tasks that stay are kept."""
        wanted = {assignment.task.id: assignment for assignment in assignments}
        self._is_complete = True
        self._change(wanted.values(), self._rows.keys() - wanted.keys())

    def update(self, updated: Iterable[Assignment], removed: Iterable[TaskID]) -> None:
        """Store what changed."""
        self._change(updated, removed)

    def put_statuses(self, updates: Iterable[StatusUpdate]) -> None:
        """Store statuses; those of tasks that are not assigned are of no interest."""
        for update in updates:
            row = self._rows.get(update.task_id)
            if row is not None:
                self._rows[update.task_id] = (row[0], update.status)
                self._unsaved.setdefault(update.task_id, False)
        self._save()

    def clear(self) -> None:
        """Forget everything: the node leaves its cluster."""
        self.replace(())
        if self.fault:
            # What cannot be changed can still be removed, also from a full disk.
            self.close()
            for path in _files(self._path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            self._unsaved.clear()

    def retry(self) -> None:
        """Write what could not be written, opening the file anew; `fault` says whether it is so."""
        if not self.fault:
            return
        try:
            if self._db is None:
                self._db = self._opened()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return
        self.fault = ""
        self._save()
        if not self.fault:
            self._is_logged = False
            log.info("worker_db_written_again", path=str(self._path), tasks=len(self._rows))

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _change(self, updated: Iterable[Assignment], removed: Iterable[TaskID]) -> None:
        for assignment in updated:
            known = self._rows.get(assignment.task.id)
            self._rows[assignment.task.id] = (assignment, None if known is None else known[1])
            self._unsaved[assignment.task.id] = True
        for task_id in removed:
            self._rows.pop(task_id, None)
            self._unsaved[task_id] = True
        self._save()

    def _save(self) -> None:
        """Write what changed; while there is a fault, `retry` does it."""
        # What was stored by others before us stays until a manager has said what is assigned.
        if self.fault or not self._is_complete or not (self._unsaved or self._is_unknown):
            return
        assert self._db is not None
        try:
            if self._is_unknown:
                self._write_all(self._db)
                self._is_unknown = False
            with _transaction(self._db):
                self._put(
                    self._db, [task_id for task_id, is_whole in self._unsaved.items() if is_whole]
                )
                self._db.executemany(
                    "UPDATE tasks SET status = ? WHERE id = ?",
                    [
                        (msgspec.msgpack.encode(self._rows[task_id][1]), task_id)
                        for task_id, is_whole in self._unsaved.items()
                        if not is_whole
                    ],
                )
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        else:
            self._unsaved.clear()

    def _write_all(self, db: sqlite3.Connection) -> None:
        """Make the file what it shall be, whatever is in it."""
        with _transaction(db):
            stored = {TaskID(row[0]) for row in db.execute("SELECT id FROM tasks")}
            self._put(db, [*self._rows, *(stored - self._rows.keys())])

    def _put(self, db: sqlite3.Connection, task_ids: Sequence[TaskID]) -> None:
        """Write whole rows; remove those of tasks that are not known."""
        rows = [self._rows[task_id] for task_id in task_ids if task_id in self._rows]
        specs = {_spec_id(assignment): assignment.spec for assignment, _ in rows}
        db.executemany(
            "INSERT INTO specs VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET spec = excluded.spec",
            [(spec_id, msgspec.msgpack.encode(spec)) for spec_id, spec in specs.items()],
        )
        db.executemany(
            "INSERT INTO tasks (id, spec_id, task, ports, status) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET spec_id = excluded.spec_id,"
            " task = excluded.task, ports = excluded.ports, status = excluded.status",
            [_encoded(assignment, known) for assignment, known in rows],
        )
        gone = [(task_id,) for task_id in task_ids if task_id not in self._rows]
        if gone:
            db.executemany("DELETE FROM tasks WHERE id = ?", gone)
            db.execute("DELETE FROM specs WHERE id NOT IN (SELECT spec_id FROM tasks)")

    def _failed(self, error: sqlite3.Error | OSError) -> None:
        """Note that the disk lags behind; the file is opened anew before it is tried again."""
        with contextlib.suppress(sqlite3.Error):
            self.close()
        self._db = None
        self._is_unknown = True
        if not self._is_logged:
            self._is_logged = True
            log.error(
                "worker_db_not_written",
                path=str(self._path),
                error=reason_of(error),
                consequence="tasks run on; it is tried again until the disk takes it",
            )
        self.fault = (
            f"the node's record of its tasks, {self._path}, cannot be written ({error}): make room "
            "on its disk (docker image prune) or mend it; tasks run on meanwhile"
        )

    def _opened(self) -> sqlite3.Connection:
        """Open the file; a damaged one is set aside.

        Raises:
            sqlite3.Error, OSError: the disk.
        """
        path = self._path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _opened(path)
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            if not _is_damage(error):
                raise
            aside = path.with_name(f"{path.name}.damaged-{int(self._wall)}")
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.replace(aside)
            log.exception(
                "worker_db_damaged",
                path=str(path),
                set_aside_as=str(aside),
                consequence="started anew; containers are adopted when a manager is reached",
            )
            return _opened(path)


def _is_damage(error: Exception) -> bool:
    """Tell a damaged file from a disk that is full or fails, which says nothing about the file."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & _PRIMARY in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end; undo at an error, which a full disk may have done already."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _spec_id(assignment: Assignment) -> str:
    return spec_version_id(assignment.task.service_id, assignment.task.spec_version)


def _encoded(
    assignment: Assignment, known: TaskStatus | None
) -> tuple[str, str, bytes, bytes, bytes | None]:
    return (
        assignment.task.id,
        _spec_id(assignment),
        msgspec.msgpack.encode(assignment.task),
        msgspec.msgpack.encode(assignment.ports),
        None if known is None else msgspec.msgpack.encode(known),
    )


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file, create the tables if need be, and read all, to know now what is damaged."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
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

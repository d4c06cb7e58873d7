"""The worker's database across restarts and damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from proto.ids import TaskID
from proto.objects import PortConfig, TaskStatus
from proto.states import TaskState
from worker.api import Assignment, StatusUpdate
from worker.db import WorkerDB

Make = Callable[..., Assignment]
RUNNING = TaskStatus(state=TaskState.RUNNING, timestamp=5.0)


def test_all_is_there_after_a_restart(tmp_path: Path, assigned: Make) -> None:
    """Assignments, ports and last statuses come back as they were."""
    db = WorkerDB(tmp_path / "w.db", wall=1)
    first = assigned("t1", ports=(PortConfig(target_port=80, published_port=8080),))
    second = assigned("t2", service="s2")
    db.update([first, second], [])
    db.put_statuses([StatusUpdate(TaskID("t1"), RUNNING)])
    db.close()
    db = WorkerDB(tmp_path / "w.db", wall=1)
    assert db.load() == [(first, RUNNING), (second, None)]
    db.close()
    assert (tmp_path / "w.db").stat().st_mode & 0o777 == 0o600


def test_replace_keeps_the_statuses_of_what_stays(tmp_path: Path, assigned: Make) -> None:
    """A complete set removes the rest; specs that no task names go too."""
    db = WorkerDB(tmp_path / "w.db", wall=1)
    first, second, third = assigned("t1"), assigned("t2", spec_version=2), assigned("t3")
    db.update([first, second], [])
    db.put_statuses([StatusUpdate(TaskID("t1"), RUNNING), StatusUpdate(TaskID("t2"), RUNNING)])
    db.replace([first, third])
    assert db.load() == [(first, RUNNING), (third, None)]
    assert db._db.execute("SELECT count(*) FROM specs").fetchone() == (1,)
    db.update([], [TaskID("t1"), TaskID("t9")])
    assert db.load() == [(third, None)]
    db.clear()
    assert db.load() == []
    db.close()


@pytest.mark.parametrize("size", [10, 4096])
def test_damaged_database_is_set_aside(tmp_path: Path, assigned: Make, size: int) -> None:
    """A file that cannot be read is renamed, kept, and a new one begun."""
    path = tmp_path / "w.db"
    db = WorkerDB(path, wall=1)
    db.update([assigned(f"t{n}") for n in range(50)], [])
    db.close()
    damaged = bytearray(path.read_bytes())
    damaged[size : size + 3000] = b"\xff" * len(damaged[size : size + 3000])
    path.write_bytes(damaged)
    db = WorkerDB(path, wall=77)
    assert db.load() == []
    db.update([assigned()], [])
    db.close()
    assert (tmp_path / "w.db.damaged-77").read_bytes() == bytes(damaged)


def test_undecodable_row_is_damage_too(tmp_path: Path, assigned: Make) -> None:
    """A sound file with nonsense in it is set aside as well."""
    path = tmp_path / "w.db"
    db = WorkerDB(path, wall=1)
    db.update([assigned()], [])
    with db._db:
        db._db.execute("UPDATE tasks SET task = x'ff'")
    db.close()
    db = WorkerDB(path, wall=78)
    assert db.load() == []
    db.close()
    assert (tmp_path / "w.db.damaged-78").exists()


class FullDisk(sqlite3.Connection):
    """A database whose writes fail, from the one after `room` on, as on a full disk."""

    room = 10**9

    def _write(self, sql):
        if sql.split()[0] not in {"INSERT", "UPDATE", "DELETE", "COMMIT", "BEGIN"}:
            return
        if FullDisk.room <= 0:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        FullDisk.room -= 1

    def execute(self, sql, *arguments):
        """Run a statement."""
        self._write(sql)
        return super().execute(sql, *arguments)

    def executemany(self, sql, rows):
        """Run a statement for several rows."""
        self._write(sql)
        return super().executemany(sql, rows)


@pytest.fixture
def fill(monkeypatch):
    """Let the disk have room for so many writes from now on."""
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, factory=FullDisk, **more)
    )

    def leave(room: int) -> None:
        monkeypatch.setattr(FullDisk, "room", room)

    return leave


def test_a_disk_that_fills_at_any_write_costs_nothing(
    tmp_path: Path, assigned: Make, fill: Callable[[int], None]
) -> None:
    """Whichever write fails, what is known stays right, and is on the disk once it has room."""
    room, is_full = 0, True
    while is_full:
        path = tmp_path / f"{room}.db"
        fill(10**9)
        db = WorkerDB(path, wall=1)
        db.update([assigned("t0"), assigned("t1")], [])
        fill(room)
        db.update([assigned("t2"), assigned("t1", spec_version=2)], [])
        db.put_statuses([StatusUpdate(TaskID("t1"), RUNNING), StatusUpdate(TaskID("t9"), RUNNING)])
        db.replace([assigned("t1", spec_version=2), assigned("t3")])
        expected = [(assigned("t1", spec_version=2), RUNNING), (assigned("t3"), None)]
        is_full = bool(db.fault)
        assert expected == db.load()
        assert not is_full or (str(path) in db.fault and "full" in db.fault)
        db.retry()
        assert is_full == bool(db.fault)
        fill(10**9)
        db.retry()
        assert not db.fault
        db.close()
        again = WorkerDB(path, wall=1)
        assert expected == again.load()
        again.close()
        assert not list(tmp_path.glob("*.damaged-*"))
        room += 1
    assert room > 8


def test_a_full_disk_at_the_start_is_no_damage(tmp_path: Path, assigned: Make, monkeypatch) -> None:
    """A file that cannot be opened for want of room stays where it is, and is used afterwards."""
    path = tmp_path / "w.db"
    db = WorkerDB(path, wall=1)
    db.update([assigned("t1"), assigned("t2")], [])
    db.close()

    def refuse(*_args, **_more):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", refuse)
        db = WorkerDB(path, wall=2)
        assert (db.load(), bool(db.fault)) == ([], True)
        db.put_statuses([StatusUpdate(TaskID("t1"), RUNNING)])
        db.retry()
        assert db.fault
    db.retry()
    assert not db.fault
    db.close()
    db = WorkerDB(path, wall=3)
    assert [a.task.id for a, _ in db.load()] == ["t1", "t2"], "nobody said that they are gone"
    db.replace([assigned("t2"), assigned("t3")])
    db.close()
    db = WorkerDB(path, wall=4)
    assert [a.task.id for a, _ in db.load()] == ["t2", "t3"]
    db.close()
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_node_leaves_on_a_full_disk(
    tmp_path: Path, assigned: Make, fill: Callable[[int], None]
) -> None:
    """What cannot be changed is removed: nothing of the cluster is found later."""
    path = tmp_path / "w.db"
    db = WorkerDB(path, wall=1)
    db.update([assigned("t1")], [])
    fill(0)
    db.clear()
    fill(10**9)
    db.close()
    db = WorkerDB(path, wall=1)
    assert db.load() == []
    db.close()

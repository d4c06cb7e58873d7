"""The worker's database across restarts and damage."""

from __future__ import annotations

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

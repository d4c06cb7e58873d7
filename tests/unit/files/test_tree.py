"""Trees of any depth and content are removed and measured, and nothing outside of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from worker.files import tree

LEVELS = 3_000


def deep(top: Path, levels: int) -> None:
    """Make directories as deep as a container can, with a file of a block at the bottom."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, b"x")
    os.close(file)
    os.close(here)


def test_depth_is_no_obstacle(tmp_path: Path) -> None:
    """Neither Python's stack nor the length of a path nor the number of descriptors ends it."""
    top = tmp_path / "top"
    top.mkdir()
    deep(top, LEVELS)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert tree.size_bytes(str(top)) == 4096
    tree.remove(top)
    assert not top.exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    """What a link leads to stays, and is not measured."""
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * 50_000)
    (top / "a").mkdir(parents=True)
    (top / "a/link").symlink_to(outside)
    (top / "dangling").symlink_to("nothing")
    os.mkfifo(top / "pipe")
    # A link may take a block of its own.
    assert tree.size_bytes(str(top)) <= 8192
    tree.remove(top)
    (tmp_path / "link").symlink_to(outside)
    tree.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "precious").exists()


def test_files_and_nothing_are_removed_too(tmp_path: Path) -> None:
    """Whatever has the name is gone afterwards, also relative to a descriptor."""
    (tmp_path / "file").write_text("x")
    tree.remove(tmp_path / "file")
    tree.remove(tmp_path / "file")
    (tmp_path / "dir/inner").mkdir(parents=True)
    here = os.open(tmp_path, os.O_RDONLY)
    tree.remove(b"dir", dir_fd=here)
    tree.remove("dir/inner", dir_fd=here)
    os.close(here)
    assert list(tmp_path.iterdir()) == []


def test_many_directories_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are remembered at once."""
    monkeypatch.setattr(tree, "_NAMES_MAX", 10)
    for number in range(105):
        (tmp_path / f"top/{number}/full").mkdir(parents=True)
    tree.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_is_being_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is moved away while it is emptied does not lead the removal elsewhere."""
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_text("x")
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    enter = tree.Cursor.enter

    def enter_and_move(cursor: tree.Cursor, name: str) -> None:
        enter(cursor, name)
        if name == "b":
            (top / "a/b").rename(elsewhere / "b")

    monkeypatch.setattr(tree.Cursor, "enter", enter_and_move)
    tree.remove(top)
    assert not top.exists()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["b", "precious"]


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the kernel's, and the rest is gone."""
    (tmp_path / "top/busy").mkdir(parents=True)
    (tmp_path / "top/file").write_text("x")
    rmdir = os.rmdir

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        if path == "busy":
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OSError, match="busy"):
        tree.remove(tmp_path / "top")
    assert not (tmp_path / "top/file").exists()
    monkeypatch.undo()
    tree.remove(tmp_path / "top")

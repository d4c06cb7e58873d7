"""The store's directory is cleaned when it is opened, and opened whether that succeeds or not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from worker.files import tree
from worker.images.disk import Disk
from worker.images.state import State


def test_what_cannot_be_cleaned_does_not_stop_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left for the next start, which tries again."""
    root = tmp_path / "images"
    Disk(root).close()
    (root / "tmp/half/layer").mkdir(parents=True)
    (root / "l/unknown").mkdir()

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(tree, "remove", refuse)
    disk = Disk(root)
    disk.sweep(State())
    disk.close()
    assert list((root / "l").iterdir()) == []
    assert (root / "tmp/half").exists()
    monkeypatch.undo()
    Disk(root).close()
    assert list((root / "tmp").iterdir()) == []

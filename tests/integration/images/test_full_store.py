"""The image store on a disk that takes no metadata: removals work, nothing else is half done."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from proto.clock import SystemClock
from proto.errors import NotFoundError, ResourceExhaustedError
from worker.images.disk import Disk
from worker.images.store import ImageStore

pytestmark = pytest.mark.integration


class Full:
    """Lets every write of metadata fail from the one after `room` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        replace = Disk._replace

        def limited(disk: Disk, path: Path, data: bytes) -> None:
            if self.room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            self.room -= 1
            replace(disk, path, data)

        monkeypatch.setattr(Disk, "_replace", limited)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """A disk that fills when told."""
    return Full(monkeypatch)


async def load(store: ImageStore, tmp_path: Path, tools: Any) -> str:
    """Load an image with two names; return its ID."""
    image_id: str = tools.oci_layout(tmp_path / "oci", [tools.busybox_layer()], name="web:1")
    await store.load(tools.tar_of(tmp_path / "oci", tmp_path / "archive.tar"))
    await store.tag("web:1", "web:2")
    return image_id


@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("end", ["mended", "crashed"])
async def test_an_image_is_removed_from_a_full_disk(  # noqa: PLR0917 -- fixtures
    store: ImageStore, root: Path, tmp_path: Path, tools: Any, full: Full, room: int, end: str
) -> None:
    """Its files go, the reason is told until the metadata follows; a crash brings nothing back."""
    image_id = await load(store, tmp_path, tools)
    full.room = room
    await store.remove("web:2")
    await store.remove(image_id, force=True)
    assert store.images() == []
    assert "is full" in store.fault
    assert not any((root / "l").iterdir())
    if end == "mended":
        full.room = 10**9
        await store.save_again()
        assert store.fault == ""
    store._content.disk.close()
    full.room = 10**9
    again = await ImageStore.open(root, SystemClock())
    assert again.images() == []
    assert again.fault == ""
    await again.close()
    store._content.disk._lock = os.open(root / "lock", os.O_RDWR)  # the fixture closes it


async def test_a_store_opens_on_a_full_disk(
    store: ImageStore, root: Path, tmp_path: Path, tools: Any, full: Full
) -> None:
    """What is damaged is dropped, though it cannot be written down, and pruning works."""
    image_id = await load(store, tmp_path, tools)
    await store.load(
        tools.tar_of(_layout(tmp_path / "other", tools, b"other"), tmp_path / "other.tar")
    )
    store._content.disk.blob(image_id).unlink()
    store._content.disk.close()
    full.room = 0
    again = await ImageStore.open(root, SystemClock())
    assert len(again.images()) == 1
    assert "is full" in again.fault
    deleted, _ = await again.prune(all=True)
    assert deleted
    assert again.images() == []
    full.room = 10**9
    await again.save_again()
    assert again.fault == ""
    await again.close()
    store._content.disk._lock = os.open(root / "lock", os.O_RDWR)  # the fixture closes it


def _layout(path: Path, tools: Any, text: bytes) -> Path:
    tools.oci_layout(path, [tools.tar(tools.Entry("file", text))], name="other:1")
    return path


async def test_what_needs_room_is_refused_whole(
    store: ImageStore, tmp_path: Path, tools: Any, full: Full
) -> None:
    """A new name and a new image are refused with what to do, and nothing of them is seen."""
    await load(store, tmp_path, tools)
    full.room = 0
    with pytest.raises(ResourceExhaustedError, match="docker image prune"):
        await store.tag("web:1", "web:3")
    with pytest.raises(NotFoundError):
        store.resolve("web:3")
    assert store.fault == ""

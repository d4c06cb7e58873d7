"""The archive around images cannot take more memory than images need."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from proto.errors import InvalidError
from worker.images import archive
from worker.images.config import Platform

TarMaker = Callable[..., bytes]
LINUX = Platform("linux", "amd64")
CONFIG = json.dumps({"rootfs": {"type": "layers", "diff_ids": []}}).encode()


def images(data: bytes, directory: Path) -> int:
    """Take an archive apart; return how many images are in it."""
    contents = archive.take_apart(io.BytesIO(data), directory)
    return len(archive.images_of(contents, LINUX))


def manifest(count: int) -> bytes:
    """The same image so many times."""
    return json.dumps([{"Config": "c.json", "Layers": []}] * count).encode()


def test_many_entries_and_long_names(
    tar: TarMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are counted: links of the archive are remembered too."""
    monkeypatch.setattr(archive, "_ENTRIES_MAX", 10)
    with pytest.raises(InvalidError, match="no archive of images"):
        images(tar(*((f"f{n}", {}, b"x") for n in range(11))), tmp_path)
    names = [(f"{n}" + "n" * 500_000, {"type": b"2", "linkname": "x"}) for n in range(40)]
    monkeypatch.setattr(archive, "_ENTRIES_MAX", 1000)
    with pytest.raises(InvalidError, match="no archive of images") as caught:
        images(tar(*names), tmp_path)
    assert len(caught.value.message) < 500


def test_one_image_very_often(
    tar: TarMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest of a megabyte may name the same configuration a hundred thousand times."""
    data = tar(("c.json", {}, CONFIG), ("manifest.json", {}, manifest(1000)))
    assert images(data, tmp_path) == 1000
    (tmp_path / "more").mkdir()
    with pytest.raises(InvalidError, match="1001 images, more than 1000"):
        images(tar(("manifest.json", {}, manifest(1001))), tmp_path / "more")
    monkeypatch.setattr(archive, "_IMAGES_BYTES_MAX", len(CONFIG) * 5)
    (tmp_path / "large").mkdir()
    with pytest.raises(InvalidError, match="load fewer images"):
        images(data, tmp_path / "large")


def test_nested_manifest(tar: TarMaker, tmp_path: Path) -> None:
    """It is refused with a sentence."""
    with pytest.raises(InvalidError, match=r"manifest\.json cannot be read"):
        images(tar(("manifest.json", {}, b'[{"x":' + b"[" * 1_000_000)), tmp_path)


def test_names_in_refusals_are_short_and_printable(tar: TarMaker, tmp_path: Path) -> None:
    """What an archive calls its entries neither fills a log nor moves a cursor."""
    for name in ("../" + "n" * 100_000, "../\x1b[31mred\n"):
        with pytest.raises(InvalidError, match="leads out of it") as caught:
            images(tar((name, {}, b"x")), tmp_path)
        assert len(caught.value.message) < 300
        assert caught.value.message.isprintable()

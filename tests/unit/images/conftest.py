"""Tar archives for the tests of the image store's parts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

TarMaker = Callable[..., bytes]


def _tar(*entries: tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as archive:
        for name, fields, *rest in entries:
            info = tarfile.TarInfo(name)
            data = rest[0] if rest else b""
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def tar() -> TarMaker:
    """Make a tar archive of `(name, fields[, data])` entries."""
    return _tar

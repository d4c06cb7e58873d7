"""The times of a layer's directories, kept until all their entries are there.

They are written to a file without a name: a layer may have millions of directories, which take
no more than a little of their archive.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY_BYTES_MAX = 1 << 20
_HEAD = struct.Struct("=qH")


class DirectoryTimes:
    """Paths with a time each, in the order in which they came."""

    def __init__(self, place: Path) -> None:
        """Begin with none; what does not fit into the memory goes to the disk of `place`."""
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES_MAX, dir=str(place))  # noqa: SIM115 -- `close`

    def add(self, path: bytes, time_ns: int) -> None:
        """Keep one; the kernel took the path, so it is not longer than paths can be."""
        self._file.write(_HEAD.pack(time_ns, len(path)) + path)

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yield them all; nothing can be added any more."""
        self._file.seek(0)
        while head := self._file.read(_HEAD.size):
            time_ns, length = _HEAD.unpack(head)
            yield self._file.read(length), time_ns

    def close(self) -> None:
        """Forget them."""
        self._file.close()

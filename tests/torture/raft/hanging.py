"""A disk that can hang: as with a device that answers no more, whoever waits for it waits on.

The member's own thread stands in the sync; the process lives, ticks and answers what needs no disk.
It is made so by a file beside the disk, which the harness makes and removes.
"""

from __future__ import annotations

import time
from pathlib import Path

from typing_extensions import override

from raft.files import File, RealFiles

LOOK_SECONDS = 0.02


class HangingFiles(RealFiles):
    """The machine's file system, where syncs wait while a file says so."""

    def __init__(self, sign: Path) -> None:
        """Hang while there is such a file."""
        self._sign = sign

    def wait(self) -> None:
        """Wait until the disk answers."""
        while self._sign.exists():
            time.sleep(LOOK_SECONDS)

    @override
    def create(self, path: Path) -> File:
        return _HangingFile(super().create(path), self)

    @override
    def open(self, path: Path) -> File:
        return _HangingFile(super().open(path), self)

    @override
    def sync_directory(self, path: Path) -> None:
        self.wait()
        super().sync_directory(path)


class _HangingFile:
    def __init__(self, file: File, files: HangingFiles) -> None:
        self._file = file
        self._files = files

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def write_at(self, offset: int, data: bytes) -> None:
        self._file.write_at(offset, data)

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def sync(self) -> None:
        self._files.wait()
        self._file.sync()

    def close(self) -> None:
        self._file.close()

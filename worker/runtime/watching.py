"""Tells readers of logs that something in a container's directory changed: one inotify for all.

The kernel lets a user have 128 inotify descriptors by default, on the whole machine, and whoever
follows a service reads as many logs as it has tasks. So there is one descriptor, open while anybody
watches, with a watch per directory, however many read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from worker.runtime import syscalls

_EVENTS = syscalls.IN_MODIFY | syscalls.IN_CREATE | syscalls.IN_MOVED_TO
_HEADER = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows
_OVERFLOW_WATCH = -1
_READ_BYTES = 1 << 16


class Watches:
    """The watched directories of one event loop."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._descriptor = -1
        self._readers: dict[int, list[asyncio.Event]] = {}

    @property
    def is_open(self) -> bool:
        """Whether anybody watches."""
        return self._descriptor >= 0

    @contextlib.contextmanager
    def watching(self, directory: Path, changed: asyncio.Event) -> Iterator[None]:
        """Set `changed` whenever something in the directory is written, made or renamed.

        Raises:
            OSError: it does not exist, or the machine has no more watches.
        """
        watch = self._add(directory)
        self._readers.setdefault(watch, []).append(changed)
        try:
            yield
        finally:
            self._remove(watch, changed)

    def _add(self, directory: Path) -> int:
        if not self.is_open:
            self._descriptor = syscalls.inotify_open()
            asyncio.get_running_loop().add_reader(self._descriptor, self._wake)
        try:
            # The same directory gets the same number.
            return syscalls.inotify_add(self._descriptor, str(directory), _EVENTS)
        except OSError:
            self._close_if_unused()
            raise

    def _remove(self, watch: int, changed: asyncio.Event) -> None:
        readers = self._readers[watch]
        readers.remove(changed)
        if not readers:
            del self._readers[watch]
            # A directory that was deleted took its watch with it.
            with contextlib.suppress(OSError):
                syscalls.inotify_remove(self._descriptor, watch)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._readers:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _wake(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            watch, _, _, name_bytes = _HEADER.unpack_from(data, position)
            position += _HEADER.size + name_bytes
            if watch == _OVERFLOW_WATCH:
                # Events were lost: anything may have changed.
                for readers in self._readers.values():
                    _set(readers)
            else:
                # What happened does not matter, only that something did.
                _set(self._readers.get(watch, ()))


def _set(events: list[asyncio.Event] | tuple[()]) -> None:
    for event in events:
        event.set()

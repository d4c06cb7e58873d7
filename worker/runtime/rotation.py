"""Keep log files within their limits: one sweep a second over the containers that have a limit.

conmon does not rotate: it opens its file anew when told to. So a file is renamed, then conmon is
told; until it has heard, it writes to the renamed file, and nothing is lost. A limit is exceeded
by at most what the container writes in the second between two sweeps.

conmon ends, and its container with it, if it cannot make the new file. So on a full disk it must
not be told to: the file is made for it first, under the name that it uses until it renames it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec
import structlog

from proto.errors import reason_of
from proto.ids import ContainerID
from worker.runtime.api import LogConfig
from worker.runtime.conmon import CONTROL_REOPEN_LOG
from worker.runtime.directory import ContainerDirectory

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

SWEEP_SECONDS = 1.0
# Source: conmon src/ctr_logging.c, reopen_k8s_file.
_NEW_SUFFIX = ".tmp"


class _Watched(msgspec.Struct):
    directory: ContainerDirectory
    config: LogConfig
    # conmon was told and has not made the new file yet. Telling it twice would make it replace
    # the new file, with what is in it, by another.
    is_told: bool = False
    # A failure was logged; what repeats every second is no news.
    is_failing: bool = False


class Rotator:
    """Rotates the logs of the containers it was given; forgets those that have ended."""

    def __init__(self) -> None:
        self._watched: dict[ContainerID, _Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def add(
        self, container_id: ContainerID, directory: ContainerDirectory, config: LogConfig
    ) -> None:
        """Watch a container's log, if it has a limit. Needs a running loop."""
        if config.max_bytes <= 0 or config.driver == "none" or container_id in self._watched:
            return
        self._watched[container_id] = _Watched(directory, config)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def remove(self, container_id: ContainerID) -> None:
        """Watch it no longer."""
        self._watched.pop(container_id, None)

    async def close(self) -> None:
        """Stop sweeping."""
        self._watched.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._watched:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Rotate what is too large now."""
        for container_id, watched in list(self._watched.items()):
            try:
                is_alive = rotate(watched)
            except OSError as error:
                if not watched.is_failing:
                    log.warning(
                        "log_rotation_failed", container_id=container_id, error=reason_of(error)
                    )
                watched.is_failing = True
                continue
            watched.is_failing = False
            if not is_alive:
                del self._watched[container_id]


def rotate(watched: _Watched) -> bool:
    """Rotate one log if it is too large; False if its container has ended.

    Raises:
        OSError: a file cannot be renamed.
    """
    path = watched.directory.log
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        # A daemon that was killed between renaming and telling left conmon without a file.
        size = None
    if size is not None:
        watched.is_told = False
    if watched.is_told or (size is not None and size < watched.config.max_bytes):
        return True
    try:
        control = os.open(watched.directory.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # nobody reads it: conmon has ended
    try:
        _make_room(path)
        if size is not None:
            _shift(watched)
        os.write(control, CONTROL_REOPEN_LOG)
        watched.is_told = True
    finally:
        os.close(control)
    if watched.config.files_max <= 1:
        with contextlib.suppress(FileNotFoundError):
            path.with_name("log.1").unlink()
    return True


def _make_room(path: Path) -> None:
    """Make the file that conmon will open, so that opening it cannot fail for want of room.

    Raises:
        OSError: the disk is full; conmon goes on with the file that it has.
    """
    new = path.with_name(path.name + _NEW_SUFFIX)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _shift(watched: _Watched) -> None:
    path = watched.directory.log
    for number in range(watched.config.files_max - 2, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"log.{number}").rename(path.with_name(f"log.{number + 1}"))
    path.rename(path.with_name("log.1"))

"""Saves the committed state in time: when the log behind the last snapshot has grown long.

A failed attempt is logged and tried again later; the older snapshot and the log stay until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from manager.store.log import ReplicatedLog
from manager.store.snapshot import snapshot_chunks
from manager.store.tables import View
from proto.clock import Clock
from proto.errors import SwarmError, reason_of
from proto.objects import ClusterSpec

# A snapshot is also due when the log since the last one has grown to this: restart reads it all.
SNAPSHOT_LOG_BYTES = 64 * 1024 * 1024
SNAPSHOT_RETRY_SECONDS = 30.0

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Saver:
    """Makes snapshots of one store."""

    def __init__(
        self, replicated_log: ReplicatedLog, clock: Clock, state: Callable[[], tuple[View, int]]
    ) -> None:
        """Save into this log; `state` returns what is committed, and its index."""
        self._log = replicated_log
        self._clock = clock
        self._state = state
        self._byte_count = 0
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0

    def grew(self, byte_count: int) -> None:
        """Note that entries of so many bytes were added since the last snapshot."""
        self._byte_count += byte_count

    def replaced(self) -> None:
        """Note that the state came as a whole: the log behind it is empty."""
        self._byte_count = 0

    def save_if_due(self) -> None:
        """Begin to save, if it is time."""
        if self._is_due():
            self._task = asyncio.get_running_loop().create_task(self._save_in_time())

    async def save(self) -> None:
        """Save what is committed now, durable on return.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; the older snapshot stays.
        """
        while self._task is not None:
            await asyncio.wait([self._task])
        view, index = self._state()
        byte_count = self._byte_count
        await self._log.save_snapshot(index, snapshot_chunks(view))
        self._byte_count -= byte_count

    async def close(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _is_due(self) -> bool:
        if self._task is not None:
            return False
        if self._not_before and self._clock.monotonic() < self._not_before:
            return False
        view, index = self._state()
        specs = [cluster.spec for cluster in view.clusters]
        interval = (specs[0] if specs else ClusterSpec()).raft_snapshot_interval
        entry_count = index - self._log.snapshot_index
        return entry_count >= interval or self._byte_count >= SNAPSHOT_LOG_BYTES

    async def _save_in_time(self) -> None:
        view, index = self._state()
        byte_count = self._byte_count
        start = self._clock.monotonic()
        try:
            await self._log.save_snapshot(index, snapshot_chunks(view))
        except (OSError, SwarmError) as error:
            self._not_before = self._clock.monotonic() + SNAPSHOT_RETRY_SECONDS
            log.error("state_not_saved", index=index, error=reason_of(error))  # noqa: TRY400 -- one line
        else:
            self._byte_count -= byte_count
            seconds = self._clock.monotonic() - start
            log.info("state_saved", index=index, version=view.version, seconds=round(seconds, 3))
        finally:
            self._task = None

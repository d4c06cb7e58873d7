"""Brings statuses to the manager: at once when idle, in batches while one is under way.

Only the newest status of a task counts; an older one that was not sent yet is dropped. What could
not be sent stays and is tried again. Should a status be lost all the same, the next session's
`CompleteAssignments` shows it, and the task table reports it once more.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from proto.clock import Clock
from proto.errors import ResourceExhaustedError, SwarmError, UnavailableError, reason_of
from proto.ids import NodeID, TaskID
from proto.objects import TaskStatus
from proto.text import time_of_day
from worker.api import Dispatcher, StatusUpdate
from worker.backoff import Backoff

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# Source: swarmkit manager/dispatcher (10,000 updates in a batch).
BATCH_UPDATES_MAX = 10_000
CALL_SECONDS_MAX = 5.0


class Reporter:
    """A queue of one status per task, and the loop that empties it."""

    def __init__(
        self, node_id: NodeID, dispatcher: Dispatcher, rng: random.Random, clock: Clock
    ) -> None:
        """Begin empty; `run` sends."""
        self._node_id = node_id
        self._dispatcher = dispatcher
        self._backoff = Backoff(rng)
        self._pending: dict[TaskID, TaskStatus] = {}
        self._clock = clock
        self._failing_since = 0.0
        self._reason = ""
        self._wake = asyncio.Event()
        self._has_session = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Say that the manager does not take statuses, since when and why; "" if it does."""
        if not self._reason:
            return ""
        since = time_of_day(self._failing_since)
        return f"waiting for the manager to store statuses since {since} ({self._reason})"

    def add(self, task_id: TaskID, status: TaskStatus) -> None:
        """Queue a status; it replaces an older one of the task."""
        older = self._pending.get(task_id)
        assert older is None or older.state <= status.state
        self._pending[task_id] = status
        self._wake.set()

    def forget(self, task_id: TaskID) -> None:
        """Drop what is queued for a task that the manager does not know any more."""
        self._pending.pop(task_id, None)

    def open(self) -> None:
        """A session is open: statuses can be sent."""
        self._backoff.reset()
        self._has_session.set()

    def pause(self) -> None:
        """The session has ended: keep statuses until the next one."""
        self._has_session.clear()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self._wake.wait()
            await self._has_session.wait()
            self._wake.clear()
            await self._send()

    async def _send(self) -> None:
        batch = dict(list(self._pending.items())[:BATCH_UPDATES_MAX])
        if not batch:
            return
        updates = [StatusUpdate(task_id, status) for task_id, status in batch.items()]
        try:
            async with asyncio.timeout(CALL_SECONDS_MAX):
                await self._dispatcher.update_statuses(self._node_id, updates)
        except (UnavailableError, ResourceExhaustedError, TimeoutError) as error:
            # It will pass: also the manager's disk is full only until somebody makes room.
            log.warning("statuses_not_sent", updates=len(updates), error=reason_of(error))
            self._failing_since = self._failing_since or self._clock.wall()
            self._reason = reason_of(error)
            self._wake.set()
            await asyncio.sleep(self._backoff.next_seconds())
            return
        except SwarmError as error:
            # Sending the same again would meet the same refusal.
            log.error("statuses_refused", updates=len(updates), error=error.message)  # noqa: TRY400 -- the world's fault, no trace needed
        else:
            self._backoff.reset()
        self._failing_since, self._reason = 0.0, ""
        for task_id, status in batch.items():
            if self._pending.get(task_id) is status:
                del self._pending[task_id]
        if self._pending:
            self._wake.set()

"""Keeps components running: any exception is caught here, logged, answered by a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

RESTART_SECONDS_FIRST = 0.2
RESTART_SECONDS_MAX = 30.0


class Supervisor:
    """Background components by name; each is started again, with a growing pause, when it fails."""

    def __init__(self) -> None:
        """Supervise nothing yet."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a component until `stop`; `run` is called again for every restart."""
        assert name not in self._tasks
        self._tasks[name] = asyncio.create_task(_supervise(name, run), name=name)

    async def stop(self, *names: str) -> None:
        """Cancel these components (all, when none is named) and wait for their end."""
        for name in names or tuple(self._tasks):
            task = self._tasks.pop(name, None)
            if task is not None:
                task.cancel()
                # Not `await task`: a caller that is cancelled itself must not miss that.
                await asyncio.wait([task])


async def _supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    pause = RESTART_SECONDS_FIRST
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            await run()
        except Exception:
            log.exception("component_failed", component=name, restart_seconds=pause)
        else:
            return
        if loop.time() - started > RESTART_SECONDS_MAX:
            pause = RESTART_SECONDS_FIRST
        await asyncio.sleep(pause)
        pause = min(pause * 2, RESTART_SECONDS_MAX)

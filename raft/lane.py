"""A thread that does blocking jobs one after the other and reports to the event loop.

A pool would do the same, but costs two more hops per job, and a sync of the disk is so short
(0.1 ms) that they would show. Jobs run in the order of `submit`; reports arrive in that order too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Lane:
    """One thread and its queue; belongs to one event loop."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; it does not keep the process alive."""
        self._loop = loop
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, job: Callable[[], None], report: Callable[[BaseException | None], None]
    ) -> None:
        """Queue a job; `report` gets its exception, or None, on the loop."""

        def work() -> None:
            error: BaseException | None = None
            try:
                job()
            except BaseException as caught:  # noqa: BLE001 -- handed to the loop, not swallowed
                error = caught
            self._loop.call_soon_threadsafe(report, error)

        self._jobs.put(work)

    async def run(self, job: Callable[[], T]) -> T:
        """Queue a job and wait for it. If cancelled meanwhile, the job is done nevertheless."""
        future: asyncio.Future[T] = self._loop.create_future()
        results: list[T] = []

        def report(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(results[0])
            else:
                future.set_exception(error)

        self.submit(lambda: results.append(job()), report)
        return await future

    async def close(self) -> None:
        """Do what is queued and end the thread."""
        await self.run(lambda: None)
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

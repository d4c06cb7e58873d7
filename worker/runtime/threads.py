"""Blocking work for containers, in threads; one that hangs holds nothing but its container.

Mounts, files and removals wait for disks, and some of these are on other machines. A thread cannot
be stopped: one that does not return in time is left alone, its caller is told, and until it returns
nothing else is done with its container, since what cleans up would race against what still builds.
The threads do not keep the program from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from proto.errors import RuntimeFailedError, reason_of
from proto.ids import ContainerID
from worker.room import Room

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

T = TypeVar("T")

STEP_SECONDS_MAX = 600.0
"""Copying the first content of a large volume, or deleting it, may take minutes."""

FORMER_SECONDS_MAX = 2.0
"""How long a container's former step, which was given up, is waited for before it is an error."""


class Threads:
    """Runs blocking functions; see the module."""

    def __init__(self, count: int) -> None:
        """Run so many at once, not counting those that hang."""
        self._room = Room(count)
        self._running: set[asyncio.Future[object]] = set()
        self._stuck: dict[ContainerID, asyncio.Future[object]] = {}

    async def run(self, container_id: ContainerID, function: Callable[[], T]) -> T:
        """Run a step for a container ("" for none) and return what it returns.

        Cancellation waits for the step's end, too.

        Raises:
            RuntimeFailedError: it, or a former one, did not return in time.
        """
        async with self._room.entered():
            await self._former(container_id)
            future = self._begun(function)
            try:
                await asyncio.wait({future}, timeout=STEP_SECONDS_MAX)
            except asyncio.CancelledError:
                await asyncio.wait({future}, timeout=STEP_SECONDS_MAX)
                self._note_stuck(container_id, future)
                raise
            if not future.done():
                self._note_stuck(container_id, future)
                raise RuntimeFailedError(
                    f"the disk did not answer within {STEP_SECONDS_MAX:g} s while container "
                    f"{container_id[:12]} was made or removed"
                )
            return future.result()

    async def close(self) -> None:
        """Wait for what runs; what hangs is left alone."""
        running = self._running - set(self._stuck.values())
        if running:
            await asyncio.wait(running, timeout=STEP_SECONDS_MAX)

    async def _former(self, container_id: ContainerID) -> None:
        stuck = self._stuck.get(container_id)
        if stuck is None:
            return
        await asyncio.wait({stuck}, timeout=FORMER_SECONDS_MAX)
        if not stuck.done():
            raise RuntimeFailedError(
                f"a former step for container {container_id[:12]} still waits for the disk"
            )
        del self._stuck[container_id]

    def _note_stuck(self, container_id: ContainerID, future: asyncio.Future[T]) -> None:
        if not future.done() and container_id:
            reason = f"it has not returned for {STEP_SECONDS_MAX:g} s"
            log.error("runtime_step_not_ended", container_id=container_id, error=reason)
            self._stuck[container_id] = future  # type: ignore[assignment]  # nobody reads the result

    def _begun(self, function: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._running.add(future)  # type: ignore[arg-type]  # nobody reads the result
        future.add_done_callback(self._running.discard)

        def finish(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # None if it is T's
            else:
                future.set_exception(error)
                future.exception()  # it is seen, also if nobody waits any more

        def work() -> None:
            try:
                result, error = function(), None
            except BaseException as raised:  # noqa: BLE001 -- it goes to whoever waits
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(finish, result, error)
            except RuntimeError as late:
                log.info("runtime_step_ended_late", error=reason_of(late))  # the loop is closed

        threading.Thread(target=work, name="runtime", daemon=True).start()
        return future

"""Wait for the end of containers: one pidfd per container that somebody waits for, no polling.

What is watched is conmon, not the container: conmon ends after it has written the exit code, and
its end without one is the only sign that it was killed.
"""

from __future__ import annotations

import asyncio
import os

from proto.ids import ContainerID
from worker.runtime import procfs


class Monitor:
    """Shares one watch among all who wait for the same container."""

    def __init__(self) -> None:
        self._watches: dict[ContainerID, tuple[int, int, int, asyncio.Future[None]]] = {}

    async def ended(self, container_id: ContainerID, pid: int, started: int) -> None:
        """Return when that process has ended, at once if it has."""
        watch = self._watches.get(container_id)
        if watch is None:
            descriptor = procfs.open_pidfd(pid, started)
            if descriptor is None:
                return
            loop = asyncio.get_running_loop()
            watch = (descriptor, pid, started, loop.create_future())
            self._watches[container_id] = watch
            loop.add_reader(descriptor, self._fire, container_id)
        # Shielded: one waiter's cancellation must not end the wait of the others.
        await asyncio.shield(watch[3])

    def _fire(self, container_id: ContainerID) -> None:
        descriptor, pid, started, future = self._watches.pop(container_id)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        procfs.reap(pid, started)
        if not future.done():
            future.set_result(None)

    def close(self) -> None:
        """Stop watching; those who wait are cancelled."""
        while self._watches:
            _, (descriptor, _, _, future) = self._watches.popitem()
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
            future.cancel()

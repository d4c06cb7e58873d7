"""The manager's disk: raft's simulated one, driven in virtual time and stopped at any operation."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from proto.errors import SwarmError
from raft.lane import Lane
from raft.simdisk import SimFiles

# A job that is under way when the daemon dies gets at most this many operations further.
OPERATIONS_MAX = 6
SYNC_SECONDS_MIN = 0.0001
SYNC_SECONDS_MAX = 0.001

Job = Callable[[], None]
Report = Callable[[BaseException | None], None]


class Disk:
    """Files, and the lanes through which the log works on them.

    Attributes:
        files: the file system.
        slow_seconds: what each job takes longer.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.files = SimFiles(rng)
        self.slow_seconds = 0.0
        self._lanes: list[SimLane] = []

    def lane(self, _name: str, loop: asyncio.AbstractEventLoop) -> SimLane:
        """Make a lane, in the place of one of raft's threads."""
        lane = SimLane(loop, self.job_seconds)
        self._lanes.append(lane)
        return lane

    def job_seconds(self) -> float:
        """Draw how long the next job takes."""
        return self._rng.uniform(SYNC_SECONDS_MIN, SYNC_SECONDS_MAX) + self.slow_seconds

    def limit(self, room_bytes: int | None) -> None:
        """Let only so much fit from now on."""
        self.files.room_bytes = room_bytes

    def fail(self, *, is_failing: bool) -> None:
        """Let syncs fail from now on, or work again."""
        self.files.fail_sync = is_failing

    def crash(self, *, is_power_lost: bool) -> None:
        """Stop in the middle of what is under way; then forget handles, or all that is unsynced."""
        room_bytes, is_failing = self.files.room_bytes, self.files.fail_sync
        for lane in self._lanes:
            for job in lane.under_way():
                # Assertions in a job are bugs and come through.
                try:
                    with self.files.stopping_at(self._rng.randint(0, OPERATIONS_MAX)):
                        job()
                except SwarmError:
                    continue
        self._lanes.clear()
        if is_power_lost:
            self.files.lose_power()
        else:
            self.files.kill_process()
        self.files.room_bytes, self.files.fail_sync = room_bytes, is_failing


class SimLane(Lane):
    """Does jobs one after the other, each at one moment of virtual time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._waiting: deque[tuple[Job, Report]] = deque()

    def under_way(self) -> list[Job]:
        """Return the job that is being done, if any."""
        return [job for job, _ in list(self._waiting)[:1]]

    def submit(self, job: Job, report: Report) -> None:
        """Queue a job."""
        self._waiting.append((job, report))
        if len(self._waiting) == 1:
            self._loop.call_later(self._seconds(), self._work_one)

    async def close(self) -> None:
        """Do what is queued."""
        await self.run(lambda: None)

    def _work_one(self) -> None:
        job, report = self._waiting[0]
        error: BaseException | None = None
        try:
            job()
        except BaseException as caught:  # noqa: BLE001 -- handed to the log, as the real lane does
            error = caught
        self._waiting.popleft()
        self._loop.call_soon(report, error)
        if self._waiting:
            self._loop.call_later(self._seconds(), self._work_one)

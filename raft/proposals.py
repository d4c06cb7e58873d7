"""Own proposals: those that wait for a place in the log, and those that wait to be committed.

Pure, but for the futures, which it completes.

Places are given in runs, one for each batch, so a batch costs little more than one. Runs follow
each other in the log without an own entry in between; they all belong to one leadership.

Invariants: `size` is the bytes of all that is not done; the runs' indexes ascend.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from proto.errors import SwarmError
from raft.core import Accepted

Failure = Callable[[], SwarmError]
"""Makes the error anew for each who gets it: a shared one would collect all tracebacks."""

_OVERHEAD_BYTES = 64


class Run:
    """A batch in the log."""

    __slots__ = ("first", "futures", "last", "size")

    def __init__(self, place: Accepted, futures: list[asyncio.Future[int]], size: int) -> None:
        """Keep all."""
        self.first = place.first
        self.last = place.last
        self.futures = futures
        self.size = size


class Proposals:
    """See the module.

    Attributes:
        size: bytes of what waits or is under way.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.size = 0
        self._data: list[bytes] = []
        self._futures: list[asyncio.Future[int]] = []
        self._queued = 0
        self._runs: deque[Run] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits for a place."""
        return bool(self._data)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._data and not self._runs

    def add(self, data: bytes, future: asyncio.Future[int]) -> None:
        """Let a proposal wait."""
        self._data.append(data)
        self._futures.append(future)
        size = len(data) + _OVERHEAD_BYTES
        self._queued += size
        self.size += size

    def take(self, bytes_max: int) -> tuple[list[bytes], list[asyncio.Future[int]], int]:
        """Remove and return the beginning of what waits, at least one: data, futures, bytes."""
        data, futures, size = self._data, self._futures, self._queued
        if size <= bytes_max:
            self._data, self._futures, self._queued = [], [], 0
            return data, futures, size
        taken = 0
        count = 0
        for item in data:
            taken += len(item) + _OVERHEAD_BYTES
            count += 1
            if taken >= bytes_max:
                break
        self._data, self._futures = data[count:], futures[count:]
        self._queued -= taken
        return data[:count], futures[:count], taken

    def put_back(self, data: list[bytes], futures: list[asyncio.Future[int]], size: int) -> None:
        """Let what was taken wait again, first in line."""
        self._data = data + self._data
        self._futures = futures + self._futures
        self._queued += size

    def placed(self, run: Run) -> None:
        """Note what is in the log now."""
        self._runs.append(run)

    def first_waiting(self) -> int:
        """Return the first index in the log that somebody here waits for; 0 for none."""
        return self._runs[0].first if self._runs else 0

    def committed(self, last: int) -> int:
        """Complete what waits for entries up to `last`; return the last index so completed.

        Everything from `first_waiting` on that is nobody's ends it.
        """
        runs = self._runs
        done = 0
        while runs and runs[0].first <= last:
            if done and runs[0].first != done + 1:
                break
            run = runs[0]
            index = run.first
            if run.last <= last:
                runs.popleft()
                self.size -= run.size
                for future in run.futures:
                    if not future.done():
                        future.set_result(index)
                    index += 1
                done = run.last
            else:
                count = last - run.first + 1
                for future in run.futures[:count]:
                    if not future.done():
                        future.set_result(index)
                    index += 1
                del run.futures[:count]
                run.first = last + 1
                return last
        return done

    def fail_queued(self, error: Failure) -> int:
        """Fail what has no place in the log yet; return how many."""
        futures = self._futures
        self.size -= self._queued
        self._data, self._futures, self._queued = [], [], 0
        _fail(futures, error)
        return len(futures)

    def fail_placed(self, error: Failure) -> int:
        """Fail what is in the log and not known to be committed; return how many."""
        runs, self._runs = self._runs, deque()
        count = 0
        for run in runs:
            self.size -= run.size
            count += len(run.futures)
            _fail(run.futures, error)
        return count


def _fail(futures: list[asyncio.Future[int]], error: Failure) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error())

"""The output of several tasks as one stream, as it comes, whichever nodes they are on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from manager.store.tables import View
from proto.errors import UnavailableError
from proto.ids import NodeID, TaskID
from proto.logs import LogOptions, LogRecord
from proto.objects import Task

T = TypeVar("T")

# Lines read ahead of the consumer, over all sources: a slow client must not fill the memory.
LINES_AHEAD_MAX = 256

PLACE_POLL_SECONDS = 0.2
REASONS_MAX = 10

Read = Callable[[TaskID, LogOptions], AsyncGenerator[LogRecord]]


class Reads(Protocol):
    """What reads tasks of other nodes."""

    def read(self, task_id: TaskID, options: LogOptions) -> AsyncGenerator[LogRecord]:
        """Yield the output of a task."""


class TaskLogs:
    """Reads each task where it is."""

    def __init__(
        self,
        node_id: NodeID,
        view: Callable[[], View],
        *,
        here: Read,
        elsewhere: Callable[[], Reads | None],
    ) -> None:
        """Read nothing yet.

        Args:
            node_id: this node.
            view: the cluster's state.
            here: reads a task of this node.
            elsewhere: returns what reads a task of any other node; None while there is no other.
        """
        self._node_id = node_id
        self._view = view
        self._here = here
        self._elsewhere = elsewhere

    async def read(
        self, tasks: Sequence[Task], options: LogOptions
    ) -> AsyncGenerator[tuple[Task, LogRecord]]:
        """Yield the lines of all tasks, each task's oldest first.

        Raises:
            UnavailableError: at the end: lines are missing, and why.
        """
        missing: dict[str, int] = {}
        sources = [self._of(task.id, options, missing) for task in tasks]
        async with aclosing(merge(sources)) as lines:
            async for line in lines:
                yield line
        if missing:
            reasons = [
                reason if count == 1 else f"{reason} ({count} tasks)"
                for reason, count in sorted(missing.items())
            ]
            shown = "; ".join(reasons[:REASONS_MAX])
            more = len(reasons) - REASONS_MAX
            raise UnavailableError(shown if more <= 0 else f"{shown}; and {more} more")

    async def _of(
        self, task_id: TaskID, options: LogOptions, missing: dict[str, int]
    ) -> AsyncGenerator[tuple[Task, LogRecord]]:
        task = await self._placed(task_id, options)
        if task is None:
            return
        try:
            async with aclosing(self._reader_of(task)(task_id, options)) as records:
                async for record in records:
                    yield task, record
        except UnavailableError as error:
            missing[error.message] = missing.get(error.message, 0) + 1

    def _reader_of(self, task: Task) -> Read:
        if task.node_id == self._node_id:
            return self._here
        others = self._elsewhere()
        if others is None:
            raise UnavailableError(f"node {task.node_id} is not in the swarm any more")
        return others.read

    async def _placed(self, task_id: TaskID, options: LogOptions) -> Task | None:
        """Return the task when it is on a node; None if it is on none, and nobody waits for it."""
        while True:
            task = self._view().tasks.get(task_id)
            if task is None or task.node_id:
                return task
            if not options.follow or task.status.state.is_terminal:
                return None
            await asyncio.sleep(PLACE_POLL_SECONDS)


async def merge(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """Yield the items of all sources until all have ended; each source's order is kept.

    An error of one source is raised here; leaving early closes every source.
    """
    queue: asyncio.Queue[T | BaseException | None] = asyncio.Queue(LINES_AHEAD_MAX)

    async def read(source: AsyncGenerator[T]) -> None:
        end: BaseException | None = None
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put(item)
        except Exception as error:  # noqa: BLE001 -- handed to the consumer, who raises it
            end = error
        await queue.put(end)

    readers = [asyncio.create_task(read(source)) for source in sources]
    try:
        left = len(readers)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

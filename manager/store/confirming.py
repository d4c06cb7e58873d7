"""Answers of transactions that changed nothing: held back until what they say is true for good.

A transaction runs on the head, which is ahead of what is committed, on a manager that believes to
lead. If it changed nothing, or refused, no entry of its own tells whether what it saw is so. Two
things make it so, and the answer waits for both:

* the line as the transaction met it is committed, for else what it saw never was;
* a read barrier that began after the call has passed, for else another manager may have been
  leading, and what was seen may have been over before the call.

Neither is enough alone: the last acknowledgement of an entry may reach a leader that was replaced
long ago, and a barrier says nothing of entries that are still on their way. Both are under way at
the same time, so the answer costs the longer of the two. A barrier may be passed by a manager that
has lost its leadership since, with the help of the next leader; that one proves nothing about the
former head, hence `lost`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from manager.store.log import ReplicatedLog
from proto.errors import NotLeaderError, ResourceExhaustedError, SwarmError, UnavailableError

Seen = asyncio.Future[BaseException | None]
"""Done when the newest transaction in line ended, with its error or None."""


class Confirmations:
    """The answers that are held back."""

    def __init__(self, replicated_log: ReplicatedLog) -> None:
        """Hold none; the log's read barrier proves who leads."""
        self._log = replicated_log
        self._waiting: dict[asyncio.Task[None], asyncio.Future[Any]] = {}

    def begin(
        self,
        caller: asyncio.Future[Any],
        result: object,
        error: SwarmError | None,
        *,
        seen: Seen | None,
        lost: Callable[[], SwarmError | None],
    ) -> None:
        """Give `caller` the result, or the error, once what it rests on is certain.

        Args:
            caller: is told; it may be cancelled.
            result: what the transaction returned.
            error: what it raised instead.
            seen: tells of the line as the transaction met it; None if that was empty.
            lost: returns why this manager does not lead as it did then; None if it does.
        """
        work = self._confirm(caller, result, error, seen, lost)
        task = asyncio.get_running_loop().create_task(work, name="store-confirmation")
        self._waiting[task] = caller
        task.add_done_callback(self._forget)

    async def _confirm(
        self,
        caller: asyncio.Future[Any],
        result: object,
        error: SwarmError | None,
        seen: Seen | None,
        lost: Callable[[], SwarmError | None],
    ) -> None:
        failure: BaseException | None = None
        try:
            await self._log.read_barrier()
            if seen is not None:
                failure = await seen
        except SwarmError as refusal:
            failure = refusal
        # This transaction wrote nothing, so whoever leads now may be asked: nothing is in doubt.
        failure = lost() or failure
        if caller.done():
            return
        if failure is not None:
            caller.set_exception(copy_of(failure))
        elif error is not None:
            caller.set_exception(error)
        else:
            caller.set_result(result)

    def _forget(self, task: asyncio.Task[None]) -> None:
        caller = self._waiting.pop(task)
        if task.cancelled() or caller.done():
            return
        failure = task.exception()
        assert failure is not None, "a confirmation ended without an answer"
        caller.set_exception(failure)

    async def close(self, refusal: SwarmError) -> None:
        """Refuse what is held back."""
        tasks = tuple(self._waiting)
        for task, caller in tuple(self._waiting.items()):
            if not caller.done():
                caller.set_exception(copy_of(refusal))
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def copy_of(error: BaseException) -> SwarmError:
    """Make an exception of its own for each caller: a shared one would collect all tracebacks."""
    match error:
        case NotLeaderError(leader_address=address):
            return NotLeaderError(address)
        case ResourceExhaustedError(message=message):
            return ResourceExhaustedError(message)
        case UnavailableError(message=message):
            return UnavailableError(message)
        case _:
            failure = UnavailableError(f"the change could not be stored: {error}")
            failure.__cause__ = error
            return failure

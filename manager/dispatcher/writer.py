"""Gathers small writes of many nodes into few transactions.

While one batch is on its way to the disk the next gathers, so a lone write waits for nothing, and
thousands of nodes that register at once share their transactions. Writes are applied in the order
in which they were put; one that refuses, or is larger than what one node has to say, fails alone
and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from manager.store.store import Store
from manager.store.transaction import Transaction
from proto.errors import InvalidError, ResourceExhaustedError, SwarmError, UnavailableError

WAITING_MAX = 200_000
"""More writes than these are refused, as the log would."""

WRITE_BYTES_MAX = 512 * 1024
"""What one write may add to a transaction; the log takes 1.5 MiB. A larger one is refused, before
it makes the transaction too large that others share."""

Write = Callable[[Transaction], Any]


class _Job(msgspec.Struct):
    """A caller's writes."""

    writes: list[Write]
    caller: asyncio.Future[list[Any]]
    results: list[Any]
    error: SwarmError | None = None


class Writer:
    """Writes to a store while it leads."""

    def __init__(self, store: Store) -> None:
        """Have nothing to write."""
        self._store = store
        self._jobs: list[_Job] = []
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, writes: list[Write]) -> asyncio.Future[list[Any]]:
        """Have writes applied; each may be run more than once, the last time counts.

        Returns:
            A future of what each returned, resolved when all are durable. It fails with the first
            error that one of them raised (the others are written all the same), or as the store's
            `update` fails.
        """
        caller: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if self._waiting + len(writes) > WAITING_MAX:
            caller.set_exception(
                ResourceExhaustedError("too many reports of nodes wait to be stored; try again")
            )
            return caller
        self._waiting += len(writes)
        self._jobs.append(_Job(writes, caller, [None] * len(writes)))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="dispatcher-writer")
        return caller

    async def _run(self) -> None:
        try:
            while self._jobs:
                # What else happens in this turn of the loop goes along.
                await asyncio.sleep(0)
                jobs, self._jobs = self._jobs, []
                await self._write(jobs)
        finally:
            self._task = None

    async def _write(self, jobs: list[_Job]) -> None:
        items = ((job, index) for job in jobs for index in range(len(job.writes)))
        failure: BaseException | None = None
        try:
            await self._store.batch(items, _apply)
        except SwarmError as error:
            failure = error
        except BaseException as error:
            for job in jobs:
                _fail(job, error)
            raise
        finally:
            self._waiting -= sum(len(job.writes) for job in jobs)
        for job in jobs:
            outcome = job.error or failure
            if outcome is not None:
                _fail(job, outcome)
            elif not job.caller.done():
                job.caller.set_result(job.results)


def _apply(tx: Transaction, item: tuple[_Job, int]) -> None:
    job, index = item
    before, savepoint = tx.byte_count, tx.savepoint()
    try:
        job.results[index] = job.writes[index](tx)
    except SwarmError as error:
        tx.roll_back(savepoint)
        job.error = error
        return
    if tx.byte_count - before > WRITE_BYTES_MAX:
        tx.roll_back(savepoint)
        job.error = InvalidError(
            f"what the node reports takes more than {WRITE_BYTES_MAX} bytes in the log"
        )


def _fail(job: _Job, error: BaseException) -> None:
    """Give each caller an exception of its own, with no traceback of others."""
    if job.caller.done():
        return
    if isinstance(error, SwarmError):
        copy = type(error).__new__(type(error))
        copy.__dict__.update(vars(error))
        SwarmError.__init__(copy, error.message)
        job.caller.set_exception(copy)
    else:
        job.caller.set_exception(UnavailableError("the dispatcher failed; try again"))

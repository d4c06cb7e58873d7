"""Applies a function to many items in as few transactions as the limits allow.

The changes of one item stay in one transaction. Several transactions are on their way at a time,
and the loop runs between them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from manager.store.tables import View
from manager.store.transaction import (
    TRANSACTION_BYTES_MAX,
    TRANSACTION_CHANGES_MAX,
    Transaction,
)

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741 -- an item

# How many transactions of one `batch` are on their way at a time.
BATCH_TRANSACTIONS_MAX = 16
# Leaves room for the entry's own header.
_BATCH_BYTES_MAX = TRANSACTION_BYTES_MAX - 1024


class Updates(Protocol):
    """The part of the store that is used here."""

    def head(self) -> View:
        """Return the state after everything proposed."""

    def update(self, fn: Callable[[Transaction], R]) -> asyncio.Future[R]:
        """Run a transaction."""


async def batch(
    store: Updates, items: Iterable[I], apply: Callable[[Transaction, I], object]
) -> int:
    """Apply a function to each item, in as few transactions as the limits allow.

    `apply` may be run a second time for an item, on the next transaction, when the first run went
    over the limit. On return all that `apply` saw is committed, as with `Store.update`.

    Returns:
        How many transactions were committed.

    Raises:
        SwarmError: what `apply` or the log raised; the transactions before it may have been
            committed.
    """
    iterator = iter(items)
    held: list[I] = []
    proposed: deque[asyncio.Future[bool]] = deque()
    count = 0
    is_done = False
    try:
        while not is_done:
            before = store.head()
            proposed.append(store.update(lambda tx: _fill(tx, iterator, held, apply)))
            if store.head() is before:
                # It changed nothing, or failed: then there are no more.
                await proposed.pop()
            else:
                count += 1
            is_done = not held and _is_exhausted(iterator, held)
            if len(proposed) >= BATCH_TRANSACTIONS_MAX:
                await proposed.popleft()
            await asyncio.sleep(0)
        while proposed:
            await proposed.popleft()
    finally:
        await asyncio.gather(*proposed, return_exceptions=True)
    return count


def _fill(
    tx: Transaction,
    iterator: Iterator[I],
    held: list[I],
    apply: Callable[[Transaction, I], object],
) -> bool:
    """Apply items to one transaction until it is full; one that does not fit is put in `held`."""
    for _ in range(TRANSACTION_CHANGES_MAX):
        if held:
            item = held.pop()
        else:
            try:
                item = next(iterator)
            except StopIteration:
                return True
        savepoint = tx.savepoint() if tx.change_count else None
        apply(tx, item)
        is_over = tx.change_count > TRANSACTION_CHANGES_MAX or tx.byte_count > _BATCH_BYTES_MAX
        if is_over and savepoint is not None:
            tx.roll_back(savepoint)
            held.append(item)
        if is_over or tx.change_count == TRANSACTION_CHANGES_MAX:
            return False
    return False


def _is_exhausted(iterator: Iterator[I], held: list[I]) -> bool:
    """Tell whether no item is left; the one that it had to take to know is put in `held`."""
    for item in iterator:
        held.append(item)
        return False
    return True

"""Watching the committed state: a snapshot, then every later change, with no gap.

Events of one transaction come together, in one tuple. A watcher that falls behind by more than
`WATCH_EVENTS_MAX` events loses them and is given a `Resync` with the whole present state in their
place; the events that follow are those after that state. Events are wake-up calls: what to do is
decided on a snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from manager.store.tables import View, table_position
from proto.objects import Object

WATCH_EVENTS_MAX = 10_000


class Created(msgspec.Struct, frozen=True, gc=False):
    """An object is new."""

    new: Object
    old: None = None


class Updated(msgspec.Struct, frozen=True, gc=False):
    """An object changed."""

    old: Object
    new: Object


class Deleted(msgspec.Struct, frozen=True, gc=False):
    """An object is gone."""

    old: Object
    new: None = None


class Resync(msgspec.Struct, frozen=True, gc=False):
    """Events were lost; start again from `view`."""

    view: View


Change = Created | Updated | Deleted
Event = Change | Resync


class Watch:
    """A subscription: `async with store.watch(Task) as watch`, then `async for events in watch`.

    It counts from entering the context; `view` is the state at that moment (or of the last
    `Resync`). Iteration ends when the store is closed. One consumer at a time.
    """

    def __init__(
        self,
        kinds: tuple[type[Object] | str, ...],
        *,
        committed: Callable[[], View],
        enter: Callable[[Watch], None],
        leave: Callable[[Watch], None],
    ) -> None:
        self.view = committed()
        self._kinds = frozenset(table_position(kind) for kind in kinds)
        self._committed = committed
        self._enter = enter
        self._leave = leave
        self._batches: deque[tuple[Change, ...]] = deque()
        self._event_count = 0
        self._must_resync = False
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self.view = self._committed()
        self._enter(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self)
        self.close()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        assert self._waiter is None, "a watch has one consumer"
        while not self._is_closed and not self._batches and not self._must_resync:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._is_closed:
            raise StopAsyncIteration
        if self._must_resync:
            self._must_resync = False
            self.view = self._committed()
            return (Resync(self.view),)
        events = self._batches.popleft()
        self._event_count -= len(events)
        return events

    def drain(self) -> tuple[Event, ...]:
        """Return the events that are queued now, at once; () when there are none."""
        if self._must_resync:
            self._must_resync = False
            self.view = self._committed()
            return (Resync(self.view),)
        events = tuple(change for batch in self._batches for change in batch)
        self._batches.clear()
        self._event_count = 0
        return events

    def publish(self, changes: tuple[Change, ...]) -> None:
        """Queue the changes of a committed transaction; called by the store, never blocks."""
        if self._must_resync:
            return
        if self._kinds:
            changes = tuple(change for change in changes if _position_of(change) in self._kinds)
        if not changes:
            return
        if self._event_count + len(changes) > WATCH_EVENTS_MAX:
            self._batches.clear()
            self._event_count = 0
            self._must_resync = True
        else:
            self._batches.append(changes)
            self._event_count += len(changes)
        self._wake()

    def resync(self) -> None:
        """Let the next event be a `Resync`: the state was replaced as a whole."""
        self._batches.clear()
        self._event_count = 0
        self._must_resync = True
        self._wake()

    def close(self) -> None:
        """End the iteration."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _position_of(change: Change) -> int:
    return table_position(type(change.old if change.new is None else change.new))

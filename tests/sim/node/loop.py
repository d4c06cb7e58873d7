"""An event loop with virtual time whose programs can be killed as `kill -9` does.

Time passes only when nothing else is to do, so an hour costs nothing. What a program (one start of
the daemon) runs is marked by a context variable, which tasks, callbacks and timers inherit. `kill`
lets nothing of that program run any more: no `finally`, no `except`, no callback. Whatever it
waited for may still happen in the world; nobody is told.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakSet

PROGRAM: contextvars.ContextVar[int] = contextvars.ContextVar("program", default=0)
EPOCH = 1_700_000_000.0
START = 1000.0
# How often a coroutine that waits in its `finally` blocks is closed again.
CLOSINGS_MAX = 50


class BuriedError(BaseException):
    """Thrown into what a killed program left; nobody catches it."""


class _VirtualSelector(selectors.SelectSelector):
    """Never waits: what it would have waited is added to the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits for something that never comes"
        self.turns += 1
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """One thread, virtual time, programs that can be killed."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self._dead: set[int] = set()
        self._tasks_of: dict[int, WeakSet[asyncio.Task[Any]]] = {}
        self._graveyard: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        """Return the virtual time."""
        return self._virtual.now

    @property
    def turns(self) -> int:
        """How often the loop has turned: a measure of how busy it is."""
        return self._virtual.turns

    def _new_task(
        self,
        _loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, context=context)
        program = PROGRAM.get() if context is None else context.get(PROGRAM, 0)
        self._tasks_of.setdefault(program, WeakSet()).add(task)
        return task

    def is_dead(self, context: contextvars.Context | None = None) -> bool:
        """Tell whether the program that runs (or that a context belongs to) was killed."""
        if not self._dead:
            return False
        return (PROGRAM.get() if context is None else context.get(PROGRAM, 0)) in self._dead

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Queue a callback, unless its program is dead."""
        if self.is_dead(context):
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Do the same: there are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Queue a timer, unless its program is dead."""
        if self.is_dead(context):
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do a thread's work here and now; its outcome is seen one turn later."""
        del executor
        future = self.create_future()
        try:
            outcome = func(*args)
        except Exception as error:  # noqa: BLE001 -- handed to whoever waits
            self.call_soon(_settle, future, None, error)
        else:
            self.call_soon(_settle, future, outcome, None)
        return future

    def start(self, program: int, main: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task:
        """Start a program's main coroutine; all that it begins belongs to it."""
        context = contextvars.copy_context()
        context.run(PROGRAM.set, program)
        return context.run(lambda: self.create_task(main(), context=context))

    def call_in(self, program: int, function: Callable[[], Any]) -> Any:
        """Call a function as a part of a program."""
        context = contextvars.copy_context()
        context.run(PROGRAM.set, program)
        return context.run(function)

    def kill(self, program: int) -> None:
        """Let nothing of the program run any more."""
        assert program
        # First: a task that has not begun is kept by nothing but its handle.
        self._graveyard += [t for t in self._tasks_of.pop(program, ()) if not t.done()]
        for handle in (*self._ready, *self._scheduled):
            if handle._context.get(PROGRAM, 0) == program:
                handle.cancel()
        self._dead.add(program)

    def bury(self) -> None:
        """Dispose of what killed programs left in memory; at the end, within the loop."""
        for program in sorted(self._dead):
            self.call_in(program, self._close_graves)
        self._tasks_of.clear()

    def _close_graves(self) -> None:
        self._graveyard += self._tasks_of.pop(PROGRAM.get(), ())
        while self._graveyard:
            task = self._graveyard.pop()
            task._log_destroy_pending = False
            for _ in range(CLOSINGS_MAX):
                try:
                    # Not `close`: of a chain of coroutines that only ends the outer ones when the
                    # innermost waits in its `finally`.
                    task.get_coro().throw(BuriedError())
                except BaseException:  # noqa: BLE001 -- it is dead; its complaints are not heard
                    break
            self._graveyard += self._tasks_of.pop(PROGRAM.get(), ())


def _settle(future: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    else:
        future.set_exception(error)


class LoopClock:
    """The loop's time, as both clocks."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def wall(self) -> float:
        """Return some date."""
        return EPOCH + self._loop.time()

    def monotonic(self) -> float:
        """Return the loop's time."""
        return self._loop.time()

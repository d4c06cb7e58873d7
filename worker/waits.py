"""Says what this node's work waits for, and since when, once that has taken a while.

A step that may wait for something outside is surrounded by `Waits.on`. One that is quick leaves no
trace; one that takes longer than `SHOWN_SECONDS` is told to the task that it is for, or, if it is
for none, to whoever asks what hampers this node. The time-out of a step is the step's own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from proto.clock import Clock
from proto.ids import TaskID
from proto.text import time_of_day

SHOWN_SECONDS = 5.0
"""What takes less is no news."""

REPEAT_SECONDS = 30.0
"""How often it is looked whether the reason has changed."""

NO_TASK = TaskID("")
Told = Callable[[TaskID, str], None]


class Waits:
    """The steps that wait now."""

    def __init__(self, clock: Clock, tell: Told) -> None:
        """Have none.

        Args:
            clock: dates them.
            tell: gets a task and what it waits for; "" when that is over.
        """
        self._clock = clock
        self._tell = tell
        self._shown: dict[object, str] = {}

    def sentences(self) -> tuple[str, ...]:
        """Return what is waited for that is for no task, oldest first."""
        return tuple(dict.fromkeys(self._shown.values()))

    @contextlib.contextmanager
    def on(self, task_id: TaskID, what: str | Callable[[], str]) -> Iterator[None]:
        """Surround a step.

        Args:
            task_id: for which it is; `NO_TASK` if for the node.
            what: what it waits for, to stand behind "waiting for"; asked again now and then.
        """
        since = time_of_day(self._clock.wall())
        loop = asyncio.get_running_loop()
        key, said = object(), ""
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal said, timer
            thing = what if isinstance(what, str) else what()
            sentence = f"waiting for {thing} since {since}"
            timer = loop.call_later(REPEAT_SECONDS, look)
            if sentence == said:
                return
            said = sentence
            if task_id == NO_TASK:
                self._shown[key] = sentence
            else:
                self._tell(task_id, sentence)

        timer = loop.call_later(SHOWN_SECONDS, look)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._shown.pop(key, None)
            if said and task_id != NO_TASK:
                self._tell(task_id, "")

"""How far the output of a task has been read, so that another attempt goes on from there. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from proto.logs import LogOptions, LogRecord


class Position:
    """Where one reading of one task's output is.

    Lines are known by their time. Several have the same when a program writes much at once, so
    their count belongs to it: an attempt begins with all lines of the last moment, of which as many
    are left out as were had. A `tail` may have begun amid the lines of a moment. While no later one
    was had, an attempt therefore looks for the first line that was; only where a program writes the
    same line again and again at one moment does it find an earlier one, and repeats some.
    """

    def __init__(self, options: LogOptions) -> None:
        """Begin before the first wanted line."""
        self._options = options
        self._last_ns = -1
        self._had = 0
        self._first: LogRecord | None = None
        self._looked_for: LogRecord | None = None
        self._skip = 0

    def begin(self) -> LogOptions:
        """Return what to ask for in the attempt that begins now."""
        self._skip = self._had
        self._looked_for = self._first
        if self._last_ns < 0:
            return self._options
        since_ns = max(self._options.since_ns, self._last_ns)
        return msgspec.structs.replace(self._options, tail=-1, since_ns=since_ns)

    def fresh(self, records: Iterable[LogRecord]) -> list[LogRecord]:
        """Return those that were not had before, and note them."""
        return [record for record in records if self._is_fresh(record)]

    def _is_fresh(self, record: LogRecord) -> bool:
        if record.time_ns == self._last_ns:
            if self._looked_for not in {None, record}:
                return False
            self._looked_for = None
            if self._skip:
                self._skip -= 1
                return False
            self._had += 1
        else:
            is_first = self._last_ns < 0 and self._options.tail >= 0
            self._first = record if is_first else None
            self._last_ns, self._had = record.time_ns, 1
            self._skip, self._looked_for = 0, None
        return True

"""How the daemon logs: structured lines on standard error, JSON when nobody sits before it.

A line that cannot be written, since the disk of the log is full or its reader is gone, is dropped
and counted: the log is not what the daemon is there for. Once lines can be written again, the first
says how many are missing.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO, cast

import msgspec
import structlog

from proto.text import printable_lines


def _printable(
    _logger: object, _method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Spell out what a terminal would obey: parts of a line come from other nodes and strangers."""
    return {
        key: printable_lines(value) if isinstance(value, str) else value
        for key, value in line.items()
    }


class LossyLog:
    """A file to which writing never fails; see the module."""

    def __init__(self, descriptor: int) -> None:
        """Write to an open file."""
        self._descriptor = descriptor
        self._dropped = 0
        self._is_torn = False

    def write(self, text: str) -> int:
        """Write a line, or drop it."""
        try:
            if self._dropped:
                missing = {"count": self._dropped, "event": "log_lines_dropped", "level": "warning"}
                self._put(msgspec.json.encode(missing) + b"\n")
                self._dropped = 0
            self._put(text.encode(errors="backslashreplace"))
        except OSError:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line is written at once."""

    def _put(self, data: bytes) -> None:
        rest = b"\n" + data if self._is_torn else data
        while rest:
            count = os.write(self._descriptor, rest)
            rest = rest[count:]
            # What follows a part of a line begins on a line of its own.
            self._is_torn = bool(rest)


def configure_logging(*, is_debug: bool) -> None:
    """Set structlog up once, at the start."""
    is_terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *((_printable,) if is_terminal else ()),  # JSON escapes what is not ASCII
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if is_debug else logging.INFO
        ),
        logger_factory=structlog.WriteLoggerFactory(file=_lossy(sys.stderr)),
    )


def _lossy(file: TextIO) -> TextIO:
    try:
        return cast("TextIO", LossyLog(file.fileno()))
    except io.UnsupportedOperation:
        return file  # it is memory

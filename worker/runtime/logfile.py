"""The log format of conmon (`k8s-file`), line by line. Pure.

    2026-11-24T03:53:14.599484004+00:00 stdout F hello
    2026-11-24T03:53:14.612000000+00:00 stderr P a line that is not ended ye

One line of the file is a piece of output: `F` ends a line of output, `P` is a part of one. The
pieces of both streams may be mixed.

Source: conmon `src/ctr_logging.c`.
"""

from __future__ import annotations

import datetime as dt
import functools
from typing import Literal

import msgspec

from proto.logs import LogRecord

# A line of output longer than this is given out in parts, so that a program that never ends its
# line cannot fill the daemon's memory.
LINE_BYTES_MAX = 1 << 20
_SECONDS_LENGTH = 19  # of "2026-11-24T03:53:14"
_STAMP_LENGTH = 35
_NANOSECONDS = 1_000_000_000


class Piece(msgspec.Struct, frozen=True):
    """One line of the file; `data` includes the line end if it ends a line of output."""

    time_ns: int
    stream: Literal["stdout", "stderr"]
    is_partial: bool
    data: bytes


@functools.lru_cache(maxsize=4)
def _seconds(text: str, offset: str) -> int:
    """Parse to the second; neighbouring lines mostly share it."""
    return int(dt.datetime.fromisoformat(text + offset).timestamp())


def time_ns(stamp: str) -> int:
    """Parse conmon's time, which has nine digits of a second and an offset.

    Raises:
        ValueError: it is not one.
    """
    if len(stamp) != _STAMP_LENGTH or stamp[_SECONDS_LENGTH] != ".":
        raise ValueError(f"{stamp!r} is not a time of conmon's")
    return _seconds(stamp[:_SECONDS_LENGTH], stamp[29:]) * _NANOSECONDS + int(stamp[20:29])


def parse(line: bytes) -> Piece | None:
    """Read one line of the file, with its line end; None if it is damaged (by a full disk)."""
    fields = line.split(b" ", 3)
    match fields:
        case [stamp, b"stdout" | b"stderr" as stream, b"F" | b"P" as tag, data]:
            try:
                moment = time_ns(stamp.decode())
            except ValueError:
                return None
            is_partial = tag == b"P"
            # conmon ends a part with a line end of its own.
            return Piece(
                moment,
                "stdout" if stream == b"stdout" else "stderr",
                is_partial,
                data.removesuffix(b"\n") if is_partial else data,
            )
        case _:
            return None


class Merger:
    """Joins pieces to lines of output; a line has the time of its first piece."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, bytearray]] = {}

    def feed(self, piece: Piece) -> LogRecord | None:
        """Take one piece; return a line if it is ended now."""
        started = self._open.get(piece.stream)
        if started is None:
            if not piece.is_partial:
                return LogRecord(piece.time_ns, piece.stream, piece.data)
            started = self._open[piece.stream] = (piece.time_ns, bytearray())
        started[1].extend(piece.data)
        if piece.is_partial and len(started[1]) < LINE_BYTES_MAX:
            return None
        del self._open[piece.stream]
        return LogRecord(started[0], piece.stream, bytes(started[1]))

    def flush(self) -> list[LogRecord]:
        """Return the lines that were never ended, oldest first."""
        records = [
            LogRecord(moment, "stdout" if stream == "stdout" else "stderr", bytes(data))
            for stream, (moment, data) in self._open.items()
        ]
        self._open.clear()
        return sorted(records, key=lambda record: record.time_ns)


class TailScan:
    """Counts lines of output backwards, from the end of the log.

    A part that is not followed by another piece of its stream is a line too: it is given out when
    the container has ended, or completed while following.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._seen: set[bytes] = set()
        self.lines = 0

    def feed(self, line: bytes) -> None:
        """Take the next line of the file, going backwards."""
        fields = line.split(b" ", 3)
        if len(fields) != 4 or fields[1] not in {b"stdout", b"stderr"}:  # noqa: PLR2004 -- parts
            return
        if fields[2] == b"F" or fields[1] not in self._seen:
            self.lines += 1
        self._seen.add(fields[1])

    @property
    def is_done(self) -> bool:
        """Whether enough has been seen; one line more proves the wanted ones are whole."""
        return self.lines > self._wanted

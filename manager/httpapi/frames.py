"""The bytes of the Engine API's streams. Pure.

Logs of a container without a terminal interleave standard output and error: each piece has a
header of eight bytes (stream number, three zeros, length in big-endian). Progress of a pull, push
or load is a JSON object a line.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus

import msgspec

from manager.httpapi.timestamps import rfc3339_fixed
from proto.logs import LogRecord
from worker.images.api import Progress

MULTIPLEXED_TYPE = "application/vnd.docker.multiplexed-stream"
RAW_TYPE = "application/vnd.docker.raw-stream"

_STREAM_NUMBERS = {"stdout": 1, "stderr": 2, "systemerr": 3}
_BAR_WIDTH = 50
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_THOUSAND = 1000.0


def frame(stream: str, data: bytes) -> bytes:
    """Wrap one piece of output; `stream` is stdout, stderr or systemerr."""
    return struct.pack(">BxxxI", _STREAM_NUMBERS[stream], len(data)) + data


def details_of(attributes: Mapping[str, str]) -> bytes:
    """Write the `details` prefix: sorted `key=value` pairs, escaped as in a query."""
    pairs = (f"{quote_plus(key)}={quote_plus(attributes[key])}" for key in sorted(attributes))
    return ",".join(pairs).encode()


def log_line(
    record: LogRecord, *, timestamps: bool, details: bytes | None, is_multiplexed: bool
) -> bytes:
    """Render a record as the client asked for it.

    Args:
        record: one line of output.
        timestamps: put the time first.
        details: the prefix of `details_of`, before the data; None leaves it out.
        is_multiplexed: False for a service with a terminal, whose bytes go out as they are.
    """
    parts = []
    if timestamps:
        parts.append(rfc3339_fixed(record.time_ns).encode())
    if details is not None:
        parts.append(details)
    data = b" ".join([*parts, record.data])
    return frame(record.stream, data) if is_multiplexed else data


def json_line(message: Mapping[str, Any]) -> bytes:
    """Write one message of a JSON stream."""
    return msgspec.json.encode(message) + b"\r\n"


def progress_line(progress: Progress) -> bytes:
    """Render a step of a pull or push; with a bar once the total is known."""
    message: dict[str, Any] = {"status": progress.status}
    if progress.id:
        message["id"] = progress.id
    if progress.total or progress.current:
        message["progressDetail"] = {"current": progress.current, "total": progress.total}
        message["progress"] = bar(progress.current, progress.total)
    return json_line(message)


def stream_line(text: str) -> bytes:
    """Render a line of plain text (`docker load` prints these)."""
    return json_line({"stream": f"{text}\n"})


def error_line(message: str) -> bytes:
    """Render the failure of an operation whose response has begun."""
    return json_line({"errorDetail": {"message": message}, "error": message})


def bar(current: int, total: int) -> str:
    """Draw a progress bar as old clients expect to be given."""
    if total <= 0:
        return _size(current)
    filled = min(current * _BAR_WIDTH // total, _BAR_WIDTH)
    drawn = "=" * filled + (">" if filled < _BAR_WIDTH else "")
    return f"[{drawn.ljust(_BAR_WIDTH)}]  {_size(current)}/{_size(total)}"


def _size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < _THOUSAND:
            return f"{count:.4g}{unit}"
        count /= _THOUSAND
    return f"{count:.4g}{_UNITS[-1]}"

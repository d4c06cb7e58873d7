"""Splits the stream of `service logs` and formats its lines.

Pure. The stream is a sequence of frames: which output, the length, the message. A message starts
with its timestamp, if asked for, and with the details that say which task wrote it.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote_plus

from proto.errors import InvalidError
from proto.text import printable

HEADER_BYTES = 8
STDERR = 2
FRAME_BYTES_MAX = 64 << 20
"""No daemon sends a longer one; a greater length means that the stream is none of frames."""

_NODE = "com.docker.swarm.node.id"
_SERVICE = "com.docker.swarm.service.id"
_TASK = "com.docker.swarm.task.id"


class FrameReader:
    """Collects pieces of the stream and gives out whole frames."""

    def __init__(self) -> None:
        """Start at the beginning of a frame."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bool, bytes]]:
        """Take a piece; give the frames that are complete: whether stderr, and the message.

        Raises:
            InvalidError: the stream is not one of frames.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER_BYTES:
            size = int.from_bytes(self._buffer[4:HEADER_BYTES], "big")
            if self._buffer[0] > STDERR or size > FRAME_BYTES_MAX:
                raise InvalidError("the daemon's log stream is damaged: no frame where one begins")
            end = HEADER_BYTES + size
            if len(self._buffer) < end:
                break
            is_error = self._buffer[0] == STDERR
            frames.append((is_error, bytes(self._buffer[HEADER_BYTES:end])))
            del self._buffer[:end]
        return frames


class Origin(NamedTuple):
    """Which task wrote a line."""

    service: str
    task: str
    node: str


class LogLine(NamedTuple):
    """A message taken apart; `details` are those besides the origin."""

    timestamp: bytes
    origin: Origin
    details: tuple[tuple[str, str], ...]
    text: bytes


def parse_line(message: bytes, *, with_timestamp: bool) -> LogLine:
    """Take a message apart.

    Raises:
        InvalidError: it has no details, or they lack the origin.
    """
    timestamp = b""
    rest = message
    if with_timestamp:
        timestamp, _, rest = rest.partition(b" ")
    encoded, separator, text = rest.partition(b" ")
    details = {
        unquote_plus(key): unquote_plus(value)
        for key, _, value in (
            pair.partition("=") for pair in encoded.decode(errors="replace").split(",")
        )
    }
    try:
        origin = Origin(details.pop(_SERVICE), details.pop(_TASK), details.pop(_NODE))
    except KeyError:
        origin = Origin("", "", "")
    if not separator or not origin.task:
        raise InvalidError(f"invalid context in log message: {message!r}")
    return LogLine(timestamp, origin, tuple(sorted(details.items())), text)


def format_line(line: LogLine, prefix: str, *, with_details: bool) -> bytes:
    """Write a line: timestamp, prefix, details if asked for, text."""
    parts = [line.timestamp + b" " if line.timestamp else b"", prefix.encode(), b"    | "]
    if with_details:
        pairs = ",".join(f"{key}={value}" for key, value in line.details)
        parts.append(pairs.encode() + b" ")
    return b"".join([*parts, line.text])


def task_prefix(
    service: str, slot: int, task: str, node: str, *, padding: int, truncate: bool = True
) -> str:
    """Name who wrote a line: `web.1.t0b2c4d6e8f0@mgr01`, padded to the widest slot.

    Args:
        service: the service's name.
        slot: the task's slot.
        task: its ID; "" leaves it out.
        node: the node's name.
        padding: digits of the widest slot.
        truncate: shorten the task's ID.
    """
    identifier = f".{task[:12] if truncate else task}" if task else ""
    spaces = " " * max(0, padding - len(str(slot)))
    return printable(f"{service}.{slot}{identifier}@{node}{spaces}")

"""Reads the progress of pulls, pushes and loads: JSON objects one after the other.

Pure. `MessageReader` finds the objects in pieces of the stream; `message_line` says how one is
shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from manager.cli.convergence import Line
from manager.cli.units import human_size
from proto.errors import InvalidError

MESSAGE_BYTES_MAX = 8 << 20
_BAR_WIDTH = 50


class MessageReader:
    """Collects pieces and gives out whole objects."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._text = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take a piece; give the objects of the lines that are complete.

        Raises:
            InvalidError: it is not JSON.
        """
        *lines, self._text = (self._text + data).split(b"\n")
        if len(self._text) > MESSAGE_BYTES_MAX:
            raise InvalidError("the daemon's progress has no end of line")
        return [message for line in lines for message in _objects(line)]

    def finish(self) -> list[dict[str, Any]]:
        """Give what is left at the end of the stream."""
        rest, self._text = self._text, b""
        return _objects(rest)


def _objects(line: bytes) -> list[dict[str, Any]]:
    """Decode the objects of a line: a daemon may write several without a line break."""
    found, decoder = [], json.JSONDecoder()
    try:
        text = line.decode()
        at = len(text) - len(text.lstrip())
        while at < len(text):
            message, at = decoder.raw_decode(text, at)
            found.append(message)
            at += len(text[at:]) - len(text[at:].lstrip())
    except ValueError as error:
        raise InvalidError(f"the daemon's progress is not JSON: {line[:100]!r}") from error
    return [message for message in found if isinstance(message, dict)]


def message_error(message: Mapping[str, Any]) -> str:
    """Give the error that a message reports; "" when it reports none."""
    detail = (message.get("errorDetail") or {}).get("message")
    return str(detail or message.get("error") or "")


def message_line(message: Mapping[str, Any]) -> Line | str | None:
    """Say how a message is shown: a line that changes, plain text, or not at all."""
    if "stream" in message:
        return str(message["stream"])
    status = message.get("status", "")
    if not status:
        return None
    name = message.get("id", "")
    detail = message.get("progressDetail") or {}
    current, total = detail.get("current", 0), detail.get("total", 0)
    if not current:
        return Line(name, status) if name else f"{status}\n"
    if not total:
        return Line(name, f"{status} {human_size(current)}", is_bar=True)
    filled = min(_BAR_WIDTH, round(current / total * _BAR_WIDTH))
    bar = ("=" * max(0, filled - 1) + ">").ljust(_BAR_WIDTH)
    sizes = f"{human_size(current)}/{human_size(total)}"
    return Line(name, f"{status} [{bar}] {sizes:>17}", is_bar=True)

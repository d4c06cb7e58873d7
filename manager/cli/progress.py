"""Shows lines that change: in place on a terminal, one after the other elsewhere.

Pure: each call gives the text to write, for `Console.control`. Elsewhere a bar is not shown, and a
line only when it is not what was last said under its name, so that a log file stays short.
"""

from __future__ import annotations

from manager.cli.convergence import Line
from proto.text import printable

_CLEAR = "\x1b[2K\r"


class ProgressDisplay:
    """Remembers which line is where."""

    def __init__(self, *, is_terminal: bool) -> None:
        """Start with nothing shown."""
        self._is_terminal = is_terminal
        self._rows: dict[str, int] = {}
        self._last: dict[str, str] = {}
        self._height = 0

    def show(self, line: Line) -> str:
        """Give the text that shows a line."""
        text = printable(f"{line.name}: {line.text}" if line.name else line.text)
        if not self._is_terminal:
            if line.is_bar or not line.text.strip() or self._last.get(line.name) == text:
                return ""
            self._last[line.name] = text
            return text + "\n"
        if not line.name:
            self._height += 1
            return f"{_CLEAR}{text}\n"
        row = self._rows.get(line.name)
        if row is None:
            self._rows[line.name] = self._height
            self._height += 1
            return f"{_CLEAR}{text}\n"
        up = self._height - row
        return f"\x1b[{up}A{_CLEAR}{text}\x1b[{up}B\r"

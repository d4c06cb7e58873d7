"""Lays out tables as Docker's client does.

Pure. Columns are at least ten characters wide, three spaces apart, the last is not padded; wide
characters count twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from proto.text import printable

WIDTH_MIN = 10
PADDING = 3


def text_width(text: str) -> int:
    """Count the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # noqa: PLC0415 -- rare, and costs time

    return sum(
        0 if combining(letter) else 1 + (east_asian_width(letter) in "WF") for letter in text
    )


def layout(rows: Sequence[Sequence[str]]) -> str:
    """Pad cells into columns; each row ends its line, and no cell does."""
    widths: list[int] = []
    rows = [[printable(cell) for cell in row] for row in rows]
    for row in rows:
        for at, cell in enumerate(row[:-1]):
            width = max(WIDTH_MIN, text_width(cell) + PADDING)
            if at == len(widths):
                widths.append(width)
            elif width > widths[at]:
                widths[at] = width
    lines = []
    for row in rows:
        padded = [cell + " " * (widths[at] - text_width(cell)) for at, cell in enumerate(row[:-1])]
        lines.append("".join(padded) + (row[-1] if row else "") + "\n")
    return "".join(lines)


def ellipsis(text: str, width: int) -> str:
    """Cut a text to a width, the last character an ellipsis if anything was cut."""
    if text_width(text) <= width:
        return text
    kept, used = "", 0
    for letter in text:
        used += text_width(letter)
        if used > width - 1:
            break
        kept += letter
    return kept + "…"


def capitalised(text: str) -> str:
    """Write a state as Docker shows it: "running" is "Running"."""
    return text[:1].upper() + text[1:].lower() if len(text) > 1 else text.lower()

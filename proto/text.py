"""Printable text: what may be shown on a terminal and written to a line of a log or a table.

Whoever sends a text decides its bytes, and a terminal obeys some of them: an escape sequence moves
the cursor, renames the window or types for the user; a line break makes a line of its own; a mark
of the direction of writing lets a name look like another. `printable` is the one place that says
which characters these are and what stands in their place. Texts from outside are put through it
where they come in, so that what is stored is harmless, and where they are shown, since not all
that is shown comes from the store. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime

CUT_MARK = "…"
"""The last character of a text that was cut."""

QUOTED_CHARACTERS_MAX = 200
"""So much of what somebody sent is enough to know it again."""


def printable(text: str, characters_max: int | None = None) -> str:
    r"""Return a text as one line that a terminal shows and does not obey.

    Line breaks and tabs become spaces; any other character that is not printable is written as
    Python writes it in a string (`\x1b`), so that a reader sees what was sent.

    Args:
        text: from anywhere.
        characters_max: what the result has at most; a longer one is cut and ends in `CUT_MARK`.
            None leaves the length.
    """
    if characters_max is not None and len(text) > characters_max:
        text = text[:characters_max] + CUT_MARK
    if not text.isprintable():
        text = "".join(_shown(character) for character in text)
    if characters_max is not None and len(text) > characters_max:
        text = text[: characters_max - len(CUT_MARK)] + CUT_MARK
    return text


def printable_lines(text: str) -> str:
    """Return a text as `printable` does, but keep its line breaks and tabs."""
    if text.isprintable():
        return text
    return "\n".join(
        "\t".join(printable(part) for part in line.split("\t")) for line in text.split("\n")
    )


def printable_json(text: str) -> str:
    """Return JSON in which what a terminal would obey is escaped as JSON does it."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else _json_escape(letter)
        for letter in text
    )


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def quoted(text: str) -> str:
    """Return a text from anywhere for a sentence: in double quotes, printable, not too long."""
    return f'"{printable(text, QUOTED_CHARACTERS_MAX)}"'


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    return character.encode("unicode_escape").decode("ascii")


def time_of_day(wall: float) -> str:
    """Write seconds since the epoch as people read "since when"."""
    return datetime.fromtimestamp(wall, UTC).strftime("%H:%M:%S UTC")

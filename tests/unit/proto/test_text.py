"""What may be shown on a terminal."""

import pytest

from proto.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web-1", "web-1"),
        ("Köln 東京", "Köln 東京"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\tc\rd", "a b c d"),
        ("abc\u202egpj", "abc\\u202egpj"),
        ("\x9b2J", "\\x9b2J"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_terminal_shows_and_does_not_obey(text, shown):
    """Letters of any script stay; what is obeyed is spelt out; what breaks a line is a space."""
    assert shown == printable(text)


def test_a_text_is_cut_where_it_is_too_long():
    """A cut is seen, and what is spelt out does not make it longer than it may be."""
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"
    assert len(printable("\x1b" * 1_000_000, 10)) == 10

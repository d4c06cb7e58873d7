"""Reads `key=value` texts. Pure, and light enough for every command."""

from __future__ import annotations

from collections.abc import Iterable

from proto.errors import InvalidError


def label(text: str) -> str:
    """Check a label: it needs a key."""
    key = text.partition("=")[0]
    if not key.strip():
        raise InvalidError(f"invalid label '{text}': empty name")
    if any(letter.isspace() for letter in key):
        raise InvalidError(f"label '{key}' contains whitespaces")
    return text


def as_mapping(pairs: Iterable[str]) -> dict[str, str]:
    """Turn `key=value` texts into a mapping; no `=` means an empty value."""
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}

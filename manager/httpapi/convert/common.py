"""What several converters share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, TypeVar

from manager.httpapi.convert.wire import INT64_MAX, WireDriver
from manager.httpapi.timestamps import rfc3339
from proto.errors import InvalidError
from proto.objects import Driver

Json = dict[str, Any]
E = TypeVar("E", bound=IntEnum)


def compact(members: Mapping[str, Any]) -> Json:
    """Drop members that Go's `omitempty` leaves out: absent, false, 0 and empty ones."""
    return {
        key: value
        for key, value in members.items()
        if value is not None and (value or (isinstance(value, dict) and key in _KEPT_OBJECTS))
    }


def int64(value: int) -> int:
    """Put a number that a node told into what clients can read: Go fails on a larger one."""
    return min(max(value, -INT64_MAX), INT64_MAX)


# Pointers to structs: Go leaves them out when nil, and writes `{}` when they point to an empty one.
_KEPT_OBJECTS = frozenset({"Healthcheck", "LogDriver"})


def meta(version: int, created_at: float, updated_at: float) -> Json:
    """Write the members that every object of the cluster has."""
    return {
        "Version": {"Index": version},
        "CreatedAt": rfc3339(created_at),
        "UpdatedAt": rfc3339(updated_at),
    }


def word_of(member: IntEnum) -> str:
    """Write an enumeration's member as the API does (`ON_FAILURE` is `on-failure`)."""
    return member.name.lower().replace("_", "-")


def member_of(kind: type[E], word: str, default: E, what: str) -> E:
    """Read an enumeration's member; "" is the default.

    Raises:
        InvalidError: names the words that may be used.
    """
    if not word:
        return default
    for member in kind:
        if word_of(member) == word.lower():
            return member
    raise InvalidError(f"{what} {word!r} is not known: use {choices(word_of(m) for m in kind)}")


def choices(words: Iterable[str]) -> str:
    """List words for a sentence."""
    known = list(words)
    return " or ".join([", ".join(known[:-1]), known[-1]]) if len(known) > 1 else known[0]


def driver_to_json(driver: Driver | None) -> Json | None:
    """Write a driver; None stays absent."""
    if driver is None:
        return None
    return compact({"Name": driver.name, "Options": dict(driver.options)})


def driver_of(wire: WireDriver | None) -> Driver | None:
    """Read a driver."""
    return None if wire is None else Driver(name=wire.name, options=dict(wire.options))

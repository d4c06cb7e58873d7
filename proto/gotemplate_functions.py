"""The functions of `proto.gotemplate`: Go's, and those that Docker adds.

Pure. A function gets evaluated arguments and raises `ArgumentError` when it cannot take them; the
evaluator adds the place. None makes a string longer than `CHARACTERS_MAX` in one go, except from
arguments that are that long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from proto.goformat import (
    Struct,
    format_json,
    sprint,
    sprintf,
    sprintln,
    type_name,
)

CHARACTERS_MAX = 1 << 20
"""The default cap on output, and the cap on the padding of `pad`."""


class _Missing:
    """The type of `MISSING`."""


MISSING = _Missing()
"""What a `Lookup` answers for a field that it does not know."""


class ArgumentError(ValueError):
    """A function of the template language cannot take its arguments; the text says why."""


class Function(NamedTuple):
    """A function of the template language; a `ValueError` from it becomes a `TemplateError`.

    Attributes:
        call: gets evaluated arguments by position.
        least: how many arguments it needs.
        most: how many it takes; None for any number.
    """

    call: Callable[..., object]
    least: int
    most: int | None


def is_true(value: object) -> bool:
    """Tell whether Go's templates take a value for true: not zero, empty or nil."""
    return value is not MISSING and (isinstance(value, Struct) or bool(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"expected string; found {type_name(value)}")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentError(f"expected integer; found {type_name(value)}")
    return value


def _sequence(value: object) -> Sequence[object]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ArgumentError(f"expected list; found {type_name(value)}")
    return value


def _join(items: object, separator: object) -> str:
    # An absent list joins to nothing, as a nil slice does in Go.
    values = [] if items is None else _sequence(items)
    return _text(separator).join(map(_text, values))


def _split(text: object, separator: object) -> list[str]:
    return _text(text).split(_text(separator)) if separator else list(_text(text))


def _title(text: object) -> str:
    previous = " "
    letters: list[str] = []
    for letter in _text(text):
        # ASCII that is no letter, digit or underscore ends a word; beyond ASCII only spaces do.
        starts = previous.isspace() or (previous.isascii() and not f"_{previous}".isidentifier())
        letters.append(letter.upper() if starts else letter)
        previous = letter
    return "".join(letters)


def _pad(text: object, before: object, after: object) -> str:
    if text == "":
        return ""
    counts = [max(0, min(_whole(count), CHARACTERS_MAX)) for count in (before, after)]
    return " " * counts[0] + _text(text) + " " * counts[1]


def _truncate(text: object, length: object) -> str:
    return _text(text)[: max(0, _whole(length))]


def _length(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if not isinstance(value, (Mapping, Sequence)) or isinstance(value, Struct):
        raise ArgumentError(f"len of type {type_name(value)}")
    return len(value)


def _index(value: object, *keys: object) -> object:
    for key in keys:
        if isinstance(value, Mapping):
            # Go gives the zero value of the map's element type.
            zero = "" if all(isinstance(item, str) for item in value.values()) else None
            value = value.get(_text(key), zero)
        elif isinstance(value, Sequence):
            at = _whole(key)
            if not 0 <= at < len(value):
                raise ArgumentError(f"index out of range: {at}")
            value = value[at]
        else:
            raise ArgumentError(f"can't index item of type {type_name(value)}")
    return value


def _slice(value: object, *bounds: object) -> object:
    if not isinstance(value, Sequence):
        raise ArgumentError(f"can't slice item of type {type_name(value)}")
    ends = [_whole(bound) for bound in bounds]
    start, stop = (ends + [0, len(value)][len(ends) :]) if ends else (0, len(value))
    if not 0 <= start <= stop <= len(value):
        raise ArgumentError(f"slice bounds out of range: {start}:{stop}")
    return value[start:stop]


def _kind(value: object) -> str:
    if value is None or isinstance(value, (bool, str)):
        return type_name(value)
    if isinstance(value, (int, float)):
        return "number"
    raise ArgumentError(f"non-comparable type {type_name(value)}")


def _equal(first: object, *others: object) -> bool:
    for other in others:
        kinds = {_kind(first), _kind(other)}
        if len(kinds) > 1 and "nil" not in kinds:
            raise ArgumentError("incompatible types for comparison")
        if len(kinds) == 1 and first == other:
            return True
    return False


def _less(first: object, second: object) -> bool:
    if isinstance(first, str) and isinstance(second, str):
        return first < second
    if _kind(first) == _kind(second) == "number":
        return first < second  # type: ignore[operator,no-any-return] # both are numbers
    raise ArgumentError("incompatible types for comparison")


BUILTINS: Mapping[str, Function] = {
    "and": Function(lambda *values: values, 1, None),
    "or": Function(lambda *values: values, 1, None),
    "not": Function(lambda value: not is_true(value), 1, 1),
    "eq": Function(_equal, 2, None),
    "ne": Function(lambda first, second: not _equal(first, second), 2, 2),
    "lt": Function(_less, 2, 2),
    "le": Function(lambda first, second: not _less(second, first), 2, 2),
    "gt": Function(lambda first, second: _less(second, first), 2, 2),
    "ge": Function(lambda first, second: not _less(first, second), 2, 2),
    "len": Function(_length, 1, 1),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, 3),
    "print": Function(sprint, 0, None),
    "println": Function(sprintln, 0, None),
    "printf": Function(lambda form, *values: sprintf(_text(form), *values), 1, None),
    "json": Function(format_json, 1, 1),
    "join": Function(_join, 2, 2),
    "split": Function(_split, 2, 2),
    "lower": Function(lambda text: _text(text).lower(), 1, 1),
    "upper": Function(lambda text: _text(text).upper(), 1, 1),
    "title": Function(_title, 1, 1),
    "pad": Function(_pad, 3, 3),
    "truncate": Function(_truncate, 2, 2),
}
"""Go's functions (but `call`, `html`, `js`, `urlquery`) and Docker's."""

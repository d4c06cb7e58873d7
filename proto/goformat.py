"""How Go prints values: the `%v` forms, `print`, `println` and `printf`.

Pure. The values are those of JSON (`None`, `bool`, `int`, `float`, `str`, sequences, mappings);
a `Struct` prints as a Go struct does. `proto.gotemplate` is the only expected caller. Like Go,
`sprintf` never fails: what it cannot print it marks (`%!d(string=x)`), so that a wrong template
shows what is wrong with it. Widths and precisions are capped, so a short format string cannot ask
for gigabytes.

Source: https://pkg.go.dev/fmt
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

WIDTH_MAX = 1000
"""Cap on a width or precision in `printf`."""

EXPONENT_MIN = -4
EXPONENT_MAX = 21
"""`%v` of a float uses an exponent outside these decimal exponents (strconv's rule for %v)."""

_DIRECTIVE = re.compile(r"%([-+# 0]*)(\d+|\*)?(?:\.(\d+|\*)?)?(.)?", re.DOTALL)
_PLAIN_INT = frozenset("dxXobcqUv")
_FLOATS = frozenset("feEgGFv")
_TEXTS = frozenset("vsqxX")


class Struct(dict[str, object]):
    """A mapping that stands for a Go struct: fixed fields, always true, a missing one an error."""


def type_name(value: object) -> str:
    """Name the Go type that a value stands for."""
    names: dict[type, str] = {
        bool: "bool",
        int: "int",
        float: "float64",
        str: "string",
        type(None): "nil",
    }
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, Struct):
        return "struct"
    if isinstance(value, Mapping):
        return "map[string]interface {}"
    if isinstance(value, Sequence):
        return "[]interface {}"
    return type(value).__name__


def quote(text: str) -> str:
    """Quote as Go's `%q`: double quotes, Go's escapes, printable characters as they are."""
    short = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    short |= {"\v": "\\v", '"': '\\"', "\\": "\\\\"}

    def escaped(character: str) -> str:
        code = ord(character)
        if character in short:
            return short[character]
        if character.isprintable():
            return character
        if code < 0x80:  # noqa: PLR2004 -- ASCII's end: below it Go writes two digits
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 -- BMP

    return '"' + "".join(map(escaped, text)) + '"'


def format_float(number: float) -> str:
    """Print a float as `%v` does: the shortest digits that read back, exponents when extreme."""
    if number != number:  # noqa: PLR0124 -- the test for NaN without importing math
        return "NaN"
    if number in {float("inf"), float("-inf")}:
        return "+Inf" if number > 0 else "-Inf"
    if number == 0:
        return "-0" if str(number).startswith("-") else "0"
    mantissa, _, exponent_text = f"{number:e}".partition("e")
    exponent = int(exponent_text)
    shortest = repr(number)
    if EXPONENT_MIN <= exponent < EXPONENT_MAX:
        if "e" in shortest:  # Python changes to exponents at 1e16, Go at 1e21
            return f"{number:.0f}"
        return shortest.removesuffix(".0")
    digits = shortest.partition("e")[0] if "e" in shortest else mantissa.rstrip("0")
    return f"{digits.removesuffix('.0').rstrip('.')}e{exponent:+03d}"


def format_value(value: object) -> str:
    """Print a value as `%v` does."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, (Mapping, Sequence)):
        return _collection(value)
    return "<nil>" if value is None else str(value)


def _collection(value: Mapping[object, object] | Sequence[object]) -> str:
    if isinstance(value, Struct):
        return "{" + " ".join(map(format_value, value.values())) + "}"
    if isinstance(value, Mapping):
        pairs = sorted((str(key), format_value(item)) for key, item in value.items())
        return "map[" + " ".join(f"{key}:{item}" for key, item in pairs) + "]"
    return "[" + " ".join(map(format_value, value)) + "]"


def format_json(value: object) -> str:
    """Print compact JSON, with no escapes for HTML (Docker's `json` function)."""

    def plain(item: object) -> object:
        if isinstance(item, Mapping):
            return dict(item)
        if isinstance(item, Sequence):
            return list(item)
        raise ValueError(f"json: unsupported type: {type_name(item)}")

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def sprint(*values: object) -> str:
    """Join values, with a space between two of which neither is a string (Go's `Sprint`)."""
    parts: list[str] = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            parts.append(" ")
        parts.append(format_value(value))
    return "".join(parts)


def sprintln(*values: object) -> str:
    """Join values with spaces and end the line (Go's `Sprintln`)."""
    return " ".join(map(format_value, values)) + "\n"


def sprintf(template: str, *values: object) -> str:
    """Print by a format string (Go's `Sprintf`); mistakes are marked in the text, never raised."""
    remaining = list(values)

    def number_of(text: str | None) -> int | None:
        if text == "*":
            given = remaining.pop(0) if remaining else None
            return min(given, WIDTH_MAX) if isinstance(given, int) else None
        return min(int(text), WIDTH_MAX) if text else None

    def replaced(match: re.Match[str]) -> str:
        flags, width_text, precision_text, verb = match.groups()
        width = number_of(width_text)
        precision = number_of(precision_text)
        if precision is None and "." in match.group()[: match.end() - match.start() - 1]:
            precision = 0
        if verb is None:
            return "%!(NOVERB)"
        if verb == "%":
            return "%"
        if not remaining:
            return f"%!{verb}(MISSING)"
        text = _verb(verb, flags, precision, remaining.pop(0))
        return _padded(text, flags, width, verb)

    text = _DIRECTIVE.sub(replaced, template)
    if remaining:
        extra = ", ".join(f"{type_name(value)}={format_value(value)}" for value in remaining)
        text += f"%!(EXTRA {extra})"
    return text


def _padded(text: str, flags: str, width: int | None, verb: str) -> str:
    if width is None or len(text) >= width:
        return text
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and verb not in "sqvt":
        sign = text[:1] if text[:1] in {"-", "+"} else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width)


def _verb(verb: str, flags: str, precision: int | None, value: object) -> str:
    if verb == "T":
        return type_name(value)
    if isinstance(value, bool) or value is None:
        fits = verb == "v" or (verb == "t" and value is not None)
        return format_value(value) if fits else _bad(verb, value)
    if isinstance(value, int):
        return _integer(verb, flags, value)
    if isinstance(value, float):
        return _float(verb, flags, precision, value)
    return _text(verb, precision, value) if verb in _TEXTS else _bad(verb, value)


def _bad(verb: str, value: object) -> str:
    return f"%!{verb}({type_name(value)}={format_value(value)})"


def _integer(verb: str, flags: str, value: int) -> str:
    if verb not in _PLAIN_INT:
        return _bad(verb, value)
    if verb in {"c", "q"}:
        try:
            character = chr(value)
        except (ValueError, OverflowError):
            character = "\ufffd"
        return character if verb == "c" else f"'{quote(character)[1:-1]}'"
    if verb == "U":
        return f"U+{value:04X}"
    text = format(value, "d" if verb == "v" else verb)
    if "#" in flags and verb in "xX":
        text = text.replace("-", "-0" + verb) if value < 0 else f"0{verb}{text}"
    if value >= 0 and "+" in flags:
        return "+" + text
    return " " + text if value >= 0 and " " in flags else text


def _float(verb: str, flags: str, precision: int | None, value: float) -> str:
    if verb not in _FLOATS:
        return _bad(verb, value)
    if verb == "v" or (verb in {"g", "G"} and precision is None):
        text = format_float(value)
    else:
        text = format(value, f".{6 if precision is None else precision}{verb}")
    return "+" + text if value >= 0 and "+" in flags else text


def _text(verb: str, precision: int | None, value: object) -> str:
    if not isinstance(value, str):
        if verb in {"x", "X"}:
            return _bad(verb, value)
        if isinstance(value, Sequence) and verb != "v":
            return "[" + " ".join(_verb(verb, "", precision, item) for item in value) + "]"
        return format_value(value)
    cut = value if precision is None else value[:precision]
    forms: dict[str, Callable[[str], str]] = {
        "q": quote,
        "x": lambda text: text.encode().hex(),
        "X": lambda text: text.encode().hex().upper(),
    }
    return forms[verb](cut) if verb in forms else cut

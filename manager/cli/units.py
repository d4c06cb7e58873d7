"""Sizes and CPU counts as Docker's users write and read them.

Pure. Memory is read in binary units ("512m" is 512 MiB) and shown in binary ("512MiB") for
resources, in decimal ("1.23GB") for images, as in Docker.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from proto.errors import InvalidError

_SIZE = re.compile(r"(\d+(?:\.\d+)*) ?(.*)", re.DOTALL)
_SCALES = {letter: 1024**power for power, letter in enumerate("bkmgtpezy") if letter != "b"}
NANO = 1_000_000_000


def parse_bytes(text: str) -> int:
    """Read "512m", "1.5 GiB", "100": binary units, no unit is bytes.

    Raises:
        InvalidError: with Docker's sentence.
    """
    invalid = InvalidError(f"invalid size: '{text}'")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise invalid
    number, suffix = match[1], match[2].lower()
    scale = 1
    if suffix and suffix != "b":
        scale = _SCALES.get(suffix[0], 0)
        if not scale or suffix[1:] not in {"", "b", "ib"}:
            raise InvalidError(f"invalid suffix: '{match[2].lower()}'")
    try:
        return int(Decimal(number) * scale)
    except InvalidOperation:
        raise invalid from None


def parse_nano_cpus(text: str) -> int:
    """Read a number of CPUs ("1.5", "1/2") as billionths.

    Raises:
        InvalidError: with Docker's sentence.
    """
    try:
        value = Fraction(text) * NANO
    except (ValueError, ZeroDivisionError):
        raise InvalidError(f"failed to parse {text} as a rational number") from None
    if value.denominator != 1:
        raise InvalidError("value is too precise")
    return int(value)


def _significant(value: float, digits: int) -> str:
    """Write with so many significant digits, without trailing zeros (Go's `%.4g`)."""
    return f"{value:.{digits}g}"


def _scaled(size: float, base: float, units: tuple[str, ...]) -> tuple[float, str]:
    at = 0
    while size >= base and at < len(units) - 1:
        size /= base
        at += 1
    return size, units[at]


def human_size(size: float, digits: int = 4) -> str:
    """Write a size in decimal units: "192MB", "1.23GB"."""
    value, unit = _scaled(size, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    return _significant(value, digits) + unit


def binary_size(size: float) -> str:
    """Write a size in binary units: "512MiB", "7.675GiB"."""
    value, unit = _scaled(size, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    return _significant(value, 4) + unit

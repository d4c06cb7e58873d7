"""Times as the Engine API writes and reads them. Pure.

Go writes RFC 3339 with as many digits of the second as are needed (`RFC3339Nano`); log lines have
all nine. Clients send moments as `seconds[.nanoseconds]` since the epoch, or as RFC 3339.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from proto.errors import InvalidError
from proto.objects import NANOSECONDS

GO_ZERO_TIME = "0001-01-01T00:00:00Z"

MOMENT_SECONDS_MIN, MOMENT_SECONDS_MAX = -62_135_596_800, 253_402_300_799
"""The first and the last second that RFC 3339 can write: the years 1 to 9999."""

_UNIX = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9}))?")
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})?)?"
)


def nanoseconds(seconds: float) -> int:
    """Turn seconds since the epoch into whole nanoseconds, no finer than a float holds."""
    if not -MOMENT_SECONDS_MAX < seconds < MOMENT_SECONDS_MAX:
        # A damaged row is shown all the same: what is no number as the zero time.
        seconds = 0.0 if math.isnan(seconds) else math.copysign(MOMENT_SECONDS_MAX, seconds)
    # A float of this size resolves about 240 ns: further digits would be noise in every output.
    return round(seconds * 1_000_000) * 1_000


def elapsed_seconds(moment: float, now: float) -> int:
    """Return the whole seconds since a moment; none since one that is to come or is no number."""
    return int(min(now - moment, MOMENT_SECONDS_MAX)) if moment < now else 0


def rfc3339(seconds: float) -> str:
    """Write a moment as Go's RFC3339Nano does; 0 is Go's zero time."""
    if seconds == 0 or math.isnan(seconds):
        return GO_ZERO_TIME
    return rfc3339_nano(nanoseconds(seconds))


def rfc3339_nano(time_ns: int) -> str:
    """Write nanoseconds since the epoch, without trailing zeros."""
    whole, fraction = divmod(time_ns, NANOSECONDS)
    text = _whole_seconds(whole)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def rfc3339_fixed(time_ns: int) -> str:
    """Write nanoseconds since the epoch with all nine digits, as log lines have them."""
    whole, fraction = divmod(time_ns, NANOSECONDS)
    return f"{_whole_seconds(whole)}.{fraction:09d}Z"


def _whole_seconds(seconds: int) -> str:
    seconds = min(max(seconds, MOMENT_SECONDS_MIN), MOMENT_SECONDS_MAX)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")


def parse_moment(text: str, name: str) -> int:
    """Read a moment from a query parameter into nanoseconds since the epoch.

    Args:
        text: `1600000000`, `1600000000.000000005` or RFC 3339; "" and "0" are 0.
        name: the parameter's name, for the error.

    Raises:
        InvalidError: the text is none of these.
    """
    if not text:
        return 0
    unix = _UNIX.fullmatch(text)
    if unix is not None:
        fraction = (unix[2] or "").ljust(9, "0")
        return int(unix[1]) * NANOSECONDS + int(fraction)
    written = _RFC3339.fullmatch(text)
    if written is not None:
        clock = written[2] or "00:00:00"
        zone = (written[4] or "Z").upper().replace("Z", "+00:00")
        try:
            moment = datetime.fromisoformat(f"{written[1]}T{clock}{zone}")
        except ValueError:
            moment = None
        if moment is not None:
            fraction = (written[3] or "").ljust(9, "0")
            return int(moment.timestamp()) * NANOSECONDS + int(fraction)
    raise InvalidError(
        f"invalid value {text!r} for {name}: give seconds since the epoch or an RFC 3339 time"
    )

"""Go durations ("1h30m"), instants, and how long ago something was, as Docker's client says it.

Pure. A duration is an integer of nanoseconds, as in the Engine API; an age is in seconds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from proto.errors import InvalidError

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
SECOND = _UNITS["s"]
DURATION_MAX = 2**63 - 1
_PART = re.compile(r"(\d*)(?:\.(\d*))?([^\d.]*)")


def parse_duration(text: str) -> int:
    """Read a Go duration: decimal numbers, each with a unit, and perhaps a sign.

    Raises:
        InvalidError: with Go's sentence.
    """
    sign = -1 if text.startswith("-") else 1
    rest = text.lstrip("+-") if text[:1] in {"+", "-"} else text
    if rest == "0":
        return 0
    total, at = 0, 0
    invalid = InvalidError(f'time: invalid duration "{text}"')
    if not rest or text[:2] in {"--", "++", "+-", "-+"}:
        raise invalid
    while at < len(rest):
        match = _PART.match(rest, at)
        if match is None or not (match[1] or match[2]):
            raise invalid
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if not unit:
            raise InvalidError(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise InvalidError(f'time: unknown unit "{unit}" in duration "{text}"')
        scale = _UNITS[unit]
        total += int(whole or "0") * scale + int(fraction or "0") * scale // 10 ** len(fraction)
        at = match.end()
    if total > DURATION_MAX:
        raise invalid
    return sign * total


def parse_positive_duration(text: str) -> int:
    """Read a Go duration that may not be negative."""
    value = parse_duration(text)
    if value < 0:
        raise InvalidError("duration cannot be negative")
    return value


def format_duration(nanoseconds: int) -> str:
    """Write a duration as Go does: "1h0m5s", "1.5s", "100ms", "0s"."""
    sign, value = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if value == 0:
        return "0s"
    if value < SECOND:
        unit = next(unit for unit in ("ms", "µs", "ns") if value >= _UNITS[unit])
        return f"{sign}{_decimal(value, _UNITS[unit])}{unit}"
    minutes, value = divmod(value, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{text}{_decimal(value, SECOND)}s"


def _decimal(value: int, scale: int) -> str:
    whole, rest = divmod(value, scale)
    if not rest:
        return str(whole)
    return f"{whole}.{rest:0{len(str(scale)) - 1}d}".rstrip("0")


# The largest number of hours that is still told in a unit, and the hours of that unit.
_LONG = (
    (48, 1, "hours"),
    (24 * 7 * 2, 24, "days"),
    (24 * 30 * 2, 24 * 7, "weeks"),
    (24 * 365 * 2, 24 * 30, "months"),
)


def human_duration(seconds: float) -> str:
    """Say roughly how long: "5 seconds", "About a minute", "3 weeks".

    Source: the thresholds of Docker's client, checked against its output.
    """
    whole = int(seconds)
    minutes = whole // 60
    hours = int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if minutes < 1:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:  # noqa: PLR2004 -- minutes in an hour
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit, divisor, unit in _LONG:
        if hours < limit:
            return f"{hours // divisor} {unit}"
    return f"{int(seconds / 3600 / 24 / 365)} years"


def parse_instant(text: str) -> float | None:
    """Read an RFC 3339 instant as seconds since 1970; None for Go's zero time or nothing."""
    if not text or text.startswith("0001-"):
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return instant.timestamp()


def format_instant(text: str) -> str:
    """Write an RFC 3339 instant as Go prints one: `2026-08-18 09:00:00.5 +0000 UTC`."""
    match = re.fullmatch(r"(\d+-\d+-\d+)T(\d+:\d+:\d+)(\.\d+)?(?:Z|([+-]\d\d):(\d\d))", text)
    if match is None:
        return text
    date, time, fraction, hours, minutes = match.groups()
    zone = f"{hours}{minutes} {hours}{minutes}" if hours else "+0000 UTC"
    return f"{date} {time}{(fraction or '').rstrip('0').rstrip('.')} {zone}"


def format_local(seconds: float) -> str:
    """Write an instant in this machine's zone, as Go prints one."""
    instant = datetime.fromtimestamp(seconds, UTC).astimezone()
    return instant.strftime("%Y-%m-%d %H:%M:%S %z %Z")


def since_to_instant(text: str, now: float) -> str:
    """Turn what `--since` takes (an age, an instant, seconds) into seconds since 1970.

    Args:
        text: "42m", "2013-01-02T13:23:37Z", "2013-01-02", or seconds.
        now: seconds since 1970.

    Raises:
        InvalidError: it is none of these.
    """
    if not text or re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    try:
        return f"{now - parse_duration(text) / SECOND:.9f}"
    except InvalidError:
        pass
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        message = f'invalid value for "since": failed to parse value as time or duration: "{text}"'
        raise InvalidError(message) from None
    # As Docker: an instant without a zone is in this machine's.
    return f"{instant.timestamp():.9f}"

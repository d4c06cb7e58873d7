"""Times as the Engine API writes them."""

from __future__ import annotations

import pytest

from manager.httpapi.timestamps import (
    nanoseconds,
    parse_moment,
    rfc3339,
    rfc3339_fixed,
    rfc3339_nano,
)
from proto.errors import InvalidError


@pytest.mark.parametrize(
    ("time_ns", "expected"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_600_000_000_000_000_000, "2020-09-13T12:26:40Z"),
        (1_600_000_000_000_000_001, "2020-09-13T12:26:40.000000001Z"),
        (1_600_000_000_120_000_000, "2020-09-13T12:26:40.12Z"),
    ],
)
def test_nanoseconds_are_written_without_trailing_zeros(time_ns: int, expected: str) -> None:
    """RFC3339Nano has as many digits as are needed."""
    assert expected == rfc3339_nano(time_ns)


def test_a_log_line_has_nine_digits() -> None:
    """Fixed width lets clients sort lines as text."""
    assert rfc3339_fixed(1_600_000_000_120_000_000) == "2020-09-13T12:26:40.120000000Z"


def test_no_time_is_gos_zero_time() -> None:
    """Clients written in Go take year 1 for "not set"."""
    assert rfc3339(0.0) == "0001-01-01T00:00:00Z"


def test_a_float_keeps_microseconds_and_no_noise() -> None:
    """What a float cannot resolve is not written."""
    assert nanoseconds(1_600_000_000.123456) == 1_600_000_000_123_456_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("0", 0),
        ("1600000000", 1_600_000_000_000_000_000),
        ("1600000000.000000005", 1_600_000_000_000_000_005),
        ("1600000000.5", 1_600_000_000_500_000_000),
        ("2020-09-13T12:26:40Z", 1_600_000_000_000_000_000),
        ("2020-09-13T14:26:40.000000005+02:00", 1_600_000_000_000_000_005),
        ("2020-09-13", 1_599_955_200_000_000_000),
    ],
)
def test_moments_of_clients_are_read_exactly(text: str, expected: int) -> None:
    """Both notations keep their nanoseconds."""
    assert expected == parse_moment(text, "since")


@pytest.mark.parametrize("text", ["yesterday", "2020-13-45", "1.2.3", "0x10"])
def test_what_is_no_moment_is_refused_by_name(text: str) -> None:
    """The sentence names the parameter."""
    with pytest.raises(InvalidError, match="for since"):
        parse_moment(text, "since")

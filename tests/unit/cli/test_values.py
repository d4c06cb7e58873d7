"""The readers and writers of durations, sizes, ports, mounts and the other values of flags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.cli import keyvalues, units
from manager.cli import parse_values as values
from manager.cli.durations import (
    format_duration,
    format_instant,
    human_duration,
    parse_duration,
    parse_instant,
    parse_positive_duration,
    since_to_instant,
)
from manager.cli.parse_mounts import parse_mount
from manager.cli.parse_ports import Port, parse_publish
from manager.cli.references import parse_reference, shown_image
from proto.errors import InvalidError

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("5s", 5 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1m0.25s", 60_250_000_000),
        ("100ms", 100_000_000),
        ("1us", 1000),
        ("1µs", 1000),
        ("7ns", 7),
        ("-2s", -2 * SECOND),
        ("+2s", 2 * SECOND),
        ("2160h0m0s", 2160 * 3600 * SECOND),
    ],
)
def test_durations_are_gos(text: str, expected: int) -> None:
    """Go's durations are read to the nanosecond."""
    assert expected == parse_duration(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("5", 'time: missing unit in duration "5"'),
        ("5y", 'time: unknown unit "y" in duration "5y"'),
        ("x", 'time: invalid duration "x"'),
        ("1s2", 'time: missing unit in duration "1s2"'),
        ("--1s", 'time: invalid duration "--1s"'),
        (".s", 'time: invalid duration ".s"'),
        ("9999999h", 'time: invalid duration "9999999h"'),
    ],
)
def test_bad_durations_say_why(text: str, message: str) -> None:
    """What is no duration is refused with Go's sentence."""
    with pytest.raises(InvalidError) as caught:
        parse_duration(text)
    assert message == caught.value.message


def test_negative_duration_is_refused_where_it_makes_no_sense() -> None:
    """Health checks take no negative time."""
    with pytest.raises(InvalidError, match="duration cannot be negative"):
        parse_positive_duration("-1s")


@given(st.integers(-(2**62), 2**62))
def test_durations_survive_writing_and_reading(nanoseconds: int) -> None:
    """A written duration reads back as itself."""
    assert nanoseconds == parse_duration(format_duration(nanoseconds))


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    """No text makes the reader raise anything but InvalidError."""
    try:
        value = parse_duration(text)
    except InvalidError:
        return
    assert abs(value) < 2**63


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0s"),
        (1_500_000_000, "1.5s"),
        (5 * SECOND, "5s"),
        (90 * SECOND, "1m30s"),
        (3600 * SECOND, "1h0m0s"),
        (100_000_000, "100ms"),
        (1_500, "1.5µs"),
        (12, "12ns"),
        (-SECOND, "-1s"),
    ],
)
def test_durations_are_written_as_go_writes_them(nanoseconds: int, expected: str) -> None:
    """Go's form, with as many units as needed."""
    assert expected == format_duration(nanoseconds)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.5, "Less than a second"),
        (-5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_ages_are_told_as_docker_tells_them(seconds: float, expected: str) -> None:
    """The thresholds between units are Docker's."""
    assert expected == human_duration(seconds)


def test_instants() -> None:
    """RFC 3339 in, seconds out; Go's zero time is no instant."""
    assert parse_instant("2026-08-20T10:00:00.123456789Z") == pytest.approx(1787220000.123456)
    assert parse_instant("2026-08-20T12:00:00+02:00") == 1787220000
    assert parse_instant("0001-01-01T00:00:00Z") is None
    assert parse_instant("") is None
    assert parse_instant("nonsense") is None
    assert format_instant("2026-08-18T09:00:00.500Z") == "2026-08-18 09:00:00.5 +0000 UTC"
    assert format_instant("2026-08-18T09:00:00+02:00") == "2026-08-18 09:00:00 +0200 +0200"


def test_since_takes_ages_instants_and_seconds() -> None:
    """`--since` becomes seconds since 1970."""
    assert since_to_instant("42m", 10_000) == f"{10_000 - 42 * 60:.9f}"
    assert since_to_instant("1970-01-01T00:01:00Z", 0) == "60.000000000"
    assert since_to_instant("1234.5", 0) == "1234.5"
    assert since_to_instant("", 0) == ""
    with pytest.raises(InvalidError, match="failed to parse value as time or duration"):
        since_to_instant("yesterday", 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("100", 100),
        ("100b", 100),
        ("1k", 1024),
        ("1.5m", 1536 * 1024),
        ("512MB", 512 << 20),
        ("2 GiB", 2 << 30),
        ("1t", 1 << 40),
    ],
)
def test_sizes_are_binary(text: str, expected: int) -> None:
    """Memory is read in powers of 1024."""
    assert expected == units.parse_bytes(text)


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1mbb", "1.2.3m", "1 2", "0x10"])
def test_bad_sizes_are_refused(text: str) -> None:
    """What is no size is refused."""
    with pytest.raises(InvalidError, match=r"invalid (size|suffix)"):
        units.parse_bytes(text)


def test_cpus() -> None:
    """CPUs are exact to the billionth, or refused."""
    assert units.parse_nano_cpus("0.5") == 500_000_000
    assert units.parse_nano_cpus("1/4") == 250_000_000
    assert units.parse_nano_cpus("2") == 2_000_000_000
    for text, message in (("x", "rational"), ("1/0", "rational"), ("1e-10", "too precise")):
        with pytest.raises(InvalidError, match=message):
            units.parse_nano_cpus(text)


@pytest.mark.parametrize(
    ("size", "decimal", "binary"),
    [
        (0, "0B", "0B"),
        (512, "512B", "512B"),
        (192004242, "192MB", "183.1MiB"),
        (1234567890, "1.23GB", "1.15GiB"),
        (4261574, "4.26MB", "4.064MiB"),
        (8241127424, "8.24GB", "7.675GiB"),
        (999_999, "1e+03kB", "976.6KiB"),
    ],
)
def test_sizes_are_shown_as_docker_shows_them(size: int, decimal: str, binary: str) -> None:
    """Three digits in decimal, four in binary units, Go's rounding with all its quirks."""
    assert decimal == units.human_size(size, 3)
    assert binary == units.binary_size(size)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [Port(80)]),
        ("8080:80", [Port(80, 8080)]),
        ("8080:80/UDP", [Port(80, 8080, "udp")]),
        ("80-81:90-91", [Port(90, 80), Port(91, 81)]),
        ("80-81:90", [Port(90, 80), Port(90, 81)]),
        ("90-91/sctp", [Port(90, 0, "sctp"), Port(91, 0, "sctp")]),
        ("published=1,target=2", [Port(2, 1)]),
        ("target=2,mode=host,protocol=udp", [Port(2, 0, "udp", "host")]),
    ],
)
def test_ports(text: str, expected: list[Port]) -> None:
    """Both syntaxes of --publish."""
    assert expected == parse_publish(text)


@given(st.text(max_size=20))
def test_any_text_is_ports_or_refused(text: str) -> None:
    """No text makes the reader of ports raise anything but InvalidError."""
    try:
        ports = parse_publish(text)
    except InvalidError:
        return
    assert all(0 <= port.target <= 65535 and 0 <= port.published <= 65535 for port in ports)


@given(st.text(max_size=30))
def test_any_text_is_a_mount_or_refused(text: str) -> None:
    """No text makes the reader of mounts raise anything but InvalidError."""
    try:
        mount = parse_mount(text)
    except InvalidError:
        return
    assert mount["Target"]


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """No text makes the reader of images raise anything but InvalidError."""
    try:
        reference = parse_reference(text)
    except InvalidError:
        return
    assert parse_reference(reference.familiar) == reference


@pytest.mark.parametrize(
    ("text", "shown", "full"),
    [
        ("nginx", "nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "nginx:1.27", "docker.io/library/nginx:1.27"),
        ("a/b", "a/b", "docker.io/a/b:latest"),
        ("docker.io/library/nginx:1", "nginx:1", "docker.io/library/nginx:1"),
        ("localhost/x:1", "localhost/x:1", "localhost/x:1"),
        ("host:5000/a/b:v@sha256:" + "0" * 64, "host:5000/a/b:v", None),
        ("nginx@sha256:" + "0" * 64, "nginx@sha256:" + "0" * 64, None),
    ],
)
def test_references(text: str, shown: str, full: str | None) -> None:
    """Images are shown short, and told in full."""
    assert shown == shown_image(text)
    if full is not None:
        assert full == parse_reference(text).tagged().full


@pytest.mark.parametrize("text", ["", "UPPER", "a:b:c", "a@b", "a//b", "0" * 64, "a:" + "x" * 129])
def test_bad_references_are_refused(text: str) -> None:
    """What cannot name an image is refused."""
    with pytest.raises(InvalidError, match="invalid re"):
        parse_reference(text)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone takes this process's value; later values win, at their place."""
    monkeypatch.setenv("CLI_TEST_X", "here")
    monkeypatch.delenv("CLI_TEST_Y", raising=False)
    assert values.environment("CLI_TEST_X") == "CLI_TEST_X=here"
    assert values.environment("CLI_TEST_Y") == "CLI_TEST_Y"
    assert values.merged_environment(["A=1", "B=1"], ["A=2"]) == ["B=1", "A=2"]
    with pytest.raises(InvalidError, match="invalid environment variable: =a"):
        values.environment("=a")


def test_env_files() -> None:
    """Comments and empty lines are skipped, values keep their spaces."""
    text = "# comment\n\n A=1 2 \nB\nC\nD=#x\n"
    found = values.env_lines(text, {"B": "inherited"}, "f")
    assert found == ["A=1 2 ", "B=inherited", "D=#x"]
    for bad in ("=x", "A B=1", "A =1"):
        with pytest.raises(InvalidError, match="invalid env file"):
            values.env_lines(bad, {}, "f")


def test_labels() -> None:
    """A label needs a key without spaces."""
    assert keyvalues.as_mapping(["a=b", "c", "d=e=f"]) == {"a": "b", "c": "", "d": "e=f"}
    for bad in ("", "=x", "a b=c"):
        with pytest.raises(InvalidError):
            keyvalues.label(bad)


def test_listen_addresses_get_the_port() -> None:
    """Without a port it is 2377."""
    assert values.listen_address("10.0.0.1") == "10.0.0.1:2377"
    assert values.listen_address("eth0:99") == "eth0:99"
    assert values.listen_address("[::1]") == "[::1]:2377"
    assert values.listen_address("[::1]:5") == "[::1]:5"
    for bad in ("", ":5", "a:b:c", "a:99999", "a:x"):
        with pytest.raises(InvalidError):
            values.listen_address(bad)

"""Clocks that are off are named, with how far and which way."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from manager.ca.clocks import check_clock, clock_ahead_seconds, explain_clock, explain_dates
from proto.errors import InvalidError

NOW = 1_800_000_000.0
DATE = formatdate(NOW, usegmt=True)


def test_an_http_date_is_compared():
    """Ahead is positive; what is no date is none."""
    assert clock_ahead_seconds(DATE, NOW + 60) == 60.0
    assert clock_ahead_seconds(DATE, NOW - 60) == -60.0
    assert clock_ahead_seconds("Sun, 06 Nov 1994 08:49:37", 784_111_777.0) == 0.0
    for text in ("", "x", "Fri, 32 Foo 2027 08:00:00 GMT", "\0", "1800000000"):
        assert clock_ahead_seconds(text, NOW) is None


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (-3_600.0, "60 minutes behind that of 10.0.0.1:2377"),
        (3_780.0, "63 minutes ahead of that of 10.0.0.1:2377"),
        (-90_000.0, "1500 minutes behind"),
        (-3_599.0, ""),
        (0.0, ""),
    ],
)
def test_the_date_header_tells(off, said):
    """An hour or more is named with direction, peer and remedy; less is fine."""
    sentence = explain_clock(b"", b"", NOW + off, date_header=DATE, peer="10.0.0.1:2377")
    assert said in sentence
    assert bool(said) == bool(sentence)
    assert not sentence or "timedatectl" in sentence


def test_a_fresh_certificate_tells_its_issuers_time(issue):
    """It begins an hour before it was issued, so the difference is exact."""
    made = issue()
    for off, said in ((-4_000.0, "67 minutes behind"), (7_200.0, "120 minutes ahead of")):
        with pytest.raises(InvalidError, match=said):
            check_clock(made.certificate_pem, made.roots_pem, NOW + off, is_fresh=True)
    check_clock(made.certificate_pem, made.roots_pem, NOW + 3_000.0, is_fresh=True)


def test_dates_alone_tell_what_they_can(issue):
    """Not valid yet: behind, by the back-dating more. Ended: one of two reasons."""
    made = issue(expiry=7_200.0)
    with pytest.raises(InvalidError, match="61 minutes behind that of the managers"):
        check_clock(made.certificate_pem, b"", NOW - 3_660.0)
    with pytest.raises(InvalidError, match=r"ended 10 minutes ago, .* or the certificate was not"):
        check_clock(made.certificate_pem, made.roots_pem, NOW + 7_800.0)
    with pytest.raises(InvalidError, match="behind"):
        check_clock(b"", made.roots_pem, NOW - 5_000.0)
    check_clock(made.certificate_pem, made.roots_pem, NOW)
    assert explain_clock(b"", b"", NOW) == ""


@pytest.mark.parametrize("is_manager", [True, False])
def test_a_nodes_own_dates_are_explained_with_what_to_do(is_manager):
    """An end, a beginning that is yet to come, and nothing when all is well."""
    begin, end = 1_800_000_000.0, 1_800_086_400.0

    def said(now):
        return explain_dates(begin, end, now, is_manager=is_manager)

    assert not said(begin)
    assert not said(end - 1)
    remedy = "trying to get another" if is_manager else "run `swarm leave` on it, then join anew"
    for now, what in ((end, "ended on 2027-01-16 08:00 UTC"), (begin - 1, "begins on 2027-01-15")):
        assert what in said(now)
        assert "set the clock" in said(now)
        assert remedy in said(now)

"""What is wrong with a clock, in words. Pure: `now` is what the clock in question says.

Certificates have dates, so a node whose clock is off cannot talk to anybody, and what libraries
say of that helps nobody. Two things tell the truth: the `Date` of an HTTP answer, which needs no
trust, and a certificate that was issued a moment ago, since it begins an hour before it is issued.
"""

from __future__ import annotations

import datetime as dt
from email.utils import parsedate_to_datetime

from cryptography import x509

from manager.ca.chain import load_certificates
from manager.ca.root import BACKDATE_SECONDS
from proto.errors import InvalidError

# Certificates are back-dated by as much: a smaller difference harms nobody.
OFF_SECONDS_MAX = float(BACKDATE_SECONDS)
_MINUTE = 60.0


def clock_ahead_seconds(date_header: str, now: float) -> float | None:
    """Return how far this clock is ahead of the one that wrote an HTTP `Date`; negative: behind.

    Returns:
        None when the header is missing or is no date.
    """
    try:
        date = parsedate_to_datetime(date_header)
    except (TypeError, ValueError, IndexError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=dt.UTC)
    return now - date.timestamp()


def off_sentence(ahead_seconds: float, peer: str) -> str:
    """Say how far the clock of this node is from the peer's."""
    minutes = round(abs(ahead_seconds) / _MINUTE)
    where = "ahead of" if ahead_seconds > 0 else "behind"
    unit = "minute" if minutes == 1 else "minutes"
    return (
        f"the clock of this node is {minutes} {unit} {where} that of {peer}: certificates are "
        "refused when clocks differ by an hour or more; set the clock (timedatectl set-ntp true) "
        "and repeat"
    )


def explain_dates(valid_from: float, valid_until: float, now: float, *, is_manager: bool) -> str:
    """Say why this node's own certificate is not valid, and what to do; "" if it is.

    Args:
        valid_from: when it begins, seconds since the epoch.
        valid_until: when it ends.
        now: what this node's clock says.
        is_manager: whether the node gets another by itself.
    """
    if valid_from <= now < valid_until:
        return ""
    clock = (
        f"by the clock of this node it is {_minute(now)} now: if that is wrong, set the clock "
        "(timedatectl set-ntp true)"
    )
    rest = "the node is trying to get another"
    if not is_manager:
        rest = "else nobody lets this node in again: run `swarm leave` on it, then join anew"
    is_early = now < valid_from
    what = f"begins on {_minute(valid_from)}" if is_early else f"ended on {_minute(valid_until)}"
    return f"the certificate of this node {what}, and {clock}; {rest}"


def _minute(moment: float) -> str:
    return f"{dt.datetime.fromtimestamp(moment, tz=dt.UTC):%Y-%m-%d %H:%M} UTC"


def explain_clock(
    certificate_pem: bytes,
    roots_pem: bytes,
    now: float,
    *,
    date_header: str = "",
    peer: str = "the managers",
    is_fresh: bool = False,
) -> str:
    """Say what is wrong with the clock of this node; "" if nothing can be found.

    Args:
        certificate_pem: a certificate whose dates count here; b"" for none.
        roots_pem: the roots, whose dates count too; b"" for none.
        now: what this node's clock says, seconds since the epoch.
        date_header: the `Date` of an answer that came just now; "" for none.
        peer: whose answer or certificate it is, for the sentence.
        is_fresh: the certificate was issued just now, so it tells the issuer's time.

    Raises:
        InvalidError: a certificate cannot be read.
    """
    ahead = clock_ahead_seconds(date_header, now)
    if ahead is not None:
        return off_sentence(ahead, peer) if abs(ahead) >= OFF_SECONDS_MAX else ""
    certificates: list[x509.Certificate] = []
    if certificate_pem:
        certificates += load_certificates(certificate_pem, "the certificate")
    if is_fresh and certificates:
        issued = certificates[0].not_valid_before_utc.timestamp() + BACKDATE_SECONDS
        return off_sentence(now - issued, peer) if abs(now - issued) >= OFF_SECONDS_MAX else ""
    if roots_pem:
        certificates += load_certificates(roots_pem, "the root certificates")
    for certificate in certificates:
        begin = certificate.not_valid_before_utc.timestamp()
        if now < begin:
            # It was back-dated, so its issuer's clock was later still.
            return off_sentence(now - begin - BACKDATE_SECONDS, peer)
        end = certificate.not_valid_after_utc
        if now >= end.timestamp():
            minutes = round((now - end.timestamp()) / _MINUTE)
            return (
                f"the certificate of {certificate.subject.rfc4514_string()} ended {minutes} "
                f"minutes ago, on {end:%Y-%m-%d %H:%M} UTC: either the clock of this node is "
                f"ahead of that of {peer}, or the certificate was not renewed in time"
            )
    return ""


def check_clock(
    certificate_pem: bytes,
    roots_pem: bytes,
    now: float,
    *,
    date_header: str = "",
    peer: str = "the managers",
    is_fresh: bool = False,
) -> None:
    """Refuse to go on with a clock by which these certificates are not valid.

    Raises:
        InvalidError: with what `explain_clock` says.
    """
    sentence = explain_clock(
        certificate_pem,
        roots_pem,
        now,
        date_header=date_header,
        peer=peer,
        is_fresh=is_fresh,
    )
    if sentence:
        raise InvalidError(sentence)

"""Join tokens: their form, what they name, what is refused."""

from __future__ import annotations

import hashlib
import random

import pytest

from manager.ca.tokens import (
    JoinToken,
    is_same_token,
    new_join_token,
    parse_join_token,
    root_digest,
)
from proto.errors import InvalidError

ROOT = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


def test_a_token_has_swarms_form():
    """SWMTKN-1, 50 and 25 characters of base 36: the root's SHA-256 and 128 random bits."""
    token = new_join_token(ROOT, random.Random(1))
    head, version, digest, secret = token.split("-")
    assert (head, version, len(digest), len(secret)) == ("SWMTKN", "1", 50, 25)
    assert int(digest, 36) == int(hashlib.sha256(ROOT.encode()).hexdigest(), 16)
    assert int(secret, 36) < 2**128
    assert new_join_token(ROOT, random.Random(2)) != token


def test_a_token_is_read_back():
    """The digest is that of the root, the secret as it was; spaces around do not matter."""
    token = new_join_token(ROOT, random.Random(1))
    parsed = parse_join_token(f" {token}\n")
    assert parsed == JoinToken(root_digest(ROOT), token[-25:])
    assert parsed.is_of(ROOT)
    assert not parsed.is_of(ROOT + "x")


def test_small_numbers_are_padded():
    """A digest or secret with leading zeros keeps its length, in both directions."""

    class Zeros(random.Random):
        def randbytes(self, n: int) -> bytes:
            return bytes(n)

    token = new_join_token(ROOT, Zeros())
    assert token.endswith("-" + "0" * 25)
    low = parse_join_token(f"SWMTKN-1-{'0' * 49}a-{'0' * 25}")
    assert low.digest == "0" * 63 + "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SWMTKN-1-x",
        "SWMTKN-2-" + "0" * 50 + "-" + "0" * 25,
        "SWMTKN-1-" + "0" * 49 + "-" + "0" * 25,
        "SWMTKN-1-" + "0" * 50 + "-" + "0" * 26,
        "SWMTKN-1-" + "A" * 50 + "-" + "0" * 25,
        "SWMTKN-1-" + "z" * 50 + "-" + "0" * 25,
        "SWMTKN-1-" + "0" * 50 + "_" + "0" * 25,
    ],
)
def test_what_is_no_token_is_refused_without_repeating_it(text: str):
    """The sentence tells the form and where to get one, never what was given."""
    with pytest.raises(InvalidError, match=r"invalid join token.*swarm join-token") as caught:
        parse_join_token(text)
    assert not text or text not in str(caught.value)


def test_tokens_compare_whole():
    """Equal tokens are the same; an empty stored one never is."""
    token = new_join_token(ROOT, random.Random(1))
    assert is_same_token(token + "\n", token)
    assert not is_same_token(token[:-1] + "!", token)
    assert not is_same_token("", "")
    assert not is_same_token("ä", token)


def test_a_parsed_token_hides_its_secret():
    """It may end up in a log line."""
    token = new_join_token(ROOT, random.Random(1))
    assert token[-25:] not in repr(parse_join_token(token))

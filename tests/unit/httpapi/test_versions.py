"""Which API versions are served."""

from __future__ import annotations

import pytest

from manager.httpapi.versions import negotiated
from proto.errors import InvalidError


@pytest.mark.parametrize(
    ("prefix", "expected"), [("", (1, 50)), ("1.24", (1, 24)), ("1.43", (1, 43)), ("1.50", (1, 50))]
)
def test_served_versions_are_taken(prefix: str, expected: tuple[int, int]) -> None:
    """No version means the newest; 1.9 would sort below 1.24."""
    assert expected == negotiated(prefix)


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        (
            "1.51",
            "client version 1.51 is too new. Maximum supported API version is 1.50",
        ),
        (
            "1.9",
            (
                "client version 1.9 is too old. Minimum supported API version is 1.24, "
                "please upgrade your client to a newer version"
            ),
        ),
    ],
)
def test_others_are_refused_with_the_engines_sentence(prefix: str, sentence: str) -> None:
    """Clients show the sentence as it is."""
    with pytest.raises(InvalidError) as caught:
        negotiated(prefix)
    assert sentence == caught.value.message

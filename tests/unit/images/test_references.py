"""References are read, completed, shown and refused as Docker does."""

from __future__ import annotations

import pytest

from proto.errors import InvalidError
from worker.images.references import is_loopback, parse, parse_tagged

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("web", "docker.io/library/web:latest", "web:latest"),
        ("web:1.2", "docker.io/library/web:1.2", "web:1.2"),
        ("team/web", "docker.io/team/web:latest", "team/web:latest"),
        ("docker.io/web", "docker.io/library/web:latest", "web:latest"),
        ("index.docker.io/library/web", "docker.io/library/web:latest", "web:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
        ("localhost:5000/web:1", "localhost:5000/web:1", "localhost:5000/web:1"),
        ("Registry/web", "Registry/web:latest", "Registry/web:latest"),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest", "127.0.0.1:5000/a/b:latest"),
        ("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
        ("a__b/c-d.e:X_y-1", "docker.io/a__b/c-d.e:X_y-1", "a__b/c-d.e:X_y-1"),
        (f"web@{DIGEST}", f"docker.io/library/web@{DIGEST}", f"web@{DIGEST}"),
        (f"web:1@{DIGEST}", f"docker.io/library/web:1@{DIGEST}", f"web:1@{DIGEST}"),
        ("sha256:abcd", "docker.io/library/sha256:abcd", "sha256:abcd"),
    ],
)
def test_complete_and_familiar(text: str, full: str, familiar: str) -> None:
    """A reference is completed, and shown as people write it; both lead back to itself."""
    reference = parse_tagged(text)
    assert full == reference.full()
    assert familiar == reference.familiar
    assert reference == parse(reference.full())
    assert reference == parse(reference.familiar)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "invalid reference format"),
        ("web:", "invalid reference format"),
        (":1", "invalid reference format"),
        ("web:-a", "invalid reference format"),
        ("web:" + "a" * 129, "invalid reference format"),
        ("we b", "invalid reference format"),
        ("web\n", "invalid reference format"),
        ("/web", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("-web", "invalid reference format"),
        ("../web", "invalid reference format"),
        ("http://host/web", "invalid reference format"),
        ("é", "invalid reference format"),
        ("web:é", "invalid reference format"),
        ("Web", "invalid reference format: repository name (library/Web) must be lowercase"),
        ("a/B:1", "invalid reference format: repository name (a/B) must be lowercase"),
        (
            "a" * 64,
            f"invalid repository name ({'a' * 64}), cannot specify 64-byte hexadecimal strings",
        ),
        ("web@sha256:abc", "invalid reference format"),
        ("web@md5:" + "a" * 32, "unsupported digest algorithm"),
        ("web@sha256:" + "a" * 63, "invalid checksum digest length"),
        ("web@sha256:" + "A" * 64, "invalid checksum digest format"),
    ],
)
def test_refusals(text: str, sentence: str) -> None:
    """What is no reference is refused with the sentence that Docker has for it."""
    with pytest.raises(InvalidError) as refused:
        parse(text)
    assert sentence == refused.value.message


def test_long_names_are_refused() -> None:
    """A repository's name has at most 255 characters."""
    parse("a" * 247)
    with pytest.raises(InvalidError, match="must not be more than 255 characters"):
        parse("a" * 248)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.8.9.10", True),
        ("[::1]:5000", True),
        ("docker.io", False),
        ("localhost.example", False),
        ("127.0.0.1.example:5000", False),
        ("10.0.0.1:5000", False),
    ],
)
def test_plain_http_only_on_this_machine(domain: str, expected: bool) -> None:  # noqa: FBT001
    """Only a registry on the loopback network may be spoken to without TLS."""
    assert expected == is_loopback(domain)

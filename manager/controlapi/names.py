"""Names and image references: which texts are ones. Pure."""

from __future__ import annotations

import re

from proto.errors import InvalidError

# Source: RFC 1035 sec. 2.3.4 for the length; swarmkit manager/controlapi/common.go for "_", which
# stack names need (`stack_web`).
NAME_LENGTH_MAX = 63
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")

# Source: the grammar of distribution/reference. A reference may carry a tag and a digest.
REFERENCE_LENGTH_MAX = 1024
REPOSITORY_LENGTH_MAX = 255
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,}"
_REFERENCE = re.compile(
    rf"(?P<repository>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@{_DIGEST})?"
)


def check_name(noun: str, name: str) -> None:
    """Refuse a name that cannot become part of a host name.

    Raises:
        InvalidError: it is empty, too long, or has characters that no such name has.
    """
    if not name:
        raise InvalidError(f"the {noun} has no name: name must be provided")
    if len(name) > NAME_LENGTH_MAX:
        raise InvalidError(
            f"{noun} name {name!r} has {len(name)} characters: "
            f"name must be {NAME_LENGTH_MAX} characters or fewer"
        )
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"invalid {noun} name {name!r}: name must be valid as a DNS name component "
            "(letters, digits, '-' and '_', a letter or digit at both ends)"
        )


def check_image(image: str) -> None:
    """Refuse a text that names no image.

    Raises:
        InvalidError: it is not `[host[:port]/]path[:tag][@digest]`.
    """
    if not image:
        raise InvalidError("the container has no image: an image reference must be provided")
    match = _REFERENCE.fullmatch(image) if len(image) <= REFERENCE_LENGTH_MAX else None
    if match is None:
        hint = "" if image.islower() else "; the name of a repository is in lower case"
        raise InvalidError(
            f"image reference {image[:100]!r} has an invalid reference format: "
            f"write [host[:port]/]path[:tag][@digest]{hint}"
        )
    if len(match["repository"]) > REPOSITORY_LENGTH_MAX:
        raise InvalidError(
            f"image reference {image[:100]!r}: the part before the tag must be "
            f"{REPOSITORY_LENGTH_MAX} characters or fewer"
        )

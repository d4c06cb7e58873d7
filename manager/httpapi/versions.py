"""Which versions of the Engine API are served, and what a client outside them is told. Pure."""

from __future__ import annotations

from proto.errors import InvalidError

API_VERSION = (1, 50)
API_VERSION_MIN = (1, 24)

Version = tuple[int, int]


def text_of(version: Version) -> str:
    """Write a version as clients read it (`1.50`)."""
    return f"{version[0]}.{version[1]}"


def negotiated(prefix: str) -> Version:
    """Read the version of a request's path (`1.43` of `/v1.43/info`); "" means the newest.

    Raises:
        InvalidError: the client is too old or too new; the sentences are the Engine's, because
            clients show them to their users as they are.
    """
    if not prefix:
        return API_VERSION
    major, _, minor = prefix.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise InvalidError(f"invalid API version {prefix!r}: it is written as 1.50")
    version = (int(major), int(minor))
    if version < API_VERSION_MIN:
        raise InvalidError(
            f"client version {prefix} is too old. Minimum supported API version is "
            f"{text_of(API_VERSION_MIN)}, please upgrade your client to a newer version"
        )
    if version > API_VERSION:
        raise InvalidError(
            f"client version {prefix} is too new. Maximum supported API version is "
            f"{text_of(API_VERSION)}"
        )
    return version

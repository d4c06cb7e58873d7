"""References to images: `web`, `registry.example:5000/team/web:1.2`, `web@sha256:…`.

Pure. A reference is kept in full (`docker.io/library/web:latest`) and shown familiarly
(`web:latest`). The grammar and the sentences are those that people know from Docker.

Source: the grammar in the "distribution" project's package reference.
"""

from __future__ import annotations

import re

import msgspec

from proto.errors import InvalidError

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DEFAULT_DOMAIN = "index.docker.io"
_OFFICIAL_PREFIX = "library/"
_NAME_LENGTH_MAX = 255

_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_HEX_ID = re.compile(r"[a-f0-9]{64}")
_HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


class Reference(msgspec.Struct, frozen=True, order=True):
    """A repository with at most one tag and one digest.

    Attributes:
        domain: the registry, `docker.io` if none was given.
        path: the repository there, with `library/` for an official one.
    """

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository in full: `docker.io/library/web`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: `web`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        # Only one level below library/ is official: library/a/b must keep its prefix.
        short = self.path.removeprefix(_OFFICIAL_PREFIX)
        return self.path if "/" in short else short

    @property
    def familiar(self) -> str:
        """The reference as people write it: `web:latest`."""
        return self.familiar_name + self._suffix()

    @property
    def is_name_only(self) -> bool:
        """Whether neither tag nor digest was given."""
        return not self.tag and not self.digest

    def full(self) -> str:
        """Return the reference in full: `docker.io/library/web:latest`."""
        return self.name + self._suffix()

    def tagged(self) -> Reference:
        """Return this reference with the default tag if it has neither tag nor digest."""
        return msgspec.structs.replace(self, tag=DEFAULT_TAG) if self.is_name_only else self

    def with_digest(self, digest: str) -> Reference:
        """Return the same repository at a digest, without tag."""
        return Reference(self.domain, self.path, digest=digest)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return tag + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Parse what a person wrote; no tag is added.

    Raises:
        InvalidError: with Docker's sentence.
    """
    if _HEX_ID.fullmatch(text):
        raise InvalidError(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    rest, digest = _split_digest(text)
    domain, remainder = _split_domain(rest)
    path, colon, tag = remainder.partition(":")
    if path.lower() != path:
        raise InvalidError(f"invalid reference format: repository name ({path}) must be lowercase")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidError("invalid reference format")
    if not _PATH.fullmatch(path) or not _DOMAIN.fullmatch(domain):
        raise InvalidError("invalid reference format")
    if len(path) > _NAME_LENGTH_MAX:
        raise InvalidError(
            f"repository name must not be more than {_NAME_LENGTH_MAX} characters: {path[:40]}…"
        )
    return Reference(domain, path, tag, digest)


def parse_tagged(text: str) -> Reference:
    """Parse what a person wrote and add `:latest` where neither tag nor digest is."""
    return parse(text).tagged()


def is_digest(text: str) -> bool:
    """Whether `text` is a whole `sha256:…` digest, the only algorithm that we store."""
    return text.startswith("sha256:") and _HEX_ID.fullmatch(text[7:]) is not None


def is_hex_id(text: str) -> bool:
    """Whether `text` is the 64 hex digits of an image's ID."""
    return _HEX_ID.fullmatch(text) is not None


def is_loopback(domain: str) -> bool:
    """Whether a registry is on this machine, where Docker allows plain HTTP.

    Source: Docker's default insecure registries, 127.0.0.0/8 and ::1/128.
    """
    host = domain.rpartition(":")[0] if re.search(r":[0-9]+$", domain) else domain
    return host in {"localhost", "[::1]"} or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def _split_digest(text: str) -> tuple[str, str]:
    rest, at, digest = text.partition("@")
    if not at:
        return text, ""
    if not _DIGEST.fullmatch(digest):
        raise InvalidError("invalid reference format")
    algorithm, _, value = digest.partition(":")
    length = _HEX_LENGTHS.get(algorithm)
    if length is None:
        raise InvalidError("unsupported digest algorithm")
    if len(value) != length:
        raise InvalidError("invalid checksum digest length")
    if value.lower() != value:
        raise InvalidError("invalid checksum digest format")
    return rest, digest


def _split_domain(text: str) -> tuple[str, str]:
    """Tell the registry from the path: a first part with a dot, colon or capital, or localhost."""
    first, slash, rest = text.partition("/")
    is_domain = slash and (
        "." in first or ":" in first or first == "localhost" or first.lower() != first
    )
    domain, remainder = (first, rest) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == _LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL_PREFIX + remainder
    return domain, remainder

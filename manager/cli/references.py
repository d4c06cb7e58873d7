"""Image references: how people write them, and how Docker shows them.

Pure. `docker.io/library/nginx:1.27@sha256:…` is the whole form of `nginx:1.27`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from proto.errors import InvalidError

_PATH = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
DEFAULT_REGISTRY = "docker.io"


class Reference(NamedTuple):
    """A parsed reference; `tag` and `digest` are "" when it has none."""

    registry: str
    path: str
    tag: str
    digest: str

    @property
    def familiar_name(self) -> str:
        """The name as people write it."""
        if self.registry != DEFAULT_REGISTRY:
            return f"{self.registry}/{self.path}"
        return self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path

    @property
    def familiar(self) -> str:
        """The whole reference as people write it."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return self.familiar_name + tag + digest

    @property
    def full(self) -> str:
        """The whole reference with its registry."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.path}{tag}{digest}"

    @property
    def is_name_only(self) -> bool:
        """Tell whether neither tag nor digest is given."""
        return not self.tag and not self.digest

    def tagged(self) -> Reference:
        """Add `latest` when neither tag nor digest is given."""
        return self._replace(tag="latest") if self.is_name_only else self


def parse_reference(text: str) -> Reference:
    """Parse what a user typed.

    Raises:
        InvalidError: it cannot be a reference.
    """
    if _IDENTIFIER.fullmatch(text):
        raise InvalidError(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    name, _, digest = text.partition("@")
    head, _, tail = name.rpartition("/")
    last, separator, tag = tail.partition(":")
    path = f"{head}/{last}" if head else last
    first, _, rest = path.partition("/")
    if rest and ("." in first or ":" in first or first == "localhost" or not first.islower()):
        registry, path = first, rest
    else:
        registry = DEFAULT_REGISTRY
    if registry in {DEFAULT_REGISTRY, "index.docker.io"}:
        registry = DEFAULT_REGISTRY
        path = path if "/" in path else f"library/{path}"
    if path != path.lower():
        raise InvalidError("invalid reference format: repository name must be lowercase")
    bad_tag = bool(separator) and not _TAG.fullmatch(tag)
    bad_digest = "@" in text and not _DIGEST.fullmatch(digest)
    if bad_tag or bad_digest or not _PATH.fullmatch(path):
        raise InvalidError("invalid reference format")
    return Reference(registry, path, tag, digest)


def shown_image(image: str) -> str:
    """Shorten a task's image for a table: the familiar name and tag, no digest."""
    try:
        reference = parse_reference(image)
    except InvalidError:
        return image
    return f"{reference.familiar_name}:{reference.tag}" if reference.tag else image

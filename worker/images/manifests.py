"""Manifests and indexes, of OCI and of Docker (schema 2). Pure.

A manifest names the configuration and the layers' blobs; an index names manifests by platform.
Like configurations, received ones are kept as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from proto.errors import InvalidError, NotFoundError
from proto.json_text import JsonError, decode_json
from proto.text import quoted
from worker.images.config import Platform
from worker.images.references import is_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG, ""})
_VARIANT_DEFAULTS = {"arm64": "v8", "arm": "v7"}


class PlatformField(msgspec.Struct, omit_defaults=True):
    """The platform of an index's entry."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    """Names a blob."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    platform: PlatformField | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    """A manifest or an index; which one is told by what is set."""

    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None

    @property
    def is_index(self) -> bool:
        """Whether it names manifests rather than layers."""
        return self.manifests is not None


class WrittenManifest(msgspec.Struct, rename="camel", kw_only=True):
    """A manifest that we make."""

    schema_version: int = 2
    media_type: str
    config: Descriptor
    layers: list[Descriptor]


class WrittenIndex(msgspec.Struct, rename="camel", kw_only=True):
    """An index that we make."""

    schema_version: int = 2
    media_type: str = OCI_INDEX
    manifests: list[Descriptor]


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What this node needs of a manifest of one image."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_manifest(data: bytes, what: str) -> Manifest:
    """Read a manifest or an index.

    Raises:
        InvalidError: it is neither, or of the first schema; the sentence names `what`.
    """
    try:
        manifest = decode_json(data, Manifest)
    except JsonError as error:
        raise InvalidError(f"the manifest of {what} cannot be read: it {error}") from error
    if manifest.schema_version == 1:
        raise InvalidError(
            f"the manifest of {what} is of schema version 1, which is no longer supported; "
            "push the image again with a newer Docker"
        )
    return manifest


def image_manifest(manifest: Manifest, what: str) -> ImageManifest:
    """Check that a manifest is of a container image.

    Raises:
        InvalidError: it is of something else (a signature, a chart), or a digest is malformed.
    """
    if manifest.config is None or manifest.layers is None:
        raise InvalidError(f"the manifest of {what} names no configuration and layers")
    if manifest.config.media_type not in _CONFIG_TYPES:
        raise InvalidError(
            f"{what} is not a container image but of type {quoted(manifest.config.media_type)}"
        )
    for descriptor in (manifest.config, *manifest.layers):
        if not is_digest(descriptor.digest):
            raise InvalidError(
                f"the manifest of {what} has the digest {quoted(descriptor.digest)}, "
                "which is not of sha256"
            )
    return ImageManifest(config=manifest.config, layers=tuple(manifest.layers))


def choose_platform(entries: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """Choose the entry of an index for a platform: the exact variant before an unnamed one.

    Raises:
        NotFoundError: none fits.
    """
    best: Descriptor | None = None
    best_rank = 0
    for entry in entries:
        rank = _rank(entry, wanted)
        if rank > best_rank:
            best, best_rank = entry, rank
    if best is None and len(entries) == 1 and entries[0].platform is None:
        # An index of one image need not name its platform.
        best = entries[0]
    if best is None:
        raise NotFoundError(
            "image",
            what,
            f"no matching manifest for {wanted} in the manifest list entries of {what}",
        )
    return best


def docker_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Write a manifest of Docker's schema 2, which every registry takes."""
    return msgspec.json.encode(
        WrittenManifest(media_type=DOCKER_MANIFEST, config=config, layers=list(layers))
    )


def oci_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Write an OCI manifest."""
    return msgspec.json.encode(
        WrittenManifest(media_type=OCI_MANIFEST, config=config, layers=list(layers))
    )


def oci_index(entries: Sequence[tuple[Descriptor, Mapping[str, str]]]) -> bytes:
    """Write an OCI index of manifests with their annotations."""
    manifests = [
        Descriptor(
            media_type=entry.media_type,
            digest=entry.digest,
            size=entry.size,
            annotations=dict(annotations) or None,
        )
        for entry, annotations in entries
    ]
    return msgspec.json.encode(WrittenIndex(manifests=manifests))


def _rank(entry: Descriptor, wanted: Platform) -> int:
    """Return how well an entry fits: 0 not at all."""
    platform = entry.platform
    if platform is None:
        return 0
    if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
        return 0
    default = _VARIANT_DEFAULTS.get(wanted.architecture, "")
    have, want = platform.variant or default, wanted.variant or default
    if have == want:
        return 3
    # A newer 32-bit ARM runs what was built for an older one.
    if wanted.architecture == "arm" and have < want:
        return 2 if have == "v6" else 1
    return 0

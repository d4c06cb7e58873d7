"""The values of the image store's interface; `worker.images.store.ImageStore` implements it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from typing_extensions import override

from proto.ids import ImageID
from proto.objects import HealthConfig


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of how to run it (OCI image configuration, `config`)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: Mapping[str, str] = {}
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: HealthConfig | None = None


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an image's history."""

    created: float = 0.0
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False
    size_bytes: int = 0


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image held by this node.

    Attributes:
        id: `sha256:<hex>` of the configuration blob, as Docker has it.
        repo_tags: familiar references (`web:latest`), sorted.
        repo_digests: `name@sha256:…`, of images that came from or went to a registry, sorted.
        diff_ids: digests of the uncompressed layers, lowest first.
        layer_dirs: the unpacked directories, lowest first: an overlay mount's lower directories.
        size_bytes: of the unpacked layers together.
        created: seconds since the epoch.
    """

    id: ImageID
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    config: ImageConfig = ImageConfig()
    architecture: str = ""
    os: str = ""
    variant: str = ""
    author: str = ""
    comment: str = ""
    created: float = 0.0
    diff_ids: tuple[str, ...] = ()
    layer_dirs: tuple[str, ...] = ()
    size_bytes: int = 0
    history: tuple[HistoryEntry, ...] = ()


class RegistryAuth(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for a registry, as in the Engine API's X-Registry-Auth."""

    username: str = ""
    password: str = ""
    server_address: str = ""
    identity_token: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the credentials."""
        return f"RegistryAuth(server_address={self.server_address!r}, hidden)"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a pull, push or load, as the Engine API streams them."""

    status: str
    id: str = ""
    current: int = 0
    total: int = 0


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """What a removal did: a reference was `untagged`, or an image or layer `deleted`."""

    untagged: str = ""
    deleted: str = ""

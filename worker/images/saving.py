"""Writing images as one archive: a docker-archive that is an OCI layout as well.

It is what Docker writes since version 25: `manifest.json` for `docker load`, skopeo and us,
`index.json` for those that read OCI layouts; both name the same blobs, plain layers. The archive is
made as it is read, so nothing of it is stored.
"""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Generator, Iterator, Sequence

import msgspec

from proto.errors import CorruptError
from proto.ids import ImageID
from worker.images import manifests
from worker.images.compression import Hashing, decompressed
from worker.images.config import digest_of
from worker.images.disk import Disk
from worker.images.manifests import Descriptor
from worker.images.references import Reference
from worker.images.state import LayerRecord
from worker.images.work import CHUNK_BYTES, Watched


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """An image to write, with the names it shall have in the archive."""

    id: ImageID
    config_bytes: int
    layers: tuple[tuple[str, LayerRecord], ...]
    names: tuple[Reference, ...]


class _DockerEntry(msgspec.Struct, rename="pascal"):
    config: str
    repo_tags: list[str] | None
    layers: list[str]


def archive(
    disk: Disk, images: Sequence[Saved], stop: threading.Event
) -> Generator[bytes, None, None]:
    """Yield the archive in chunks, none of them empty, each blob once. Blocks: for a thread.

    Raises:
        CorruptError: a stored blob is not what it was.
    """
    written: set[str] = set()
    yield _directory("blobs") + _directory("blobs/sha256")
    index: list[tuple[Descriptor, dict[str, str]]] = []
    for image in images:
        if image.id not in written:
            written.add(image.id)
            yield _file(_path(image.id), disk.blob(image.id).read_bytes())
        for diff_id, layer in image.layers:
            if diff_id not in written:
                written.add(diff_id)
                yield from _layer(disk, diff_id, layer, stop)
        manifest = _manifest_of(image)
        descriptor = Descriptor(
            media_type=manifests.OCI_MANIFEST,
            digest=digest_of(manifest),
            size=len(manifest),
        )
        if descriptor.digest not in written:
            written.add(descriptor.digest)
            yield _file(_path(descriptor.digest), manifest)
        index += [(descriptor, _annotations(name)) for name in image.names] or [(descriptor, {})]
    yield _file("index.json", manifests.oci_index(index))
    yield _file("manifest.json", _docker_manifest(images))
    yield _file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    yield bytes(2 * tarfile.BLOCKSIZE)


def _layer(disk: Disk, diff_id: str, layer: LayerRecord, stop: threading.Event) -> Iterator[bytes]:
    """Write a layer as a plain tar, checking that it is the one that it was."""
    path = disk.blob(layer.blob)
    yield _header(_path(diff_id), layer.tar_bytes)
    with path.open("rb") as file, decompressed(Watched(file, stop), f"layer {diff_id}") as plain:
        reader = Hashing(plain)
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
    if reader.digest != diff_id:
        raise CorruptError(str(path), 0, f"the layer has the digest {reader.digest}, not {diff_id}")
    if padding := -layer.tar_bytes % tarfile.BLOCKSIZE:
        yield bytes(padding)


def _manifest_of(image: Saved) -> bytes:
    layers = [
        Descriptor(media_type=manifests.OCI_LAYER, digest=diff_id, size=layer.tar_bytes)
        for diff_id, layer in image.layers
    ]
    config = Descriptor(media_type=manifests.OCI_CONFIG, digest=image.id, size=image.config_bytes)
    return manifests.oci_manifest(config, layers)


def _docker_manifest(images: Sequence[Saved]) -> bytes:
    return msgspec.json.encode(
        [
            _DockerEntry(
                config=_path(image.id),
                repo_tags=[name.familiar for name in image.names] or None,
                layers=[_path(diff_id) for diff_id, _ in image.layers],
            )
            for image in images
        ]
    )


def _annotations(name: Reference) -> dict[str, str]:
    return {
        "io.containerd.image.name": name.full(),
        "org.opencontainers.image.ref.name": name.tag,
    }


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _directory(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = 0o755
    return info.tobuf(tarfile.USTAR_FORMAT)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    # GNU's form has sizes over 8 GiB, which ustar has not.
    return info.tobuf(tarfile.GNU_FORMAT)


def _file(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)

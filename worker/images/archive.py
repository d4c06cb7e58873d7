"""Archives of images: what `docker save`, skopeo and buildkit write, taken apart.

The outer archive is read once, as it comes: every member goes into a file of its own, named by a
number (nothing in the archive chooses a path here), with its digest. Only then is it looked at:
`manifest.json` makes it a docker-archive, otherwise `index.json` an OCI layout.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from proto.errors import InvalidError
from proto.json_text import JsonError, decode_json
from proto.text import quoted
from worker.images import manifests, references
from worker.images.compression import Hashing, decompressed
from worker.images.config import Parsed, Platform, parse_config
from worker.images.manifests import Descriptor
from worker.images.state import Blob
from worker.images.tarstream import lexical_parts, members_of
from worker.images.work import CHUNK_BYTES, Reader

_DOCUMENT_BYTES_MAX = 8 * 1024 * 1024
_INDEX_DEPTH_MAX = 4
# Of the archive around the images: they are remembered while it is read.
_ENTRIES_MAX = 100_000
_NAMES_BYTES_MAX = 16 * 1024 * 1024
# Of its images together, all of which may have the same large configuration.
_IMAGES_MAX = 1_000
_IMAGES_BYTES_MAX = 128 * 1024 * 1024
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class File(msgspec.Struct, frozen=True):
    """A member's contents."""

    path: Path
    digest: str
    size: int


class Contents(msgspec.Struct, frozen=True):
    """An outer archive: files by their names in it, and links."""

    files: dict[str, File]
    links: dict[str, str]

    def find(self, name: str) -> File | None:
        """Find a file by name, through links (old archives store equal layers once)."""
        seen: set[str] = set()
        while name in self.links and name not in seen:
            seen.add(name)
            name = self.links[name]
        return self.files.get(name)

    def need(self, name: str) -> File:
        """Find a file that has to be there.

        Raises:
            InvalidError: it is not.
        """
        clean = _clean(name)
        file = self.find(clean) if clean is not None else None
        if file is None:
            raise InvalidError(f"the archive has no file {quoted(name)}, which it refers to")
        return file

    def document(self, name: str) -> bytes:
        """Read a small file (JSON)."""
        return _read_document(self.need(name), name)

    def blob(self, descriptor: Descriptor) -> File:
        """Find a blob of an OCI layout and check its digest.

        Raises:
            InvalidError: it is missing, or its contents are others.
        """
        if not references.is_digest(descriptor.digest):
            shown = quoted(descriptor.digest)
            raise InvalidError(f"the archive has the digest {shown}, not of sha256")
        file = self.need("blobs/" + descriptor.digest.replace(":", "/"))
        if file.digest != descriptor.digest:
            raise InvalidError(
                f"the archive is damaged: its blob {descriptor.digest} has the digest {file.digest}"
            )
        return file


class Loadable(msgspec.Struct, frozen=True, kw_only=True):
    """An image of an archive.

    Attributes:
        layers: one for each diff ID of the configuration, in its order.
        names: that it shall have.
        manifest: the bytes of an OCI manifest, or b"".
        blobs: what that manifest names.
    """

    parsed: Parsed
    config: bytes
    layers: tuple[File, ...]
    names: tuple[references.Reference, ...] = ()
    manifest: bytes = b""
    blobs: tuple[Blob, ...] = ()


class _DockerEntry(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


def take_apart(source: Reader, directory: Path) -> Contents:
    """Write the files of an archive, compressed or not, into a directory.

    Raises:
        InvalidError: it is not an archive, damaged or truncated.
    """
    files: dict[str, File] = {}
    links: dict[str, str] = {}
    with (
        decompressed(source, "the archive") as plain,
        members_of(plain, "the archive") as (archive, members),
    ):
        names_bytes = 0
        for member in members:
            names_bytes += len(member.name) + len(member.linkname)
            if len(files) + len(links) >= _ENTRIES_MAX or names_bytes > _NAMES_BYTES_MAX:
                raise InvalidError(
                    f"the archive is no archive of images: it has more than {_ENTRIES_MAX} entries"
                    f" or more than {_NAMES_BYTES_MAX} bytes of names"
                )
            name = _clean(member.name)
            if name is None:
                raise InvalidError(
                    f"the archive has the entry {quoted(member.name)}, which leads out of it"
                )
            if member.isreg():
                path = directory / str(len(files))
                files[name] = _write_member(archive, member, path)
                links.pop(name, None)
            elif member.issym() or member.islnk():
                base = posixpath.dirname(name) if member.issym() else ""
                target = _clean(posixpath.join(base, member.linkname))
                if target is not None:
                    links[name] = target
        while plain.read(CHUNK_BYTES):
            # What follows the end marker belongs to the stream; its sender wants to be rid of it.
            pass
    return Contents(files, links)


def images_of(contents: Contents, platform: Platform) -> list[Loadable]:
    """Find the images in an archive; of an index the one for `platform`.

    Raises:
        InvalidError: there is none, or what it refers to is missing or damaged.
    """
    if contents.find("manifest.json") is not None:
        return _docker_images(contents)
    if contents.find("index.json") is not None:
        return _oci_images(contents, platform)
    raise InvalidError(
        "the archive holds no image: it has neither manifest.json nor index.json; "
        "a plain file system is imported with docker import"
    )


def _docker_images(contents: Contents) -> list[Loadable]:
    data = contents.document("manifest.json")
    try:
        entries = decode_json(data, list[_DockerEntry])
    except JsonError as error:
        raise InvalidError(f"the archive's manifest.json cannot be read: it {error}") from error
    images: list[Loadable] = []
    _check_count(len(entries))
    for entry in entries:
        config = contents.document(entry.config)
        layers = tuple(contents.need(name) for name in entry.layers or ())
        names = tuple(references.parse_tagged(tag) for tag in entry.repo_tags or ())
        images.append(_checked(config, layers, names=names))
        _check_bytes(images)
    return images


def _check_count(count: int) -> None:
    if count > _IMAGES_MAX:
        raise InvalidError(
            f"the archive holds {count} images, more than {_IMAGES_MAX}; load fewer at a time"
        )


def _check_bytes(images: list[Loadable]) -> None:
    """See that the images read so far do not fill the memory."""
    total = sum(len(image.config) + len(image.manifest) for image in images)
    if total > _IMAGES_BYTES_MAX:
        raise InvalidError(
            f"the configurations of the archive's images have more than {_IMAGES_BYTES_MAX} bytes"
            " together; load fewer images at a time"
        )


def _oci_images(contents: Contents, platform: Platform) -> list[Loadable]:
    index = manifests.parse_manifest(contents.document("index.json"), "the archive")
    images: list[Loadable] = []
    _check_count(len(index.manifests or ()))
    for entry in index.manifests or ():
        names = _names_of(entry.annotations or {})
        descriptor = entry
        for _ in range(_INDEX_DEPTH_MAX):
            what = f"the archive ({descriptor.digest})"
            data = _read_document(contents.blob(descriptor), descriptor.digest)
            manifest = manifests.parse_manifest(data, what)
            if not manifest.is_index:
                images.append(_oci_image(contents, manifest, data, names))
                _check_bytes(images)
                break
            descriptor = manifests.choose_platform(manifest.manifests or (), platform, what)
        else:
            raise InvalidError("the archive's indexes are nested too deeply")
    if not images:
        raise InvalidError("the archive holds no image: its index.json is empty")
    return images


def _oci_image(
    contents: Contents,
    manifest: manifests.Manifest,
    data: bytes,
    names: tuple[references.Reference, ...],
) -> Loadable:
    image = manifests.image_manifest(manifest, "the archive")
    config = _read_document(contents.blob(image.config), image.config.digest)
    layers = tuple(contents.blob(layer) for layer in image.layers)
    blobs = tuple(
        Blob(layer.digest, file.size, layer.media_type)
        for layer, file in zip(image.layers, layers, strict=True)
    )
    return _checked(config, layers, names=names, manifest=data, blobs=blobs)


def _checked(
    config: bytes,
    layers: tuple[File, ...],
    *,
    names: tuple[references.Reference, ...],
    manifest: bytes = b"",
    blobs: tuple[Blob, ...] = (),
) -> Loadable:
    what = names[0].familiar if names else "an image of the archive"
    parsed = parse_config(config, what)
    if len(parsed.diff_ids) != len(layers):
        raise InvalidError(
            f"the archive is not consistent: {what} has {len(layers)} layers, "
            f"its configuration names {len(parsed.diff_ids)}"
        )
    return Loadable(
        parsed=parsed, config=config, layers=layers, names=names, manifest=manifest, blobs=blobs
    )


def _names_of(annotations: Mapping[str, str]) -> tuple[references.Reference, ...]:
    """Return the name of an index's entry; a bare tag names no repository and is none."""
    for key in _NAME_ANNOTATIONS:
        text = annotations.get(key, "")
        if ":" in text or "/" in text:
            try:
                return (references.parse_tagged(text),)
            except InvalidError:
                # The annotation is free text by its specification.
                continue
    return ()


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> File:
    data = archive.extractfile(member)
    assert data is not None
    reader = Hashing(data)
    with path.open("xb") as file:
        while chunk := reader.read(CHUNK_BYTES):
            file.write(chunk)
    if reader.count != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return File(path, reader.digest, reader.count)


def _read_document(file: File, name: str) -> bytes:
    if file.size > _DOCUMENT_BYTES_MAX:
        raise InvalidError(
            f"the archive's file {quoted(name)} has {file.size} bytes, "
            f"more than the {_DOCUMENT_BYTES_MAX} that a document may have"
        )
    return file.path.read_bytes()


def _clean(name: str) -> str | None:
    parts = lexical_parts(name)
    if parts is None:
        return None
    return b"/".join(parts).decode("utf-8", "surrogateescape")

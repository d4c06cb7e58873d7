"""Pulling from and pushing to registries: what is asked of skopeo, and what is checked of it.

A pull fetches the manifest first, byte by byte, since its digest is what the image is known by;
then the configuration, whose digest is the image's ID; then only the layers that this node lacks.
Whatever ends it, layers that are complete are kept for a day: the next attempt begins with them.
A push sends exactly the manifest that the image came with, if all its blobs are here; otherwise one
is made, once, and kept, so that the same image always has the same digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from proto.errors import CorruptError, InvalidError, NotFoundError
from proto.ids import ImageID
from worker.images import manifests
from worker.images import state as states
from worker.images.api import Image, Progress, RegistryAuth
from worker.images.compression import Hashing, decompressed, gzip_to
from worker.images.config import Parsed, Platform, digest_of, parse_config, parse_platform
from worker.images.content import Content, ProgressSink, Reporter
from worker.images.disk import Disk
from worker.images.manifests import Descriptor, ImageManifest
from worker.images.references import Reference
from worker.images.removal import short_id
from worker.images.skopeo import Registry
from worker.images.state import Blob, ImageRecord, LayerRecord, State
from worker.images.work import Watched

_POLL_SECONDS = 0.25
_DIR_VERSION = "Directory Transport Version: 1.1\n"
_COPYING = re.compile(r"Copying blob (?:sha256:)?([0-9a-f]{12})")


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """An image as a registry has it.

    Attributes:
        top_digest: what the reference led to; an index, if the image is of several platforms.
        exact: the reference of the image's own manifest.
    """

    top_digest: str
    exact: Reference
    manifest_bytes: bytes
    manifest: ImageManifest
    config: bytes
    parsed: Parsed


async def pull(
    content: Content,
    reference: Reference,
    *,
    auth: RegistryAuth | None,
    platform: str,
    host: Platform,
    progress: ProgressSink,
) -> Image:
    """Fetch an image and give it the name that it was asked for by.

    Raises:
        NotFoundError: the registry has no such image, or none for the platform.
        DeniedError: the registry wants other credentials.
        UnavailableError: the registry cannot be reached.
        InvalidError: what it sent is damaged.
    """
    wanted = parse_platform(platform, host)
    async with content.scratch() as scratch:
        registry = Registry(reference, scratch, auth, content.disk.root, _retry_progress(progress))
        progress(
            Progress(status=f"Pulling from {reference.path}", id=reference.tag or reference.digest)
        )
        found = await _find(content, registry, reference, wanted, is_asked=bool(platform))
        before = states.find_image(content.state, reference.full())
        image_id = await _take(
            content, registry, reference, found, scratch=scratch, progress=progress
        )
    progress(Progress(status=f"Digest: {found.top_digest}"))
    is_new = before is None or before[0] != image_id
    what = "Downloaded newer image" if is_new else "Image is up to date"
    progress(Progress(status=f"Status: {what} for {reference.familiar}"))
    return content.image(image_id)


async def push(
    content: Content,
    reference: Reference,
    *,
    auth: RegistryAuth | None,
    progress: ProgressSink,
) -> str:
    """Send the image that has the tag `reference` to its registry; return the manifest's digest.

    Raises:
        NotFoundError: no image here has this tag.
        DeniedError: the registry wants other credentials.
        UnavailableError: the registry cannot be reached.
    """
    if reference.digest:
        raise InvalidError(f"cannot push a digest reference ({reference.familiar}); push a tag")
    missing = NotFoundError(
        "image",
        reference.familiar,
        f"An image does not exist locally with the tag: {reference.familiar_name}",
    )
    image_id = content.state.tags.get(reference.full())
    if image_id is None:
        raise missing
    progress(
        Progress(status=f"The push refers to repository [{reference.domain}/{reference.path}]")
    )
    record = content.state.images[image_id]
    pins = [image_id, *record.diff_ids, record.manifest, *(blob.digest for blob in record.blobs)]
    async with content.pinned(pins), content.scratch() as scratch:
        if image_id not in content.state.images:
            raise missing
        record = await _with_manifest(content, image_id, scratch, progress)
        source = await content.in_thread(
            lambda _: _laid_out(content.disk, image_id, record, scratch)
        )
        sink = _push_progress(record, progress)
        registry = Registry(reference, scratch, auth, content.disk.root, _retry_progress(progress))
        await registry.push(source, sink)
        for blob in record.blobs:
            # Without numbers: clients that draw no bars show only such lines.
            progress(Progress(status="Pushed", id=short_id(blob.digest)))
    named = reference.with_digest(record.manifest)
    # The tag may have been taken away meanwhile; then the image has no use for the digest.
    await content.commit(
        lambda state: (
            states.with_name(state, named, image_id)
            if state.tags.get(reference.full()) == image_id
            else state
        )
    )
    return record.manifest


def _retry_progress(progress: ProgressSink) -> Callable[[str, float], None]:
    return lambda reason, seconds: progress(
        Progress(status=f"Retrying in {seconds:g} seconds: {reason}")
    )


# Pull.


async def _find(
    content: Content,
    registry: Registry,
    reference: Reference,
    wanted: Platform,
    *,
    is_asked: bool,
) -> _Found:
    name = reference.familiar
    # The digest says all; skopeo refuses a tag beside it.
    source = reference.with_digest(reference.digest) if reference.digest else reference
    top = await registry.manifest(source)
    top_digest = digest_of(top)
    if reference.digest and top_digest != reference.digest:
        raise InvalidError(f"the registry sent another manifest than {name}: {top_digest}")
    manifest, data, digest = manifests.parse_manifest(top, name), top, top_digest
    if manifest.is_index:
        entry = manifests.choose_platform(manifest.manifests or (), wanted, name)
        data = await registry.manifest(reference.with_digest(entry.digest))
        digest = digest_of(data)
        if digest != entry.digest:
            raise InvalidError(f"the registry sent another manifest than {entry.digest}: {digest}")
        manifest = manifests.parse_manifest(data, name)
    image = manifests.image_manifest(manifest, name)
    exact = reference.with_digest(digest)
    config = await _config(content, registry, exact, image.config.digest)
    parsed = parse_config(config, name)
    if is_asked and not _fits(parsed.platform, wanted):
        raise NotFoundError(
            "image",
            name,
            f"image with reference {name} was found but its platform ({parsed.platform}) "
            f"does not match the specified platform ({wanted})",
        )
    if len(parsed.diff_ids) != len(image.layers):
        raise InvalidError(
            f"{name} is not consistent: its manifest has {len(image.layers)} layers, "
            f"its configuration {len(parsed.diff_ids)}"
        )
    return _Found(
        top_digest=top_digest,
        exact=exact,
        manifest_bytes=data,
        manifest=image,
        config=config,
        parsed=parsed,
    )


async def _config(content: Content, registry: Registry, exact: Reference, digest: str) -> bytes:
    """Get a configuration, from here if it is here."""
    try:
        config = content.disk.blob(digest).read_bytes()
    except FileNotFoundError:
        pass
    else:
        return config
    config = await registry.config(exact)
    if digest_of(config) != digest:
        raise InvalidError(
            f"the registry sent another configuration than {digest}: {digest_of(config)}"
        )
    return config


def _fits(have: Platform, wanted: Platform) -> bool:
    is_same = (have.os, have.architecture) == (wanted.os, wanted.architecture)
    return is_same and (not have.variant or not wanted.variant or have.variant == wanted.variant)


async def _take(
    content: Content,
    registry: Registry,
    reference: Reference,
    found: _Found,
    *,
    scratch: Path,
    progress: ProgressSink,
) -> ImageID:
    parsed, layers = found.parsed, found.manifest.layers
    digests = [layer.digest for layer in layers]
    names = [reference.with_digest(found.top_digest)]
    if not reference.digest:
        names.append(reference)
    try:
        # The locks make two pulls that lack the same layer fetch it once.
        async with content.pinned([*parsed.diff_ids, *digests, parsed.id]):
            # By registry: one that stalls must not hold the others.
            domain = reference.domain
            async with content.locked(f"blob {domain} {digest}" for digest in digests):
                layout = scratch / "layout"
                await _fetch(content, registry, found, layout, progress)
                for diff_id, layer in zip(parsed.diff_ids, layers, strict=True):
                    await _unpack(
                        content, diff_id, layer, layout=layout, scratch=scratch, progress=progress
                    )
            await content.add_image(
                parsed,
                found.config,
                names,
                manifest=(found.exact.digest, found.manifest_bytes),
                blobs=tuple(Blob(layer.digest, layer.size, layer.media_type) for layer in layers),
            )
    except InvalidError:
        # One of the layers is not what it should be: it must be fetched anew.
        await content.in_thread(lambda _: content.disk.drop_kept(digests))
        await content.collect()
        raise
    except BaseException:
        await content.collect()
        raise
    await content.in_thread(lambda _: content.disk.drop_kept(digests))
    return parsed.id


async def _fetch(
    content: Content, registry: Registry, found: _Found, layout: Path, progress: ProgressSink
) -> None:
    """Fetch the blobs that are not here into a layout; those that are here are linked there."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    missing: list[Descriptor] = []
    for layer in {layer.digest: layer for layer in found.manifest.layers}.values():
        stored, kept = content.disk.blob(layer.digest), content.disk.kept_blob(layer.digest)
        if stored.exists():
            os.link(stored, blobs / stored.name)
            progress(Progress(status="Already exists", id=short_id(layer.digest)))
        elif kept.exists():
            os.link(kept, blobs / kept.name)
            progress(Progress(status="Download complete", id=short_id(layer.digest)))
        else:
            missing.append(layer)
            progress(Progress(status="Pulling fs layer", id=short_id(layer.digest)))
    if not missing:
        return
    watcher = asyncio.create_task(_watch_fetch(content.disk, blobs, layout, missing, progress))
    sizes = [found.manifest.config.size, *(layer.size for layer in found.manifest.layers)]
    try:
        await registry.fetch_blobs(found.exact, layout, bytes_max=max(sizes))
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        for layer in missing:
            _keep(content.disk, blobs, layer)
    for layer in missing:
        if not (blobs / layer.digest.removeprefix("sha256:")).exists():
            raise InvalidError(f"the registry did not send the layer {layer.digest}")


def _keep(disk: Disk, blobs: Path, layer: Descriptor) -> bool:
    """Keep a layer if it is complete: skopeo names it by the digest of what it has written."""
    path = blobs / layer.digest.removeprefix("sha256:")
    try:
        if path.stat().st_size != layer.size:
            return False
        disk.keep(layer.digest, path)
    except FileNotFoundError:
        return False
    return True


async def _watch_fetch(
    disk: Disk,
    blobs: Path,
    layout: Path,
    missing: Sequence[Descriptor],
    progress: ProgressSink,
) -> None:
    """Report which blobs are complete, and how far the only one left is."""
    left = {layer.digest.removeprefix("sha256:"): layer for layer in missing}
    while left:
        await asyncio.sleep(_POLL_SECONDS)
        for name in [name for name in left if _keep(disk, blobs, left[name])]:
            layer = left.pop(name)
            progress(Progress(status="Download complete", id=name[:12], total=layer.size))
        if len(left) == 1:
            # Which unfinished file is which layer cannot be told, unless there is one of each.
            ((name, layer),) = left.items()
            current = sum(part.stat().st_size for part in _unfinished(layout))
            progress(
                Progress(status="Downloading", id=name[:12], current=current, total=layer.size)
            )


def _unfinished(layout: Path) -> list[Path]:
    return [part for part in layout.glob("oci-put-blob*") if part.is_file()]


async def _unpack(
    content: Content,
    diff_id: str,
    layer: Descriptor,
    *,
    layout: Path,
    scratch: Path,
    progress: ProgressSink,
) -> None:
    fetched = layout / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
    label = short_id(layer.digest)
    if diff_id not in content.state.layers:
        report = Reporter(progress, "Extracting", label, layer.size)
        await content.ensure_layer(
            diff_id, fetched, scratch, blob_digest=layer.digest, report=report
        )
        progress(Progress(status="Pull complete", id=label))
    # The layer may have come from another blob than the one that this manifest names.
    await content.ensure_blob(diff_id, layer.digest, fetched)


# Push.


async def _with_manifest(
    content: Content, image_id: ImageID, scratch: Path, progress: ProgressSink
) -> ImageRecord:
    """Return the image's record with a manifest whose blobs are all here; make one if need be."""
    record = content.state.images[image_id]
    digests = [record.manifest, *(blob.digest for blob in record.blobs)]
    if record.manifest and all(content.disk.blob(digest).exists() for digest in digests):
        return record
    for diff_id in dict.fromkeys(record.diff_ids):
        await _compress(content, diff_id, scratch, progress)
    layers = [content.state.layers[diff_id] for diff_id in record.diff_ids]
    blobs = tuple(
        Blob(layer.blob, layer.blob_bytes, manifests.DOCKER_LAYER_GZIP) for layer in layers
    )
    data = manifests.docker_manifest(
        Descriptor(media_type=manifests.DOCKER_CONFIG, digest=image_id, size=record.config_bytes),
        [
            Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)
            for blob in blobs
        ],
    )
    manifest = digest_of(data)

    def change(state: State) -> State:
        present = state.images.get(image_id)
        if present is None:
            raise NotFoundError("image", image_id, f"No such image: {image_id}")
        changed = msgspec.structs.replace(present, manifest=manifest, blobs=blobs)
        return msgspec.structs.replace(state, images={**state.images, image_id: changed})

    await content.commit(change, documents={manifest: data})
    return content.state.images[image_id]


async def _compress(content: Content, diff_id: str, scratch: Path, progress: ProgressSink) -> None:
    """Replace a layer's plain blob by a compressed one; both would only fill the disk."""
    async with content.locked([f"layer {diff_id}"]):
        layer = content.state.layers[diff_id]
        if layer.is_gzip:
            return
        progress(Progress(status="Preparing", id=short_id(diff_id)))
        target = scratch / f"{short_id(diff_id)}.gz"
        source = content.disk.blob(layer.blob)
        digest = await content.in_thread(lambda stop: _gzipped(source, target, diff_id, stop))
        packed = msgspec.structs.replace(
            layer, blob=digest, blob_bytes=target.stat().st_size, is_gzip=True
        )
        async with content.pinned([digest]):
            await content.ensure_blob(diff_id, digest, target)
            await content.commit(lambda state: _with_layer(state, diff_id, packed))


def _with_layer(state: State, diff_id: str, layer: LayerRecord) -> State:
    return msgspec.structs.replace(state, layers={**state.layers, diff_id: layer})


def _gzipped(source: Path, target: Path, diff_id: str, stop: threading.Event) -> str:
    """Compress a blob and return the new one's digest."""
    with (
        source.open("rb") as file,
        decompressed(Watched(file, stop), f"the layer {diff_id}") as plain,
        target.open("xb") as out,
    ):
        reader = Hashing(plain)
        gzip_to(reader, out.write)
    if reader.digest != diff_id:
        raise CorruptError(
            str(source), 0, f"the layer has the digest {reader.digest}, not {diff_id}"
        )
    with target.open("rb") as file:
        packed = Hashing(Watched(file, stop))
        packed.drain()
    return packed.digest


def _laid_out(disk: Disk, image_id: ImageID, record: ImageRecord, scratch: Path) -> Path:
    """Lay an image out as skopeo reads it (`dir:`), in links."""
    source = scratch / "image"
    source.mkdir()
    (source / "version").write_text(_DIR_VERSION)
    for digest in {image_id, *(blob.digest for blob in record.blobs)}:
        stored = disk.blob(digest)
        os.link(stored, source / stored.name)
    os.link(disk.blob(record.manifest), source / "manifest.json")
    return source


def _push_progress(record: ImageRecord, progress: ProgressSink) -> Callable[[str], None]:
    """Turn skopeo's lines into progress."""
    blobs = {short_id(blob.digest): blob for blob in record.blobs}

    def on_line(line: str) -> None:
        match = _COPYING.search(line)
        blob = blobs.get(match[1]) if match is not None else None
        if blob is not None:
            progress(Progress(status="Pushing", id=short_id(blob.digest), total=blob.size))

    return on_line

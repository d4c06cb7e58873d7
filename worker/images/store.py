"""The image store: what the rest of the worker knows of images.

The store only changes on the event loop's thread and through `Content.commit`; whatever takes long
runs in threads or in skopeo. An image is visible if and only if all of it is on the disk.
"""

from __future__ import annotations

import asyncio
import platform as machines
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from proto.clock import Clock
from proto.errors import InvalidError
from proto.ids import ImageID
from worker.images import archive, references, registry, removal, saving
from worker.images import state as states
from worker.images.api import Deleted, Image, Progress, RegistryAuth
from worker.images.changes import apply_changes
from worker.images.compression import Hashing, decompressed
from worker.images.config import (
    Platform,
    RawConfig,
    chain_ids,
    digest_of,
    host_platform,
    image_with_rootfs,
    parse_config,
)
from worker.images.content import Content, ProgressSink, Reporter, recovered
from worker.images.disk import Disk
from worker.images.references import Reference
from worker.images.removal import Uses, no_such_image, short_id
from worker.images.state import LayerRecord, State
from worker.images.unpack import LayerUnpacker, Unpacked
from worker.images.work import Reader, StreamReader, Watched, in_thread

T = TypeVar("T")
Source = AsyncIterator[bytes] | Path

# How long layers of a pull that was interrupted wait for the next attempt.
KEPT_SECONDS = 24 * 3600.0


def _ignore(_: Progress) -> None:
    """Take progress that nobody asked for."""


class ImageStore:
    """All images of this node."""

    def __init__(self, content: Content, clock: Clock, host: Platform) -> None:
        """Serve `content`; use `open`."""
        self._content = content
        self._clock = clock
        self._host = host

    @classmethod
    async def open(cls, root: Path, clock: Clock, *, machine: str = "") -> Self:
        """Open the store in a directory, recovering from a crash at any point.

        Args:
            root: kept short by whoever chooses it: it stands in every layer's path, and overlayfs
                takes all paths of a mount in one page.
            clock: tells when images are made.
            machine: as `uname -m` has it; "" is this one.

        Raises:
            ConflictError: another process has the store open.
            CorruptError: the metadata cannot be read.
        """

        def prepare(stop: threading.Event) -> Content:
            disk = Disk(root)
            try:
                return recovered(disk, stop)
            except BaseException:
                disk.close()
                raise

        content = await in_thread(prepare, root)
        return cls(content, clock, host_platform(machine or machines.machine()))

    async def close(self) -> None:
        """Give the directory up. Nothing may be under way any more."""
        self._content.disk.close()

    @property
    def fault(self) -> str:
        """Why a removal is not on the disk yet, as a sentence; "" when all is."""
        return self._content.fault

    async def save_again(self) -> None:
        """Write what a full disk did not take, if it takes it now; does not raise for the disk."""
        await self._content.save_again()

    # Looking.

    def resolve(self, ref: str) -> Image:
        """Find an image by name, digest, ID or a unique beginning of its ID.

        Raises:
            NotFoundError: "No such image: …".
            InvalidError: `ref` can be none of these.
        """
        found = states.find_image(self._content.state, ref)
        if found is None:
            raise no_such_image(ref)
        return self._content.image(found[0])

    def images(self) -> list[Image]:
        """Return all images, the newest first."""
        visible = [
            image_id
            for image_id, record in self._content.state.images.items()
            if not record.is_hidden
        ]
        found = [self._content.image(image_id) for image_id in visible]
        return sorted(found, key=lambda image: (-image.created, image.id))

    def layer_bytes(self) -> dict[str, int]:
        """Map the digests of all layers to their sizes."""
        layers = self._content.state.layers
        return {diff_id: layer.size_bytes for diff_id, layer in layers.items()}

    # Bringing in and taking out.

    async def load(self, stream: Source, *, progress: ProgressSink = _ignore) -> list[str]:
        """Load the images of an archive (docker-archive or OCI layout, compressed or not).

        Returns:
            the names that now lead to them, and the IDs of those without a name.

        Raises:
            InvalidError: the archive is damaged, truncated or holds no image. Images before the
                damaged one stay loaded.
            ResourceExhaustedError: the disk is full.
        """
        loaded: list[str] = []
        async with self._content.scratch() as scratch:
            contents = await self._consume(
                stream, lambda reader, _: archive.take_apart(reader, scratch)
            )
            images = await self._content.in_thread(
                lambda _: archive.images_of(contents, self._host)
            )
            for image in images:
                await self._add(image, scratch, progress)
                loaded += [name.familiar for name in image.names] or [image.parsed.id]
        return loaded

    async def import_rootfs(
        self,
        stream: Source,
        ref: str = "",
        *,
        changes: Sequence[str] = (),
        message: str = "",
        platform: Platform | None = None,
        progress: ProgressSink = _ignore,
    ) -> Image:
        """Make an image of one layer from a tar archive of a file system, compressed or not.

        Args:
            stream: the archive.
            ref: a name for the image, or "".
            changes: Dockerfile instructions that say how to run it.
            message: for the image's history.
            platform: that the file system is for; None is this machine's.
            progress: gets what is under way.

        Raises:
            InvalidError: the archive is damaged, truncated or refused, or an instruction is wrong.
            ResourceExhaustedError: the disk is full.
        """
        name = references.parse_tagged(ref) if ref else None
        if name is not None and name.digest:
            raise InvalidError("cannot import digest reference")
        config = apply_changes(changes)
        content = self._content
        async with content.scratch() as scratch:
            blob, directory = scratch / "layer.tar", scratch / "layer"
            unpacked = await self._consume(
                stream, lambda reader, _: _unpack_plain(reader, blob, directory)
            )
            diff_id = unpacked.diff_id
            try:
                async with content.pinned([diff_id, unpacked.blob_digest]):
                    async with content.locked([f"layer {diff_id}"]):
                        if diff_id not in content.state.layers:
                            await content.install_layer(unpacked, directory, blob)
                    image_id = await self._describe(diff_id, config, name, message, platform)
            except BaseException:
                await content.collect()
                raise
        progress(Progress(status=image_id))
        return content.image(image_id)

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield an archive of images that Docker, skopeo and `load` take.

        A name without a tag stands for all tags of its repository, an ID for no name at all.

        Raises:
            NotFoundError: at the call, before anything is yielded.
            CorruptError: while yielding, if a stored layer is damaged.
        """
        saved: dict[ImageID, list[Reference]] = {}
        for ref in refs:
            for image_id, name in self._to_save(ref):
                names = saved.setdefault(image_id, [])
                if name is not None and name not in names:
                    names.append(name)
        state = self._content.state
        return self._saved(
            [
                saving.Saved(
                    id=image_id,
                    config_bytes=state.images[image_id].config_bytes,
                    layers=self._layers(image_id),
                    names=tuple(names),
                )
                for image_id, names in saved.items()
            ]
        )

    async def pull(
        self,
        ref: str,
        *,
        auth: RegistryAuth | None = None,
        platform: str = "",
        progress: ProgressSink = _ignore,
    ) -> Image:
        """Fetch an image from its registry; layers that are here already are not fetched.

        Raises:
            NotFoundError: the registry has no such image, or none for the platform.
            DeniedError: the registry wants other credentials.
            UnavailableError: the registry cannot be reached.
            InvalidError: `ref` is not a reference, or what was sent is damaged.
        """
        reference = references.parse_tagged(ref)
        oldest = self._clock.wall() - KEPT_SECONDS
        await self._content.in_thread(lambda _: self._content.disk.drop_all_kept(older_than=oldest))
        return await registry.pull(
            self._content,
            reference,
            auth=auth,
            platform=platform,
            host=self._host,
            progress=progress,
        )

    async def push(
        self, ref: str, *, auth: RegistryAuth | None = None, progress: ProgressSink = _ignore
    ) -> str:
        """Send the image with this tag to its registry; return the digest of its manifest.

        Raises:
            NotFoundError: no image here has this tag.
            DeniedError: the registry wants other credentials.
            UnavailableError: the registry cannot be reached.
        """
        reference = references.parse_tagged(ref)
        return await registry.push(self._content, reference, auth=auth, progress=progress)

    # Names and removal.

    async def tag(self, source: str, target: str) -> None:
        """Give an image another name, which leads to it alone from now on.

        Raises:
            NotFoundError: there is no image `source`.
            InvalidError: `target` is not a name.
        """
        name = references.parse_tagged(target)
        if name.digest:
            raise InvalidError("refusing to create a tag with a digest reference")

        def change(state: State) -> State:
            found = states.find_image(state, source)
            if found is None:
                raise no_such_image(source)
            return states.with_name(state, name, found[0])

        await self._content.commit(change)

    async def remove(
        self, ref: str, *, force: bool = False, prune: bool = True, in_use: Uses = ()
    ) -> list[Deleted]:
        """Take away a name, and the image with its last one; by ID the image with all its names.

        Args:
            ref: a name or an ID; which of the two matters.
            force: take an image away although several names lead to it or stopped containers have
                it (these keep its layers).
            prune: has no effect: it would be for unnamed parents, and images here have none.
            in_use: the images that containers have; a mapping tells by which container.

        Raises:
            NotFoundError: "No such image: …".
            ConflictError: Docker's rules forbid it.
        """
        del prune

        def decide(state: State) -> removal.Removal:
            return removal.remove(state, ref, force=force, in_use=in_use)

        deleted, _ = await self._remove(decide, in_use)
        return deleted

    async def prune(
        self,
        *,
        all: bool = False,  # noqa: A002 -- the option's name
        in_use: Uses = (),
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> tuple[list[Deleted], int]:
        """Remove images that no container has: those without a tag, or `all` of them.

        Args:
            all: also those that have tags.
            in_use: the images that containers have.
            filters: `until`, `label` and `label!` as the Engine API has them.

        Returns:
            what was removed, and how many bytes that freed.
        """
        parsed = self._content.parsed
        limits = removal.parse_filters(filters or {}, self._clock.wall())

        def decide(state: State) -> removal.Removal:
            tagged = set(state.tags.values())
            candidates = [
                image_id
                for image_id, record in state.images.items()
                if not record.is_hidden
                and (all or image_id not in tagged)
                and limits.takes(parsed[image_id].created, parsed[image_id].config)
            ]
            return removal.prune(state, sorted(candidates), in_use)

        kept_bytes = await self._content.in_thread(lambda _: self._content.disk.drop_all_kept())
        deleted, freed = await self._remove(decide, in_use)
        return deleted, freed + kept_bytes

    @property
    def has_hidden(self) -> bool:
        """Whether images that were removed by force are kept for containers that have them."""
        return any(record.is_hidden for record in self._content.state.images.values())

    async def release(self, in_use: Uses) -> None:
        """Free the layers of images that were removed by force, once no container has them.

        To be called after containers were removed; `remove` and `prune` do the same on their way.
        """
        await self._content.commit(lambda state: states.without_hidden(state, in_use))

    async def _remove(
        self, decide: Callable[[State], removal.Removal], in_use: Uses
    ) -> tuple[list[Deleted], int]:
        done: list[removal.Removal] = []
        chains: list[str] = []

        def change(state: State) -> State:
            decided = decide(state)
            after = states.without_hidden(decided.state, in_use)
            done.append(decided)
            chains.extend(_chains_gone(state, after))
            return after

        garbage = await self._content.commit(change)
        freed = sum(layer.size_bytes + layer.blob_bytes for layer in garbage.layers)
        (decided,) = done
        return [*decided.deleted, *(Deleted(deleted=chain) for chain in chains)], freed

    # Parts.

    async def _consume(self, source: Source, function: Callable[[Reader, threading.Event], T]) -> T:
        """Run `function` in a thread on a reader of a stream or file."""
        loop = asyncio.get_running_loop()

        def run(stop: threading.Event) -> T:
            if isinstance(source, Path):
                with source.open("rb") as file:
                    return function(Watched(file, stop), stop)
            return function(Watched(StreamReader(source, loop, stop), stop), stop)

        return await self._content.in_thread(run)

    async def _add(self, image: archive.Loadable, scratch: Path, progress: ProgressSink) -> None:
        """Make an image of an archive part of the store."""
        content, parsed = self._content, image.parsed
        pins = [parsed.id, *parsed.diff_ids, *(blob.digest for blob in image.blobs)]
        try:
            async with content.pinned(pins):
                for diff_id, file in zip(parsed.diff_ids, image.layers, strict=True):
                    if diff_id not in content.state.layers:
                        report = Reporter(progress, "Loading layer", short_id(diff_id), file.size)
                        await content.ensure_layer(
                            diff_id, file.path, scratch, blob_digest=file.digest, report=report
                        )
                    if image.manifest:
                        await content.ensure_blob(diff_id, file.digest, file.path)
                manifest = _with_digest(image.manifest) if image.manifest else None
                await content.add_image(
                    parsed, image.config, image.names, manifest=manifest, blobs=image.blobs
                )
        except BaseException:
            await content.collect()
            raise

    async def _describe(
        self,
        diff_id: str,
        config: RawConfig,
        name: Reference | None,
        message: str,
        platform: Platform | None,
    ) -> ImageID:
        """Make an image of a layer that is there and pinned."""
        data = image_with_rootfs(
            diff_id=diff_id,
            config=config,
            platform=platform or self._host,
            now=self._clock.wall(),
            message=message,
        )
        parsed = parse_config(data, "the imported image")
        async with self._content.pinned([parsed.id]):
            await self._content.add_image(parsed, data, [name] if name else [])
        return parsed.id

    def _to_save(self, ref: str) -> list[tuple[ImageID, Reference | None]]:
        state = self._content.state
        found = states.find_image(state, ref)
        named = _name_only(ref)
        if named is not None and (found is None or found[1] is not None):
            tags = [(references.parse(full), image_id) for full, image_id in state.tags.items()]
            of_repository = sorted(
                (name, image_id) for name, image_id in tags if name.name == named.name
            )
            if of_repository:
                return [(image_id, name) for name, image_id in of_repository]
        if found is None:
            raise no_such_image(ref)
        image_id, name = found
        return [(image_id, name if name is not None and name.tag else None)]

    async def _saved(self, images: Sequence[saving.Saved]) -> AsyncIterator[bytes]:
        content = self._content
        pins: list[str] = [image.id for image in images]
        for image in images:
            for diff_id, layer in image.layers:
                pins += [diff_id, layer.blob]
        async with content.pinned(pins):
            for image_id in pins[: len(images)]:
                if image_id not in content.state.images:
                    raise no_such_image(image_id)
            stop = threading.Event()
            chunks = saving.archive(content.disk, images, stop)
            try:
                while chunk := await content.in_thread(lambda _: next(chunks, b"")):
                    yield chunk
            finally:
                stop.set()
                chunks.close()

    def _layers(self, image_id: ImageID) -> tuple[tuple[str, LayerRecord], ...]:
        state = self._content.state
        return tuple(
            (diff_id, state.layers[diff_id]) for diff_id in state.images[image_id].diff_ids
        )


def _name_only(ref: str) -> Reference | None:
    try:
        reference = references.parse(ref)
    except InvalidError:
        # An ID; whether it is one of ours has been looked up.
        return None
    return reference if reference.is_name_only else None


def _with_digest(data: bytes) -> tuple[str, bytes]:
    return digest_of(data), data


def _chains_gone(before: State, after: State) -> list[str]:
    """Name the stacks of layers that no image has any more, the topmost first."""
    kept = {chain for record in after.images.values() for chain in chain_ids(record.diff_ids)}
    gone: dict[str, None] = {}
    for image_id, record in before.images.items():
        if image_id not in after.images:
            gone |= dict.fromkeys(reversed(chain_ids(record.diff_ids)))
    return [chain for chain in gone if chain not in kept]


def _unpack_plain(reader: Reader, blob: Path, directory: Path) -> Unpacked:
    """Unpack a tar stream and keep its plain form as the layer's blob."""
    what = "the archive"
    directory.mkdir()
    with decompressed(reader, what) as plain, blob.open("xb") as file:
        inner = Hashing(_Tee(plain, file.write))
        with LayerUnpacker(directory, what) as unpacker:
            size_bytes = unpacker.unpack(inner, is_end_optional=False)
        inner.drain()
    return Unpacked(
        blob_digest=inner.digest,
        diff_id=inner.digest,
        tar_bytes=inner.count,
        size_bytes=size_bytes,
    )


class _Tee:
    """A reader that keeps what passes."""

    def __init__(self, source: Reader, write: Callable[[bytes], object]) -> None:
        self._source = source
        self._write = write

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._write(data)
        return data

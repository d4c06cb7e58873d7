"""Layers, blobs and metadata together: the one place where the store changes.

Everything that changes goes through `commit`, one change at a time, and is on the disk before
anybody sees it. A removal is the exception where the disk is full: the files go first, and the
metadata is written when there is room for it. A crash between the two is mended at the next
opening, which drops images whose files are gone.

Whoever works towards a change *pins* the layers and blobs that it will need, so that a removal
meanwhile leaves them; and *locks* each layer that it makes, so that two who need the same one make
it once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec
import structlog

from proto.errors import InvalidError, NotFoundError, ResourceExhaustedError, SwarmError, reason_of
from proto.ids import ImageID
from worker.images import state as states
from worker.images.api import Image, Progress
from worker.images.compression import is_gzip
from worker.images.config import Parsed, parse_config
from worker.images.disk import Disk
from worker.images.references import Reference, parse
from worker.images.state import Garbage, ImageRecord, LayerRecord, State
from worker.images.unpack import Unpacked, check_blob, unpack_blob
from worker.images.work import in_thread, sentence_of, to_the_end

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

T = TypeVar("T")
ProgressSink = Callable[[Progress], None]
_REPORT_STEPS = 50
_REPORT_BYTES_MIN = 512 * 1024


class Content:
    """The store's contents.

    Attributes:
        fault: why the newest metadata is not on the disk, as a sentence; "" when it is.
    """

    def __init__(
        self, disk: Disk, state: State, parsed: dict[ImageID, Parsed], *, fault: str = ""
    ) -> None:
        """Take over what `recovered` has found."""
        self.fault = fault
        self.disk = disk
        self.state = state
        self.parsed = parsed
        self._mutex = asyncio.Lock()
        self._pins: Counter[str] = Counter()
        # Blobs that the state may not name: taken for an image to come, or pinned when it went.
        self._loose: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def in_thread(self, function: Callable[[threading.Event], T]) -> T:
        """Run blocking work; its errors name this store's directory."""
        return await in_thread(function, self.disk.root)

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """Give a private directory that is gone afterwards, whatever happens."""
        try:
            path = self.disk.new_scratch()
        except OSError as error:
            raise sentence_of(error, self.disk.root) from error
        try:
            yield path
        finally:
            await self.in_thread(lambda _: self.disk.clear([path]))

    @asynccontextmanager
    async def pinned(self, digests: Iterable[str]) -> AsyncIterator[None]:
        """Keep layers and blobs, there already or to come, from being collected.

        Inside, what the state and the disk have of them is certain: a change that was under way
        when they were pinned, and may remove them, is waited for first.
        """
        keys = list(digests)
        self._pins.update(keys)
        try:
            async with self._mutex:
                pass
            yield
        finally:
            self._pins.subtract(keys)
            for key in keys:
                if self._pins[key] <= 0:
                    del self._pins[key]

    @asynccontextmanager
    async def locked(self, keys: Iterable[str]) -> AsyncIterator[None]:
        """Hold named locks. Always in one order, so that no two wait for each other."""
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                lock = self._locks.get(key)
                if lock is None:
                    lock = self._locks[key] = asyncio.Lock()
                await stack.enter_async_context(lock)
            yield

    async def commit(
        self,
        change: Callable[[State], State],
        *,
        documents: Mapping[str, bytes] | None = None,
        parsed: Parsed | None = None,
    ) -> Garbage:
        """Change the metadata, on the disk first, and remove what is not needed afterwards.

        Args:
            change: gets the present state; may raise, and then nothing happens.
            documents: small blobs that the new state needs, by digest.
            parsed: of an image that is new.

        Returns:
            the layers that were collected.
        """
        return await to_the_end(self._commit(change, documents or {}, parsed))

    async def _commit(
        self,
        change: Callable[[State], State],
        documents: Mapping[str, bytes],
        parsed: Parsed | None,
    ) -> Garbage:
        async with self._mutex:
            before = self.state
            changed = change(before)
            after, garbage = states.collected(changed, self._pins)
            needed = states.needed_blobs(after)
            candidates = (states.needed_blobs(before) | self._loose) - needed
            dead = candidates - self._pins.keys()
            # Layers of no image may stand in the file: a full disk does not keep them from going.
            if changed is not before or documents:
                await self._store(before, after, documents)
            self.state = after
            self._loose = candidates - dead
            if parsed is not None:
                self.parsed[parsed.id] = parsed
            for image_id in before.images.keys() - after.images.keys():
                del self.parsed[image_id]
            paths = [self.disk.layer(layer.directory) for layer in garbage.layers]
            paths += [self.disk.blob(digest) for digest in dead]
            aside = await self.in_thread(lambda _: self.disk.set_aside(paths)) if paths else []
        # Removing large trees takes seconds: nobody need wait for that.
        if aside:
            await self.in_thread(lambda _: self.disk.clear(aside))
        await self.save_again()
        return garbage

    async def _store(self, before: State, after: State, documents: Mapping[str, bytes]) -> None:
        """Write the metadata; what only takes away may be written later."""

        def write(_: threading.Event) -> None:
            for digest, data in documents.items():
                self.disk.write_blob(digest, data)
            self.disk.store(after)

        try:
            await self.in_thread(write)
        except ResourceExhaustedError as error:
            if documents or not states.is_reduction(before, after):
                raise
            self.fault = error.message
            log.warning("image_metadata_not_written", error=error.message)
        else:
            self.fault = ""

    async def save_again(self) -> None:
        """Write the metadata that could not be written, if there is room now."""
        if not self.fault:
            return
        async with self._mutex:
            state = self.state
            try:
                await self.in_thread(lambda _: self.disk.store(state))
            except SwarmError as error:
                self.fault = error.message
            else:
                self.fault = ""
                log.info("image_metadata_written_again")

    async def collect(self) -> None:
        """Remove what an attempt that failed has left: layers of no image."""
        await self.commit(lambda state: state)

    async def ensure_layer(
        self,
        diff_id: str,
        blob: Path,
        scratch: Path,
        *,
        blob_digest: str,
        report: Callable[[int], None] | None = None,
    ) -> None:
        """Unpack a layer, unless it is there; its blob is taken into the store.

        The caller has pinned the diff ID.

        Raises:
            InvalidError: the layer is damaged, refused, or not the one that it should be.
        """
        assert self._pins[diff_id] > 0, "a layer that is not pinned may be collected at once"
        async with self.locked([f"layer {diff_id}"]):
            if diff_id in self.state.layers:
                return
            target = scratch / f"unpacked-{diff_id.removeprefix('sha256:')}"

            def unpack(stop: threading.Event) -> Unpacked:
                target.mkdir()
                return unpack_blob(blob, target, f"the layer {diff_id}", stop, report)

            unpacked = await self.in_thread(unpack)
            check_digests(unpacked, diff_id, blob_digest)
            await self.install_layer(unpacked, target, blob)

    async def install_layer(self, unpacked: Unpacked, directory: Path, blob: Path) -> None:
        """Take an unpacked layer and its blob, both finished, into the store.

        The caller holds the layer's lock and has pinned it.
        """
        await to_the_end(self._install_layer(unpacked, directory, blob))

    async def _install_layer(self, unpacked: Unpacked, directory: Path, blob: Path) -> None:
        async with self._mutex:
            taken = {layer.directory for layer in self.state.layers.values()}
            record = LayerRecord(
                directory=states.directory_name(unpacked.diff_id, taken),
                blob=unpacked.blob_digest,
                blob_bytes=blob.stat().st_size,
                is_gzip=is_gzip(blob),
                tar_bytes=unpacked.tar_bytes,
                size_bytes=unpacked.size_bytes,
            )

            def move(_: threading.Event) -> None:
                self.disk.take_blob(unpacked.blob_digest, blob)
                self.disk.take_layer(record.directory, directory)

            self._loose.add(unpacked.blob_digest)
            await self.in_thread(move)
            # Nobody needs it yet, so it need not be on the disk: the image's commit sees to that.
            layers = {**self.state.layers, unpacked.diff_id: record}
            self.state = msgspec.structs.replace(self.state, layers=layers)

    async def ensure_blob(self, diff_id: str, digest: str, file: Path) -> None:
        """Take another blob of a layer that is there; the caller has pinned both digests.

        Raises:
            InvalidError: the blob is not of this layer.
        """
        if self.disk.blob(digest).exists():
            return
        what = f"the layer {diff_id}"
        checked = await self.in_thread(lambda stop: check_blob(file, what, stop))
        check_digests(checked, diff_id, digest)
        self._loose.add(digest)
        await self.in_thread(lambda _: self.disk.take_blob(digest, file))

    async def add_image(
        self,
        parsed: Parsed,
        config: bytes,
        names: Iterable[Reference],
        *,
        manifest: tuple[str, bytes] | None = None,
        blobs: tuple[states.Blob, ...] = (),
    ) -> None:
        """Make an image visible, all of whose layers are there and pinned."""
        record = ImageRecord(
            diff_ids=parsed.diff_ids,
            config_bytes=len(config),
            manifest=manifest[0] if manifest else "",
            blobs=blobs,
        )
        await self.in_thread(lambda _: self.disk.sync())
        await self.commit(
            lambda state: states.with_image(state, parsed.id, record, names),
            documents={parsed.id: config, **(dict([manifest]) if manifest else {})},
            parsed=parsed,
        )

    def image(self, image_id: ImageID) -> Image:
        """Put an image together as callers see it.

        Raises:
            NotFoundError: it is gone; after a change of ours somebody may have removed it since.
        """
        if image_id not in self.state.images:
            raise NotFoundError("image", image_id, f"image {image_id} was removed meanwhile")
        parsed, record = self.parsed[image_id], self.state.images[image_id]
        layers = [self.state.layers[diff_id] for diff_id in record.diff_ids]
        names = [parse(name) for name in states.names_of(self.state, image_id)]
        sizes = iter(layer.size_bytes for layer in layers)
        return Image(
            id=image_id,
            repo_tags=tuple(sorted(name.familiar for name in names if not name.digest)),
            repo_digests=tuple(sorted(name.familiar for name in names if name.digest)),
            config=parsed.config,
            architecture=parsed.platform.architecture,
            os=parsed.platform.os,
            variant=parsed.platform.variant,
            author=parsed.author,
            comment=parsed.comment,
            created=parsed.created,
            diff_ids=record.diff_ids,
            layer_dirs=tuple(
                str(self.disk.layer(self.state.layers[diff_id].directory))
                for diff_id in states.overlay_order(record.diff_ids)
            ),
            size_bytes=sum(layer.size_bytes for layer in layers),
            history=tuple(
                entry
                if entry.empty_layer
                else msgspec.structs.replace(entry, size_bytes=next(sizes, 0))
                for entry in parsed.history
            ),
        )


class Reporter:
    """Carries progress from a thread to the event loop, not more often than anybody can see."""

    def __init__(self, sink: ProgressSink, status: str, label: str, total: int) -> None:
        """Report to `sink`, on the running loop, as `status` of the thing `label`."""
        self._sink = sink
        self._status = status
        self._label = label
        self._total = total
        self._next = 0
        self._loop = asyncio.get_running_loop()

    def __call__(self, count: int) -> None:
        """Say how far the thread is."""
        if count < self._next:
            return
        self._next = count + max(self._total // _REPORT_STEPS, _REPORT_BYTES_MIN)
        message = Progress(status=self._status, id=self._label, current=count, total=self._total)
        self._loop.call_soon_threadsafe(self._sink, message)


def check_digests(unpacked: Unpacked, diff_id: str, blob_digest: str) -> None:
    """Compare what was read with what was promised.

    Raises:
        InvalidError: they differ.
    """
    if unpacked.blob_digest != blob_digest:
        raise InvalidError(
            f"the blob {blob_digest} is damaged: its contents have the digest "
            f"{unpacked.blob_digest}"
        )
    if unpacked.diff_id != diff_id:
        raise InvalidError(
            f"the layer {diff_id} is damaged or not this image's: its contents have the digest "
            f"{unpacked.diff_id}"
        )


def recovered(disk: Disk, stop: threading.Event) -> Content:
    """Read the metadata, mend what can be mended and remove what is left over. Blocks.

    A layer without its directory is unpacked again; an image whose parts are lost is dropped (it
    can be pulled again), with a warning, rather than keep the whole node from starting.
    """
    loaded = disk.load()
    stored, garbage = states.collected(loaded, ())
    layers = {
        diff_id: layer
        for diff_id, layer in stored.layers.items()
        if disk.layer(layer.directory).is_dir() or _unpacked_again(disk, diff_id, layer, stop)
    }
    parsed: dict[ImageID, Parsed] = {}
    lost: list[ImageID] = []
    images: dict[ImageID, ImageRecord] = {}
    for image_id, record in stored.images.items():
        config = _sound_config(disk, image_id)
        if config is None or not set(record.diff_ids) <= layers.keys():
            part = "configuration" if config is None else "layers"
            log.warning("image_dropped_damaged", image_id=image_id, error=f"its {part} are lost")
            lost.append(image_id)
            continue
        parsed[image_id] = config
        has_manifest = not record.manifest or disk.blob(record.manifest).exists()
        images[image_id] = (
            record if has_manifest else msgspec.structs.replace(record, manifest="", blobs=())
        )
    state = msgspec.structs.replace(
        stored,
        images=images,
        layers=layers,
        tags={name: image for name, image in stored.tags.items() if image not in lost},
        digests={name: image for name, image in stored.digests.items() if image not in lost},
    )
    state, dropped = states.collected(state, ())
    fault = _stored(disk, state) if state != loaded else ""
    removed = disk.sweep(state)
    if removed or garbage.layers or dropped.layers:
        log.info("image_leftovers_removed", count=len(removed))
    return Content(disk, state, parsed, fault=fault)


def _stored(disk: Disk, state: State) -> str:
    """Write the metadata; return why not, if the disk is full: it must be possible to prune it."""
    try:
        disk.sync()
        disk.store(state)
    except OSError as error:
        sentence = sentence_of(error, disk.root)
        if not isinstance(sentence, ResourceExhaustedError):
            raise
        log.warning("image_metadata_not_written", error=sentence.message)
        return sentence.message
    return ""


def _unpacked_again(disk: Disk, diff_id: str, layer: LayerRecord, stop: threading.Event) -> bool:
    blob = disk.blob(layer.blob)
    if not blob.exists():
        return False
    try:
        scratch = disk.new_scratch()
    except OSError as error:
        log.warning("layer_not_mended", diff_id=diff_id, error=reason_of(error))
        return False
    try:
        unpacked = unpack_blob(blob, scratch, f"the layer {diff_id}", stop)
        check_digests(unpacked, diff_id, layer.blob)
        disk.take_layer(layer.directory, scratch)
    except SwarmError as error:
        log.warning("layer_not_mended", diff_id=diff_id, error=error.message)
        disk.clear([scratch])
        return False
    log.info("layer_unpacked_again", diff_id=diff_id)
    return True


def _sound_config(disk: Disk, image_id: ImageID) -> Parsed | None:
    try:
        parsed = parse_config(disk.blob(image_id).read_bytes(), image_id)
    except (FileNotFoundError, InvalidError) as error:
        log.warning("image_config_unreadable", image_id=image_id, error=reason_of(error))
        return None
    return parsed if parsed.id == image_id else None

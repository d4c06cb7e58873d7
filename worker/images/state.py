"""What the store knows: which images there are, by which names, and which layers.

Pure. `State` is the whole of the metadata, written as one file and replaced at once, so that no
crash can leave parts that disagree. Nothing is counted: what is in use follows from the images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from proto.errors import InvalidError
from proto.ids import ImageID
from worker.images import references

VERSION = 1
_DIRECTORY_NAME_LENGTH = 12


class Blob(msgspec.Struct, frozen=True):
    """A blob that a manifest names."""

    digest: str
    size: int
    media_type: str = ""


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An unpacked layer.

    Attributes:
        directory: its name below `l/`.
        blob: digest of the blob that it was unpacked from, or that stands for it now.
        blob_bytes: length of that blob.
        is_gzip: whether that blob can go to any registry as it is.
        tar_bytes: length of the plain tar archive.
        size_bytes: of its regular files.
    """

    directory: str
    blob: str
    blob_bytes: int
    is_gzip: bool
    tar_bytes: int
    size_bytes: int


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An image.

    Attributes:
        diff_ids: its layers, lowest first.
        config_bytes: length of the configuration.
        manifest: digest of the manifest that it came or went with, or "".
        blobs: the layers' blobs that this manifest names.
        is_hidden: it was removed by force while a container had it; only its layers are kept,
            until no container has them.
    """

    diff_ids: tuple[str, ...]
    config_bytes: int
    manifest: str = ""
    blobs: tuple[Blob, ...] = ()
    is_hidden: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All metadata.

    Attributes:
        tags: full references with a tag, to images.
        digests: full references with a digest (`repository@manifest`), to images.
        images: by ID.
        layers: by diff ID.
    """

    version: int = VERSION
    tags: dict[str, ImageID] = {}
    digests: dict[str, ImageID] = {}
    images: dict[ImageID, ImageRecord] = {}
    layers: dict[str, LayerRecord] = {}

    def check(self) -> None:
        """Assert that every name leads to a visible image and every image has its layers."""
        for image_id in (*self.tags.values(), *self.digests.values()):
            assert image_id in self.images, f"a name leads to {image_id}, which is not there"
            assert not self.images[image_id].is_hidden, f"a name leads to the hidden {image_id}"
        for record in self.images.values():
            for diff_id in record.diff_ids:
                assert diff_id in self.layers, f"an image needs {diff_id}, which is not there"
        directories = [layer.directory for layer in self.layers.values()]
        assert len(set(directories)) == len(directories), "two layers share a directory"


def is_reduction(before: State, after: State) -> bool:
    """Tell whether a change only takes away: it needs no room, and makes some."""
    return (
        after.tags.items() <= before.tags.items()
        and after.digests.items() <= before.digests.items()
        and after.images.keys() <= before.images.keys()
        and after.layers.keys() <= before.layers.keys()
    )


class Garbage(msgspec.Struct, frozen=True, kw_only=True):
    """What no image needs any more; the state no longer has it, the disk still does."""

    layers: tuple[LayerRecord, ...] = ()
    diff_ids: tuple[str, ...] = ()


def with_image(
    state: State,
    image_id: ImageID,
    record: ImageRecord,
    names: Iterable[references.Reference] = (),
) -> State:
    """Add an image and the names that lead to it from now on; known manifests are kept."""
    present = state.images.get(image_id)
    if present is not None and not record.manifest:
        record = msgspec.structs.replace(record, manifest=present.manifest, blobs=present.blobs)
    result = msgspec.structs.replace(state, images={**state.images, image_id: record})
    for name in names:
        result = with_name(result, name, image_id)
    return result


def with_name(state: State, name: references.Reference, image_id: ImageID) -> State:
    """Let a name lead to an image, away from the one that it led to."""
    assert not name.is_name_only, "a name needs a tag or a digest"
    if name.digest:
        key = name.with_digest(name.digest).full()
        return msgspec.structs.replace(state, digests={**state.digests, key: image_id})
    return msgspec.structs.replace(state, tags={**state.tags, name.full(): image_id})


def without_names(state: State, names: Collection[str]) -> State:
    """Take full references out of both tables."""
    return msgspec.structs.replace(
        state,
        tags={name: image for name, image in state.tags.items() if name not in names},
        digests={name: image for name, image in state.digests.items() if name not in names},
    )


def without_image(state: State, image_id: ImageID, *, keep_layers: bool) -> State:
    """Remove an image with all its names; or hide it, if its layers are still mounted."""
    names = names_of(state, image_id)
    images = dict(state.images)
    record = images.pop(image_id)
    if keep_layers:
        images[image_id] = msgspec.structs.replace(record, is_hidden=True)
    return msgspec.structs.replace(without_names(state, names), images=images)


def without_hidden(state: State, in_use: Collection[ImageID]) -> State:
    """Forget the hidden images that no container has any more; the same state if there is none."""
    if all(not record.is_hidden or image_id in in_use for image_id, record in state.images.items()):
        return state
    return msgspec.structs.replace(
        state,
        images={
            image_id: record
            for image_id, record in state.images.items()
            if not record.is_hidden or image_id in in_use
        },
    )


def names_of(state: State, image_id: ImageID) -> list[str]:
    """Return the full references to an image, tags first, each kind sorted."""
    return [
        *sorted(name for name, image in state.tags.items() if image == image_id),
        *sorted(name for name, image in state.digests.items() if image == image_id),
    ]


def collected(state: State, pinned: Collection[str]) -> tuple[State, Garbage]:
    """Take out the layers that no image has, but for those that work in progress has pinned."""
    needed = {diff_id for record in state.images.values() for diff_id in record.diff_ids}
    dead = [diff_id for diff_id in state.layers if diff_id not in needed and diff_id not in pinned]
    if not dead:
        return state, Garbage()
    layers = {diff: layer for diff, layer in state.layers.items() if diff not in dead}
    garbage = Garbage(layers=tuple(state.layers[diff_id] for diff_id in dead), diff_ids=tuple(dead))
    return msgspec.structs.replace(state, layers=layers), garbage


def needed_blobs(state: State) -> set[str]:
    """Return the digests of all blobs that the state names."""
    blobs = {layer.blob for layer in state.layers.values()}
    for image_id, record in state.images.items():
        blobs.add(image_id)
        if record.manifest:
            blobs.add(record.manifest)
            blobs.update(blob.digest for blob in record.blobs)
    return blobs


def directory_name(diff_id: str, taken: Collection[str]) -> str:
    """Name a layer's directory: short, since overlayfs takes all paths in one page of 4096 bytes.

    Returns:
        the first 12 hex digits; more if another layer has these already.
    """
    digits = diff_id.partition(":")[2]
    for length in range(_DIRECTORY_NAME_LENGTH, len(digits) + 1):
        if digits[:length] not in taken:
            return digits[:length]
    raise AssertionError(f"the layer {diff_id} has a directory already")


def overlay_order(diff_ids: tuple[str, ...]) -> list[str]:
    """Return an image's layers as overlayfs takes them: none twice, the topmost one kept.

    Overlayfs refuses a directory that comes twice. Leaving out the lower one changes nothing:
    each path that the layer decides is decided by the upper one.
    """
    return list(reversed(dict.fromkeys(reversed(diff_ids))))


def decode(data: bytes) -> State:
    """Read the stored form.

    Raises:
        InvalidError: it is damaged or of a newer version; the caller knows the file's name.
    """
    try:
        state = msgspec.json.decode(data, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidError(str(error)) from error
    if state.version != VERSION:
        raise InvalidError(
            f"its version is {state.version}, this program reads {VERSION}; use a newer one"
        )
    return state


def encode(state: State) -> bytes:
    """Write the stored form."""
    return msgspec.json.encode(state)


def find_image(state: State, text: str) -> tuple[ImageID, references.Reference | None] | None:
    """Find what a person names: an ID, a reference or a unique beginning of an ID.

    Returns:
        the image, and the stored name that led to it (None if an ID did); None if there is none.

    Raises:
        InvalidError: `text` can be none of these.
    """
    visible = {key for key, record in state.images.items() if not record.is_hidden}
    if references.is_digest(text) or references.is_hex_id(text):
        image_id = ImageID(text if ":" in text else f"sha256:{text}")
        return (image_id, None) if image_id in visible else None
    try:
        reference = references.parse_tagged(text)
    except InvalidError:
        found = _by_prefix(visible, text)
        if found is None:
            raise
        return found, None
    if reference.digest:
        # The digest says all; a tag beside it is what it once was called.
        reference = reference.with_digest(reference.digest)
        named = state.digests.get(reference.full())
    else:
        named = state.tags.get(reference.full())
    if named is not None:
        return named, reference
    found = _by_prefix(visible, text)
    return (found, None) if found is not None else None


def _by_prefix(images: Collection[ImageID], text: str) -> ImageID | None:
    prefix = text if text.startswith("sha256:") else f"sha256:{text}"
    if prefix == "sha256:":
        return None
    matches = [image_id for image_id in images if image_id.startswith(prefix)]
    return matches[0] if len(matches) == 1 else None

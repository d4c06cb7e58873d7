"""Which removals are allowed, and what they take away: Docker's rules. Pure.

A name is untagged; the image goes with its last name. By ID an image goes only if all its names
are of one repository, or by force. One that containers use stays: never while one runs, and by
force if they are all stopped (its layers are then kept for them, see `state.ImageRecord`).

Source: observed behaviour and sentences of `docker image rm` and `docker image prune`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from proto.errors import ConflictError, InvalidError, NotFoundError
from proto.ids import ImageID
from worker.images import references
from worker.images import state as states
from worker.images.api import Deleted, ImageConfig
from worker.images.changes import parse_duration
from worker.images.config import seconds_of
from worker.images.state import State

_NANOSECONDS = 1_000_000_000
_SHORT_LENGTH = 12


class ImageUse(msgspec.Struct, frozen=True, kw_only=True):
    """A container that has an image; a running one before a stopped one, if there are both."""

    container_id: str = ""
    is_running: bool = True


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """The state after a removal and what was done, in order; layers are not collected yet."""

    state: State
    deleted: tuple[Deleted, ...]


Uses = Collection[ImageID] | Mapping[ImageID, ImageUse]


def short_id(image_id: str) -> str:
    """Return the 12 digits that people see."""
    return image_id.partition(":")[2][:_SHORT_LENGTH] or image_id[:_SHORT_LENGTH]


def no_such_image(text: str) -> NotFoundError:
    """Return Docker's sentence for an image that is not there."""
    try:
        shown = references.parse_tagged(text).familiar
    except InvalidError:
        shown = text
    return NotFoundError("image", text, f"No such image: {shown}")


def remove(state: State, text: str, *, force: bool, in_use: Uses) -> Removal:
    """Decide a removal.

    It matters whether `text` is a name or an ID. `in_use` are the images that containers have;
    of a mapping the sentences name the containers.

    Raises:
        NotFoundError: there is no such image.
        ConflictError: the rules forbid it; nothing changes.
    """
    found = states.find_image(state, text)
    if found is None:
        raise no_such_image(text)
    image_id, name = found
    if name is not None:
        return _remove_name(state, image_id, name, force=force, in_use=in_use)
    names = states.names_of(state, image_id)
    use = _use_of(image_id, in_use)
    if use is not None and use.is_running:
        raise _used(image_id, use)
    if not _is_single(names) and not force:
        raise ConflictError(
            f"conflict: unable to delete {short_id(image_id)} (must be forced) - "
            "image is referenced in multiple repositories"
        )
    if use is not None and not force:
        raise _used(image_id, use)
    return _delete(state, image_id, names, in_use=in_use)


def prune(state: State, candidates: Sequence[ImageID], in_use: Uses) -> Removal:
    """Remove all of `candidates` that no container has, with their names."""
    deleted: list[Deleted] = []
    for image_id in candidates:
        if image_id in in_use:
            continue
        removal = _delete(state, image_id, states.names_of(state, image_id), in_use=in_use)
        state = removal.state
        deleted.extend(removal.deleted)
    return Removal(state=state, deleted=tuple(deleted))


class PruneFilters(msgspec.Struct, frozen=True, kw_only=True):
    """What a prune is limited to.

    Attributes:
        until: only images created before this (seconds since the epoch); None is no limit.
        labels: `name` or `name=value` that an image must have, all of them.
        labels_not: those that it must not have, any of them.
    """

    until: float | None = None
    labels: tuple[str, ...] = ()
    labels_not: tuple[str, ...] = ()

    def takes(self, created: float, config: ImageConfig) -> bool:
        """Whether an image is among those to remove."""
        if self.until is not None and created >= self.until:
            return False
        if not all(_has_label(config.labels, label) for label in self.labels):
            return False
        return not any(_has_label(config.labels, label) for label in self.labels_not)


def parse_filters(filters: Mapping[str, Sequence[str]], now: float) -> PruneFilters:
    """Read the filters of a prune; `dangling` is the caller's, since it means `not all`.

    Args:
        filters: as the Engine API has them.
        now: wall clock, from which `until=24h` counts back.

    Raises:
        InvalidError: an unknown filter or a time that cannot be read.
    """
    unknown = sorted(set(filters) - {"until", "label", "label!", "dangling"})
    if unknown:
        raise InvalidError(f"invalid filter '{unknown[0]}'")
    until = list(filters.get("until", ()))
    if len(until) > 1:
        raise InvalidError("more than one until filter specified")
    return PruneFilters(
        until=_moment(until[0], now) if until else None,
        labels=tuple(filters.get("label", ())),
        labels_not=tuple(filters.get("label!", ())),
    )


def _moment(text: str, now: float) -> float:
    if text.replace(".", "", 1).isdigit():
        return float(text)
    if seconds := seconds_of(text):
        return seconds
    return now - parse_duration(text) / _NANOSECONDS


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _remove_name(
    state: State,
    image_id: ImageID,
    name: references.Reference,
    *,
    force: bool,
    in_use: Uses,
) -> Removal:
    names = states.names_of(state, image_id)
    use = _use_of(image_id, in_use)
    if use is not None and not force and _is_single(names):
        holder = (
            f"container {use.container_id[:_SHORT_LENGTH]}" if use.container_id else "a container"
        )
        raise ConflictError(
            f'conflict: unable to remove repository reference "{name.familiar}" (must force) - '
            f"{holder} is using its referenced image {short_id(image_id)}"
        )
    gone = [name.full()]
    left = [references.parse(each) for each in names if each != name.full()]
    if not name.digest and not any(each.name == name.name and each.tag for each in left):
        # The last tag of a repository takes its digests along.
        gone += [each.full() for each in left if each.name == name.name]
        left = [each for each in left if each.name != name.name]
    after = states.without_names(state, gone)
    untagged = [Deleted(untagged=references.parse(each).familiar) for each in gone]
    # Of one that runs only the name goes, however hard one tries.
    if left or (use is not None and (use.is_running or not force)):
        return Removal(state=after, deleted=tuple(untagged))
    removal = _delete(after, image_id, [], in_use=in_use)
    return Removal(state=removal.state, deleted=(*untagged, *removal.deleted))


def _is_single(names: Sequence[str]) -> bool:
    """Whether an image has at most one tag, and digests of that tag's repository only."""
    parsed = [references.parse(name) for name in names]
    tags = [name for name in parsed if not name.digest]
    repositories = {name.name for name in parsed}
    return len(tags) <= 1 and len(repositories) <= 1


def _delete(state: State, image_id: ImageID, names: Sequence[str], *, in_use: Uses) -> Removal:
    after = states.without_image(state, image_id, keep_layers=image_id in in_use)
    untagged = [Deleted(untagged=references.parse(name).familiar) for name in names]
    return Removal(state=after, deleted=(*untagged, Deleted(deleted=image_id)))


def _use_of(image_id: ImageID, in_use: Uses) -> ImageUse | None:
    if image_id not in in_use:
        return None
    return in_use[image_id] if isinstance(in_use, Mapping) else ImageUse()


def _used(image_id: ImageID, use: ImageUse) -> ConflictError:
    kind, how = ("running", "cannot be forced") if use.is_running else ("stopped", "must be forced")
    holder = (
        f"{kind} container {use.container_id[:_SHORT_LENGTH]}"
        if use.container_id
        else (f"a {kind} container")
    )
    return ConflictError(
        f"conflict: unable to delete {short_id(image_id)} ({how}) - image is being used by {holder}"
    )

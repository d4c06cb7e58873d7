"""Docker's `filters` parameter, and what each list does with it. Pure.

Clients write filters as JSON in one of two forms, `{"name": ["web"]}` or `{"name": {"web": true}}`.
Values of one name are alternatives; names must all match. Names and IDs match by prefix, labels as
`key` or `key=value`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

from manager.httpapi.convert.common import Json, choices, word_of
from proto.errors import InvalidError
from proto.ids import NodeID, ServiceID
from proto.json_text import JsonError, decode_json
from proto.objects import (
    GlobalJobMode,
    GlobalMode,
    Node,
    NodeRole,
    PortConfig,
    ReplicatedJobMode,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
)
from proto.states import TaskState
from worker.images.api import Image
from worker.volumes import Volume

Filters = Mapping[str, tuple[str, ...]]

NODE_FILTERS = frozenset({"id", "label", "membership", "name", "node.label", "role"})
SERVICE_FILTERS = frozenset({"id", "label", "mode", "name", "runtime"})
TASK_FILTERS = frozenset(
    {"_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"}
)
IMAGE_FILTERS = frozenset({"before", "dangling", "label", "label!", "reference", "since", "until"})
VOLUME_FILTERS = frozenset({"dangling", "driver", "label", "name"})
VOLUME_PRUNE_FILTERS = frozenset({"all", "label", "label!"})
IMAGE_PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})
EVENT_FILTERS = frozenset(
    {
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "plugin",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
    }
)

_TRUE = frozenset({"1", "true", "t", "yes", "y"})
_FALSE = frozenset({"0", "false", "f", "no", "n"})


def parse_filters(text: str, known: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Read the `filters` parameter; values are sorted, so that equal filters read equal.

    Raises:
        InvalidError: the text is not of either form, or has a filter that is not `known`.
    """
    if not text:
        return {}
    try:
        raw = decode_json(text, dict[str, dict[str, bool] | list[str]])
    except JsonError as error:
        raise InvalidError(f"invalid filter: it {error}") from None
    filters: dict[str, tuple[str, ...]] = {}
    for name, values in raw.items():
        if name not in known:
            raise InvalidError(f"invalid filter '{name}'")
        given = (
            [v for v, is_set in values.items() if is_set] if isinstance(values, dict) else values
        )
        if given:
            filters[name] = tuple(sorted(set(given)))
    return filters


def flag_of(filters: Filters, name: str, *, default: bool) -> bool:
    """Read a filter that is true or false.

    Raises:
        InvalidError: it is neither, or both.
    """
    values = filters.get(name)
    if values is None:
        return default
    given = {_flag(name, value) for value in values}
    if len(given) > 1:
        raise InvalidError(f"invalid filter '{name}={','.join(values)}': give one value")
    return given.pop()


def _flag(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise InvalidError(f"invalid filter '{name}={value}': use true or false")


def matches_labels(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Tell whether all of `key` or `key=value` are among the labels."""
    for text in wanted:
        key, separator, value = text.partition("=")
        if key not in labels or (separator and labels[key] != value):
            return False
    return True


def _has_prefix(text: str, prefixes: Iterable[str]) -> bool:
    return any(text.startswith(prefix) for prefix in prefixes)


def _checked_words(filters: Filters, name: str, known: Collection[str]) -> tuple[str, ...]:
    for word in filters.get(name, ()):
        if word not in known:
            raise InvalidError(f"invalid filter '{name}={word}': use {choices(sorted(known))}")
    return filters.get(name, ())


def select_nodes(nodes: Iterable[Node], filters: Filters) -> list[Node]:
    """Return the nodes that match.

    Raises:
        InvalidError: a role or membership is not a word of the API.
    """
    roles = _checked_words(filters, "role", [word_of(role) for role in NodeRole])
    memberships = _checked_words(filters, "membership", ("accepted", "pending"))
    return [
        node
        for node in nodes
        if ("id" not in filters or _has_prefix(node.id, filters["id"]))
        and (
            "name" not in filters
            or _has_prefix(node.spec.name or node.description.hostname, filters["name"])
        )
        and (not roles or word_of(node.role) in roles)
        # Whoever is in the store has been accepted.
        and (not memberships or "accepted" in memberships)
        and matches_labels(node.description.engine.labels, filters.get("label", ()))
        and matches_labels(node.spec.labels, filters.get("node.label", ()))
    ]


def select_volumes(
    volumes: Iterable[Volume], filters: Filters, in_use: Collection[str]
) -> list[Volume]:
    """Return the volumes that match; names match by any part, as in Docker.

    Raises:
        InvalidError: `dangling` is neither true nor false.
    """
    is_unused = flag_of(filters, "dangling", default=False)
    return [
        volume
        for volume in volumes
        if ("dangling" not in filters or is_unused != (volume.name in in_use))
        and ("driver" not in filters or volume.driver in filters["driver"])
        and ("name" not in filters or any(part in volume.name for part in filters["name"]))
        and matches_labels(volume.labels, filters.get("label", ()))
        and not any(matches_labels(volume.labels, (text,)) for text in filters.get("label!", ()))
    ]


def mode_word(mode: ServiceMode) -> str:
    """Name a service's mode as `service ls` does."""
    match mode:
        case ReplicatedMode():
            return "replicated"
        case GlobalMode():
            return "global"
        case ReplicatedJobMode():
            return "replicated-job"
        case GlobalJobMode():
            return "global-job"


_MODES = ("replicated", "global", "replicated-job", "global-job")


def select_services(services: Iterable[Service], filters: Filters) -> list[Service]:
    """Return the services that match.

    Raises:
        InvalidError: a mode is not a word of the API.
    """
    modes = _checked_words(filters, "mode", _MODES)
    return [
        service
        for service in services
        if ("id" not in filters or _has_prefix(service.id, filters["id"]))
        and ("name" not in filters or _has_prefix(service.spec.name, filters["name"]))
        and (not modes or mode_word(service.spec.mode) in modes)
        and ("runtime" not in filters or service.spec.task.runtime in filters["runtime"])
        and matches_labels(service.spec.labels, filters.get("label", ()))
    ]


class TaskFacts(msgspec.Struct, frozen=True):
    """What a task's filters ask that the task itself does not hold.

    Attributes:
        name_of: the task's full name (`web.1.<id>`).
        labels_of: the labels of the container in the task's spec.
        is_up_to_date: whether the task is as its service now asks.
        service_ids: what the `service` filters resolved to.
        node_ids: what the `node` filters resolved to.
    """

    name_of: Callable[[Task], str]
    labels_of: Callable[[Task], Mapping[str, str]]
    is_up_to_date: Callable[[Task], bool]
    service_ids: frozenset[ServiceID] = frozenset()
    node_ids: frozenset[NodeID] = frozenset()


def select_tasks(tasks: Iterable[Task], filters: Filters, facts: TaskFacts) -> list[Task]:
    """Return the tasks that match.

    Raises:
        InvalidError: a state is not a word of the API.
    """
    states = _checked_words(filters, "desired-state", [state.name.lower() for state in TaskState])
    must_be_current = flag_of(filters, "_up-to-date", default=False)
    if "container" not in filters.get("runtime", ("container",)):
        return []
    return [
        task
        for task in tasks
        if ("service" not in filters or task.service_id in facts.service_ids)
        and ("node" not in filters or task.node_id in facts.node_ids)
        and (not states or task.desired_state.name.lower() in states)
        and ("id" not in filters or _has_prefix(task.id, filters["id"]))
        and ("name" not in filters or _has_prefix(facts.name_of(task), filters["name"]))
        and ("label" not in filters or matches_labels(facts.labels_of(task), filters["label"]))
        and (not must_be_current or facts.is_up_to_date(task))
    ]


def matching_tags(repo_tags: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the references that match a pattern such as `red*`, `busybox:1.*` or a whole name.

    A `*` does not cross a slash, and a pattern without a tag matches every tag.
    """
    wanted = tuple(patterns)
    return tuple(tag for tag in repo_tags if any(_matches_reference(tag, p) for p in wanted))


def _matches_reference(tagged: str, pattern: str) -> bool:
    name, _, tag = tagged.rpartition(":")
    if _matches_path(tagged, pattern) or _matches_path(name, pattern):
        return True
    wanted_name, separator, wanted_tag = pattern.rpartition(":")
    is_tagged = bool(separator) and "/" not in wanted_tag
    return is_tagged and _matches_path(name, wanted_name) and fnmatchcase(tag, wanted_tag)


def _matches_path(path: str, pattern: str) -> bool:
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True)
    )


def _named_as(image: Image, patterns: Iterable[str]) -> Image:
    wanted = tuple(patterns)
    digests = tuple(
        digest
        for digest in image.repo_digests
        if any(
            pattern == digest or _matches_path(digest.partition("@")[0], pattern)
            for pattern in wanted
        )
    )
    tags = matching_tags(image.repo_tags, wanted)
    return msgspec.structs.replace(image, repo_tags=tags, repo_digests=digests)


class ImageBounds(msgspec.Struct, frozen=True):
    """What the times in an image's filters resolved to, in seconds since the epoch."""

    before: float | None = None
    since: float | None = None


def select_images(images: Iterable[Image], filters: Filters, bounds: ImageBounds) -> list[Image]:
    """Return the images that match, newest first.

    With `reference` an image keeps only the names that match, as in the Engine.

    Raises:
        InvalidError: `dangling` is neither true nor false.
    """
    if "reference" in filters:
        images = [_named_as(image, filters["reference"]) for image in images]
        images = [image for image in images if image.repo_tags or image.repo_digests]
    dangling = flag_of(filters, "dangling", default=False) if "dangling" in filters else None
    unwanted = filters.get("label!", ())
    chosen = [
        image
        for image in images
        if (dangling is None or (not image.repo_tags) == dangling)
        and matches_labels(image.config.labels, filters.get("label", ()))
        and not any(matches_labels(image.config.labels, (label,)) for label in unwanted)
        and (bounds.before is None or image.created < bounds.before)
        and (bounds.since is None or image.created > bounds.since)
    ]
    return sorted(chosen, key=lambda image: (-image.created, image.id))


_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|m|s|ms))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def duration_seconds(text: str) -> float | None:
    """Read a Go duration such as `1h30m`; None if it is not one."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def is_up_to_date(task: Task, spec: ServiceSpec, service: Service) -> bool:
    """Tell whether a task is as its service now asks.

    A newer version of the spec that leaves tasks as they are (more replicas, say) does not make
    them old.
    """
    if task.spec_version == service.spec_version:
        return True
    if mode_word(spec.mode).endswith("-job"):
        return False  # each version of a job's spec is a run of its own
    return spec.task == service.spec.task and _ports_of(spec) == _ports_of(service.spec)


def _ports_of(spec: ServiceSpec) -> tuple[PortConfig, ...]:
    return () if spec.endpoint is None else spec.endpoint.ports


CONTAINER_FILTERS = frozenset({"id", "label", "name", "status"})


def select_containers(summaries: Iterable[Json], filters: Filters) -> list[Json]:
    """Return the lines of `docker ps` that match."""
    return [
        summary
        for summary in summaries
        if ("id" not in filters or _has_prefix(summary["Id"], filters["id"]))
        and (
            "name" not in filters
            or any(name in summary["Names"][0].removeprefix("/") for name in filters["name"])
        )
        and ("status" not in filters or summary["State"] in filters["status"])
        and matches_labels(summary["Labels"], filters.get("label", ()))
    ]

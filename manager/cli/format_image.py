"""Images and their history as Docker's client lists them. Pure: Engine JSON in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manager.cli.durations import format_local, human_duration
from manager.cli.format_service import ID_WIDTH
from manager.cli.references import parse_reference
from manager.cli.tables import ellipsis
from manager.cli.units import human_size
from manager.cli.views import Row, View
from proto.errors import InvalidError

NONE = "<none>"
SIZE_DIGITS = 3
COMMAND_WIDTH = 45
EPOCH = 946_684_800
"""The year 2000: an image that claims to be older has no date at all."""

_HEADERS = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
VIEW = View(
    headers=_HEADERS,
    columns=("Repository", "Tag", "ID", "CreatedSince", "Size"),
    raw=(
        ("repository", "Repository"),
        ("tag", "Tag"),
        ("image_id", "ID"),
        ("created_at", "CreatedAt"),
        ("virtual_size", "Size"),
    ),
    raw_quiet="image_id",
)
DIGEST_VIEW = VIEW._replace(
    columns=("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"),
)
HISTORY_VIEW = View(
    headers={
        "ID": "IMAGE",
        "CreatedSince": "CREATED",
        "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY",
        "Size": "SIZE",
        "Comment": "COMMENT",
    },
    columns=("ID", "CreatedSince", "CreatedBy", "Size", "Comment"),
)
EXACT_HISTORY_VIEW = HISTORY_VIEW._replace(
    columns=("ID", "CreatedAt", "CreatedBy", "Size", "Comment"),
)


def short_id(identifier: str) -> str:
    """Cut an image's ID to twelve digits, without the name of its hash."""
    return identifier.rpartition(":")[2][:ID_WIDTH]


def image_rows(
    images: Iterable[Mapping[str, Any]],
    *,
    now: float,
    truncate: bool = True,
    with_digests: bool = False,
) -> list[Row]:
    """Make the rows of `image ls`: one for each tag, and for each digest when asked.

    Args:
        images: Engine JSON, in the Engine's order (the latest first).
        now: seconds since 1970.
        truncate: shorten IDs.
        with_digests: show digests.
    """
    rows: list[Row] = []
    for image in images:
        for repository, tag, digest in _names(image, with_digests=with_digests):
            shared, size = image.get("SharedSize", -1), image.get("Size", 0)
            containers = image.get("Containers", -1)
            created = image.get("Created", 0)
            rows.append(
                {
                    "ID": short_id(image["Id"]) if truncate else image["Id"],
                    "Repository": repository,
                    "Tag": tag,
                    "Digest": digest,
                    "CreatedSince": f"{human_duration(now - created)} ago" if created else "N/A",
                    "CreatedAt": format_local(created),
                    "Size": human_size(size, SIZE_DIGITS),
                    "Containers": "N/A" if containers == -1 else str(containers),
                    "SharedSize": "N/A" if shared == -1 else human_size(shared),
                    "UniqueSize": "N/A" if shared == -1 else human_size(size - shared),
                }
            )
    return rows


def _names(image: Mapping[str, Any], *, with_digests: bool) -> list[tuple[str, str, str]]:
    tags: dict[str, list[str]] = {}
    digests: dict[str, list[str]] = {}
    for found, field in ((tags, "RepoTags"), (digests, "RepoDigests")):
        for text in image.get(field) or []:
            try:
                reference = parse_reference(text)
            except InvalidError:
                continue  # `<none>:<none>`, as old engines name a dangling image
            value = reference.tag if found is tags else reference.digest
            found.setdefault(reference.familiar_name, []).append(value)
    names = []
    for repository, several in tags.items():
        own = digests.pop(repository, []) if with_digests else []
        digests.pop(repository, None)
        names += [(repository, tag, digest) for tag in several for digest in own or [NONE]]
    for repository, several in digests.items():
        shown = several if with_digests else [""]
        names += [(repository, NONE, digest) for digest in shown]
    return names or [(NONE, NONE, NONE)]


def history_rows(
    history: Iterable[Mapping[str, Any]], *, now: float, truncate: bool = True, human: bool = True
) -> list[Row]:
    """Make the rows of `image history`.

    Args:
        history: Engine JSON.
        now: seconds since 1970.
        truncate: shorten IDs and commands.
        human: sizes and ages for people, not bytes and instants.
    """
    rows: list[Row] = []
    for layer in history:
        created = layer.get("Created", 0)
        at = _rfc3339(created)
        since = f"{human_duration(now - created)} ago" if created > EPOCH else "N/A"
        command = layer.get("CreatedBy", "").replace("\t", " ")
        size = layer.get("Size", 0)
        rows.append(
            {
                "ID": short_id(layer["Id"]) if truncate else layer["Id"],
                "CreatedSince": since if human else at,
                "CreatedAt": at,
                "CreatedBy": ellipsis(command, COMMAND_WIDTH) if truncate else command,
                "Size": human_size(size, SIZE_DIGITS) if human else str(size),
                "Comment": layer.get("Comment", ""),
            }
        )
    return rows


def _rfc3339(seconds: int) -> str:
    date, time, zone, *_ = format_local(seconds).split(" ")
    return f"{date}T{time}{'Z' if zone == '+0000' else f'{zone[:3]}:{zone[3:]}'}"

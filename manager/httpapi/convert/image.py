"""Images: domain to Engine JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from manager.httpapi.convert.common import Json, compact
from manager.httpapi.convert.container import health_to_json
from manager.httpapi.timestamps import rfc3339
from worker.images.api import Deleted, Image, ImageConfig

MISSING_ID = "<missing>"


def image_summary_to_json(image: Image, *, containers: int = -1, shared_bytes: int = -1) -> Json:
    """Write a line of `docker image ls`; -1 means not counted."""
    return {
        "Containers": containers,
        "Created": int(image.created),
        "Id": image.id,
        "Labels": dict(image.config.labels),
        "ParentId": "",
        "RepoDigests": list(image.repo_digests),
        "RepoTags": list(image.repo_tags),
        "SharedSize": shared_bytes,
        "Size": image.size_bytes,
    }


def image_to_json(image: Image, driver: str) -> Json:
    """Write an image in full; `driver` names the storage driver."""
    members: Json = {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": image.comment,
        "Created": rfc3339(image.created),
        "DockerVersion": "",
        "Author": image.author,
        "Config": config_to_json(image.config),
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size_bytes,
        "GraphDriver": {"Data": _driver_data(image), "Name": driver},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    }
    if image.variant:
        members["Variant"] = image.variant
    return members


def _driver_data(image: Image) -> Json:
    if not image.layer_dirs:
        return {}
    *lower, upper = image.layer_dirs
    data = {"UpperDir": upper}
    if lower:
        data["LowerDir"] = ":".join(reversed(lower))
    return data


def config_to_json(config: ImageConfig) -> Json:
    """Write how an image is run."""
    members: Json = {
        "Env": list(config.env),
        "Cmd": list(config.cmd) or None,
        "Entrypoint": list(config.entrypoint) or None,
        "User": config.user,
        "WorkingDir": config.working_dir,
        "Labels": dict(config.labels) or None,
    }
    members.update(
        compact(
            {
                "ExposedPorts": {port: {} for port in config.exposed_ports},
                "Volumes": {path: {} for path in config.volumes},
                "StopSignal": config.stop_signal,
            }
        )
    )
    if config.healthcheck is not None:
        members["Healthcheck"] = health_to_json(config.healthcheck)
    return members


def history_to_json(image: Image) -> list[Json]:
    """Write an image's history, newest first; only the newest line has an ID and tags."""
    lines: list[Json] = [
        {
            "Comment": entry.comment,
            "Created": int(entry.created),
            "CreatedBy": entry.created_by,
            "Id": MISSING_ID,
            "Size": entry.size_bytes,
            "Tags": None,
        }
        for entry in reversed(image.history)
    ]
    if lines:
        lines[0]["Id"] = image.id
        lines[0]["Tags"] = list(image.repo_tags) or None
    return lines


def deleted_to_json(deleted: Iterable[Deleted]) -> list[Json]:
    """Write what a removal did, in order."""
    return [compact({"Untagged": one.untagged, "Deleted": one.deleted}) for one in deleted]

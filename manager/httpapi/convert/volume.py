"""Volumes: domain to Engine JSON. Pure."""

from __future__ import annotations

from manager.httpapi.convert.common import Json
from manager.httpapi.timestamps import rfc3339
from worker.volumes import NOBODY, Volume

ANONYMOUS_LABEL = "com.docker.volume.anonymous"


def is_anonymous(volume: Volume) -> bool:
    """Tell whether nobody gave the volume its name."""
    return volume.owner != NOBODY or ANONYMOUS_LABEL in volume.labels


def volume_to_json(volume: Volume) -> Json:
    """Write a volume; Go writes absent labels and options as null."""
    labels = dict(volume.labels)
    if volume.owner != NOBODY:
        labels[ANONYMOUS_LABEL] = ""
    return {
        "CreatedAt": rfc3339(volume.created_at),
        "Driver": volume.driver,
        "Labels": labels or None,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
    }


def volume_usage_to_json(volume: Volume, *, size_bytes: int, users: int) -> Json:
    """Write a volume as `docker system df` wants it."""
    return {**volume_to_json(volume), "UsageData": {"Size": size_bytes, "RefCount": users}}

"""The configuration of an image: JSON of the OCI image specification, as Docker extends it.

Pure. The bytes of a configuration are an image's identity (its ID is their digest), so a stored one
is never written again from what was understood of it; it is only read here. New ones are made for
imported file systems.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from typing_extensions import override

from proto.errors import InvalidError
from proto.ids import ImageID
from proto.json_text import JsonError, decode_json
from proto.objects import HEALTH_NS_MIN, HealthConfig
from proto.text import quoted
from worker.images.api import HistoryEntry, ImageConfig

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}
# The last second of the year 9999, the last that RFC 3339 and Python can write.
TIME_SECONDS_MAX = 253_402_300_799.0
_INT64_MAX = (1 << 63) - 1
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on."""

    os: str
    architecture: str
    variant: str = ""

    @override
    def __str__(self) -> str:
        """As `--platform` takes it."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class RawHealth(msgspec.Struct, rename="pascal", omit_defaults=True):
    """A health check in JSON; times in nanoseconds."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class RawConfig(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The part that says how to run; Docker writes `null` for what is empty."""

    user: str | None = None
    exposed_ports: dict[str, msgspec.Raw | dict[str, str] | None] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, msgspec.Raw | dict[str, str] | None] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    healthcheck: RawHealth | None = None
    on_build: list[str] | None = None


class RawHistory(msgspec.Struct, omit_defaults=True):
    """A line of the history in JSON."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class RawRootFS(msgspec.Struct):
    """The layers in JSON."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class RawImage(msgspec.Struct, omit_defaults=True):
    """A whole configuration in JSON."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    comment: str | None = None
    config: RawConfig | None = None
    rootfs: RawRootFS | None = None
    history: list[RawHistory] | None = None


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """What this node understands of a configuration."""

    id: ImageID
    config: ImageConfig
    platform: Platform
    author: str
    comment: str
    created: float
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...]


def digest_of(data: bytes) -> str:
    """Return `sha256:…` of some bytes (small ones: it runs where it is called)."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_config(data: bytes, what: str) -> Parsed:
    """Read a configuration blob.

    Raises:
        InvalidError: it is not one; the sentence names `what`.
    """
    try:
        raw = decode_json(data, RawImage)
    except JsonError as error:
        raise InvalidError(f"the configuration of {what} cannot be read: it {error}") from error
    diff_ids = tuple((raw.rootfs.diff_ids if raw.rootfs else None) or ())
    for diff_id in diff_ids:
        if not re.fullmatch(r"sha256:[a-f0-9]{64}", diff_id):
            shown = quoted(diff_id)
            raise InvalidError(f"the configuration of {what} has the wrong layer ID {shown}")
    return Parsed(
        id=ImageID(digest_of(data)),
        config=_image_config(raw.config or RawConfig()),
        platform=Platform(raw.os, raw.architecture, raw.variant or ""),
        author=raw.author or "",
        comment=raw.comment or "",
        created=seconds_of(raw.created),
        diff_ids=diff_ids,
        history=tuple(_history(entry) for entry in raw.history or ()),
    )


def image_with_rootfs(
    *,
    diff_id: str,
    config: RawConfig,
    platform: Platform,
    now: float,
    message: str,
) -> bytes:
    """Write the configuration of a one-layer image that was imported at `now` (wall clock)."""
    created = rfc3339(now)
    return msgspec.json.encode(
        RawImage(
            architecture=platform.architecture,
            os=platform.os,
            variant=platform.variant or None,
            created=created,
            comment=message or None,
            config=config,
            rootfs=RawRootFS(diff_ids=[diff_id]),
            history=[RawHistory(created=created, comment=message or None)],
        )
    )


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Name each stack of layers, lowest first.

    Source: OCI image specification, "Layer ChainID".
    """
    chains: list[str] = []
    for diff_id in diff_ids:
        chain = diff_id if not chains else digest_of(f"{chains[-1]} {diff_id}".encode())
        chains.append(chain)
    return chains


def host_platform(machine: str) -> Platform:
    """Name the platform of a machine (`uname -m`)."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str, default: Platform) -> Platform:
    """Read `os[/architecture[/variant]]` or an architecture alone; "" is the default.

    Raises:
        InvalidError: the text is neither.
    """
    if not text:
        return default
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):  # noqa: PLR2004 -- os, architecture, variant
        raise InvalidError(f'invalid platform "{text}": it is os[/architecture[/variant]]')
    known = {"linux", "windows", "darwin", "freebsd"}
    if len(parts) == 1 and parts[0] not in known:
        parts.insert(0, "linux")
    if len(parts) == 1:
        return Platform(parts[0], default.architecture, default.variant)
    architecture, variant = _MACHINES.get(parts[1], (parts[1], ""))
    return Platform(parts[0], architecture, parts[2] if len(parts) > 2 else variant)  # noqa: PLR2004 -- the variant


def seconds_of(text: str | None) -> float:
    """Read an RFC 3339 time as seconds since the epoch; 0 if there is none that can be read."""
    match = _TIME.fullmatch(text or "")
    if match is None:
        return 0.0
    whole, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
    except ValueError:
        return 0.0
    seconds = moment.timestamp() + float(f"0.{fraction or 0}")
    # Go's zero time, year 1, means "not set"; a zone may lead beyond the last year there is.
    return min(max(seconds, 0.0), TIME_SECONDS_MAX)


def rfc3339(seconds: float) -> str:
    """Write seconds since the epoch as the JSON has times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _image_config(raw: RawConfig) -> ImageConfig:
    labels: Mapping[str, str] = raw.labels or {}
    return ImageConfig(
        entrypoint=tuple(raw.entrypoint or ()),
        cmd=tuple(raw.cmd or ()),
        env=tuple(raw.env or ()),
        working_dir=raw.working_dir or "",
        user=raw.user or "",
        labels=labels,
        exposed_ports=tuple(sorted(raw.exposed_ports or ())),
        volumes=tuple(sorted(raw.volumes or ())),
        stop_signal=raw.stop_signal or "",
        healthcheck=_health(raw.healthcheck),
    )


def _health(raw: RawHealth | None) -> HealthConfig | None:
    if raw is None:
        return None
    return HealthConfig(
        test=tuple(raw.test or ()),
        interval_ns=_health_ns(raw.interval),
        timeout_ns=_health_ns(raw.timeout),
        retries=min(max(raw.retries, 0), _INT64_MAX),
        start_period_ns=_health_ns(raw.start_period),
        start_interval_ns=_health_ns(raw.start_interval),
    )


def _health_ns(value: int) -> int:
    """Return a time of a health check as a service may have it; below zero it is not set.

    Nobody refuses an image for it, as builders do; a check every nanosecond would be no check.
    """
    return 0 if value <= 0 else min(max(value, HEALTH_NS_MIN), _INT64_MAX)


def _history(raw: RawHistory) -> HistoryEntry:
    return HistoryEntry(
        created=seconds_of(raw.created),
        created_by=raw.created_by or "",
        comment=raw.comment or "",
        author=raw.author or "",
        empty_layer=raw.empty_layer,
    )

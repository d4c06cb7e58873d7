"""Turns the flags of `swarm init` and `swarm update` into the Engine's cluster spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from manager.cli.flags import Flags
from manager.cli.parse_values import csv_pairs
from proto.errors import InvalidError

ClusterSpec: TypeAlias = dict[str, Any]

AVAILABILITIES = ("active", "pause", "drain")
_FIELDS: Mapping[str, tuple[str, str]] = {
    "task-history-limit": ("Orchestration", "TaskHistoryRetentionLimit"),
    "snapshot-interval": ("Raft", "SnapshotInterval"),
    "max-snapshots": ("Raft", "KeepOldSnapshots"),
    "dispatcher-heartbeat": ("Dispatcher", "HeartbeatPeriod"),
    "cert-expiry": ("CAConfig", "NodeCertExpiry"),
    "external-ca": ("CAConfig", "ExternalCAs"),
    "autolock": ("EncryptionConfig", "AutoLockManagers"),
}


def merged(spec: Mapping[str, Any], flags: Flags) -> ClusterSpec:
    """Lay the flags that were given over a spec."""
    new: ClusterSpec = {name: value for name, value in spec.items()}  # noqa: C416 -- a copy
    for name, (part, field) in _FIELDS.items():
        if name in flags:
            new[part] = {**(new.get(part) or {}), field: flags[name]}
    return new


def availability(flags: Flags) -> str:
    """Check --availability; "" when it was not given.

    Raises:
        InvalidError: there is no such availability.
    """
    text = flags.text("availability")
    if "availability" in flags and text.lower() not in AVAILABILITIES:
        raise InvalidError(
            f'invalid availability "{text}", only active, pause and drain are supported'
        )
    return text.lower()


def external_ca(text: str) -> dict[str, object]:
    """Read `protocol=cfssl,url=…[,cacert=FILE]`; the file's content goes into the spec.

    Raises:
        InvalidError: it is incomplete.
    """
    found: dict[str, object] = {}
    options: dict[str, str] = {}
    for key, value in csv_pairs(text):
        if key == "protocol":
            if value.lower() != "cfssl":
                raise InvalidError(f"unrecognized external CA protocol {value}")
            found["Protocol"] = "cfssl"
        elif key == "url":
            found["URL"] = value
        elif key == "cacert":
            found["CACert"] = value
        else:
            options[key] = value
    if "Protocol" not in found:
        raise InvalidError("the external-ca option needs a protocol= parameter")
    if "URL" not in found:
        raise InvalidError("the external-ca option needs a url= parameter")
    return {**found, "Options": options} if options else found

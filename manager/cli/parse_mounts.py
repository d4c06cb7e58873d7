"""Reads `--mount type=…,source=…,target=…` into the Engine's JSON.

Pure but for the working directory, against which a relative source (`./data`) is made absolute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from manager.cli.flags import boolean
from manager.cli.parse_values import csv_fields
from manager.cli.units import parse_bytes
from proto.errors import InvalidError

Mount: TypeAlias = dict[str, Any]

_BOOLEANS = frozenset({"readonly", "ro", "volume-nocopy", "bind-create-src"})
_OPTIONS = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions"}
_RECURSIVE = {
    "enabled": "",
    "disabled": "NonRecursive",
    "writable": "ReadOnlyNonRecursive",
    "readonly": "ReadOnlyForceRecursive",
}


def parse_mount(text: str) -> Mount:
    """Read one `--mount`.

    Raises:
        InvalidError: with Docker's sentence.
    """
    mount: Mount = {"Type": "volume"}
    for field in csv_fields(text.strip()):
        key, separator, value = field.partition("=")
        key = key.lower()
        if not separator and key not in _BOOLEANS:
            raise InvalidError(f"invalid field '{field}' must be a key=value pair")
        setter = _SETTERS.get(key)
        if setter is None:
            raise InvalidError(f"unexpected key '{key}' in '{field}'")
        setter(mount, key, value if separator else "true")
    _check(mount)
    order = ("Type", "Source", "Target", "ReadOnly", "Consistency", *_OPTIONS.values())
    return {name: mount[name] for name in order if mount.get(name)}


def _check(mount: Mount) -> None:
    if not mount.get("Target"):
        raise InvalidError("target is required")
    for kind, options in _OPTIONS.items():
        if options in mount and mount["Type"] != kind:
            raise InvalidError(f"cannot mix '{kind}-*' options with mount type '{mount['Type']}'")


def _flag(key: str, value: str) -> bool:
    try:
        return boolean(value)
    except InvalidError:
        raise InvalidError(f"invalid value for {key}: {value}") from None


def _type(mount: Mount, _key: str, value: str) -> None:
    mount["Type"] = value.lower()


def _source(mount: Mount, _key: str, value: str) -> None:
    # normpath, not resolve: the node that runs the task follows its own links.
    relative = value.startswith(".")
    mount["Source"] = os.path.normpath(Path.cwd() / value) if relative else value


def _target(mount: Mount, _key: str, value: str) -> None:
    mount["Target"] = value


def _read_only(mount: Mount, key: str, value: str) -> None:
    mount["ReadOnly"] = _flag(key, value)


def _consistency(mount: Mount, _key: str, value: str) -> None:
    mount["Consistency"] = value.lower()


def _bind(mount: Mount) -> dict[str, Any]:
    return mount.setdefault("BindOptions", {})  # type: ignore[no-any-return] # a dict of ours


def _volume(mount: Mount) -> dict[str, Any]:
    return mount.setdefault("VolumeOptions", {})  # type: ignore[no-any-return] # a dict of ours


def _driver(mount: Mount) -> dict[str, Any]:
    return _volume(mount).setdefault("DriverConfig", {})  # type: ignore[no-any-return] # ours


def _propagation(mount: Mount, _key: str, value: str) -> None:
    _bind(mount)["Propagation"] = value.lower()


def _recursive(mount: Mount, key: str, value: str) -> None:
    if value not in _RECURSIVE:
        raise InvalidError(
            f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or '
            '"readonly")'
        )
    if _RECURSIVE[value]:
        _bind(mount)[_RECURSIVE[value]] = True


def _non_recursive(_mount: Mount, key: str, _value: str) -> None:
    raise InvalidError(f"{key} is deprecated, use bind-recursive=disabled instead")


def _create_source(mount: Mount, key: str, value: str) -> None:
    _bind(mount)["CreateMountpoint"] = _flag(key, value)


def _no_copy(mount: Mount, key: str, value: str) -> None:
    _volume(mount)["NoCopy"] = _flag(key, value)


def _subpath(mount: Mount, _key: str, value: str) -> None:
    _volume(mount)["Subpath"] = value


def _label(mount: Mount, _key: str, value: str) -> None:
    name, _, text = value.partition("=")
    _volume(mount).setdefault("Labels", {})[name] = text


def _driver_name(mount: Mount, _key: str, value: str) -> None:
    _driver(mount)["Name"] = value


def _driver_option(mount: Mount, _key: str, value: str) -> None:
    name, _, text = value.partition("=")
    _driver(mount).setdefault("Options", {})[name] = text


def _tmpfs(mount: Mount, key: str, value: str) -> None:
    options = mount.setdefault("TmpfsOptions", {})
    try:
        if key == "tmpfs-size":
            options["SizeBytes"] = parse_bytes(value)
        else:
            options["Mode"] = int(value, 8)
    except (InvalidError, ValueError):
        raise InvalidError(f"invalid value for {key}: {value}") from None


_SETTERS: Mapping[str, Callable[[Mount, str, str], None]] = {
    "type": _type,
    "source": _source,
    "src": _source,
    "target": _target,
    "dst": _target,
    "destination": _target,
    "readonly": _read_only,
    "ro": _read_only,
    "consistency": _consistency,
    "bind-propagation": _propagation,
    "bind-recursive": _recursive,
    "bind-nonrecursive": _non_recursive,
    "bind-create-src": _create_source,
    "volume-nocopy": _no_copy,
    "volume-subpath": _subpath,
    "volume-label": _label,
    "volume-driver": _driver_name,
    "volume-opt": _driver_option,
    "tmpfs-size": _tmpfs,
    "tmpfs-mode": _tmpfs,
}

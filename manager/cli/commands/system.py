"""`swarm info` and `swarm version`."""

from __future__ import annotations

import os
import sys

from manager.cli.commands import common
from manager.cli.errors import CommandError
from manager.cli.flags import Flag, Flags
from manager.cli.format_info import info_text, version_text
from manager.cli.program import Console, Spec
from manager.cli.transport import API_VERSION
from proto.errors import SwarmError

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def client_version() -> str:
    """Read the version of the installed program."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 -- costs time

    try:
        return version("swarm-orchestrator")
    except PackageNotFoundError:
        return "0.0.0+uninstalled"


def _client() -> dict[str, str]:
    machine = os.uname().machine
    return {
        "Version": client_version(),
        "ApiVersion": API_VERSION,
        "PythonVersion": ".".join(map(str, sys.version_info[:3])),
        "Os": "linux",
        "Arch": _MACHINES.get(machine, machine),
    }


def _formatted(console: Console, data: object, form: str) -> None:
    from manager.cli.views import inspect  # noqa: PLC0415 -- only with --format

    console.write(inspect([data], form if form != "json" else "{{json .}}", {}))


def _info(console: Console, flags: Flags, _arguments: list[str]) -> None:
    info = console.engine.get("/info")
    if flags.text("format"):
        _formatted(console, info | {"ClientInfo": _client()}, flags.text("format"))
        return
    console.write(info_text(_client(), info))
    for warning in info.get("Warnings") or []:
        console.warn(warning)


def _version(console: Console, flags: Flags, _arguments: list[str]) -> None:
    failure: SwarmError | None = None
    server = None
    try:
        server = console.engine.get("/version")
    except SwarmError as error:
        failure = error
    if flags.text("format"):
        _formatted(console, {"Client": _client(), "Server": server}, flags.text("format"))
    else:
        console.write(version_text(_client(), server))
    if failure is not None:
        raise CommandError(failure.message)


_FORMAT = Flag("format", "string", common.FORMAT_HELP, "f")
INFO = Spec(_info, (_FORMAT,), "[OPTIONS]")
VERSION = Spec(_version, (_FORMAT,), "[OPTIONS]")

"""Reads the small values of flags: key=value pairs, CSV fields, addresses, ulimits, commands.

Pure, except `read_env_file`, which reads a file that the user named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from manager.cli.errors import CommandError
from proto.errors import InvalidError

_DOMAIN = re.compile(
    r"(:?(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9\-]*[a-zA-Z0-9])"
    r"(:?\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9\-]*[a-zA-Z0-9]))*)\.?"
)
ULIMITS = frozenset(
    (
        *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile"),
        *("nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
    )
)
CAPABILITY_ALL = "ALL"
CAPABILITY_RESET = "RESET"
ADDRESS_PORT_DEFAULT = 2377


def csv_fields(text: str) -> list[str]:
    """Split one CSV record."""
    import csv  # noqa: PLC0415 -- rare among commands, and costs time

    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise InvalidError(f"parse error: {error}") from None


def csv_pairs(text: str) -> list[tuple[str, str]]:
    """Split one CSV record of `key=value` fields; keys are lower-cased.

    Raises:
        InvalidError: a field is no pair.
    """
    pairs = []
    for field in csv_fields(text):
        key, separator, value = field.partition("=")
        if not separator or not key:
            raise InvalidError(f"invalid field '{field}' must be a key=value pair")
        pairs.append((key.lower(), value))
    return pairs


def environment(text: str) -> str:
    """Check a variable; one without value takes this process's, if there is one."""
    name, separator, _ = text.partition("=")
    if not name:
        raise InvalidError(f"invalid environment variable: {text}")
    if separator or name not in os.environ:
        return text
    return f"{name}={os.environ[name]}"


def merged_environment(*lists: Sequence[str]) -> list[str]:
    """Join lists of variables; a later value of a name replaces the earlier one."""
    merged: dict[str, str] = {}
    for variable in (variable for variables in lists for variable in variables):
        name = variable.partition("=")[0]
        merged.pop(name, None)
        merged[name] = variable
    return list(merged.values())


def read_env_file(path: str) -> list[str]:
    """Read a file of variables, as `--env-file` has it: one a line, `#` starts a comment line.

    Raises:
        CommandError: the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CommandError(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"invalid env file ({path}): it is not UTF-8: {error}") from error
    return env_lines(text, os.environ, path)


def env_lines(text: str, inherited: Mapping[str, str], path: str) -> list[str]:
    """Read the lines of an env file; a name without value takes the inherited one, if any."""
    found = []
    for line in text.splitlines():
        stripped = line.lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        name, separator, value = stripped.partition("=")
        if not name:
            raise InvalidError(f"invalid env file ({path}): no variable name on line '{line}'")
        if any(letter.isspace() for letter in name.rstrip()) or name != name.rstrip():
            raise InvalidError(f"invalid env file ({path}): variable '{name}' contains whitespaces")
        if separator:
            found.append(f"{name}={value}")
        elif name in inherited:
            found.append(f"{name}={inherited[name]}")
    return found


def address(text: str) -> str:
    """Check an IP address."""
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        raise InvalidError(f"IP address is not correctly formatted: {text}") from None


def subnet(text: str) -> str:
    """Check a network in CIDR form."""
    try:
        return str(ip_network(text.strip(), strict=False))
    except ValueError:
        raise InvalidError(f"invalid string being converted to CIDR: {text}") from None


def domain(text: str) -> str:
    """Check a DNS search domain; "." stands for none."""
    trimmed = text.strip(" ")
    if trimmed == ".":
        return trimmed
    if not _DOMAIN.fullmatch(trimmed) or len(trimmed) > 255:  # noqa: PLR2004 -- RFC 1035
        raise InvalidError(f"{text} is not a valid domain")
    return trimmed


def extra_host(text: str) -> str:
    """Check `host:address` (or `host=address`) and write it with a colon."""
    name, separator, where = text.partition("=" if "=" in text else ":")
    if not separator or not name:
        raise InvalidError(f'bad format for add-host: "{text}"')
    bare = where.removeprefix("[").removesuffix("]")
    try:
        ip_address(bare)
    except ValueError:
        if where != "host-gateway":
            raise InvalidError(f'invalid IP address in add-host: "{where}"') from None
    return f"{name}:{bare}"


def hosts_line(text: str) -> str:
    """Turn `host:address` into a line of /etc/hosts, which is what a spec holds."""
    name, _, where = text.partition(":")
    return f"{where} {name}"


def listen_address(text: str) -> str:
    """Check `ADDRESS[:PORT]` of a manager; the port has a default."""
    bare = text.removeprefix("tcp://")
    host, separator, port = bare.rpartition(":")
    if bare.startswith("[") and bare.endswith("]"):
        host, separator, port = bare, "", ""
    if not separator:
        host, port = bare, ""
    if not host or (":" in host and not host.startswith("[")):
        raise InvalidError(f'invalid address "{text}": expected <ip|interface>[:port]')
    if port and not (port.isdigit() and 0 < int(port) < 1 << 16):
        raise InvalidError(f'invalid port ":{port}" in address "{text}"')
    return f"{host}:{port or ADDRESS_PORT_DEFAULT}"


class Ulimit(NamedTuple):
    """A limit of setrlimit(2); -1 is unlimited."""

    name: str
    soft: int
    hard: int

    def engine(self) -> dict[str, object]:
        """Give the Engine's JSON."""
        return {"Name": self.name, "Hard": self.hard, "Soft": self.soft}


def ulimit(text: str) -> Ulimit:
    """Read `name=soft[:hard]`."""
    name, separator, values = text.partition("=")
    if not separator:
        raise InvalidError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise InvalidError(f"invalid ulimit type: {name}")
    parts = values.split(":")
    if len(parts) > 2:  # noqa: PLR2004 -- soft and hard
        raise InvalidError(f"too many limit value arguments - {values}, can only have up to two")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        raise InvalidError(f"invalid ulimit value: {values}") from None
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and (soft > hard or soft == -1):
        raise InvalidError(
            f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )
    return Ulimit(name, soft, hard)


def capability(text: str) -> str:
    """Write a capability as the kernel does: `net_admin` is `CAP_NET_ADMIN`."""
    name = text.strip().upper()
    if name in {CAPABILITY_ALL, CAPABILITY_RESET} or name.startswith("CAP_"):
        return name
    return f"CAP_{name}"


def command_words(text: str) -> list[str]:
    """Split a command line into words as a POSIX shell does."""
    import shlex  # noqa: PLC0415 -- rare among commands, and costs time

    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        reasons = {
            "No closing quotation": "EOF found when expecting closing quote",
            "No escaped character": "EOF found after escape character",
        }
        raise InvalidError(reasons.get(str(error), str(error))) from None


def placement_preference(text: str) -> str:
    """Read `spread=LABEL` and give the label."""
    strategy, separator, argument = text.partition("=")
    if not separator or not strategy:
        raise InvalidError('placement preference must be of the format "<strategy>=<arg>"')
    if strategy != "spread":
        raise InvalidError(
            f"unsupported placement preference {strategy} (only spread is supported)"
        )
    return argument


def generic_resources(values: Iterable[str]) -> list[dict[str, object]]:
    """Read `kind=count` resources into the Engine's JSON.

    Raises:
        InvalidError: one is malformed, or no count (a service cannot ask for a named one).
    """
    found: list[dict[str, object]] = []
    for value in values:
        kind, separator, count = value.partition("=")
        if not separator or not kind or not count or "=" in count:
            raise InvalidError(
                "invalid generic resource specification: could not parse GenericResource: "
                f"incorrect term {value}, missing '=' or malformed expression"
            )
        if not count.isdigit():
            raise InvalidError(
                "invalid generic-resource request "
                f"`{kind}={count}`, Named Generic Resources is not supported for service create "
                "or update"
            )
        found.append({"DiscreteResourceSpec": {"Kind": kind, "Value": int(count)}})
    return found


class NetworkAttachment(NamedTuple):
    """A network that a service joins, by the name that the user gave."""

    target: str
    aliases: tuple[str, ...] = ()
    driver_options: tuple[tuple[str, str], ...] = ()


def network(text: str) -> NetworkAttachment:
    """Read a network's name, or `name=…,alias=…,driver-opt=key=value`."""
    if not re.search(r"\w+=\w+", text):
        return NetworkAttachment(text)
    target, aliases, options = "", [], []
    for key, value in csv_pairs(text):
        match key.strip():
            case "name":
                target = value.strip()
            case "alias":
                aliases.append(value.strip())
            case "driver-opt":
                option, separator, setting = value.partition("=")
                if not separator or not option:
                    raise InvalidError("invalid key value pair format in driver options")
                options.append((option.strip().lower(), setting.strip()))
            case other:
                raise InvalidError(f"invalid field key {other}")
    if not target:
        raise InvalidError("network name/id is not specified")
    return NetworkAttachment(target, tuple(aliases), tuple(options))


class FileReference(NamedTuple):
    """A secret or config that a service uses, by name."""

    source: str
    target: str
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444

    def engine(self, kind: str, identifier: str) -> dict[str, object]:
        """Give the Engine's JSON; `kind` is "Secret" or "Config"."""
        return {
            "File": {"Name": self.target, "UID": self.uid, "GID": self.gid, "Mode": self.mode},
            f"{kind}ID": identifier,
            f"{kind}Name": self.source,
        }


def secret(text: str) -> FileReference:
    """Read a secret's name, or `source=…,target=…,uid=…,gid=…,mode=…`."""
    return _file_reference(text, "secret")


def config(text: str) -> FileReference:
    """Read a config's name, or `source=…,target=…,uid=…,gid=…,mode=…`."""
    return _file_reference(text, "config")


def _file_reference(text: str, kind: str) -> FileReference:
    fields = csv_fields(text)
    if len(fields) == 1 and "=" not in fields[0]:
        return FileReference(fields[0], fields[0])
    found = {"uid": "0", "gid": "0", "mode": "0444"}
    for key, value in csv_pairs(text):
        name = "source" if key == "src" else key
        if name not in {"source", "target", "uid", "gid", "mode"}:
            raise InvalidError(f"invalid field in {kind} request: {key}")
        found[name] = value
    if not found.get("source"):
        raise InvalidError("source is required")
    mode_text = found["mode"]
    octal = mode_text.startswith("0") and mode_text.isdigit()
    try:
        mode = int(mode_text, 8) if octal else int(mode_text, 0)
    except ValueError:
        raise InvalidError(f"invalid mode {mode_text!r}: must be a number, such as 0444") from None
    target = found.get("target") or found["source"]
    return FileReference(found["source"], target, found["uid"], found["gid"], mode)

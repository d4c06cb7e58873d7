"""Reads `--publish`: `8080:80/udp`, ranges, and `published=…,target=…,mode=…`.

Pure. A `Port` is one published port in the Engine's terms; one flag may make several.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from manager.cli.parse_values import csv_pairs
from proto.errors import InvalidError

PORT_MAX = 65535
PROTOCOLS = ("tcp", "udp", "sctp")
MODES = ("ingress", "host")


class Port(NamedTuple):
    """A published port; `published` 0 lets the manager choose one."""

    target: int
    published: int = 0
    protocol: str = "tcp"
    mode: str = "ingress"

    def engine(self) -> dict[str, object]:
        """Give the Engine's JSON."""
        port: dict[str, object] = {"Protocol": self.protocol, "TargetPort": self.target}
        if self.published:
            port["PublishedPort"] = self.published
        return {**port, "PublishMode": self.mode}


def parse_publish(text: str) -> list[Port]:
    """Read one `--publish`.

    Raises:
        InvalidError: with Docker's sentence.
    """
    return [_long(text)] if re.search(r"\w+=\w+", text) else _short(text)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidError(
            f"invalid {name} port ({text}): value must be an integer: invalid syntax"
        )
    if int(text) > PORT_MAX:
        raise InvalidError(
            f"invalid {name} port ({text}): value must be an integer: value out of range"
        )
    return int(text)


def _long(text: str) -> Port:
    port = Port(0)
    for key, value_text in csv_pairs(text):
        value = value_text.lower()
        match key:
            case "target":
                port = port._replace(target=_number("target", value))
            case "published":
                port = port._replace(published=_number("published", value))
            case "protocol":
                if value not in PROTOCOLS:
                    raise InvalidError(f"invalid protocol value '{value}'")
                port = port._replace(protocol=value)
            case "mode":
                if value not in MODES:
                    raise InvalidError(
                        f"invalid publish mode value ({value}): must be either 'ingress' or 'host'"
                    )
                port = port._replace(mode=value)
            case _:
                raise InvalidError(f"invalid field key: {key}")
    if not port.target:
        raise InvalidError("missing mandatory field 'target'")
    return port


def _short(text: str) -> list[Port]:
    mapping, separator, protocol = text.partition("/")
    protocol = protocol.lower() if separator else "tcp"
    parts = mapping.rsplit(":", 2)
    container = parts[-1]
    published = parts[-2] if len(parts) > 1 else ""
    if len(parts) > 2:  # noqa: PLR2004 -- an address, too
        if ":" in parts[0] and not parts[0].startswith("["):
            raise InvalidError(f"invalid IP address: {parts[0]}")
        raise InvalidError("hostip is not supported")
    if not container:
        raise InvalidError(f"no port specified: {text}<empty>")
    targets = _range("containerPort", container)
    if protocol not in PROTOCOLS:
        raise InvalidError(f"invalid proto: {protocol}")
    if not published:
        return [Port(target, 0, protocol) for target in targets]
    sources = _range("hostPort", published)
    if len(targets) == 1:
        return [Port(targets[0], source, protocol) for source in sources]
    if len(sources) != len(targets):
        raise InvalidError(
            f"invalid ranges specified for container and host Ports: {container} and {published}"
        )
    return [Port(target, source, protocol) for target, source in zip(targets, sources, strict=True)]


def _range(name: str, text: str) -> range:
    first, separator, last = text.partition("-")
    bounds = [first, last] if separator else [first, first]
    if not all(bound.isascii() and bound.isdigit() and int(bound) <= PORT_MAX for bound in bounds):
        raise InvalidError(f"invalid {name}: {text}")
    low, high = int(bounds[0]), int(bounds[1])
    if high < low:
        raise InvalidError(f"invalid {name}: {text}")
    return range(low, high + 1)

"""Names of our links and namespaces, and the ownership written into a link's alias.

Pure. Every link that we make on the node starts with `sw`, except the bridge, and carries an
`ifalias` that says whose it is, so that after a crash the kernel itself tells what is ours. The
alias of a container's host-side link is written last, when the container's side is complete: a
link of our name without it is a half-made one.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from proto.errors import InvalidError
from proto.ids import ContainerID

BRIDGE = "gwbr"
BRIDGE_ALIAS = "swarm gateway bridge"
CONTAINER_LINK = "eth0"

# `struct ifreq` leaves room for 15 characters and the closing zero.
LINK_NAME_LENGTH_MAX = 15
_PREFIX = "sw"
_ID_CHARACTERS = 12
_ID = re.compile(r"[0-9a-z]{12,64}")
_LINK = re.compile(rf"{_PREFIX}[0-9a-z]{{{_ID_CHARACTERS}}}")
_ALIAS = re.compile(r"swarm container ([0-9a-z]{12,64}) ([0-9.]+/[0-9]+)")

assert len(_PREFIX) + _ID_CHARACTERS <= LINK_NAME_LENGTH_MAX
assert len(BRIDGE) <= LINK_NAME_LENGTH_MAX


class Owner(msgspec.Struct, frozen=True):
    """What a finished container link's alias says."""

    container_id: ContainerID
    interface: ipaddress.IPv4Interface


def check_container_id(container_id: ContainerID) -> None:
    """Refuse an ID from which no link and no file could be named.

    Raises:
        InvalidError: the ID is not 12 to 64 lower-case letters and digits.
    """
    if not _ID.fullmatch(container_id):
        raise InvalidError(
            f"container ID {container_id!r} must be 12 to 64 lower-case letters and digits"
        )


def link_name(container_id: ContainerID) -> str:
    """Name the host side of a container's link after the first twelve characters of its ID."""
    check_container_id(container_id)
    return _PREFIX + container_id[:_ID_CHARACTERS]


def is_link_name(name: str) -> bool:
    """Tell whether a link has the form of name that only `link_name` gives."""
    return _LINK.fullmatch(name) is not None


def is_namespace_name(name: str) -> bool:
    """Tell whether a file in the directory of namespaces is named like one of ours."""
    return _ID.fullmatch(name) is not None


def link_alias(owner: Owner) -> str:
    """Write the owner and its address as the alias of a finished link."""
    return f"swarm container {owner.container_id} {owner.interface}"


def parse_link_alias(alias: str) -> Owner | None:
    """Read `link_alias` back; None when the alias is not a finished link's."""
    match = _ALIAS.fullmatch(alias)
    if match is None:
        return None
    try:
        interface = ipaddress.IPv4Interface(match[2])
    except ValueError:
        return None
    return Owner(ContainerID(match[1]), interface)


def mac_of(address: ipaddress.IPv4Address) -> str:
    """Derive the link address: a reused address keeps its MAC, so no neighbour entry is stale."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in address.packed)

"""Which address a node advertises. Pure: the machine's addresses are an argument.

Source of rules and sentences: moby daemon/cluster/listen_addr.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from proto.errors import InvalidError

PORT_DEFAULT = 2377
PORT_MAX = 65_535
LISTEN_DEFAULT = f"0.0.0.0:{PORT_DEFAULT}"


class InterfaceAddress(msgspec.Struct, frozen=True):
    """An address of this machine, without its prefix length."""

    interface: str
    address: str


def split_port(text: str, what: str) -> tuple[str, int]:
    """Split `host[:port]` (IPv6 in brackets when a port follows); the port defaults to 2377.

    Raises:
        InvalidError: the port is no number of 1-65535, or the host is empty.
    """
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidError(f"{what} must be of the form [IP]:port, not {text!r}")
        colon, port = rest[:1], rest[1:]
    elif not colon or host.count(":"):
        host, colon, port = text, "", ""
    if not host:
        raise InvalidError(f"{what} {text!r} has no host")
    if not colon:
        return host, PORT_DEFAULT
    if not port.isdigit() or not 0 < int(port) <= PORT_MAX:
        raise InvalidError(f"{what} {text!r}: {port!r} is not a port (1-65535)")
    return host, int(port)


def join_port(host: str, port: int) -> str:
    """Write an address and a port as one."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve_listen(text: str, machine: Sequence[InterfaceAddress] = ()) -> str:
    """Choose where to listen; "" means every address, of both families.

    Raises:
        InvalidError: it is not `IP[:port]` or `interface[:port]`.
    """
    if not text:
        return LISTEN_DEFAULT
    host, port = split_port(text, "listen address")
    host = _of_interface(host, machine) or host
    _check_ip(host, "listen address")
    return join_port(host, port)


def resolve_data_path(text: str, machine: Sequence[InterfaceAddress]) -> str:
    """Choose the address for the traffic of containers; "" leaves it to the advertised one.

    Raises:
        InvalidError: it is neither an address nor an interface.
    """
    if not text:
        return ""
    host = _of_interface(text, machine) or text.strip("[]")
    _check_ip(host, "data path address")
    if ipaddress.ip_address(host).is_unspecified:
        raise InvalidError("data path address must be a non-zero IP address or a network interface")
    return host


def resolve_advertise(text: str, listen: str, machine: Sequence[InterfaceAddress]) -> str:
    """Choose the address that other nodes are told.

    Args:
        text: `IP[:port]`, `interface[:port]`, or "" to choose.
        listen: the checked listen address; a specific one there is advertised too.
        machine: this machine's addresses, loopback and link-local ones left out.

    Raises:
        InvalidError: the text names nothing, or there is more or less than one to choose from.
    """
    listen_host, listen_port = split_port(listen, "listen address")
    if text:
        host, port = split_port(text, "advertise address")
        if not _has_port(text):
            port = listen_port
        of_interface = _of_interface(host, machine)
        if of_interface:
            return join_port(of_interface, port)
        _check_ip(host, "advertise address")
        if ipaddress.ip_address(host).is_unspecified:
            raise InvalidError(
                "advertise address must be a non-zero IP address or a network interface"
            )
        return join_port(host, port)
    if not ipaddress.ip_address(listen_host).is_unspecified:
        return join_port(listen_host, listen_port)
    return join_port(_only_address(machine), listen_port)


def _of_interface(name: str, machine: Sequence[InterfaceAddress]) -> str:
    """Return the address of an interface, IPv4 first; "" if there is no such interface.

    Raises:
        InvalidError: it has more than one of the family, so that it is not clear which is meant.
    """
    addresses = [a.address for a in machine if a.interface == name]
    for family in ("IPv4", "IPv6"):
        found = [one for one in addresses if (":" in one) is (family == "IPv6")]
        if len(found) > 1:
            raise InvalidError(
                f"interface {name} has more than one {family} address ({' and '.join(found)}): "
                "give the address itself"
            )
        if found:
            return found[0]
    return ""


def _has_port(text: str) -> bool:
    """Tell a port from the last group of a bare IPv6 address."""
    after_bracket = text.rpartition("]")[2]
    return ":" in after_bracket and (text.startswith("[") or text.count(":") == 1)


def _only_address(machine: Sequence[InterfaceAddress]) -> str:
    candidates = [a for a in machine if ":" not in a.address] or list(machine)
    # Both clients add: specify one with --advertise-addr.
    if not candidates:
        raise InvalidError("could not find the system's IP address")
    if len(candidates) > 1:
        listed = " and ".join(f"{a.address} on {a.interface}" for a in candidates[:2])
        kind = (
            "multiple addresses on different interfaces"
            if len({a.interface for a in candidates}) > 1
            else f"multiple addresses on interface {candidates[0].interface}"
        )
        raise InvalidError(
            f"could not choose an IP address to advertise since this system has {kind} ({listed})"
        )
    return candidates[0].address


def _check_ip(host: str, what: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise InvalidError(
            f"{what} must be an IP address or a network interface (with optional port), "
            f"not {host!r}"
        ) from error

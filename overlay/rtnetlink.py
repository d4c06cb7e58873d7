"""Route netlink messages as bytes: links, addresses, routes.

Pure: packs requests and parses replies, opens nothing. Only what the bridge needs is here, on
purpose; `DESIGN.md` has the figures for not using pyroute2. Numbers are those of linux/netlink.h,
linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator

import msgspec

NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 10, 18
_IFLA_OPERSTATE, _OPERSTATE_UP = 16, 6
_IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 26, 27, 28, 29
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_BR_MCAST_SNOOPING = 23
_BRPORT_ISOLATED = 33
_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 8, 1
_EXT_MASK_SKIP_STATS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1

# Marks a link as ours from the moment it exists: the alias can only be set afterwards. "sw".
LINK_GROUP = 0x73770001
# Where links wait to be deleted together: the kernel waits some 20 ms once for the whole group,
# against 20 ms for each link by itself, and holds the lock meanwhile that every attach needs.
DOOMED_GROUP = 0x73770002
LOOPBACK_INDEX = 1

_ATTRIBUTE = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")
_IFA_FLAGS = 8
# Temporary, duplicate, deprecated and tentative ones (linux/if_addr.h).
_IFA_F_PASSING = 0x01 | 0x08 | 0x20 | 0x40
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")


class Message(msgspec.Struct, frozen=True):
    """A request without the header's sequence number, which the socket fills in."""

    type: int
    flags: int
    body: bytes


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network device as the kernel reports it.

    Attributes:
        is_up: wanted to be up.
        is_running: up, with a carrier that the rest of the kernel has taken notice of.
    """

    index: int
    name: str
    kind: str = ""
    alias: str = ""
    master: int = 0
    group: int = 0
    mac: str = ""
    is_up: bool = False
    is_running: bool = False


class Address(msgspec.Struct, frozen=True):
    """An IPv4 address of a device."""

    index: int
    interface: ipaddress.IPv4Interface


class Address6(msgspec.Struct, frozen=True):
    """An IPv6 address of a device; `is_lasting`: neither temporary, nor on its way in or out."""

    index: int
    interface: ipaddress.IPv6Interface
    is_lasting: bool


class Route(msgspec.Struct, frozen=True):
    """A route of the main table; `index` is 0 when it names no single device."""

    index: int
    network: ipaddress.IPv4Network


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Pack an attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield (type without flags, payload) for each attribute of a reply."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _NLA_TYPE_MASK, bytes(data[offset + _ATTRIBUTE.size : offset + length])
        offset += (length + 3) & ~3


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


def _ifinfo(index: int = 0, *, up: bool | None = None) -> bytes:
    flags, change = (0, 0) if up is None else (_IFF_UP if up else 0, _IFF_UP)
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)


def create_bridge(name: str, mac: str) -> Message:
    """Make a bridge that is down and keeps its address whatever ports come and go."""
    body = (
        _ifinfo()
        + attribute(_IFLA_IFNAME, _text(name))
        + attribute(_IFLA_ADDRESS, _mac(mac))
        + attribute(_IFLA_GROUP, _u32(LINK_GROUP))
        + nested(
            _IFLA_LINKINFO,
            attribute(_INFO_KIND, _text("bridge")),
            nested(_INFO_DATA, attribute(_BR_MCAST_SNOOPING, b"\0")),
        )
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def create_veth(name: str, *, peer: str, peer_mac: str, peer_namespace: int) -> Message:
    """Make a pair, down, whose far end is born in the namespace of a file descriptor."""
    far_end = (
        _ifinfo()
        + attribute(_IFLA_IFNAME, _text(peer))
        + attribute(_IFLA_ADDRESS, _mac(peer_mac))
        + attribute(_IFLA_NET_NS_FD, _u32(peer_namespace))
    )
    body = (
        _ifinfo()
        + attribute(_IFLA_IFNAME, _text(name))
        + attribute(_IFLA_GROUP, _u32(LINK_GROUP))
        + nested(
            _IFLA_LINKINFO,
            attribute(_INFO_KIND, _text("veth")),
            nested(_INFO_DATA, nested(_VETH_INFO_PEER, far_end)),
        )
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def enslave(name: str, bridge_index: int, *, has_ipv6: bool) -> Message:
    """Make the named link a port of the bridge, without IPv6 addresses of its own.

    Args:
        name: the link.
        bridge_index: the bridge.
        has_ipv6: False when the kernel runs without IPv6: it would refuse to hear of it.
    """
    no_address = attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_MODE_NONE]))
    body = (
        _ifinfo()
        + attribute(_IFLA_IFNAME, _text(name))
        + attribute(_IFLA_MASTER, _u32(bridge_index))
        + (nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, no_address)) if has_ipv6 else b"")
    )
    return Message(RTM_NEWLINK, 0, body)


def finish_port(name: str, alias: str) -> Message:
    """Isolate the named bridge port from the other ports, write its alias, bring it up."""
    body = (
        _ifinfo(up=True)
        + attribute(_IFLA_IFNAME, _text(name))
        + nested(
            _IFLA_LINKINFO,
            attribute(_INFO_SLAVE_KIND, _text("bridge")),
            nested(_INFO_SLAVE_DATA, attribute(_BRPORT_ISOLATED, b"\1")),
        )
        + attribute(_IFLA_IFALIAS, alias.encode())
    )
    return Message(RTM_NEWLINK, 0, body)


def set_alias(name: str, alias: str) -> Message:
    """Write the alias of the named link."""
    body = (
        _ifinfo() + attribute(_IFLA_IFNAME, _text(name)) + attribute(_IFLA_IFALIAS, alias.encode())
    )
    return Message(RTM_NEWLINK, 0, body)


def bring_up(index: int) -> Message:
    """Bring a link up."""
    return Message(RTM_NEWLINK, 0, _ifinfo(index, up=True))


def delete_link(name: str) -> Message:
    """Delete the named link, and with a veth its other end."""
    return Message(RTM_DELLINK, 0, _ifinfo() + attribute(_IFLA_IFNAME, _text(name)))


def doom(name: str) -> Message:
    """Put the named link among those that `delete_doomed` deletes."""
    body = (
        _ifinfo()
        + attribute(_IFLA_IFNAME, _text(name))
        + attribute(_IFLA_GROUP, _u32(DOOMED_GROUP))
    )
    return Message(RTM_NEWLINK, 0, body)


def delete_doomed() -> Message:
    """Delete all doomed links at once."""
    return Message(RTM_DELLINK, 0, _ifinfo() + attribute(_IFLA_GROUP, _u32(DOOMED_GROUP)))


def get_link(name: str) -> Message:
    """Ask for one link by name."""
    body = (
        _ifinfo()
        + attribute(_IFLA_IFNAME, _text(name))
        + attribute(_IFLA_EXT_MASK, _u32(_EXT_MASK_SKIP_STATS))
    )
    return Message(RTM_GETLINK, 0, body)


def list_links() -> Message:
    """Ask for every link."""
    body = _ifinfo() + attribute(_IFLA_EXT_MASK, _u32(_EXT_MASK_SKIP_STATS))
    return Message(RTM_GETLINK, NLM_F_DUMP, body)


def add_address(index: int, interface: ipaddress.IPv4Interface) -> Message:
    """Give a link an address with its network's broadcast address."""
    packed = interface.ip.packed
    body = (
        _IFADDR.pack(socket.AF_INET, interface.network.prefixlen, 0, 0, index)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
        + attribute(_IFA_BROADCAST, interface.network.broadcast_address.packed)
    )
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_address(index: int, interface: ipaddress.IPv4Interface) -> Message:
    """Take an address from a link."""
    body = _IFADDR.pack(socket.AF_INET, interface.network.prefixlen, 0, 0, index) + attribute(
        _IFA_LOCAL, interface.ip.packed
    )
    return Message(RTM_DELADDR, 0, body)


def list_addresses() -> Message:
    """Ask for every IPv4 address."""
    return Message(RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0))


def list_addresses6() -> Message:
    """Ask for every IPv6 address."""
    return Message(RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(socket.AF_INET6, 0, 0, 0, 0))


def add_default_route(gateway: ipaddress.IPv4Address, index: int) -> Message:
    """Send everything that is not on the link's network to the gateway."""
    body = (
        _RTMSG.pack(socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
        + attribute(_RTA_GATEWAY, gateway.packed)
        + attribute(_RTA_OIF, _u32(index))
    )
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


def list_routes() -> Message:
    """Ask for every IPv4 route."""
    return Message(RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(socket.AF_INET, *[0] * 8))


def parse_link(body: bytes) -> Link:
    """Read a RTM_NEWLINK reply."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = dict(attributes(body[_IFINFO.size :]))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    return Link(
        index=index,
        name=_string(found.get(_IFLA_IFNAME)),
        kind=_string(info.get(_INFO_KIND)),
        alias=_string(found.get(_IFLA_IFALIAS)),
        master=_integer(found.get(_IFLA_MASTER)),
        group=_integer(found.get(_IFLA_GROUP)),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        is_up=bool(flags & _IFF_UP),
        is_running=found.get(_IFLA_OPERSTATE) == bytes([_OPERSTATE_UP]),
    )


def parse_address(body: bytes) -> Address:
    """Read a RTM_NEWADDR reply."""
    _, prefix_length, _, _, index = _IFADDR.unpack_from(body)
    found = dict(attributes(body[_IFADDR.size :]))
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    return Address(index, ipaddress.IPv4Interface((packed, prefix_length)))


def parse_address6(body: bytes) -> Address6:
    """Read a RTM_NEWADDR reply of IPv6."""
    _, prefix_length, flags, _, index = _IFADDR.unpack_from(body)
    found = dict(attributes(body[_IFADDR.size :]))
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    flags |= _integer(found.get(_IFA_FLAGS))
    return Address6(
        index,
        ipaddress.IPv6Interface((packed, prefix_length)),
        not flags & _IFA_F_PASSING,
    )


def parse_route(body: bytes) -> Route | None:
    """Read a RTM_NEWROUTE reply; None for a route outside the main table."""
    _, prefix_length, _, _, table, _, _, _, _ = _RTMSG.unpack_from(body)
    if table != _RT_TABLE_MAIN:
        return None
    found = dict(attributes(body[_RTMSG.size :]))
    packed = found.get(_RTA_DST, bytes(4))
    network = ipaddress.IPv4Network((packed, prefix_length))
    return Route(_integer(found.get(_RTA_OIF)), network)


def _string(payload: bytes | None) -> str:
    return payload.rstrip(b"\0").decode(errors="replace") if payload else ""


def _integer(payload: bytes | None) -> int:
    return int.from_bytes(payload[:4], sys.byteorder) if payload else 0

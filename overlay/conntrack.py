"""Netlink messages that find and delete connection tracking entries.

Pure. A tracked UDP flow keeps being translated to the address it first got as long as its client
keeps sending, whatever the rules say now; these entries are deleted when an address is freed and
when a UDP port begins to be published. Numbers are those of linux/netfilter/nfnetlink_conntrack.h
and, for the filter flags, of net/netfilter/nf_internals.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

import msgspec

from overlay.rtnetlink import NLM_F_DUMP, Message, attribute, attributes, nested

# The socket's protocol; the module `socket` does not have the name everywhere.
NETLINK_NETFILTER = 12

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FILTER_PROTO_NUM = 1 << 3
_STATUS, _STATUS_MASK, _STATUS_DNAT = 3, 26, 1 << 5
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A tracked connection: who answers, which port was asked, and what names it to the kernel."""

    protocol: int
    asked_address: ipaddress.IPv4Address
    asked_port: int
    answer_address: ipaddress.IPv4Address
    key: bytes


def list_translated() -> Message:
    """Ask for the connections whose destination was translated.

    Kernels before 5.18 ignore the filter and list everything: look at the entries again.
    """
    status = struct.pack(">I", _STATUS_DNAT)
    body = _NFGENMSG + attribute(_STATUS, status) + attribute(_STATUS_MASK, status)
    return Message(_GET, NLM_F_DUMP, body)


def list_protocol(protocol: int) -> Message:
    """Ask for the connections of one IP protocol; the same holds before 5.8."""
    body = (
        _NFGENMSG
        + nested(_TUPLE_ORIG, nested(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([protocol]))))
        + nested(
            _FILTER,
            attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _FILTER_PROTO_NUM)),
            attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", 0)),
        )
    )
    return Message(_GET, NLM_F_DUMP, body)


def delete(entry: Entry) -> Message:
    """Forget one connection; its next packet is a new one to the rules."""
    return Message(_DELETE, 0, _NFGENMSG + entry.key)


def parse(body: bytes) -> Entry | None:
    """Read one listed connection; None when it lacks what `Entry` needs (ICMP has no ports)."""
    found = dict(attributes(body[len(_NFGENMSG) :]))
    original = dict(attributes(found.get(_TUPLE_ORIG, b"")))
    reply = dict(attributes(found.get(_TUPLE_REPLY, b"")))
    asked = dict(attributes(original.get(_TUPLE_PROTO, b"")))
    source = dict(attributes(reply.get(_TUPLE_IP, b""))).get(_IP_V4_SRC)
    destination = dict(attributes(original.get(_TUPLE_IP, b""))).get(_IP_V4_DST)
    if source is None or destination is None or _PROTO_NUM not in asked:
        return None
    key = nested(_TUPLE_ORIG, found[_TUPLE_ORIG])
    key += b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Entry(
        protocol=asked[_PROTO_NUM][0],
        asked_address=ipaddress.IPv4Address(destination),
        asked_port=int.from_bytes(asked.get(_PROTO_DST_PORT, b""), "big"),
        answer_address=ipaddress.IPv4Address(source),
        key=key,
    )

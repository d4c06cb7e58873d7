"""Netlink messages as bytes: what goes out is what the headers say, what comes in is read back."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from overlay import conntrack
from overlay import rtnetlink as rt


def test_attributes_are_padded_and_read_back() -> None:
    """Lengths count without the padding; the nested flag is not part of the type."""
    packed = rt.nested(18, rt.attribute(1, b"veth\0"), rt.attribute(2, b"xy"))

    assert len(packed) % 4 == 0
    ((kind, payload),) = rt.attributes(packed)
    assert kind == 18
    assert dict(rt.attributes(payload)) == {1: b"veth\0", 2: b"xy"}


def test_truncated_attribute_ends_the_reading() -> None:
    """A length of zero cannot loop for ever."""
    assert list(rt.attributes(struct.pack("=HH", 0, 1))) == []


def test_veth_is_born_in_the_namespace_with_its_mac() -> None:
    """The far end's name, address and namespace are in the one message that makes the pair."""
    message = rt.create_veth("swa", peer="eth0", peer_mac="02:42:ac:12:00:02", peer_namespace=7)
    found = dict(rt.attributes(message.body[16:]))
    info = dict(rt.attributes(found[18]))
    ((_, peer),) = rt.attributes(info[2])
    far_end = dict(rt.attributes(peer[16:]))

    assert message.flags == rt.NLM_F_CREATE | rt.NLM_F_EXCL
    assert (found[3], info[1]) == (b"swa\0", b"veth\0")
    assert far_end == {
        3: b"eth0\0",
        1: bytes.fromhex("0242ac120002"),
        28: struct.pack("=I", 7),
    }


def test_kernel_without_ipv6_hears_nothing_of_it() -> None:
    """It would refuse the attribute, and the attach with it."""
    with_ipv6 = dict(rt.attributes(rt.enslave("swa", 4, has_ipv6=True).body[16:]))
    without = dict(rt.attributes(rt.enslave("swa", 4, has_ipv6=False).body[16:]))

    assert set(with_ipv6) - set(without) == {26}
    assert without == {3: b"swa\0", 10: struct.pack("=I", 4)}


def test_link_is_read_back() -> None:
    """Index, name, kind, alias, master, group, state of a reply."""
    body = (
        struct.pack("=BxHiII", 0, 1, 9, 0x1043, 0)
        + rt.attribute(3, b"swa\0")
        + rt.attribute(1, bytes.fromhex("0242ac120002"))
        + rt.attribute(10, struct.pack("=I", 4))
        + rt.attribute(16, b"\6")
        + rt.attribute(20, b"an alias\0")
        + rt.attribute(27, struct.pack("=I", rt.LINK_GROUP))
        + rt.attribute(18, rt.attribute(1, b"veth\0"))
    )

    assert rt.parse_link(body) == rt.Link(
        index=9,
        name="swa",
        kind="veth",
        alias="an alias",
        master=4,
        group=rt.LINK_GROUP,
        mac="02:42:ac:12:00:02",
        is_up=True,
        is_running=True,
    )


def test_link_without_attributes_has_defaults() -> None:
    """A kernel that leaves something out does not break the reading."""
    link = rt.parse_link(struct.pack("=BxHiII", 0, 1, 9, 0, 0))

    assert link == rt.Link(index=9, name="")


def test_address_is_read_back() -> None:
    """What `add_address` writes is what `parse_address` reads."""
    interface = IPv4Interface("172.18.0.2/16")

    assert rt.parse_address(rt.add_address(4, interface).body) == rt.Address(4, interface)


def test_routes_of_other_tables_are_left_out() -> None:
    """The local table has every own address once more."""
    main = struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, 254, 2, 253, 1, 0)
    local = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 255, 2, 254, 2, 0)
    where = rt.attribute(1, bytes([192, 0, 2, 0])) + rt.attribute(4, struct.pack("=I", 3))

    assert rt.parse_route(main + where) == rt.Route(3, IPv4Network("192.0.2.0/24"))
    assert rt.parse_route(local + where) is None


def test_tracked_connection_is_read_and_named_for_deletion() -> None:
    """The key for deletion is the original direction, the ID and the zone, as they came."""
    original = rt.nested(
        1,
        rt.nested(1, rt.attribute(1, bytes([1, 1, 1, 1])), rt.attribute(2, bytes([192, 0, 2, 1]))),
        rt.nested(2, rt.attribute(1, b"\x11"), rt.attribute(3, struct.pack(">H", 5353))),
    )
    reply = rt.nested(
        2,
        rt.nested(1, rt.attribute(1, bytes([172, 18, 0, 2])), rt.attribute(2, bytes([1, 1, 1, 1]))),
        rt.nested(2, rt.attribute(1, b"\x11")),
    )
    identity = rt.attribute(12, b"abcd")
    other = rt.attribute(7, b"\0\0\0\1")
    entry = conntrack.parse(b"\2\0\0\0" + original + reply + other + identity)

    assert entry is not None
    assert (entry.protocol, entry.asked_port) == (17, 5353)
    assert entry.asked_address == IPv4Address("192.0.2.1")
    assert entry.answer_address == IPv4Address("172.18.0.2")
    assert conntrack.delete(entry).body == b"\2\0\0\0" + original + identity


def test_incomplete_tracked_connection_is_skipped() -> None:
    """IPv6 entries and such have no IPv4 addresses."""
    assert conntrack.parse(b"\2\0\0\0") is None

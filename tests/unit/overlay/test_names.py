"""Names of links and what their aliases say."""

from __future__ import annotations

import ipaddress

import pytest

from overlay import names
from proto.errors import InvalidError
from proto.ids import ContainerID

ID = ContainerID("5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9")


def test_link_name_fits_the_kernels_limit() -> None:
    """Prefix and twelve characters of the ID are 14 of the 15 that fit."""
    assert names.link_name(ID) == "sw5feceb66ffc8"
    assert names.is_link_name(names.link_name(ID))


@pytest.mark.parametrize(
    "name", ["sw", "sw5feceb66ffc", "sw5feceb66ffc89", "eth0", "gwbr", "swarm0"]
)
def test_other_names_are_not_taken_for_ours(name: str) -> None:
    """Only the exact form counts."""
    assert not names.is_link_name(name)


@pytest.mark.parametrize("name", ["", "short", "../../etc/passwd", "A" * 64, "a" * 65, "a/b" * 10])
def test_ids_that_could_leave_the_directory_are_refused(name: str) -> None:
    """An ID becomes part of a path and of a link's name."""
    with pytest.raises(InvalidError, match="12 to 64"):
        names.check_container_id(ContainerID(name))


def test_alias_round_trip() -> None:
    """The alias gives owner, address and network back, and fits the kernel's 256 bytes."""
    owner = names.Owner(ID, ipaddress.IPv4Interface("172.18.255.254/16"))
    alias = names.link_alias(owner)

    assert names.parse_link_alias(alias) == owner
    assert len(alias) < 256


@pytest.mark.parametrize(
    "alias",
    ["", "swarm gateway bridge", f"swarm container {ID}", f"swarm container {ID} 172.18.0.300/16"],
)
def test_unfinished_or_foreign_alias_is_no_owner(alias: str) -> None:
    """Anything but a whole alias counts as none."""
    assert names.parse_link_alias(alias) is None


def test_mac_is_derived_from_the_address() -> None:
    """Docker's form: 02:42 and the four bytes."""
    assert names.mac_of(ipaddress.IPv4Address("172.18.0.254")) == "02:42:ac:12:00:fe"

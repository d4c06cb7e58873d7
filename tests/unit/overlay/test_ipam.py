"""The bridge's network and its addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from overlay.ipam import CANDIDATES, AddressPool, choose_pool
from proto.errors import InvalidError, ResourceExhaustedError


def test_first_candidate_is_dockers_gateway_bridge() -> None:
    """A node without conflicts gets 172.18.0.0/16."""
    assert choose_pool("", []) == IPv4Network("172.18.0.0/16")


def test_conflicts_move_on_in_a_fixed_order() -> None:
    """A route inside a candidate takes it, however small."""
    taken = [IPv4Network("172.18.9.9/32"), IPv4Network("172.19.0.0/24")]

    assert choose_pool("", taken) == IPv4Network("172.20.0.0/16")


def test_default_routes_are_no_conflict() -> None:
    """Neither 0.0.0.0/0 nor the halves that VPNs set."""
    taken = [IPv4Network("0.0.0.0/0"), IPv4Network("0.0.0.0/1"), IPv4Network("128.0.0.0/1")]

    assert choose_pool("", taken) == IPv4Network("172.18.0.0/16")


def test_company_wide_routes_lead_to_another_range() -> None:
    """A VPN that takes 172.16.0.0/12 leaves 192.168."""
    assert choose_pool("", [IPv4Network("172.16.0.0/12")]) == IPv4Network("192.168.0.0/20")


def test_no_free_candidate_is_a_sentence_with_the_remedy() -> None:
    """All private ranges in use: the operator must name one."""
    with pytest.raises(ResourceExhaustedError, match="set a pool"):
        choose_pool("", list(CANDIDATES))


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        ("10.0.0.1/24", "host bits"),
        ("10.0.0.0/30", "too small"),
        ("nonsense", "not an IPv4 network"),
        ("fd00::/64", "not an IPv4 network"),
        ("192.168.1.0/24", "overlaps with the node's route or address 192.168.0.0/16"),
    ],
)
def test_requested_pool_is_checked(requested: str, reason: str) -> None:
    """Malformed, too small and conflicting pools are refused with the reason."""
    with pytest.raises(InvalidError, match=reason):
        choose_pool(requested, [IPv4Network("192.168.0.0/16")])


def test_requested_pool_wins() -> None:
    """A free pool is taken as it is."""
    assert choose_pool("10.9.0.0/29", []) == IPv4Network("10.9.0.0/29")


def test_addresses_begin_after_the_gateway_and_go_round() -> None:
    """Network, gateway and broadcast are left out; a freed address is the last in turn."""
    pool = AddressPool(IPv4Network("10.9.0.0/29"))
    given = [str(pool.allocate(owner)) for owner in "abc"]
    pool.release("a")
    later = [str(pool.allocate(owner)) for owner in "def"]

    assert str(pool.gateway) == "10.9.0.1"
    assert given == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
    assert later == ["10.9.0.5", "10.9.0.6", "10.9.0.2"]
    with pytest.raises(ResourceExhaustedError, match=r"all 5 addresses of 10\.9\.0\.0/29"):
        pool.allocate("g")


def test_owner_keeps_its_address() -> None:
    """Asking again gives the same; releasing twice gives None."""
    pool = AddressPool(IPv4Network("10.9.0.0/29"))
    address = pool.allocate("a")

    assert pool.allocate("a") == address
    assert pool.release("a") == address
    assert pool.release("a") is None


@pytest.mark.parametrize(
    ("owner", "address", "is_possible"),
    [
        ("b", "10.9.0.5", True),
        ("a", "10.9.0.2", True),
        ("b", "10.9.0.2", False),
        ("a", "10.9.0.3", False),
        ("b", "10.9.0.1", False),
        ("b", "10.9.0.7", False),
        ("b", "10.9.1.2", False),
    ],
)
def test_reserve_takes_only_what_is_free(owner: str, address: str, *, is_possible: bool) -> None:
    """Outside the pool, another's, or a second address of one owner: refused, nothing changed."""
    pool = AddressPool(IPv4Network("10.9.0.0/29"))
    pool.allocate("a")
    before = sorted(pool.owners())

    assert pool.reserve(owner, IPv4Address(address)) == is_possible
    pool.check()
    assert sorted(pool.owners()) == sorted({*before, *([owner] if is_possible else [])})

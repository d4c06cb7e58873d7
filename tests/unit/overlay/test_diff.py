"""The plan of a start."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from overlay import diff, names, rules
from overlay.desired import SETTINGS, Desired
from overlay.observed import Observed
from overlay.rtnetlink import DOOMED_GROUP, LINK_GROUP, Address, Link, Route
from proto.errors import ConflictError, InvalidError
from proto.ids import ContainerID

GATEWAY = ipaddress.IPv4Interface("172.18.0.1/16")
A, B = ContainerID("a" * 64), ContainerID("b" * 64)
BRIDGE = Link(index=3, name="gwbr", kind="bridge", alias=names.BRIDGE_ALIAS, is_up=True)


def port_of(container_id: ContainerID, address: str = "172.18.0.2/16") -> Link:
    """Make a finished link of a container."""
    owner = names.Owner(container_id, ipaddress.IPv4Interface(address))
    return Link(
        index=9,
        name=names.link_name(container_id),
        kind="veth",
        alias=names.link_alias(owner),
        master=3,
        group=LINK_GROUP,
        is_up=True,
    )


def in_order(*links: Link) -> Observed:
    """Observe a node where all is well."""
    base = rules.base("gwbr", GATEWAY.network)
    return Observed(
        links=(BRIDGE, *links),
        addresses=(Address(3, GATEWAY),),
        routes=(Route(3, GATEWAY.network),),
        settings=dict(SETTINGS),
        table=rules.TableState(exists=True, markers=(base.marker,), rule_counts=base.rule_counts),
        namespaces={names.parse_link_alias(link.alias).container_id: True for link in links},  # type: ignore[union-attr]
    )


def plan(observed: Observed, *live: ContainerID) -> diff.Plan:
    """Plan a start."""
    return diff.plan(Desired(gateway=GATEWAY, live=frozenset(live)), observed)


def test_fresh_node_gets_everything_in_order() -> None:
    """Rules before the settings that open 127/8; the bridge before its settings."""
    operations = plan(Observed(settings={"net/ipv4/ip_forward": "0"})).operations

    assert [type(operation).__name__ for operation in operations] == [
        "ChangeRules",
        "CreateBridge",
        "SetAlias",
        "AddBridgeAddress",
        "BringBridgeUp",
        *["WriteSetting"] * 4,
    ]
    assert operations[1] == diff.CreateBridge("02:42:ac:12:00:01")


def test_node_in_order_needs_nothing() -> None:
    """The plan is empty, and the live container is adopted with its address."""
    found = plan(in_order(port_of(A)), A)

    assert found.operations == ()
    assert found.adopted == {A: ipaddress.IPv4Interface("172.18.0.2/16")}


@pytest.mark.parametrize("group", [LINK_GROUP, DOOMED_GROUP])
def test_half_made_link_is_a_leftover_even_of_a_live_container(group: int) -> None:
    """Without alias an attach, or a removal, did not get to its end."""
    half = msgspec.structs.replace(port_of(A), alias="", group=group)
    observed = msgspec.structs.replace(in_order(), links=(BRIDGE, half), namespaces={A: True})
    found = plan(observed, A)

    assert found.operations == (diff.DeleteLinks((half.name,)), diff.RemoveNamespace(A))
    assert found.adopted == {}


def test_links_of_others_are_left_alone() -> None:
    """A name like ours is not enough."""
    foreign = Link(index=8, name=names.link_name(A), kind="veth")
    dummy = Link(index=7, name=names.link_name(B), kind="dummy", group=LINK_GROUP)
    observed = msgspec.structs.replace(in_order(), links=(BRIDGE, foreign, dummy))

    assert plan(observed).operations == ()


def test_two_links_that_claim_one_address_do_not_both_stay() -> None:
    """The first by ID is adopted, the other goes."""
    found = plan(in_order(port_of(A), port_of(B)), A, B)

    assert list(found.adopted) == [A]
    assert found.operations == (
        diff.DeleteLinks((names.link_name(B),)),
        diff.RemoveNamespace(B),
    )


def test_link_outside_the_pool_or_with_the_gateways_address_goes() -> None:
    """What cannot be right is not adopted."""
    found = plan(in_order(port_of(A, "10.0.0.2/24"), port_of(B, "172.18.0.1/16")), A, B)

    assert found.adopted == {}


def test_link_off_the_bridge_is_put_back() -> None:
    """A live container's link that is down or elsewhere becomes a port again."""
    down = msgspec.structs.replace(port_of(A), is_up=False)
    away = msgspec.structs.replace(port_of(A), master=0)
    for link in (down, away):
        assert plan(in_order(link), A).operations == (diff.AttachPort(link.name, link.alias),)


def test_former_address_of_the_bridge_goes_before_the_new_one_comes() -> None:
    """The order keeps two networks from overlapping for a moment."""
    former = ipaddress.IPv4Interface("172.19.0.1/16")
    observed = msgspec.structs.replace(in_order(), addresses=(Address(3, former),))

    assert plan(observed).operations == (
        diff.DeleteBridgeAddress(former),
        diff.AddBridgeAddress(GATEWAY),
    )


def test_settings_the_kernel_lacks_are_not_written() -> None:
    """No br_netfilter, no IPv6: nothing to do about them, except below the bridge's own name."""
    lacking = {path: value for path, value in SETTINGS if "bridge/" not in path}
    observed = msgspec.structs.replace(in_order(), settings=lacking)

    assert plan(observed).operations == ()


def test_pool_of_live_containers_stays_whatever_is_requested() -> None:
    """Their addresses cannot change."""
    observed = in_order(port_of(A))

    assert diff.decide_gateway("10.9.0.0/24", observed, frozenset({A})) == GATEWAY
    assert str(diff.decide_gateway("10.9.0.0/24", observed, frozenset())) == "10.9.0.1/24"


def test_own_routes_and_addresses_are_no_conflict() -> None:
    """A restart without containers keeps the bridge's network."""
    assert diff.decide_gateway("", in_order(), frozenset()) == GATEWAY
    assert diff.decide_gateway("172.18.0.0/16", in_order(), frozenset()) == GATEWAY


def test_network_that_became_occupied_is_given_up_without_containers() -> None:
    """A route that another program set since moves the empty bridge away."""
    taken = Route(7, ipaddress.IPv4Network("172.18.4.0/24"))
    observed = msgspec.structs.replace(in_order(), routes=(taken,))

    assert str(diff.decide_gateway("", observed, frozenset())) == "172.19.0.1/16"
    with pytest.raises(InvalidError, match=r"172\.18\.4\.0/24"):
        diff.decide_gateway("172.18.0.0/16", observed, frozenset())


@pytest.mark.parametrize(
    "link",
    [
        Link(index=3, name="gwbr", kind="bridge"),
        Link(index=3, name="gwbr", kind="bridge", alias="mine"),
        Link(index=3, name="gwbr", kind="veth", alias=names.BRIDGE_ALIAS),
    ],
)
def test_bridge_of_somebody_else_is_refused(link: Link) -> None:
    """With the command that helps."""
    with pytest.raises(ConflictError, match="ip link delete gwbr"):
        diff.decide_gateway("", Observed(links=(link,)), frozenset())

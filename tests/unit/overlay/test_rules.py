"""Checks of ports, and what is read from listings."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from overlay import rules
from overlay.api import PublishedPort
from proto.errors import InvalidError


def port(
    published: int = 80, protocol: Any = "tcp", target: int = 80, *backends: str
) -> PublishedPort:
    """Make a published port."""
    return PublishedPort(
        published_port=published, protocol=protocol, target_port=target, backends=backends
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (port(0), "0 is not between"),
        (port(65536), "65536 is not between"),
        (port(80, "tcp", 0), "0 is not between"),
        (port(80, "icmp"), "tcp, udp or sctp"),
        (port(80, "tcp", 80, "web"), "'web' is not an IPv4 address"),
        (port(80, "tcp", 80, "172.18.0.2; flush ruleset"), "is not an IPv4 address"),
    ],
)
def test_malformed_ports_are_refused(wrong: PublishedPort, reason: str) -> None:
    """Nothing that is not a number or an address gets into the text for nftables."""
    with pytest.raises(InvalidError, match=reason):
        rules.check_ports([wrong])


def test_port_given_twice_is_refused() -> None:
    """The same number over another protocol is another port."""
    rules.check_ports([port(80, "tcp"), port(80, "udp")])
    with pytest.raises(InvalidError, match="80/tcp is published twice"):
        rules.check_ports([port(80, "tcp", 80), port(80, "tcp", 81)])


def test_udp_ports_that_begin_are_those_with_backends_and_unknown_before() -> None:
    """TCP has no flow that outlives its reset; a changed port was translated already."""
    wanted = rules.check_ports(
        [
            port(1, "udp", 1, "10.0.0.1"),
            port(2, "tcp", 1, "10.0.0.1"),
            port(3, "udp"),
            port(4, "udp", 1, "10.0.0.1"),
        ]
    )
    current = rules.check_ports([port(4, "udp", 1, "10.0.0.2"), port(5, "udp")])

    assert rules.begun_udp_ports(current, wanted) == frozenset({1})


def test_base_is_left_alone_when_the_kernel_has_it() -> None:
    """The marker names the text; a rule more or less in a base chain shows too."""
    base = rules.base("gwbr", ipaddress.IPv4Network("172.18.0.0/16"))
    state = rules.TableState(exists=True, markers=(base.marker,), rule_counts=base.rule_counts)
    fewer = rules.TableState(
        exists=True, markers=(base.marker,), rule_counts={**base.rule_counts, "forward": 1}
    )

    assert rules.base_change(base, state) == ""
    assert rules.base_change(base, fewer) == base.text
    assert rules.base_change(base, rules.TableState()) == base.text


def test_former_marker_goes_with_the_change() -> None:
    """Another pool or version: restated, and only the new marker stays."""
    base = rules.base("gwbr", ipaddress.IPv4Network("172.19.0.0/16"))
    state = rules.TableState(exists=True, markers=("base-0123",), rule_counts=base.rule_counts)

    assert rules.base_change(base, state).endswith("delete chain ip swarm base-0123\n")


def test_obstacles_are_forward_chains_of_others_that_drop() -> None:
    """Ours, accepting ones, other hooks and other families are none."""
    chains = [
        {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"},
        {"family": "ip", "table": "swarm", "name": "forward", "hook": "forward", "policy": "drop"},
        {"family": "ip", "table": "b", "name": "c", "hook": "forward", "policy": "accept"},
        {"family": "ip", "table": "b", "name": "i", "hook": "input", "policy": "drop"},
        {"family": "ip6", "table": "b", "name": "f", "hook": "forward", "policy": "drop"},
        {
            "family": "inet",
            "table": "firewalld",
            "name": "filter_FORWARD",
            "hook": "forward",
            "policy": "accept",
        },
        {"family": "ip", "table": "b", "name": "plain"},
    ]
    listing = json.dumps({"nftables": [{"metainfo": {}}, *({"chain": chain} for chain in chains)]})

    assert rules.forward_obstacles(listing) == (
        "inet firewalld filter_FORWARD",
        "ip filter FORWARD",
    )


def test_table_is_found_by_name() -> None:
    """Another table is not ours."""
    assert not rules.has_table('{"nftables": [{"metainfo": {}}, {"table": {"name": "filter"}}]}')
    assert rules.has_table('{"nftables": [{"table": {"family": "ip", "name": "swarm"}}]}')

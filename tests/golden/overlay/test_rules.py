"""The texts that nftables gets. `SWARM_REWRITE=1` renews them; look at the difference."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from overlay import firewall_rules, rules
from overlay.api import PublishedPort

FOLDER = Path(__file__).parent
A, B, C = "172.18.0.2", "172.18.0.3", "172.18.0.4"


def ports(*entries: tuple[int, Any, int, tuple[str, ...]]) -> dict[rules.Key, PublishedPort]:
    """Index published ports."""
    return rules.check_ports(
        PublishedPort(published_port=number, protocol=protocol, target_port=target, backends=behind)
        for number, protocol, target, behind in entries
    )


NOTHING = ports()
WEB_ONE = ports((8080, "tcp", 80, (A,)))
WEB_THREE = ports((8080, "tcp", 80, (A, B, C)))
WEB_NONE = ports((8080, "tcp", 80, ()))
MANY = ports((53, "udp", 5353, (A, B)), (443, "tcp", 8443, ()), (9000, "sctp", 90, (C,)))

CHANGES = {
    "first-ports": (NOTHING, MANY, []),
    "grow": (WEB_ONE, WEB_THREE, []),
    "shrink": (WEB_THREE, WEB_ONE, []),
    "last-backend-gone": (WEB_ONE, WEB_NONE, []),
    "first-backend-again": (WEB_NONE, WEB_ONE, []),
    "unpublish": (MANY, NOTHING, []),
    "replace-ports": (WEB_ONE, MANY, []),
    "repair": (NOTHING, WEB_ONE, [("tcp", 8080), ("udp", 99)]),
    "nothing": (MANY, MANY, []),
}


def compare(name: str, text: str) -> None:
    """Compare with the file, or write it."""
    path = FOLDER / f"{name}.nft"
    if os.environ.get("SWARM_REWRITE") == "1":
        path.write_text(text)
    assert path.read_text() == text


def test_base_chains() -> None:
    """The table, its chains, and the marker that names this text."""
    compare("base", rules.base("gwbr", ipaddress.IPv4Network("172.18.0.0/16")).text)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_port_changes(name: str) -> None:
    """Transactions in order, separated by a line."""
    current, wanted, stray = CHANGES[name]
    compare(name, "# ---- next transaction\n".join(rules.port_changes(current, wanted, stray)))


PROTECTED = firewall_rules.Protected(
    ports=(2377, 2378),
    members=("192.0.2.7", "192.0.2.10", "2001:db8::1"),
    managers=(("192.0.2.7", 2378), ("192.0.2.7", 2377), ("2001:db8::1", 2377)),
)


@pytest.mark.parametrize("is_open", [False, True])
def test_manager_ports(is_open: bool) -> None:  # noqa: FBT001 -- of the table above
    """Who may connect to the manager's ports; with the option, containers as others may."""
    protected = msgspec.structs.replace(PROTECTED, is_open_to_containers=is_open)
    compare(
        "manager-ports-open" if is_open else "manager-ports", firewall_rules.table_text(protected)
    )

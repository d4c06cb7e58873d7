"""Who may open how many connections to the manager's ports of this node: nftables text. Pure.

A connection costs a manager memory before anybody has proved who he is: TLS state, buffers, and on
the node port grpc's own. grpcio has no hook before the handshake, so the kernel decides, by
counting connections (`ct count`). `table inet swarm_ports` looks at new connections to the ports
only:

- From a container (by way of the bridge) none is let through, neither to this node nor, forwarded,
  to another manager, for which it would come from this node's own address. A manager may have more
  addresses than the one that is known of it: to any other, a few connections to a port of a manager
  are let through, so that containers cannot use up what their node may open. A daemon option lifts
  this.
- From a known member of the cluster, `MEMBER_CONNECTIONS_MAX`. Members do not count in the total
  of strangers, so that whoever fills that keeps no manager and no worker out.
- From any other address `SOURCE_CONNECTIONS_MAX`, and `STRANGER_CONNECTIONS_MAX` in all.

What is too much is refused with a reset, so that an honest client asks another manager at once.
Connections that exist are never looked at. The table is its own, apart from that of the published
ports, because it belongs to the manager and is there before the bridge is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from overlay.names import BRIDGE

TABLE = "swarm_ports"
SOURCE_CONNECTIONS_MAX = 64
STRANGER_CONNECTIONS_MAX = 512
MEMBER_CONNECTIONS_MAX = 256
CONTAINERS_CONNECTIONS_MAX = 32
_SOURCES_MAX = 16_384
_REFUSE = "reject with tcp reset"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Protected(msgspec.Struct, frozen=True, kw_only=True):
    """What is protected, and from whom.

    Attributes:
        ports: of this node, on which a manager listens; none on a worker.
        members: IP addresses of the cluster's nodes.
        managers: address and port of what managers listen on, this one too.
        is_open_to_containers: whether containers may reach the ports as others may.
    """

    ports: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    managers: tuple[tuple[str, int], ...] = ()
    is_open_to_containers: bool = False


def table_text(protected: Protected) -> str:
    """Write the transaction that brings the table about, whatever there is of it.

    The sets in which the kernel counts are kept, and with them what it has counted.
    """
    rules = {
        "input": [f"ct state new meta l4proto tcp tcp dport @ports jump {_STRANGERS}"],
        "forward": [],
        _STRANGERS: [
            *_per_source("members", "known", MEMBER_CONNECTIONS_MAX),
            "ip saddr @members4 return",
            "ip6 saddr @members6 return",
            *_per_source("", "others", SOURCE_CONNECTIONS_MAX),
            f"ct count over {STRANGER_CONNECTIONS_MAX} {_REFUSE}",
        ],
    }
    if not protected.is_open_to_containers:
        rules[_STRANGERS].insert(0, f'iifname "{BRIDGE}" {_REFUSE}')
        rules["forward"] = [
            f'iifname "{BRIDGE}" ip daddr . tcp dport @managers4 {_REFUSE}',
            f'iifname "{BRIDGE}" ip6 daddr . tcp dport @managers6 {_REFUSE}',
            f'iifname "{BRIDGE}" {_FEW}',
        ]
    lines = [f"add table inet {TABLE}", *(f"add set inet {TABLE} {text}" for text in _SETS)]
    for chain, hook in _CHAINS.items():
        lines.append(f"add chain inet {TABLE} {chain}{hook}")
        lines.append(f"flush chain inet {TABLE} {chain}")
    for chain in _CHAINS:
        lines += [f"add rule inet {TABLE} {chain} {rule}" for rule in rules[chain]]
    return "\n".join(lines) + "\n" + elements_text(protected)


def elements_text(protected: Protected) -> str:
    """Write the transaction that puts the present ports and addresses into the table."""
    members = [ipaddress.ip_address(text) for text in protected.members]
    managers = [(ipaddress.ip_address(text), port) for text, port in protected.managers]
    contents = {
        "ports": [str(port) for port in sorted(protected.ports)],
        "manager_ports": [str(port) for port in sorted({port for _, port in managers})],
        "members4": _sorted(one for one in members if one.version == _IPV4),
        "members6": _sorted(one for one in members if one.version != _IPV4),
        "managers4": _services(managers, is_ipv4=True),
        "managers6": _services(managers, is_ipv4=False),
    }
    lines = []
    for name, elements in contents.items():
        lines.append(f"flush set inet {TABLE} {name}")
        if elements:
            lines.append(f"add element inet {TABLE} {name} {{ {', '.join(elements)} }}")
    return "\n".join(lines) + "\n"


def delete_text() -> str:
    """Write the transaction that removes the table; it succeeds without one too."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def has_table(listing: str) -> bool:
    """Tell from the JSON of `list tables` whether ours is there."""
    tables = (item.get("table", {}) for item in msgspec.json.decode(listing)["nftables"])
    return any((table.get("family"), table.get("name")) == ("inet", TABLE) for table in tables)


_FEW = f"ct state new tcp dport @manager_ports ct count over {CONTAINERS_CONNECTIONS_MAX} {_REFUSE}"
_IPV4 = 4
_STRANGERS = "strangers"
_CHAINS = {
    "input": " { type filter hook input priority -10; policy accept; }",
    "forward": " { type filter hook forward priority -10; policy accept; }",
    _STRANGERS: "",
}
_SETS = (
    "ports { type inet_service; }",
    "manager_ports { type inet_service; }",
    "members4 { type ipv4_addr; }",
    "members6 { type ipv6_addr; }",
    "managers4 { type ipv4_addr . inet_service; }",
    "managers6 { type ipv6_addr . inet_service; }",
    *(
        f"{name}{family} {{ type {kind}; size {_SOURCES_MAX}; flags dynamic; }}"
        for name in ("known", "others")
        for family, kind in (("4", "ipv4_addr"), ("6", "ipv6_addr"))
    ),
)


def _per_source(only: str, counted_in: str, connections_max: int) -> list[str]:
    """Write the rules that refuse more than so many connections from one address."""
    return [
        f"{f'{field} saddr @{only}{family} ' if only else ''}"
        f"add @{counted_in}{family} {{ {field} saddr ct count over {connections_max} }} {_REFUSE}"
        for field, family in (("ip", "4"), ("ip6", "6"))
    ]


def _sorted(addresses: Iterable[Address]) -> list[str]:
    return [str(address) for address in sorted(set(addresses), key=int)]


def _services(managers: Iterable[tuple[Address, int]], *, is_ipv4: bool) -> list[str]:
    chosen = {(int(a), a, port) for a, port in managers if (a.version == _IPV4) is is_ipv4}
    return [
        f"{address} . {port}" for _, address, port in sorted(chosen, key=lambda e: (e[0], e[2]))
    ]

"""The node's nftables rules: base chains, one chain per published port, and how to change them.

Pure: text in and out. `table ip swarm` holds a verdict map `ports` from (protocol, port) to the
port's own chain, and the base chains look a packet for a local address up in it. A port's chain
picks a backend by its position: of N rules the first takes every Nth connection, the second every
(N-1)th of the rest, the last what remains, which is exactly even for each port by itself.

Why the order of transactions is what it is. A chain's rules are replaced in one step, and a packet
sees either all old or all new ones; a map lookup may see the next generation while the packet is
still on the old rules. So chains are made and changed first, then map elements are added (the
chain is there), and elements and chains that go away come last. Connection tracking keeps
established connections on the backend they have, whatever the rules become.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import msgspec

from overlay.api import PublishedPort
from proto.errors import InvalidError

TABLE = "swarm"
_PORTS = "ports"
_MARKER_PREFIX = "base-"
_MARKER_CHARACTERS = 12
_BASE_CHAINS = {
    "raw": "type filter hook prerouting priority -300",
    "prerouting": "type nat hook prerouting priority -100",
    "output": "type nat hook output priority -100",
    "forward": "type filter hook forward priority 0",
    "postrouting": "type nat hook postrouting priority 100",
}
_PORT_MAX = 65535

Protocol = Literal["tcp", "udp", "sctp"]
Key = tuple[str, int]


class Base(msgspec.Struct, frozen=True):
    """The base chains: their text and what shows that the kernel has them."""

    marker: str
    text: str
    rule_counts: dict[str, int]


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel's table holds.

    Attributes:
        markers: names of the marker chains, one when all is well.
        rule_counts: number of rules in each base chain.
        ports: the ports in force, by key.
        stray: chains of ports that are not in the map (False), or whose rules are not as we write
            them (True).
    """

    exists: bool = False
    markers: tuple[str, ...] = ()
    rule_counts: dict[str, int] = {}
    ports: dict[Key, PublishedPort] = {}
    stray: dict[Key, bool] = {}


def base(bridge: str, pool: ipaddress.IPv4Network) -> Base:
    """Write the base chains for a bridge and its network."""
    lookup = f"fib daddr type local meta l4proto . th dport vmap @{_PORTS}"
    rules = {
        "raw": [
            # The bridge routes 127.0.0.0/8 (route_localnet): nobody may come in with it.
            'iifname != "lo" ip daddr 127.0.0.0/8 drop',
            f'iifname "{bridge}" ip saddr 127.0.0.0/8 drop',
        ],
        "prerouting": [lookup],
        "output": [lookup],
        "forward": [
            # A packet that belongs to no connection would leave with the container's own address.
            f'iifname "{bridge}" oifname != "{bridge}" ct state invalid drop',
            f'oifname "{bridge}" ct state established,related accept',
            f'oifname "{bridge}" ct status dnat accept',
            f'oifname "{bridge}" drop',
        ],
        "postrouting": [
            # Containers reach each other's published ports, and the node itself 127.0.0.1's,
            # only when the answer comes back this way.
            f'oifname "{bridge}" ip saddr {{ 127.0.0.0/8, {pool} }} masquerade',
            f'oifname != "{bridge}" ip saddr {pool} masquerade',
        ],
    }
    lines = [
        f"add table ip {TABLE}",
        f"add map ip {TABLE} {_PORTS} {{ type inet_proto . inet_service : verdict; }}",
    ]
    for chain, hook in _BASE_CHAINS.items():
        lines.append(f"add chain ip {TABLE} {chain} {{ {hook}; policy accept; }}")
        lines.append(f"flush chain ip {TABLE} {chain}")
        lines += [f"add rule ip {TABLE} {chain} {rule}" for rule in rules[chain]]
    text = "\n".join(lines) + "\n"
    marker = _MARKER_PREFIX + hashlib.sha256(text.encode()).hexdigest()[:_MARKER_CHARACTERS]
    counts = {chain: len(rules[chain]) for chain in _BASE_CHAINS}
    return Base(marker, text + f"add chain ip {TABLE} {marker}\n", counts)


def base_change(wanted: Base, current: TableState) -> str:
    """Write the transaction that brings the base chains about; "" when the kernel has them.

    Restating a chain within a transaction disturbs nothing: packets of known connections do not
    pass the NAT chains, and no packet sees a chain without its rules.
    """
    if current.markers == (wanted.marker,) and current.rule_counts == wanted.rule_counts:
        return ""
    old = [marker for marker in current.markers if marker != wanted.marker]
    return wanted.text + "".join(f"delete chain ip {TABLE} {marker}\n" for marker in old)


def check_ports(ports: Iterable[PublishedPort]) -> dict[Key, PublishedPort]:
    """Index ports by protocol and number.

    Raises:
        InvalidError: a port is out of range, a backend is no IPv4 address, or two entries want the
            same port.
    """
    indexed: dict[Key, PublishedPort] = {}
    for port in ports:
        name = f"{port.published_port}/{port.protocol}"
        if port.protocol not in get_args(Protocol):
            raise InvalidError(f"port {name}: the protocol must be tcp, udp or sctp")
        for number in (port.published_port, port.target_port):
            if not 1 <= number <= _PORT_MAX:
                raise InvalidError(f"port {name}: {number} is not between 1 and {_PORT_MAX}")
        for backend in port.backends:
            try:
                ipaddress.IPv4Address(backend)
            except ValueError as error:
                raise InvalidError(
                    f"port {name}: backend {backend!r} is not an IPv4 address"
                ) from error
        key = (port.protocol, port.published_port)
        if key in indexed:
            raise InvalidError(f"port {name} is published twice on this node")
        indexed[key] = port
    return indexed


def port_changes(
    current: Mapping[Key, PublishedPort],
    wanted: Mapping[Key, PublishedPort],
    stray: Mapping[Key, bool],
) -> list[str]:
    """Write the transactions from the ports in force to those wanted.

    Returns:
        Transactions to run in this order, each only after the one before succeeded; empty when
        nothing differs.
    """
    added = sorted(key for key in wanted if key not in current)
    changed = sorted(key for key in wanted if key in current and wanted[key] != current[key])
    removed = sorted(key for key in current if key not in wanted)
    chains: list[str] = []
    for key in added:
        chains.append(f"add chain ip {TABLE} {_chain(key)}")
        if key in stray:
            chains.append(f"flush chain ip {TABLE} {_chain(key)}")
        chains += _port_rules(wanted[key])
    for key in changed:
        chains.append(f"flush chain ip {TABLE} {_chain(key)}")
        chains += _port_rules(wanted[key])
    elements = [_elements("add", added, is_verdict_given=True)] if added else []
    removals: list[str] = []
    unwanted = {key for key in stray if key not in wanted}
    unmapped = sorted({*removed, *(key for key in unwanted if stray[key])})
    if unmapped:
        removals.append(_elements("delete", unmapped, is_verdict_given=False))
    for key in sorted({*removed, *unwanted}):
        removals.append(f"flush chain ip {TABLE} {_chain(key)}")
        removals.append(f"delete chain ip {TABLE} {_chain(key)}")
    return ["\n".join(lines) + "\n" for lines in (chains, elements, removals) if lines]


def begun_udp_ports(
    current: Mapping[Key, PublishedPort], wanted: Mapping[Key, PublishedPort]
) -> frozenset[int]:
    """List the UDP ports that have backends now and led nowhere of ours before."""
    return frozenset(
        port.published_port
        for key, port in wanted.items()
        if port.protocol == "udp" and port.backends and key not in current
    )


def delete_table() -> str:
    """Write the transaction that removes everything; it succeeds without a table too."""
    return f"add table ip {TABLE}\ndelete table ip {TABLE}\n"


def has_table(listing: str) -> bool:
    """Tell from the JSON of `list tables` whether ours is there."""
    items = msgspec.json.decode(listing)["nftables"]
    return any(item.get("table", {}).get("name") == TABLE for item in items)


def parse_table(listing: str) -> TableState:
    """Read the JSON of `list table`; what is not as we write it ends up in `stray`."""
    chains: list[str] = []
    rules: dict[str, list[list[dict[str, Any]]]] = {}
    mapped: set[Key] = set()
    for item in msgspec.json.decode(listing)["nftables"]:
        if "chain" in item:
            chains.append(item["chain"]["name"])
        elif "rule" in item:
            rules.setdefault(item["rule"]["chain"], []).append(item["rule"]["expr"])
        elif "map" in item and item["map"]["name"] == _PORTS:
            mapped |= {_mapped_key(element) for element in item["map"].get("elem", [])}
    ports: dict[Key, PublishedPort] = {}
    stray: dict[Key, bool] = {}
    for chain in chains:
        key = _key_of(chain)
        if key is None:
            continue
        port = _read_port(key, rules.get(chain, []))
        if port is None or key not in mapped:
            stray[key] = key in mapped
        else:
            ports[key] = port
    return TableState(
        exists=True,
        markers=tuple(sorted(name for name in chains if name.startswith(_MARKER_PREFIX))),
        rule_counts={name: len(rules.get(name, [])) for name in chains if name in _BASE_CHAINS},
        ports=ports,
        stray=stray,
    )


def forward_obstacles(listing: str) -> tuple[str, ...]:
    """Name the chains of others that drop forwarded packets, from the JSON of `list chains`.

    A verdict `accept` of ours ends our chain only: a later chain of the same hook still drops.
    """
    found: list[str] = []
    for item in msgspec.json.decode(listing)["nftables"]:
        chain = item.get("chain")
        if chain is None or chain.get("hook") != "forward" or chain["table"] == TABLE:
            continue
        if chain["family"] not in {"ip", "inet"}:
            continue
        if chain.get("policy") == "drop" or chain["table"] == "firewalld":
            found.append(f"{chain['family']} {chain['table']} {chain['name']}")
    return tuple(sorted(found))


def _chain(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _key_of(chain: str) -> Key | None:
    protocol, _, number = chain.partition("-")
    if protocol not in get_args(Protocol) or not number.isdecimal():
        return None
    return protocol, int(number)


def _elements(verb: str, keys: list[Key], *, is_verdict_given: bool) -> str:
    parts = [
        f"{protocol} . {number}" + (f" : goto {protocol}-{number}" if is_verdict_given else "")
        for protocol, number in keys
    ]
    return f"{verb} element ip {TABLE} {_PORTS} {{ {', '.join(parts)} }}"


def _port_rules(port: PublishedPort) -> list[str]:
    start = (
        f"add rule ip {TABLE} {port.protocol}-{port.published_port} meta l4proto {port.protocol}"
    )
    if not port.backends:
        how = "reject with tcp reset" if port.protocol == "tcp" else "reject"
        return [f"{start} {how}"]
    lines: list[str] = []
    for position, backend in enumerate(port.backends):
        remaining = len(port.backends) - position
        share = f"numgen inc mod {remaining} 0 " if remaining > 1 else ""
        lines.append(f"{start} {share}dnat to {backend}:{port.target_port}")
    return lines


def _mapped_key(element: list[dict[str, Any]]) -> Key:
    protocol, number = element[0]["concat"]
    return protocol, number


def _read_port(key: Key, rules: list[list[dict[str, Any]]]) -> PublishedPort | None:
    translations = [part["dnat"] for rule in rules for part in rule if "dnat" in part]
    rejects = [part for rule in rules for part in rule if "reject" in part]
    if len(translations) + len(rejects) != len(rules) or not rules:
        return None
    targets = {translation["port"] for translation in translations}
    if rejects:
        # A refused port's target is not in the kernel: 0 differs from all, so it is written again.
        if translations or len(rejects) != 1:
            return None
        targets = {0}
    if len(targets) != 1:
        return None
    return PublishedPort(
        published_port=key[1],
        protocol=key[0],  # type: ignore[arg-type] # checked by _key_of
        target_port=targets.pop(),
        backends=tuple(translation["addr"] for translation in translations),
    )

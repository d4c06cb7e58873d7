"""The node's nftables rules: base chains, one chain per published port, and how to change them.

Pure: text in and out. `table ip swarm` holds a verdict map `ports` from (protocol, port) to the
port's own chain, and the base chains look a packet for a local address up in it. A port's chain
picks a backend by its position: of N rules the first takes every Nth connection, the second every
(N-1)th of the rest, the last what remains, which is exactly even for each port by itself. The
chain of a port without backend is empty: the packet goes on to the node itself, where chain `input`
refuses it because the port is in the set `refused`. (`reject` in the output hook would make a local
UDP sender's `send` fail with "operation not permitted".)

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
_REFUSED = "refused"
_MARKER_PREFIX = "base-"
_MARKER_CHARACTERS = 12
_BASE_CHAINS = {
    "raw": "type filter hook prerouting priority -300",
    "prerouting": "type nat hook prerouting priority -100",
    "output": "type nat hook output priority -100",
    "input": "type filter hook input priority 0",
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
        stray: ports of which the chain, the map's and the set's element do not fit together or
            are not as we write them, after an interruption or a change from outside.
    """

    exists: bool = False
    markers: tuple[str, ...] = ()
    rule_counts: dict[str, int] = {}
    ports: dict[Key, PublishedPort] = {}
    stray: frozenset[Key] = frozenset()


def base(bridge: str, pool: ipaddress.IPv4Network) -> Base:
    """Write the base chains for a bridge and its network."""
    lookup = f"fib daddr type local meta l4proto . th dport vmap @{_PORTS}"
    refused = f"ct state new fib daddr type local meta l4proto . th dport @{_REFUSED}"
    rules = {
        "raw": [
            # The bridge routes 127.0.0.0/8 (route_localnet): nobody may come in with it.
            'iifname != "lo" ip daddr 127.0.0.0/8 drop',
            f'iifname "{bridge}" ip saddr 127.0.0.0/8 drop',
        ],
        "prerouting": [lookup],
        "output": [lookup],
        "input": [
            f"{refused} meta l4proto tcp reject with tcp reset",
            f"{refused} reject",
        ],
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
        f"add set ip {TABLE} {_REFUSED} {{ type inet_proto . inet_service; }}",
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
    stray: Iterable[Key],
) -> list[str]:
    """Write the transactions from the ports in force to those wanted.

    Returns:
        Transactions to run in this order, each only after the one before succeeded; empty when
        nothing differs.
    """
    unclear = frozenset(stray)
    assert not unclear & current.keys()
    chains: list[str] = []
    shown: list[Key] = []
    welcomed: list[Key] = []
    for key, port in sorted(wanted.items()):
        if current.get(key) == port:
            continue
        chains.append(f"add chain ip {TABLE} {_chain(key)}")
        if key in current or key in unclear:
            chains.append(f"flush chain ip {TABLE} {_chain(key)}")
        chains += _port_rules(port)
        if key not in current:
            shown.append(key)
        if not port.backends or key in unclear:
            chains.append(_element("add", _REFUSED, key))
        if port.backends and (key in unclear or (key in current and not current[key].backends)):
            welcomed.append(key)
    elements = [_element("add", _PORTS, key, _verdict(key)) for key in shown]
    removals = [_element("delete", _REFUSED, key) for key in welcomed]
    for key in sorted({*current, *unclear} - wanted.keys()):
        removals += _removal(key, current.get(key))
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
    refused: set[Key] = set()
    for item in msgspec.json.decode(listing)["nftables"]:
        if "chain" in item:
            chains.append(item["chain"]["name"])
        elif "rule" in item:
            rules.setdefault(item["rule"]["chain"], []).append(item["rule"]["expr"])
        elif "map" in item and item["map"]["name"] == _PORTS:
            mapped |= {_element_key(element[0]) for element in item["map"].get("elem", [])}
        elif "set" in item and item["set"]["name"] == _REFUSED:
            refused |= {_element_key(element) for element in item["set"].get("elem", [])}
    chained = {key for chain in chains if (key := _key_of(chain)) is not None}
    ports: dict[Key, PublishedPort] = {}
    for key in sorted(chained & mapped):
        port = _read_port(key, rules.get(_chain(key), []))
        if port is not None and (key in refused) == (not port.backends):
            ports[key] = port
    return TableState(
        exists=True,
        markers=tuple(sorted(name for name in chains if name.startswith(_MARKER_PREFIX))),
        rule_counts={name: len(rules.get(name, [])) for name in chains if name in _BASE_CHAINS},
        ports=ports,
        stray=frozenset((chained | mapped | refused) - ports.keys()),
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


def _verdict(key: Key) -> str:
    return f" : goto {_chain(key)}"


def _element(verb: str, collection: str, key: Key, verdict: str = "") -> str:
    return f"{verb} element ip {TABLE} {collection} {{ {key[0]} . {key[1]}{verdict} }}"


def _removal(key: Key, port: PublishedPort | None) -> list[str]:
    """Take a port away; of one that is not as we write it nobody knows which parts there are."""
    chain = f"chain ip {TABLE} {_chain(key)}"
    lines: list[str] = []
    if port is None:
        lines = [
            f"add {chain}",
            _element("add", _PORTS, key, _verdict(key)),
            _element("add", _REFUSED, key),
        ]
    if port is None or not port.backends:
        lines.append(_element("delete", _REFUSED, key))
    return [*lines, _element("delete", _PORTS, key), f"flush {chain}", f"delete {chain}"]


def _port_rules(port: PublishedPort) -> list[str]:
    protocol, number = port.protocol, port.published_port
    start = f"add rule ip {TABLE} {_chain((protocol, number))} meta l4proto {protocol}"
    lines: list[str] = []
    for position, backend in enumerate(port.backends):
        remaining = len(port.backends) - position
        share = f"numgen inc mod {remaining} 0 " if remaining > 1 else ""
        lines.append(f"{start} {share}dnat to {backend}:{port.target_port}")
    return lines


def _element_key(element: dict[str, Any]) -> Key:
    protocol, number = element["concat"]
    return protocol, number


def _read_port(key: Key, rules: list[list[dict[str, Any]]]) -> PublishedPort | None:
    """Read the rules of a port's chain; a refused port's target, not in the kernel, becomes 0."""
    translations = [part["dnat"] for rule in rules for part in rule if "dnat" in part]
    targets = {translation["port"] for translation in translations} or {0}
    if len(translations) != len(rules) or len(targets) != 1:
        return None
    return PublishedPort(
        published_port=key[1],
        protocol=key[0],  # type: ignore[arg-type] # checked by _key_of
        target_port=targets.pop(),
        backends=tuple(translation["addr"] for translation in translations),
    )

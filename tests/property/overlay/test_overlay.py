"""Addresses are never given twice; plans converge from wherever they were interrupted."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from overlay import diff, names, rules
from overlay.api import PublishedPort
from overlay.desired import SETTINGS, Desired
from overlay.ipam import AddressPool, choose_pool
from overlay.observed import Observed
from overlay.rtnetlink import LINK_GROUP, Address, Link
from proto.errors import ResourceExhaustedError
from proto.ids import ContainerID

GATEWAY = ipaddress.IPv4Interface("172.18.0.1/16")
IDS = [ContainerID(letter * 64) for letter in "abcde"]
ADDRESSES = ["172.18.0.2", "172.18.0.3", "172.18.0.4"]

networks = st.builds(
    lambda number, length: ipaddress.IPv4Network((number, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@given(st.lists(networks, max_size=20))
def test_chosen_pool_overlaps_with_nothing(occupied: list[ipaddress.IPv4Network]) -> None:
    """Whatever the node uses, the pool is private and apart from it, or there is none."""
    try:
        pool = choose_pool("", occupied)
    except ResourceExhaustedError:
        return

    assert pool.is_private
    assert not any(pool.overlaps(network) for network in occupied if network.prefixlen >= 8)


@given(st.lists(st.tuples(st.sampled_from(["allocate", "release", "reserve"]), st.integers(0, 7))))
def test_pool_against_a_dictionary(steps: list[tuple[str, int]]) -> None:
    """No address has two owners; a full pool is full; nothing is lost."""
    pool = AddressPool(ipaddress.IPv4Network("10.9.0.0/29"))
    model: dict[str, ipaddress.IPv4Address] = {}
    last_freed: ipaddress.IPv4Address | None = None
    for action, number in steps:
        owner = f"c{number}"
        if action == "release":
            freed = pool.release(owner)
            assert freed == model.pop(owner, None)
            last_freed = freed or last_freed
        elif action == "reserve":
            address = ipaddress.IPv4Address(f"10.9.0.{number}")
            is_free = address not in model.values() and owner not in model and 2 <= number <= 6
            assert pool.reserve(owner, address) == (is_free or model.get(owner) == address)
            if is_free:
                model[owner] = address
        elif owner in model:
            assert pool.allocate(owner) == model[owner]
        elif len(model) == 5:
            try:
                pool.allocate(owner)
            except ResourceExhaustedError:
                continue
            raise AssertionError("a sixth address of five")
        else:
            address = pool.allocate(owner)
            assert address not in model.values()
            model[owner] = address
        pool.check()
        assert set(pool.owners()) == set(model)


class Kernel:
    """A model of what operations do to the observed state."""

    def __init__(self, observed: Observed) -> None:
        """Begin with a state."""
        self.links = {link.name: link for link in observed.links}
        self.addresses = list(observed.addresses)
        self.namespaces = dict(observed.namespaces)
        self.settings = dict(observed.settings)
        self.table = observed.table
        self._index = 100

    def observe(self) -> Observed:
        """Read the state."""
        return Observed(
            links=tuple(self.links.values()),
            addresses=tuple(self.addresses),
            namespaces=dict(self.namespaces),
            settings=dict(self.settings),
            table=self.table,
        )

    def carry_out(  # noqa: C901 -- one case for each operation
        self, operation: diff.Operation, base: rules.Base
    ) -> None:
        """Do one operation; an impossible one is an error, as in the kernel."""
        match operation:
            case diff.DeleteLinks(doomed):
                for name in doomed:
                    del self.links[name]
            case diff.RemoveNamespace(name):
                del self.namespaces[name]
            case diff.CreateBridge(mac):
                assert "gwbr" not in self.links
                self._index += 1
                self.links["gwbr"] = Link(
                    index=self._index, name="gwbr", kind="bridge", group=LINK_GROUP, mac=mac
                )
                self.settings |= {path: "0" for path, _ in SETTINGS if "/gwbr/" in path}
            case diff.SetAlias(name, alias):
                self._change(name, alias=alias)
            case diff.DeleteBridgeAddress(interface):
                self.addresses.remove(Address(self.links["gwbr"].index, interface))
            case diff.AddBridgeAddress(interface):
                address = Address(self.links["gwbr"].index, interface)
                assert address not in self.addresses
                self.addresses.append(address)
            case diff.BringBridgeUp():
                self._change("gwbr", is_up=True)
            case diff.AttachPort(name, alias):
                self._change(name, master=self.links["gwbr"].index, alias=alias, is_up=True)
            case diff.ChangeRules():
                self.table = rules.TableState(
                    exists=True, markers=(base.marker,), rule_counts=base.rule_counts
                )
            case diff.WriteSetting(path, value):
                assert path in self.settings
                self.settings[path] = value

    def _change(self, name: str, **fields: Any) -> None:
        self.links[name] = msgspec.structs.replace(self.links[name], **fields)


def container_link(draw: st.DrawFn, container_id: ContainerID, index: int) -> Link:
    """Draw a link of a container: finished or not, on the bridge or not, well addressed or not."""
    interface = ipaddress.IPv4Interface(
        draw(st.sampled_from([*(f"{address}/16" for address in ADDRESSES), "10.0.0.2/24"]))
    )
    alias = names.link_alias(names.Owner(container_id, interface))
    return Link(
        index=index,
        name=names.link_name(container_id),
        kind="veth",
        alias=draw(st.sampled_from([alias, ""])),
        group=LINK_GROUP,
        master=draw(st.sampled_from([0, 3])),
        is_up=draw(st.booleans()),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    """Draw a node in any state between empty and in order."""
    links = [
        container_link(draw, container_id, 10 + number)
        for number, container_id in enumerate(IDS)
        if draw(st.booleans())
    ]
    addresses: list[Address] = []
    settings = {"net/ipv4/ip_forward": draw(st.sampled_from("01"))}
    if draw(st.booleans()):
        alias = draw(st.sampled_from(["", names.BRIDGE_ALIAS]))
        links.append(
            Link(
                index=3,
                name="gwbr",
                kind="bridge",
                alias=alias,
                group=LINK_GROUP,
                is_up=draw(st.booleans()),
            )
        )
        own = draw(st.lists(st.sampled_from(["172.18.0.1/16", "172.19.0.1/16"]), unique=True))
        addresses = [Address(3, ipaddress.IPv4Interface(text)) for text in own]
        settings |= {path: draw(st.sampled_from("01")) for path, _ in SETTINGS if "/gwbr/" in path}
    return Observed(
        links=tuple(links),
        addresses=tuple(addresses),
        namespaces=draw(st.dictionaries(st.sampled_from(IDS), st.booleans())),
        settings=settings,
    )


@given(observations(), st.sets(st.sampled_from(IDS)), st.integers(0, 30))
def test_start_converges_wherever_it_was_interrupted(
    observed: Observed, live: set[ContainerID], done: int
) -> None:
    """Part of a plan, then a plan of what is there, ends as the whole: and then nothing is left."""
    desired = Desired(gateway=GATEWAY, live=frozenset(live))
    kernel = Kernel(observed)
    first = diff.plan(desired, observed)
    for operation in first.operations[:done]:
        kernel.carry_out(operation, desired.base)
    second = diff.plan(desired, kernel.observe())
    for operation in second.operations:
        kernel.carry_out(operation, desired.base)
    end = diff.plan(desired, kernel.observe())

    assert end.operations == ()
    assert end.adopted == second.adopted == first.adopted
    assert set(end.adopted) <= live
    assert {str(interface.ip) for interface in end.adopted.values()} <= set(ADDRESSES)
    assert set(kernel.namespaces) <= set(end.adopted)
    assert set(kernel.links) == {"gwbr", *(names.link_name(kept) for kept in end.adopted)}


class Table:
    """A model of nftables that knows the commands `port_changes` uses."""

    def __init__(self) -> None:
        """Begin empty."""
        self.chains: dict[str, list[str]] = {}
        self.ports: set[str] = set()
        self.refused: set[str] = set()

    def run(self, text: str) -> None:
        """Carry a transaction out, or fail as the kernel does."""
        for line in text.splitlines():
            verb, what, rest = re.fullmatch(r"(\w+) (\w+) ip swarm (.*)", line).groups()  # type: ignore[union-attr]
            if what == "element":
                kind, element = re.fullmatch(r"(\w+) \{ (\w+ \. \d+).*\}", rest).groups()  # type: ignore[union-attr]
                collection = self.ports if kind == "ports" else self.refused
                if verb == "delete":
                    collection.remove(element)
                else:
                    assert kind == "refused" or element.replace(" . ", "-") in self.chains
                    collection.add(element)
            elif what == "rule":
                chain, rule = rest.split(" ", 1)
                self.chains[chain].append(rule)
            elif verb == "add":
                self.chains.setdefault(rest, [])
            elif verb == "flush":
                self.chains[rest].clear()
            else:
                assert self.chains.pop(rest) == []
                assert rest.replace("-", " . ") not in self.ports

    def outcome(self, key: rules.Key) -> tuple[str, ...]:
        """Say what becomes of a new connection: backends, "refused", or nothing (the node's)."""
        element = f"{key[0]} . {key[1]}"
        chain = self.chains.get(f"{key[0]}-{key[1]}", []) if element in self.ports else []
        found = tuple(
            match[1] for rule in chain if (match := re.search(r"dnat to ([\d.]+):", rule))
        )
        return found or (("refused",) if element in self.refused else ())


desired_ports = st.dictionaries(
    st.tuples(st.sampled_from(["tcp", "udp"]), st.integers(1, 4)),
    st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3),
).map(
    lambda wanted: {
        key: PublishedPort(
            published_port=key[1],
            protocol=key[0],  # type: ignore[arg-type]
            target_port=80,
            backends=tuple(backends),
        )
        for key, backends in wanted.items()
    }
)


@given(st.lists(desired_ports, max_size=5))
def test_ports_never_lack_a_backend_on_the_way(
    states: list[dict[rules.Key, PublishedPort]],
) -> None:
    """After every transaction each port leads where it did or where it shall; at last, there."""
    table = Table()
    current: dict[rules.Key, PublishedPort] = {}
    for wanted in states:
        for text in rules.port_changes(current, wanted, ()):
            table.run(text)
            for key in current.keys() & wanted.keys():
                before = current[key].backends or ("refused",)
                after = wanted[key].backends or ("refused",)
                assert table.outcome(key) in {before, after}
        assert {key: table.outcome(key) for key in wanted} == {
            key: port.backends or ("refused",) for key, port in wanted.items()
        }
        assert set(table.chains) == {f"{key[0]}-{key[1]}" for key in wanted}
        assert len(table.ports) == len(wanted)
        assert rules.port_changes(wanted, wanted, ()) == []
        current = wanted


@given(desired_ports, desired_ports, st.integers(0, 3), st.data())
def test_stray_parts_are_put_right(
    before: dict[rules.Key, PublishedPort],
    wanted: dict[rules.Key, PublishedPort],
    done: int,
    data: st.DataObject,
) -> None:
    """From parts of ports in any combination, the wanted ports come about and nothing else."""
    table = Table()
    for text in rules.port_changes({}, before, ())[:done]:
        table.run(text)
    for key in before:
        element, chain = f"{key[0]} . {key[1]}", f"{key[0]}-{key[1]}"
        if chain in table.chains and data.draw(st.booleans()):
            table.chains[chain].append("counter")
        if data.draw(st.booleans()):
            table.refused.add(element)
    for text in rules.port_changes({}, wanted, before):
        table.run(text)

    assert set(table.chains) == {f"{key[0]}-{key[1]}" for key in wanted}
    assert table.ports == {f"{key[0]} . {key[1]}" for key in wanted}
    assert table.refused == {
        f"{key[0]} . {key[1]}" for key, port in wanted.items() if not port.backends
    }
    assert not any("counter" in rules_of for rules_of in table.chains.values())

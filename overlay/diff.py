"""From what is to what ought to be: the ordered operations of a start.

Pure. `decide_gateway` settles the bridge's address, `plan` lists the operations. They are to be
carried out in the order given: leftovers go first, so that nothing of a dead container is
reachable through rules made later; rules come before the settings that open 127.0.0.0/8 to the
bridge. Nothing that is as it should be is touched: on a node in order the plan is empty, and
repeating a plan that was interrupted anywhere leads to the same end.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

import msgspec

from overlay import rules
from overlay.desired import SETTINGS, Desired
from overlay.ipam import choose_pool
from overlay.names import BRIDGE, BRIDGE_ALIAS, Owner, parse_link_alias
from overlay.observed import Observed, is_our_bridge, is_our_container_link
from overlay.rtnetlink import Link
from proto.errors import ConflictError
from proto.ids import ContainerID


class DeleteLinks(msgspec.Struct, frozen=True):
    """Delete links by name, all at once."""

    names: tuple[str, ...]


class RemoveNamespace(msgspec.Struct, frozen=True):
    """Unmount and remove a file of the run directory."""

    name: str


class CreateBridge(msgspec.Struct, frozen=True):
    """Make the bridge, without address, down."""

    mac: str


class SetAlias(msgspec.Struct, frozen=True):
    """Write a link's alias."""

    name: str
    alias: str


class DeleteBridgeAddress(msgspec.Struct, frozen=True):
    """Take an address from the bridge."""

    interface: ipaddress.IPv4Interface


class AddBridgeAddress(msgspec.Struct, frozen=True):
    """Give the bridge an address."""

    interface: ipaddress.IPv4Interface


class BringBridgeUp(msgspec.Struct, frozen=True):
    """Bring the bridge up."""


class AttachPort(msgspec.Struct, frozen=True):
    """Make a live container's link a port of the bridge again."""

    name: str
    alias: str


class ChangeRules(msgspec.Struct, frozen=True):
    """Run a transaction of the base chains."""

    text: str


class WriteSetting(msgspec.Struct, frozen=True):
    """Write a file below /proc/sys; nothing when the kernel does not have it."""

    path: str
    value: str


Operation: TypeAlias = (
    DeleteLinks
    | RemoveNamespace
    | CreateBridge
    | SetAlias
    | DeleteBridgeAddress
    | AddBridgeAddress
    | BringBridgeUp
    | AttachPort
    | ChangeRules
    | WriteSetting
)


class Plan(msgspec.Struct, frozen=True):
    """Operations in order, and the attachments that stay as they are."""

    operations: tuple[Operation, ...]
    adopted: dict[ContainerID, ipaddress.IPv4Interface]


def decide_gateway(
    requested: str, observed: Observed, live: frozenset[ContainerID]
) -> ipaddress.IPv4Interface:
    """Settle the bridge's address and network.

    Live containers have addresses that cannot change, so their network stays whatever is
    requested now. Without any, the network of a bridge from an earlier start stays unless another
    is requested or something else uses it meanwhile.

    Raises:
        ConflictError: a link that is not ours has the bridge's name.
        InvalidError: see `choose_pool`.
        ResourceExhaustedError: see `choose_pool`.
    """
    bridge = observed.bridge
    if bridge is not None and not is_our_bridge(bridge):
        raise ConflictError(
            f"a link named {BRIDGE} exists on this node and was not made by swarm; "
            f'rename or delete it ("ip link delete {BRIDGE}")'
        )
    networks = [
        owner.interface.network for _, owner in _finished(observed) if owner.container_id in live
    ]
    if networks:
        pool = max(sorted(set(networks)), key=networks.count)
    else:
        kept = [interface.network for interface in observed.bridge_interfaces]
        is_free = bool(kept) and not any(kept[0].overlaps(other) for other in observed.occupied)
        wish = requested or (str(kept[0]) if is_free else "")
        pool = choose_pool(wish, observed.occupied)
    return ipaddress.IPv4Interface((pool.network_address + 1, pool.prefixlen))


def plan(desired: Desired, observed: Observed) -> Plan:
    """List what to do so that `observed` becomes `desired`."""
    adopted = _adopted(desired, observed)
    operations: list[Operation] = []
    operations += _leftovers(observed, adopted)
    change = rules.base_change(desired.base, observed.table)
    if change:
        operations.append(ChangeRules(change))
    operations += _bridge(desired, observed)
    operations += _ports(observed, adopted)
    operations += [
        WriteSetting(path, value)
        for path, value in SETTINGS
        if observed.settings.get(path, "") != value
        and (path in observed.settings or f"/{BRIDGE}/" in path)
    ]
    return Plan(tuple(operations), {owner.container_id: owner.interface for owner in adopted})


def _finished(observed: Observed) -> list[tuple[Link, Owner]]:
    found: list[tuple[Link, Owner]] = []
    for link in observed.links:
        owner = parse_link_alias(link.alias)
        if owner is not None and is_our_container_link(link):
            found.append((link, owner))
    return found


def _adopted(desired: Desired, observed: Observed) -> list[Owner]:
    """Keep finished links of live containers; of two that claim one address, the first by ID."""
    owners: list[Owner] = []
    taken = {desired.gateway.ip}
    for _, owner in sorted(_finished(observed), key=lambda pair: pair[1].container_id):
        is_ours = owner.interface.network == desired.gateway.network
        if owner.container_id in desired.live and is_ours and owner.interface.ip not in taken:
            taken.add(owner.interface.ip)
            owners.append(owner)
    return owners


def _leftovers(observed: Observed, adopted: list[Owner]) -> list[Operation]:
    kept = {owner.container_id for owner in adopted}
    doomed = sorted(
        link.name
        for link in observed.links
        if is_our_container_link(link) and parse_link_alias(link.alias) not in adopted
    )
    operations: list[Operation] = [DeleteLinks(tuple(doomed))] if doomed else []
    operations += [
        RemoveNamespace(name) for name in sorted(observed.namespaces) if name not in kept
    ]
    return operations


def _bridge(desired: Desired, observed: Observed) -> list[Operation]:
    bridge = observed.bridge
    operations: list[Operation] = []
    if bridge is None:
        operations.append(CreateBridge(desired.mac))
    if bridge is None or bridge.alias != BRIDGE_ALIAS:
        operations.append(SetAlias(BRIDGE, BRIDGE_ALIAS))
    present = observed.bridge_interfaces
    operations += [
        DeleteBridgeAddress(interface) for interface in present if interface != desired.gateway
    ]
    if desired.gateway not in present:
        operations.append(AddBridgeAddress(desired.gateway))
    if bridge is None or not bridge.is_up:
        operations.append(BringBridgeUp())
    return operations


def _ports(observed: Observed, adopted: list[Owner]) -> list[Operation]:
    bridge = observed.bridge
    return [
        AttachPort(link.name, link.alias)
        for link, owner in _finished(observed)
        if owner in adopted and (bridge is None or link.master != bridge.index or not link.is_up)
    ]

"""Decides which of this node's ports lead where. Pure.

A published port is known by its number and protocol. In mode ingress all running tasks of one
service on this node stand behind it; in mode host one task has it for itself. (The mesh that lets
every node answer for ingress ports comes with the overlay; here a port leads to local tasks.)
While a service is updated two versions may name different target ports for one published port:
then the newest version that runs gets the connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from overlay.api import PublishedPort
from proto.ids import ServiceID, TaskID
from proto.objects import PortConfig, PortMode

# Where a host port is drawn from when the spec leaves it open: the kernel's own range.
# Source: Linux Documentation/networking/ip-sysctl, ip_local_port_range.
DYNAMIC_PORT_MIN = 32768
DYNAMIC_PORT_MAX = 60999

PortKey = tuple[int, str]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A task that has, or wants, its ports on this node.

    `ports` have their published numbers; one of 0 leads nowhere yet.
    """

    task_id: TaskID
    service_id: ServiceID
    spec_version: int
    slot: int
    address: str
    ports: tuple[PortConfig, ...]


def published_ports(claims: Iterable[Claim]) -> tuple[PublishedPort, ...]:
    """Compute all that this node publishes, sorted; backends are in slot order."""
    groups: dict[PortKey, list[tuple[Claim, PortConfig]]] = {}
    for claim in claims:
        for port in claim.ports:
            if port.published_port and claim.address:
                key = (port.published_port, port.protocol)
                groups.setdefault(key, []).append((claim, port))
    return tuple(_published(groups[key]) for key in sorted(groups))


def _published(members: list[tuple[Claim, PortConfig]]) -> PublishedPort:
    newest = max(members, key=lambda member: member[0].spec_version)[1]
    backends = sorted(
        (claim.slot, claim.task_id, claim.address)
        for claim, port in members
        if port.target_port == newest.target_port
    )
    return PublishedPort(
        published_port=newest.published_port,
        protocol=newest.protocol,
        target_port=newest.target_port,
        backends=tuple(address for _, _, address in backends),
    )


def conflict(wanted: Claim, held: Iterable[Claim]) -> PortConfig | None:
    """Return the first port that `wanted` may not have because another task has it.

    Tasks of one service share an ingress port; every other meeting is a conflict.
    """
    taken = _taken(held)
    for port in wanted.ports:
        owners = taken.get((port.published_port, port.protocol), ())
        for owner, mode in owners:
            if owner.task_id == wanted.task_id:
                continue
            is_shared = (
                mode is port.publish_mode is PortMode.INGRESS
                and owner.service_id == wanted.service_id
            )
            if port.published_port and not is_shared:
                return port
    return None


def conflict_sentence(port: PortConfig) -> str:
    """Say it in Docker's words, which scripts look for."""
    return (
        f"driver failed programming external connectivity: Bind for 0.0.0.0:"
        f"{port.published_port} failed: port is already allocated"
    )


def with_host_ports(wanted: Claim, held: Iterable[Claim]) -> tuple[PortConfig, ...]:
    """Give each port of mode host without a number the lowest free one of the dynamic range.

    Returns:
        The ports in their order; a number stays 0 only if the range is full.
    """
    taken = set(_taken(held)) | {(port.published_port, port.protocol) for port in wanted.ports}
    ports: list[PortConfig] = []
    for port in wanted.ports:
        chosen = port
        if port.publish_mode is PortMode.HOST and not port.published_port:
            free = (
                number
                for number in range(DYNAMIC_PORT_MIN, DYNAMIC_PORT_MAX + 1)
                if (number, port.protocol) not in taken
            )
            chosen = msgspec.structs.replace(port, published_port=next(free, 0))
            taken.add((chosen.published_port, chosen.protocol))
        ports.append(chosen)
    return tuple(ports)


def with_known_numbers(
    ports: tuple[PortConfig, ...], known: tuple[PortConfig, ...]
) -> tuple[PortConfig, ...]:
    """Fill in the numbers of open host ports that were given out before (`known`)."""
    numbers = [p for p in known if p.publish_mode is PortMode.HOST]
    filled: list[PortConfig] = []
    for port in ports:
        chosen = port
        if port.publish_mode is PortMode.HOST and not port.published_port:
            for candidate in numbers:
                if (candidate.target_port, candidate.protocol) == (port.target_port, port.protocol):
                    chosen = msgspec.structs.replace(port, published_port=candidate.published_port)
                    numbers.remove(candidate)
                    break
        filled.append(chosen)
    return tuple(filled)


def _taken(held: Iterable[Claim]) -> Mapping[PortKey, list[tuple[Claim, PortMode]]]:
    taken: dict[PortKey, list[tuple[Claim, PortMode]]] = {}
    for claim in held:
        for port in claim.ports:
            if port.published_port:
                key = (port.published_port, port.protocol)
                taken.setdefault(key, []).append((claim, port.publish_mode))
    return taken

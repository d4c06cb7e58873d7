"""Published ports across services: who has which, and which number a service gets. Pure.

A service's allocated ports are in `endpoint.ports`; ports of mode host without a number stay so,
because each node picks one for each of its tasks.
"""

from __future__ import annotations

import msgspec

from manager.store import View
from proto.errors import InUseError, ResourceExhaustedError
from proto.ids import ServiceID
from proto.objects import EndpointSpec, PortConfig, PortMode, Service

# Source: swarmkit manager/allocator (dynamicPortStart, dynamicPortEnd).
DYNAMIC_PORT_MIN = 30_000
DYNAMIC_PORT_MAX = 32_767

_Key = tuple[str, int]


def allocate_ports(
    view: View, service_id: ServiceID, spec: EndpointSpec | None, old: tuple[PortConfig, ...] = ()
) -> tuple[PortConfig, ...]:
    """Return the service's ports with their numbers, in the spec's order.

    A port that asks for any number keeps the one that it had, or else gets the lowest free one.

    Args:
        view: the state to look at; the service itself is left out.
        service_id: the service's.
        spec: what is asked for.
        old: the service's ports until now.

    Raises:
        InUseError: another service has a port, with Docker's sentence.
        ResourceExhaustedError: no number is left.
    """
    wanted = spec.ports if spec is not None else ()
    for port in wanted:
        _check_free(view, service_id, port)
    taken: set[_Key] = {
        (port.protocol, port.published_port) for port in wanted if port.published_port
    }
    kept = _kept(wanted, old, taken)
    taken |= {(port.protocol, port.published_port) for port in kept.values()}
    ports: list[PortConfig] = []
    for position, port in enumerate(wanted):
        if port.published_port or port.publish_mode is PortMode.HOST:
            ports.append(port)
            continue
        chosen = kept.get(position)
        if chosen is None:
            number = _lowest_free(view, service_id, port, taken)
            taken.add((port.protocol, number))
            chosen = msgspec.structs.replace(port, published_port=number)
        ports.append(chosen)
    return tuple(ports)


def _kept(
    wanted: tuple[PortConfig, ...], old: tuple[PortConfig, ...], taken: set[_Key]
) -> dict[int, PortConfig]:
    """Match ports that ask for any number with those that were allocated for the like before."""
    spare = [
        port
        for port in old
        if DYNAMIC_PORT_MIN <= port.published_port <= DYNAMIC_PORT_MAX
        and (port.protocol, port.published_port) not in taken
    ]
    kept: dict[int, PortConfig] = {}
    for position, port in enumerate(wanted):
        if port.published_port or port.publish_mode is PortMode.HOST:
            continue
        for candidate in spare:
            if msgspec.structs.replace(candidate, published_port=0) == port:
                kept[position] = candidate
                spare.remove(candidate)
                break
    return kept


def _lowest_free(view: View, service_id: ServiceID, port: PortConfig, taken: set[_Key]) -> int:
    for number in range(DYNAMIC_PORT_MIN, DYNAMIC_PORT_MAX + 1):
        key = (port.protocol, number)
        if key not in taken and not _owners(view, service_id, key):
            return number
    raise ResourceExhaustedError(
        f"no port is left from {DYNAMIC_PORT_MIN} to {DYNAMIC_PORT_MAX} for target port "
        f"{port.target_port}/{port.protocol}; name a published port, or remove a service"
    )


def _owners(view: View, service_id: ServiceID, key: _Key) -> list[Service]:
    found = view.services.find("published_port", key)
    others = (service for service in found if service.id != service_id)
    return sorted(others, key=lambda service: service.id)


def _check_free(view: View, service_id: ServiceID, port: PortConfig) -> None:
    """Refuse a number that another service has, unless both are of mode host.

    Two services may have one host port: the scheduler keeps their tasks on different nodes.
    """
    if not port.published_port:
        return
    key = (port.protocol, port.published_port)
    for owner in _owners(view, service_id, key):
        for held in owner.endpoint.ports:
            if (held.protocol, held.published_port) != key:
                continue
            if held.publish_mode is PortMode.INGRESS:
                kind = "an ingress port"
            elif port.publish_mode is PortMode.INGRESS:
                kind = "a host-published port"
            else:
                continue
            raise InUseError(
                f"port '{port.published_port}' is already in use by service "
                f"'{owner.spec.name}' ({owner.id}) as {kind}"
            )

"""The port allocator as a function of a view."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.controlapi.ports import DYNAMIC_PORT_MAX, DYNAMIC_PORT_MIN, allocate_ports
from manager.store.tables import TABLES, TableView, View
from proto.errors import InUseError, ResourceExhaustedError
from proto.ids import ServiceID
from proto.objects import Endpoint, EndpointSpec, PortConfig, PortMode, Service, ServiceSpec

ME = ServiceID("me")


def view_of(*services: Service) -> View:
    """Build a view with only services."""
    rows = {service.id: service for service in services}
    tables = (
        TableView.load(spec, rows if spec.kind is Service else {})  # type: ignore[arg-type]
        for spec in TABLES
    )
    return View(1, tuple(tables))


def service_with(service_id: str, *ports: PortConfig) -> Service:
    """Make a service that has ports."""
    return Service(
        id=ServiceID(service_id),
        spec=ServiceSpec(name=service_id),
        endpoint=Endpoint(ports=ports),
    )


def port(target: int, published: int = 0, **more: Any) -> PortConfig:
    """Make a published port."""
    return PortConfig(target_port=target, published_port=published, **more)


def test_no_endpoint_has_no_ports():
    """A service that publishes nothing gets nothing."""
    assert allocate_ports(view_of(), ME, None) == ()


def test_a_full_range_is_said_so():
    """When all 2,768 numbers are taken the error names the range; the other protocol has room."""
    count = DYNAMIC_PORT_MAX - DYNAMIC_PORT_MIN + 1
    assert count == 2768
    owner = service_with("a", *(port(80, DYNAMIC_PORT_MIN + i) for i in range(count)))
    with pytest.raises(ResourceExhaustedError, match="no port is left from 30000 to 32767"):
        allocate_ports(view_of(owner), ME, EndpointSpec(ports=(port(80),)))
    udp = allocate_ports(view_of(owner), ME, EndpointSpec(ports=(port(80, protocol="udp"),)))
    assert udp[0].published_port == DYNAMIC_PORT_MIN


def test_own_ports_are_no_conflict():
    """A service may keep and rename the ports that it has itself."""
    mine = service_with("me", port(80, 8080))
    ports = (port(81, 8080),)
    assert allocate_ports(view_of(mine), ME, EndpointSpec(ports=ports)) == ports


def test_a_small_number_that_was_named_is_not_kept_for_an_open_port():
    """Only numbers of the dynamic range are kept when the user no longer names one."""
    old = (port(80, 8080),)
    mine = service_with("me", *old)
    new = allocate_ports(view_of(mine), ME, EndpointSpec(ports=(port(80),)), old)
    assert new[0].published_port == DYNAMIC_PORT_MIN


_open_ports = st.lists(
    st.builds(
        PortConfig,
        target_port=st.integers(80, 82),
        protocol=st.sampled_from(["tcp", "udp"]),
        published_port=st.sampled_from([0, 0, 0, 30000, 30001, 8080]),
        publish_mode=st.sampled_from(list(PortMode)),
    ),
    max_size=5,
    unique_by=lambda p: (p.protocol, p.published_port or object()),
)


@given(st.lists(_open_ports, max_size=4))
def test_allocation_gives_each_port_one_owner(wishes: list[list[PortConfig]]):
    """No ingress number has two owners; the spec's order stays; the same question, same answer.

    Asking again with the result changes nothing.
    """
    services: list[Service] = []
    for i, ports in enumerate(wishes):
        spec = EndpointSpec(ports=tuple(ports))
        service_id = ServiceID(f"s{i}")
        view = view_of(*services)
        try:
            given_ports = allocate_ports(view, service_id, spec)
        except InUseError:
            continue
        assert given_ports == allocate_ports(view, service_id, spec)
        for asked, got in zip(ports, given_ports, strict=True):
            assert msgspec.structs.replace(got, published_port=asked.published_port) == asked
            is_open = asked.publish_mode is PortMode.HOST and not asked.published_port
            assert (got.published_port == 0) == is_open
        services.append(service_with(service_id, *given_ports))
        again = allocate_ports(view_of(*services), service_id, spec, given_ports)
        assert set(again) == set(given_ports)
    owners: dict[tuple[str, int], list[PortMode]] = {}
    for service in services:
        for held in service.endpoint.ports:
            if held.published_port:
                owners.setdefault((held.protocol, held.published_port), []).append(
                    held.publish_mode
                )
    for modes in owners.values():
        assert len(modes) == 1 or PortMode.INGRESS not in modes

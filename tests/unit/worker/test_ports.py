"""Which ports of the node lead where."""

from __future__ import annotations

from proto.ids import ServiceID, TaskID
from proto.objects import PortConfig, PortMode
from worker.ports import (
    DYNAMIC_PORT_MIN,
    Claim,
    conflict,
    conflict_sentence,
    published_ports,
    with_host_ports,
    with_known_numbers,
)


def port(published: int, target: int = 80, *, host: bool = False, protocol: str = "tcp"):
    """Make a port."""
    mode = PortMode.HOST if host else PortMode.INGRESS
    return PortConfig(
        target_port=target, published_port=published, publish_mode=mode, protocol=protocol
    )


def claim(task: str, *ports: PortConfig, service: str = "s1", slot: int = 1, version: int = 1):
    """Make a claim; the address is made of the slot."""
    return Claim(
        task_id=TaskID(task),
        service_id=ServiceID(service),
        spec_version=version,
        slot=slot,
        address=f"172.18.0.{slot + 1}",
        ports=ports,
    )


def test_backends_are_in_slot_order_and_ports_sorted() -> None:
    """All tasks of a service stand behind its port, by slot; the set is sorted."""
    both = (port(8080), port(53, 5353, protocol="udp"), port(53, 5353))
    claims = [claim("b", *both, slot=2), claim("a", *both, slot=1)]
    backends = ("172.18.0.2", "172.18.0.3")
    published = published_ports(claims)
    assert [(p.published_port, p.protocol, p.target_port) for p in published] == [
        (53, "tcp", 5353),
        (53, "udp", 5353),
        (8080, "tcp", 80),
    ]
    assert {p.backends for p in published} == {backends}
    assert list(published) == sorted(published)


def test_newest_version_decides_the_target() -> None:
    """While an update changes the target port, connections go to the newest version."""
    claims = [
        claim("old", port(8080, 80), slot=1, version=1),
        claim("new", port(8080, 81), slot=2, version=2),
    ]
    (published,) = published_ports(claims)
    assert (published.target_port, published.backends) == (81, ("172.18.0.3",))


def test_unnumbered_port_and_unaddressed_task_lead_nowhere() -> None:
    """A port without a number or a task without an address is left out."""
    without = Claim(
        task_id=TaskID("x"),
        service_id=ServiceID("s"),
        spec_version=1,
        slot=1,
        address="",
        ports=(port(80),),
    )
    assert published_ports([claim("a", port(0)), without]) == ()


def test_conflicts() -> None:
    """Only tasks of one service share a port, and only in mode ingress."""
    held = [claim("a", port(8080)), claim("b", port(9090, host=True))]
    assert conflict(claim("c", port(8080)), held) is None
    assert conflict(claim("c", port(8080), service="s2"), held) == port(8080)
    assert conflict(claim("c", port(8080, host=True)), held) == port(8080, host=True)
    assert conflict(claim("c", port(9090, host=True)), held) == port(9090, host=True)
    assert conflict(claim("c", port(9090, host=True, protocol="udp")), held) is None
    assert conflict(claim("b", port(9090, host=True)), held) is None
    assert conflict_sentence(port(80)).endswith("0.0.0.0:80 failed: port is already allocated")


def test_open_host_ports_get_numbers() -> None:
    """A host port left open gets the lowest free number; ingress ports are the manager's."""
    held = [claim("a", port(DYNAMIC_PORT_MIN, host=True))]
    wanted = claim("c", port(0, 80, host=True), port(0, 81, host=True), port(0, 82))
    ports = with_host_ports(wanted, held)
    assert [p.published_port for p in ports] == [DYNAMIC_PORT_MIN + 1, DYNAMIC_PORT_MIN + 2, 0]
    assert with_known_numbers(wanted.ports, ports) == ports

"""What a node says of itself, checked."""

import pytest

from manager.nodeport.allowance import Allowance, Rate
from manager.nodeport.claims import (
    checked_description,
    checked_port_address,
    checked_status,
    moment_between,
    node_address,
    session_address,
)
from proto.errors import InvalidError
from proto.objects import (
    EngineDescription,
    GenericResource,
    NodeDescription,
    Platform,
    PortConfig,
    Resources,
    TaskStatus,
)


@pytest.mark.parametrize(
    ("claimed", "peer", "address"),
    [
        ("10.0.0.7", "10.0.0.9", "10.0.0.7"),
        ("10.0.0.7:2377", "10.0.0.9", "10.0.0.7"),
        ("[fd00::7]:2377", "", "fd00::7"),
        ("fd00::7", "", "fd00::7"),
        ("", "10.0.0.9", "10.0.0.9"),
        ("0.0.0.0", "10.0.0.9", "10.0.0.9"),
        ("[::]:2377", "fd00::9", "fd00::9"),
        ("224.0.0.1", "10.0.0.9", "10.0.0.9"),
        ("\x1b[2Jhost", "10.0.0.9", "10.0.0.9"),
        ("1" * 1_400_000, "10.0.0.9", "10.0.0.9"),
        ("fd00::7%eth0\x1b[2J", "", ""),
        ("no address", "", ""),
    ],
)
def test_a_node_is_where_it_says_or_where_it_comes_from(claimed, peer, address):
    """An IP address is believed, and nothing else is; then the connection's counts."""
    assert address == node_address(claimed, peer)


@pytest.mark.parametrize(
    ("claimed", "peer", "address"),
    [
        ("8.8.8.8", "10.0.0.5", "10.0.0.5"),
        ("", "fd00::9", "fd00::9"),
        ("10.0.0.7:2377", "127.0.0.1", "10.0.0.7"),
        ("10.0.0.7", "::1", "10.0.0.7"),
        ("", "127.0.0.1", "127.0.0.1"),
        ("10.0.0.7", "", "10.0.0.7"),
        ("no address", "", ""),
    ],
)
def test_a_node_with_a_session_is_where_its_connection_comes_from(claimed, peer, address):
    """It cannot make another address a member's; a connection of the same machine says nothing."""
    assert address == session_address(claimed, peer)


@pytest.mark.parametrize("text", ["10.0.0.7:2378", "[fd00::7]:2378"])
def test_a_manager_is_reached_at_an_address_and_a_port(text):
    """IPv4 and IPv6."""
    assert text == checked_port_address(text, "the address")


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.7", "host:2378", "fd00::7:2378", "10.0.0.7:0", "10.0.0.7:65536", "x" * 9999],
)
def test_what_is_no_address_and_port_is_refused(text):
    """The sentence is short and printable, whatever was sent."""
    with pytest.raises(InvalidError, match=r"the address .* is not IP:port") as error:
        checked_port_address(text, "the address")
    assert len(error.value.message) < 200


@pytest.mark.parametrize(
    "description",
    [
        NodeDescription(resources=Resources(nano_cpus=2**64 - 1)),
        NodeDescription(resources=Resources(memory_bytes=-1)),
        NodeDescription(generic=(GenericResource(kind="gpu", value="many"),)),
    ],
)
def test_a_number_out_of_range_is_refused(description):
    """Clients could not read it, or the scheduler would count with it."""
    with pytest.raises(InvalidError, match="the description of the node holds"):
        checked_description(description)


def test_the_texts_of_a_description_are_made_printable():
    """Wherever they stand."""
    escape, shown = "\x1b[2J", "\\x1b[2J"
    description = NodeDescription(
        hostname=escape + "h" * 300,
        platform=Platform(os=escape),
        engine=EngineDescription(labels={escape: escape}, plugins=((escape, escape),)),
    )
    checked = checked_description(description)

    assert checked.hostname.startswith(shown)
    assert len(checked.hostname) == 253
    assert checked.platform.os == shown
    assert checked.engine == EngineDescription(labels={shown: shown}, plugins=((shown, shown),))


def test_an_honest_description_stays_as_it_is():
    """Nothing of it is put right."""
    description = NodeDescription(
        hostname="w1",
        platform=Platform(os="linux", architecture="x86_64"),
        resources=Resources(nano_cpus=2 * 10**9, memory_bytes=2**34),
        engine=EngineDescription(version="1.0", labels={"disk": "ssd"}, plugins=(("a", "b"),)),
        generic=(GenericResource(kind="gpu", value="2"),),
    )
    assert description == checked_description(description)


@pytest.mark.parametrize(
    "status",
    [
        TaskStatus(pid=-1),
        TaskStatus(exit_code=2**63),
        TaskStatus(container_id="\x1b"),
        TaskStatus(container_id="c" * 129),
        TaskStatus(host_ports=(PortConfig(target_port=65_536),)),
        TaskStatus(host_ports=(PortConfig(name="\x1b"),)),
        TaskStatus(host_ports=(PortConfig(),) * 1_025),
    ],
)
def test_a_status_out_of_range_is_refused(status):
    """Each with a reason of its own."""
    with pytest.raises(InvalidError):
        checked_status(status, since=0.0, now=1.0)


def test_a_moment_lies_between_two():
    """Also when the manager's own clock went back between them."""
    assert moment_between(10.0, 15.0, 20.0) == 15.0
    assert moment_between(10.0, 5.0, 20.0) == 10.0
    assert moment_between(10.0, 25.0, 20.0) == 20.0
    assert moment_between(30.0, 5.0, 20.0) == 20.0


def test_an_allowance_is_a_bucket_for_each():
    """It is used up by one node, for that node, and comes back with time."""
    allowance = Allowance(Rate(burst=3, per_second=0.5))

    assert [allowance.take("n1", 10.0) for _ in range(3)] == [0.0] * 3
    assert allowance.take("n1", 10.0) == 2.0
    assert allowance.take("n2", 10.0) == 0.0
    assert allowance.take("n1", 11.0) == 1.0
    assert allowance.take("n1", 12.0) == 0.0
    assert allowance.take("n1", 12.0) == 2.0
    assert allowance.take("n1", 30.0, 30.0) == 0.0
    assert allowance.take("n1", 30.0) == 56.0

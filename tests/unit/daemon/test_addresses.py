"""Which address a node advertises."""

import pytest

from manager.daemon.addresses import (
    InterfaceAddress,
    resolve_advertise,
    resolve_data_path,
    resolve_listen,
    split_port,
)
from proto.errors import InvalidError

ONE = [InterfaceAddress("eth0", "10.0.0.5")]
SAME = [*ONE, InterfaceAddress("eth0", "10.0.0.6")]
SIX = [InterfaceAddress("eth2", "fd00::1"), InterfaceAddress("eth2", "fd00::2")]
TWO = [*ONE, InterfaceAddress("eth1", "192.168.1.5")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5", ("10.0.0.5", 2377)),
        ("10.0.0.5:99", ("10.0.0.5", 99)),
        ("eth0:99", ("eth0", 99)),
        ("[fd00::1]:99", ("fd00::1", 99)),
        ("fd00::1", ("fd00::1", 2377)),
        ("[fd00::1]", ("fd00::1", 2377)),
    ],
)
def test_split_port(text, expected):
    """The port is optional; IPv6 needs brackets only with one."""
    assert expected == split_port(text, "address")


@pytest.mark.parametrize("text", [":99", "10.0.0.5:0", "10.0.0.5:65536", "10.0.0.5:x", "[fd00::1"])
def test_split_port_refuses(text):
    """No host, no port number, an open bracket."""
    with pytest.raises(InvalidError, match="address"):
        split_port(text, "address")


@pytest.mark.parametrize(
    ("text", "listen", "machine", "expected"),
    [
        ("", "0.0.0.0:2377", ONE, "10.0.0.5:2377"),
        ("", "0.0.0.0:99", ONE, "10.0.0.5:99"),
        ("", "10.0.0.7:99", TWO, "10.0.0.7:99"),
        ("eth1", "0.0.0.0:99", TWO, "192.168.1.5:99"),
        ("eth1:77", "0.0.0.0:99", TWO, "192.168.1.5:77"),
        ("1.2.3.4", "0.0.0.0:99", TWO, "1.2.3.4:99"),
        ("", "0.0.0.0:99", [InterfaceAddress("eth0", "fd00::5")], "[fd00::5]:99"),
        ("eth0", "0.0.0.0:99", [InterfaceAddress("eth0", "fd00::5"), *ONE], "10.0.0.5:99"),
        ("eth0", "0.0.0.0:99", [InterfaceAddress("eth0", "fd00::5")], "[fd00::5]:99"),
    ],
)
def test_resolve_advertise(text, listen, machine, expected):
    """Given, by interface, from the listen address, or the only one there is."""
    assert expected == resolve_advertise(text, listen, machine)


@pytest.mark.parametrize(
    ("text", "machine", "sentence"),
    [
        ("", [], "could not find the system's IP address"),
        ("", TWO, r"10\.0\.0\.5 on eth0 and 192\.168\.1\.5 on eth1\)$"),
        ("eth0", SAME, r"eth0 has more than one IPv4 address \(10\.0\.0\.5 and 10\.0\.0\.6\)"),
        ("eth0:99", SAME, "eth0 has more than one IPv4 address"),
        ("eth2", SIX, r"eth2 has more than one IPv6 address \(fd00::1 and fd00::2\)"),
        ("eth9", TWO, "must be an IP address or a network interface"),
        ("0.0.0.0", TWO, "non-zero"),
    ],
)
def test_resolve_advertise_says_what_to_do(text, machine, sentence):
    """None or several to choose from, or nothing that exists: a sentence with the way out."""
    with pytest.raises(InvalidError, match=sentence):
        resolve_advertise(text, "0.0.0.0:2377", machine)


def test_resolve_listen():
    """Everything by default; names are refused."""
    assert resolve_listen("") == "0.0.0.0:2377"
    assert resolve_listen("127.0.0.1") == "127.0.0.1:2377"
    with pytest.raises(InvalidError, match="listen address"):
        resolve_listen("example.com:2377")
    assert resolve_listen("eth0:99", ONE) == "10.0.0.5:99"
    with pytest.raises(InvalidError, match="eth0 has more than one IPv4 address"):
        resolve_listen("eth0", SAME)


def test_resolve_data_path():
    """An address, an interface's, or none; nothing else."""
    assert not resolve_data_path("", ONE)
    assert resolve_data_path("eth0", ONE) == "10.0.0.5"
    assert resolve_data_path("192.0.2.1", ONE) == "192.0.2.1"
    for text in ("0.0.0.0", "::", "eth7"):
        with pytest.raises(InvalidError, match="data path address must be"):
            resolve_data_path(text, ONE)

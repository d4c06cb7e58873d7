"""Addresses that a node finds, and where it listens: machines without IPv4, several addresses."""

import socket

DIAL = """
import socket, sys
for host in sys.argv[2:]:
    with socket.create_connection((host, int(sys.argv[1])), timeout=5):
        print("reached", host)
"""


def device(node):
    """Return the name of the host's link to the switch."""
    shown = node.host.exec("ip", "-o", "-4", "addr", "show", "scope", "global").stdout
    return shown.split()[1]


def dial(node, port, *hosts):
    """Connect from within to these addresses; return which were reached."""
    done = node.host.exec("python3", "-c", DIAL, str(port), *hosts, check=False)
    return done.stdout.splitlines()


def test_a_machine_without_ipv4_begins_a_swarm(bare_node):
    """Its only address is found, advertised, and listened on."""
    assert socket.has_dualstack_ipv6()
    name = device(bare_node)
    bare_node.host.exec("ip", "-6", "addr", "add", "fd00:77::5/64", "dev", name, "nodad")
    bare_node.host.exec("ip", "-4", "addr", "flush", "dev", name)
    bare_node.start_daemon()
    said = bare_node.docker("swarm", "init").stdout
    assert "[fd00:77::5]:2377" in said
    info = bare_node.api.info()["Swarm"]
    assert info["NodeAddr"] == "fd00:77::5"
    assert dial(bare_node, 2377, "fd00:77::5", "::1", "127.0.0.1") == [
        "reached fd00:77::5",
        "reached ::1",
        "reached 127.0.0.1",
    ]


def test_of_several_addresses_none_is_guessed(bare_node):
    """The sentence says the remedy once; an interface with two is refused by its name."""
    name = device(bare_node)
    bare_node.host.exec("ip", "addr", "add", "10.77.9.1/16", "dev", name)
    bare_node.host.exec("ip", "-6", "addr", "add", "fd00:77::5/64", "dev", name, "nodad")
    bare_node.start_daemon()
    refused = bare_node.docker("swarm", "init", check=False)
    assert refused.stderr.count("--advertise-addr") == 1
    assert f"multiple addresses on interface {name}" in refused.stderr
    swarm = bare_node.host.exec("swarm", "init", check=False)
    assert swarm.stderr.count("--advertise-addr") == 1
    refused = bare_node.docker("swarm", "init", "--advertise-addr", name, check=False)
    assert f"interface {name} has more than one IPv4 address" in refused.stderr
    bare_node.docker("swarm", "init", "--advertise-addr", "10.77.9.1")

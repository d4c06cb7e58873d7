"""What the machine is: read once at the start, for the node's description and `docker info`."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path

import msgspec

from manager.daemon.addresses import InterfaceAddress, split_port
from overlay import rtnetlink
from overlay.names import BRIDGE
from overlay.netlink import NetlinkSocket
from proto.objects import EngineDescription, NodeDescription, Platform, Resources


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that do not change while the daemon runs."""

    hostname: str
    kernel: str
    architecture: str
    operating_system: str
    cpus: int
    memory_bytes: int
    version: str


class RuntimeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What runs containers here; `cgroup_version` is "1" or "2"."""

    name: str
    path: str
    cgroup_version: str


def read_machine() -> Machine:
    """Ask the kernel and /etc/os-release."""
    names = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    uname = os.uname()
    return Machine(
        hostname=socket.gethostname(),
        kernel=uname.release,
        architecture=uname.machine,
        operating_system=names.get("PRETTY_NAME", "Linux"),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        version=version("swarm-orchestrator"),
    )


def describe(machine: Machine, trouble: str = "") -> NodeDescription:
    """Say to the managers what this node is, and what hampers it."""
    return NodeDescription(
        hostname=machine.hostname,
        platform=Platform(os="linux", architecture=machine.architecture),
        resources=Resources(
            nano_cpus=machine.cpus * 1_000_000_000, memory_bytes=machine.memory_bytes
        ),
        engine=EngineDescription(version=machine.version),
        trouble=trouble,
    )


def machine_addresses() -> list[InterfaceAddress]:
    """List the addresses that other machines may reach: no loopback, link-local or bridge."""
    with NetlinkSocket() as route:
        links = [rtnetlink.parse_link(body) for body in route.dump(rtnetlink.list_links())]
        found = [rtnetlink.parse_address(body) for body in route.dump(rtnetlink.list_addresses())]
        found6 = [
            rtnetlink.parse_address6(body) for body in route.dump(rtnetlink.list_addresses6())
        ]
    both: list[rtnetlink.Address | rtnetlink.Address6] = [*found]
    both += [address for address in found6 if address.is_lasting]
    names = {link.index: link.name for link in links if link.name != BRIDGE}
    return [
        InterfaceAddress(names[address.index], str(address.interface.ip))
        for address in both
        if address.index in names
        and not address.interface.ip.is_loopback
        and not address.interface.ip.is_link_local
    ]


def address_towards(remote: str) -> str:
    """Return this machine's address on the way to `host:port`; "" if there is no way.

    Asks the kernel's routes; nothing is sent.
    """
    host, port = split_port(remote, "remote address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    except OSError:
        return ""
    return ""

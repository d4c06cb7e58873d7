"""What Swarm may leave on a machine, listed, so that "nothing is left" can be checked."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from manager.lab.cgroups import CGROUP_ROOT, hierarchies

_SYSCTLS = (
    "bridge/*",
    "core/*mem*",
    "core/somaxconn",
    "ipv4/ip_*",
    "ipv4/tcp_*",
    "ipv4/conf/*/*",
    "ipv6/conf/*/*",
    "netfilter/nf_conntrack_max",
)


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Sorted names of kernel objects."""

    links: tuple[str, ...]
    mounts: tuple[str, ...]
    tables: tuple[str, ...]
    cgroups: tuple[str, ...]
    net_namespaces: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()

    def difference(self, earlier: Footprint) -> list[str]:
        """Say in words what is here that was not, and what is gone."""
        said: list[str] = []
        for field in self.__struct_fields__:
            now, then = set(getattr(self, field)), set(getattr(earlier, field))
            said += [f"{field}: new: {name}" for name in sorted(now - then)]
            said += [f"{field}: gone: {name}" for name in sorted(then - now)]
        return said


def read_machine_footprint(cgroups: Sequence[str] = ("swarm*",)) -> Footprint:
    """Look at this machine: links, mounts, routes, rules, switches, and our control groups.

    Namespaces and control groups of others come and go while a machine lives, so they are left out.

    Args:
        cgroups: patterns of those that are ours.
    """
    return Footprint(
        links=_links(Path("/proc/self")),
        mounts=_mounts(Path("/proc/self")),
        tables=_tables([]),
        cgroups=tuple(sorted(path for pattern in cgroups for path in _cgroups(pattern))),
        routes=_routes(),
        sysctls=_sysctls(),
    )


def read_host_footprint(init_pid: int, cgroup_parent: str) -> Footprint:
    """Look at a lab host: everything in its namespaces.

    Args:
        init_pid: the host's init process, as the machine sees it.
        cgroup_parent: the control group of its containers.
    """
    process = Path(f"/proc/{init_pid}")
    return Footprint(
        links=_links(process),
        mounts=_mounts(process),
        tables=_tables(["nsenter", "-t", str(init_pid), "-n"]),
        cgroups=_cgroups(f"{cgroup_parent.strip('/')}/*/"),
        net_namespaces=_net_namespaces(process / "root/proc", (process / "ns/net").readlink()),
    )


def _links(process: Path) -> tuple[str, ...]:
    lines = (process / "net/dev").read_text().splitlines()
    return tuple(sorted(line.split(":")[0].strip() for line in lines if ":" in line))


def _mounts(process: Path) -> tuple[str, ...]:
    lines = (process / "mountinfo").read_text().splitlines()
    return tuple(sorted(line.split()[4] for line in lines))


def _tables(enter: Sequence[str]) -> tuple[str, ...]:
    listed = subprocess.run(
        [*enter, "nft", "list", "tables"], capture_output=True, text=True, check=True, timeout=10
    )
    return tuple(sorted(listed.stdout.splitlines()))


def _routes() -> tuple[str, ...]:
    """List the routes and the rules that choose between tables of them."""
    said: list[str] = []
    for command in (["route", "show", "table", "all"], ["rule", "show"]):
        for family in ("-4", "-6"):
            listed = subprocess.run(
                ["ip", family, *command], capture_output=True, text=True, check=True, timeout=10
            )
            # How long a route that a router told us of is still good changes by itself.
            said += [
                re.sub(r" expires \S+", "", line).strip() for line in listed.stdout.splitlines()
            ]
    return tuple(sorted(said))


def _sysctls() -> tuple[str, ...]:
    """List the switches of the machine's network that somebody might turn."""
    top = Path("/proc/sys/net")
    found: list[str] = []
    for pattern in _SYSCTLS:
        for path in top.glob(pattern):
            try:
                value = " ".join(path.read_text().split())
            except OSError:
                continue  # only to be written, or of a link that has just gone
            found.append(f"{path.relative_to(top)}={value}")
    return tuple(sorted(found))


def _cgroups(pattern: str) -> tuple[str, ...]:
    """List the control groups that a pattern names, in every hierarchy."""
    return tuple(
        sorted(
            str(path.relative_to(CGROUP_ROOT))
            for hierarchy in hierarchies()
            for path in hierarchy.glob(pattern)
        )
    )


def _net_namespaces(proc: Path, own: Path) -> tuple[str, ...]:
    """List the network namespaces that some process is in, by a mount of proc.

    The host's own is called so: it is another after each start of the host.
    """
    found = set()
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            try:
                space = Path(entry.path, "ns/net").readlink()
            except OSError:
                continue  # it ended while we looked, or is a zombie
            found.add("own" if space == own else str(space))
    return tuple(sorted(found))

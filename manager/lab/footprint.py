"""What Swarm may leave on a machine, listed, so that "nothing is left" can be checked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

CGROUP_ROOT = Path("/sys/fs/cgroup")


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Sorted names of kernel objects."""

    links: tuple[str, ...]
    mounts: tuple[str, ...]
    tables: tuple[str, ...]
    cgroups: tuple[str, ...]
    net_namespaces: tuple[str, ...] = ()

    def difference(self, earlier: Footprint) -> list[str]:
        """Say in words what is here that was not, and what is gone."""
        said: list[str] = []
        for field in self.__struct_fields__:
            now, then = set(getattr(self, field)), set(getattr(earlier, field))
            said += [f"{field}: new: {name}" for name in sorted(now - then)]
            said += [f"{field}: gone: {name}" for name in sorted(then - now)]
        return said


def read_machine_footprint() -> Footprint:
    """Look at this machine: all links, mounts and tables of rules, and our control groups.

    Namespaces and control groups of others come and go while a machine lives, so they are left out.
    """
    return Footprint(
        links=_links(Path("/proc/self")),
        mounts=_mounts(Path("/proc/self")),
        tables=_tables([]),
        cgroups=_cgroups("swarm*"),
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
        net_namespaces=_net_namespaces(process / "root/proc"),
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


def _cgroups(pattern: str) -> tuple[str, ...]:
    """List the control groups that a pattern names, in every hierarchy."""
    hierarchies = [CGROUP_ROOT]
    if not (CGROUP_ROOT / "cgroup.procs").exists():
        hierarchies = [path for path in CGROUP_ROOT.iterdir() if not path.is_symlink()]
    return tuple(
        sorted(
            str(path.relative_to(CGROUP_ROOT))
            for hierarchy in hierarchies
            for path in hierarchy.glob(pattern)
        )
    )


def _net_namespaces(proc: Path) -> tuple[str, ...]:
    """List the network namespaces that some process is in, by a mount of proc."""
    found = set()
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            try:
                found.add(str(Path(entry.path, "ns/net").readlink()))
            except OSError:
                continue  # it ended while we looked, or is a zombie
    return tuple(sorted(found))

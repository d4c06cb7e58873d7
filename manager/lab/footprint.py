"""What Swarm may leave on a machine, listed, so that "nothing is left" can be checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

CGROUP_ROOT = Path("/sys/fs/cgroup")


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Sorted names of kernel objects."""

    links: tuple[str, ...]
    mounts: tuple[str, ...]
    cgroups: tuple[str, ...]
    net_namespaces: tuple[str, ...]

    def difference(self, earlier: Footprint) -> list[str]:
        """Say in words what is here that was not, and what is gone."""
        said: list[str] = []
        for field in self.__struct_fields__:
            now, then = set(getattr(self, field)), set(getattr(earlier, field))
            said += [f"{field}: new: {name}" for name in sorted(now - then)]
            said += [f"{field}: gone: {name}" for name in sorted(then - now)]
        return said


def read_footprint(pid: str = "self") -> Footprint:
    """Look at the machine as a process sees it.

    Args:
        pid: whose namespaces to look at; "self" for the caller's.
    """
    process = Path("/proc") / pid
    links = [line.split(":")[0].strip() for line in (process / "net/dev").open() if ":" in line]
    mounts = [line.split()[4] for line in (process / "mountinfo").open()]
    return Footprint(
        links=tuple(sorted(links)),
        mounts=tuple(sorted(mounts)),
        cgroups=tuple(sorted(_cgroups(_hierarchies()))),
        net_namespaces=tuple(sorted(_net_namespaces())),
    )


def _hierarchies() -> list[Path]:
    if (CGROUP_ROOT / "cgroup.procs").exists():
        return [CGROUP_ROOT]
    return [path for path in CGROUP_ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def _cgroups(hierarchies: Iterable[Path]) -> set[str]:
    """List control groups two levels deep: deeper ones go with their parents."""
    found = set()
    for hierarchy in hierarchies:
        for path in (*hierarchy.glob("*/"), *hierarchy.glob("*/*/")):
            found.add(str(path.relative_to(CGROUP_ROOT)))
    return found


def _net_namespaces() -> set[str]:
    """List the network namespaces that some process is in."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                found.add(str(Path(entry.path, "ns/net").readlink()))
            except OSError:
                continue  # it ended while we looked, or is a zombie
    return found

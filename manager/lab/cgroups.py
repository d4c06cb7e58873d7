"""The control groups of hosts' containers, which the kernel keeps when a host ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from worker.files import tree

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "swarm-lab-"


def hierarchies() -> list[Path]:
    """List the roots: one, or one for each set of controllers (version 1)."""
    if (CGROUP_ROOT / "cgroup.procs").exists():
        return [CGROUP_ROOT]
    return [path for path in CGROUP_ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def remove_cgroup(parent: str) -> bool:
    """Remove a control group and its children from every hierarchy; False while one is in use."""
    is_gone = True
    for hierarchy in hierarchies():
        top = hierarchy / parent.lstrip("/")
        if not top.is_dir():
            continue
        try:
            tree.remove_directories(top)
        except OSError:
            is_gone = False
    return is_gone


def named(prefix: str) -> Iterator[str]:
    """List the control groups at the top whose names begin so."""
    names = {path.name for root in hierarchies() for path in root.glob(f"{prefix}*")}
    return iter(sorted(names))


def remove_stale_cgroups() -> None:
    """Remove the control groups of hosts whose program ended without `Host.stop`.

    Their names end with that program's number; those of a lab that lives on do not.
    """
    for name in named(CGROUP_PREFIX):
        owner = name.rpartition("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove_cgroup(f"/{name}")

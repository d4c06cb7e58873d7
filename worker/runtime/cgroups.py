"""Where a container's cgroup is, on either version; whether it ran out of memory; its removal.

The runtime makes the cgroup from `cgroupsPath`; it is removed here, because asking the runtime
costs a process and fails after a crash in the middle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from proto.errors import RuntimeFailedError
from worker.files import tree

MOUNT_POINT = Path("/sys/fs/cgroup")
# Together about five seconds: a killed process may still be in the kernel's hands.
_RETRIES_MAX = 55
_RETRY_SECONDS = 0.002
_RETRY_SECONDS_MAX = 0.1


class Layout(msgspec.Struct, frozen=True):
    """How cgroups are mounted.

    Attributes:
        version: 2 for the unified hierarchy alone.
        roots: the mount of each hierarchy; one on version 2.
        has_swap_limit: memory and swap can be limited together.
    """

    version: Literal[1, 2]
    roots: tuple[Path, ...]
    has_swap_limit: bool


def detect(mount_point: Path = MOUNT_POINT) -> Layout:
    """Look at the mounted hierarchies.

    Raises:
        RuntimeFailedError: there is none.
    """
    if (mount_point / "cgroup.controllers").exists():
        # The root has no memory.swap.max; any first child shows it.
        has_swap = any((entry / "memory.swap.max").exists() for entry in mount_point.glob("*/"))
        return Layout(2, (mount_point,), has_swap)
    roots = []
    if mount_point.is_dir():
        # `cpu` and `cpu,cpuacct` may be links to one directory.
        real = {entry.resolve() for entry in mount_point.iterdir() if entry.is_dir()}
        roots = sorted(entry for entry in real if (entry / "cgroup.procs").exists())
    if not roots:
        raise RuntimeFailedError(
            f"no cgroup hierarchy is mounted at {mount_point}; mount one (systemd does)"
        )
    has_swap = (mount_point / "memory" / "memory.memsw.limit_in_bytes").exists()
    return Layout(1, tuple(roots), has_swap)


def has_pids_limit(layout: Layout) -> bool:
    """Tell whether the number of processes can be limited on this machine."""
    if layout.version == 1:
        return any("pids" in root.name.split(",") for root in layout.roots)
    return "pids" in (layout.roots[0] / "cgroup.controllers").read_text().split()


def directories(layout: Layout, path: str) -> list[Path]:
    """Return the existing directories of the cgroup `path` (`/swarm/<id>`)."""
    found = (root / path.lstrip("/") for root in layout.roots)
    return [directory for directory in found if directory.is_dir()]


def oom_kills(layout: Layout, path: str) -> int:
    """Return how many processes of the cgroup the kernel killed for memory; 0 if it is gone."""
    relative = path.lstrip("/")
    file = (
        MOUNT_POINT / relative / "memory.events"
        if layout.version == 2  # noqa: PLR2004 -- the name of the version
        else MOUNT_POINT / "memory" / relative / "memory.oom_control"
    )
    try:
        text = file.read_text()
    except OSError:  # gone meanwhile, which the kernel says as ENOENT or ENODEV
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def processes(directory: Path) -> list[int]:
    """Return the PIDs in a cgroup and below it."""
    try:
        top = os.open(directory, tree.DIRECTORY_FLAGS)
    except FileNotFoundError:
        return []
    try:
        return list(tree.walked(top, _processes_in))
    finally:
        os.close(top)


def _processes_in(cgroup: int, below: list[str]) -> Iterator[int]:
    # Gone meanwhile, which the kernel says as ENOENT or ENODEV.
    with contextlib.suppress(OSError):
        with os.scandir(cgroup) as entries:
            below.extend(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        descriptor = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=cgroup)
        with open(descriptor, "rb") as file:  # noqa: PTH123 -- a descriptor, not a path
            yield from (int(line) for line in file.read().split())


def remove(layout: Layout, path: str) -> None:
    """Kill what is in the cgroup and remove it. Blocks; nothing if it does not exist.

    Raises:
        RuntimeFailedError: a process in it does not die.
    """
    if layout.version == 1:
        _remove_stray(MOUNT_POINT / "unified" / path.lstrip("/"))
    for directory in directories(layout, path):
        pause = _RETRY_SECONDS
        for _ in range(_RETRIES_MAX):
            if _remove_once(directory):
                break
            for pid in processes(directory):
                _kill(pid)
            time.sleep(pause)
            pause = min(pause * 2, _RETRY_SECONDS_MAX)
        else:
            raise RuntimeFailedError(
                f"the cgroup {directory} cannot be removed: "
                f"processes {processes(directory)} do not end"
            )


def _remove_stray(directory: Path) -> None:
    """Remove what crun 1.8 makes where version 2 would be mounted beside version 1.

    If it is not mounted there, those are a plain directory and file of the tmpfs around.
    """
    if (directory.parent.parent / "cgroup.procs").exists():
        return
    with contextlib.suppress(FileNotFoundError):
        (directory / "cgroup.procs").unlink()
        directory.rmdir()


def _remove_once(directory: Path) -> bool:
    """Remove a cgroup and those below it; False while one is busy."""
    try:
        tree.remove_directories(directory)
    except OSError:
        return False
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

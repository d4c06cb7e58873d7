"""Undo a container, however far it came: processes, cgroup, runtime's state, mount, directory.

Needs no record to be complete and asks no program, so it works after a crash at any point, also
of its own. The order matters: first whatever could still make something (the monitor and the
runtime), last the directory by which the container is found again. Blocks; runs in a thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from proto.errors import RuntimeFailedError
from proto.ids import ContainerID
from worker.files import tree
from worker.runtime import binds, cgroups, procfs, rootfs
from worker.runtime.directory import ContainerDirectory, ProcessRecord

# conmon writes the exit code and what is left of the output after the container's end.
_MONITOR_SECONDS_MAX = 2.0
_KILLED_SECONDS_MAX = 2.0
_BURIALS_MAX = 100
_SCANS_MAX = 200
_SCAN_PAUSE_SECONDS = 0.01
_PROGRAMS = ("conmon", "crun", "runc")


def destroy(
    directory: ContainerDirectory,
    container_id: ContainerID,
    *,
    layout: cgroups.Layout,
    cgroup: str,
    boot_id: str,
    after_step: Callable[[str], None],
) -> None:
    """Remove all that there is of the container.

    Raises:
        RuntimeFailedError: a process does not die, a mount stays, a file cannot be deleted.
    """
    if not directory.path.exists() and not directory.state_directory.exists():
        delete(directory.making)
        delete(directory.deleting)
        return
    record = directory.record()
    if record is None:
        kill_unrecorded(container_id)
        _bury_monitor(directory.read_pid("conmon.pid"))
    elif record.boot_id == boot_id:
        kill_recorded(record)
    after_step("killed")
    cgroups.remove(layout, cgroup)
    procfs.bury_orphans()
    after_step("cgroup removed")
    delete(directory.state_directory)
    after_step("state removed")
    binds.unpin(directory.path)
    rootfs.unmount(directory.path)
    after_step("unmounted")
    delete(directory.deleting)
    # Deleting takes many steps, of which the first may take the config: it is no container now.
    with contextlib.suppress(FileNotFoundError):
        directory.path.rename(directory.deleting)
    after_step("renamed")
    delete(directory.deleting)
    after_step("removed")


def kill_recorded(record: ProcessRecord) -> None:
    """Kill the container, then let the monitor end by itself, or end it.

    Raises:
        RuntimeFailedError: one of them does not end.
    """
    _end(record.pid, record.pid_started, 0.0)
    _end(record.monitor_pid, record.monitor_started, _MONITOR_SECONDS_MAX)


def kill_unrecorded(container_id: ContainerID) -> None:
    """Kill the monitor and the runtime of a container whose creation was cut short.

    They carry the container's ID on their command lines. Killing conmon kills its runtime too
    (PDEATHSIG), whose half-made child then ends on its own or is found in the cgroup.
    """
    for _ in range(_SCANS_MAX):
        pids = [pid for name in _PROGRAMS for pid in procfs.find_by_argument(name, container_id)]
        if not pids:
            return
        for pid in pids:
            started = procfs.start_time(pid)
            if started is not None:
                _end(pid, started, 0.0)
        time.sleep(_SCAN_PAUSE_SECONDS)
    raise RuntimeFailedError(f"processes of container {container_id[:12]} do not end")


def _bury_monitor(pid: int | None) -> None:
    """Wait for a monitor that ends by itself, where the daemon has inherited it as a child."""
    if pid is None or not procfs.is_child(pid, "conmon"):
        return
    descriptor = procfs.pidfd_of(pid)
    if descriptor is None:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(_KILLED_SECONDS_MAX * 1000):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    os.close(descriptor)


def _end(pid: int, started: int, patience_seconds: float) -> None:
    """Wait for a process, and kill it when patience is at its end."""
    descriptor = procfs.open_pidfd(pid, started)
    if descriptor is not None:
        try:
            _end_opened(descriptor, pid, patience_seconds)
        finally:
            os.close(descriptor)
    procfs.reap(pid, started)


def _end_opened(descriptor: int, pid: int, patience_seconds: float) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if patience_seconds and poll.poll(patience_seconds * 1000):
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    for _ in range(_BURIALS_MAX):
        # The end of a container's first process kills the others, and waits for their burial.
        procfs.bury_orphans()
        if poll.poll(_KILLED_SECONDS_MAX * 1000 / _BURIALS_MAX):
            return
    raise RuntimeFailedError(f"process {pid} was killed but does not end")


def delete(path: Path) -> None:
    """Delete a directory with all that is in it; nothing if there is none.

    Raises:
        RuntimeFailedError: a file cannot be deleted.
    """
    try:
        tree.remove(path)
    except OSError as error:
        raise RuntimeFailedError(
            f"{error.filename or path} in {path.name} cannot be deleted: {error.strerror}"
        ) from error

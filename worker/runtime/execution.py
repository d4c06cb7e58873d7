"""Run a command beside a container's main process, with that process's rights: health checks.

Not through conmon: the command belongs to the daemon that waits for it, and is killed with it. Its
files lie where sockets and runtime state do, since the disk of the containers may be full: a check
that cannot be made says nothing about the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from pathlib import Path

import msgspec

from proto.errors import ResourceExhaustedError, RuntimeFailedError
from proto.ids import ContainerID
from worker.diskspace import FULL_ERRNOS
from worker.runtime import conmon, prepare, procfs, spawn, spec
from worker.runtime.api import ContainerConfig
from worker.runtime.conmon import Binaries
from worker.runtime.directory import ContainerDirectory, read_pid, write_private
from worker.runtime.spec import HostFacts

OUTPUT_BYTES_MAX = 4096
_SIGNALLED = 128
_KILLED_SECONDS_MAX = 2.0
_BURIAL_SECONDS = 0.5


class Command(msgspec.Struct, frozen=True):
    """What to run; empty fields are the container's own."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""


def process_document(
    command: Command, config: ContainerConfig, facts: HostFacts, root_fd: int
) -> dict[str, object]:
    """Return OCI's `process` for the command: the container's with the command's changes."""
    changed = msgspec.structs.replace(
        config,
        argv=command.argv,
        env=(*config.env, *command.env),
        user=command.user or config.user,
        working_dir=command.working_dir or config.working_dir,
        init=False,
        tty=False,
    )
    return spec.process(changed, facts, prepare.identify(changed, root_fd))


async def run(
    binaries: Binaries,
    directory: ContainerDirectory,
    container_id: ContainerID,
    document: dict[str, object],
    *,
    scratch: Path,
    timeout: float,
) -> tuple[int, bytes]:
    """Run it to its end, at most `timeout` seconds; return its exit code and first output.

    `scratch` is a directory for files of this call.

    Raises:
        TimeoutError: it took too long, and was killed.
        ResourceExhaustedError: there is no room for the files.
        RuntimeFailedError: the runtime cannot be run.
    """
    file = scratch / f"exec-{secrets.token_hex(8)}"
    pid_file = file.with_suffix(".pid")
    argv = [
        binaries.runtime, f"--root={directory.state_directory.parent}", "exec",
        "--process", str(file), "--pid-file", str(pid_file), container_id,
    ]  # fmt: skip
    try:
        write_private(file, msgspec.json.encode(document))
        async with asyncio.timeout(timeout):
            finished = await spawn.run(
                argv, environment=conmon.environment(), output_bytes_max=OUTPUT_BYTES_MAX
            )
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        if error.errno in FULL_ERRNOS:
            raise ResourceExhaustedError(f"no space left on device: {scratch} is full") from error
        raise RuntimeFailedError(f"cannot run {binaries.runtime}: {error.strerror}") from error
    finally:
        # Killing the runtime's own process leaves the command running in the container.
        await kill_command(read_pid(pid_file), container_id)
        file.unlink(missing_ok=True)
        pid_file.unlink(missing_ok=True)
    code = finished.code
    return (code if code >= 0 else _SIGNALLED - code), finished.output


async def kill_command(pid: int | None, container_id: ContainerID) -> None:
    """Kill the command if it still runs; its cgroup proves that the PID is not a stranger's."""
    if pid is not None and procfs.is_in_cgroup(pid, container_id):
        started = procfs.start_time(pid)
        descriptor = None if started is None else procfs.open_pidfd(pid, started)
        if descriptor is not None:
            try:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILLED_SECONDS_MAX):
                        await spawn.readable(descriptor)
            finally:
                os.close(descriptor)
    # What the runtime leaves behind when a command cannot be run may need a moment to end.
    procfs.bury_orphans()
    asyncio.get_running_loop().call_later(_BURIAL_SECONDS, procfs.bury_orphans)

"""Start a container under conmon, and understand what conmon and the runtime say when they fail.

conmon forks twice and leads a session of its own, so neither the daemon's end nor its terminal
touches it; it inherits no descriptor but one end of the pipe on which it reports the PID.

Source: conmon `src/conmon.c`, `src/parent_pipe_fd.c`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import msgspec

from proto.errors import RuntimeFailedError
from worker.runtime import spawn
from worker.runtime.api import ContainerConfig
from worker.runtime.directory import ContainerDirectory

_REPORT_BYTES_MAX = 1 << 16
# What runc puts before the cause, in this order.
_PREFIXES = (
    "runc create failed: ",
    "unable to start container process: ",
    "error during container init: ",
)
CONTROL_REOPEN_LOG = b"2 0 0\n"


class Binaries(msgspec.Struct, frozen=True):
    """The programs in use, as paths, and the runtime's name (`crun` or `runc`)."""

    name: str
    runtime: str
    conmon: str
    version: str = ""


class _Report(msgspec.Struct, frozen=True):
    data: int
    message: str = ""


def command(
    binaries: Binaries, config: ContainerConfig, directory: ContainerDirectory
) -> list[str]:
    """Return conmon's command line. The log is not synced at the end: it is no database."""
    path = str(directory.path)
    log = "none" if config.log.driver == "none" else f"k8s-file:{directory.log}"
    argv = [
        binaries.conmon, "--api-version", "1", "-c", config.id, "-u", config.id,
        "-r", binaries.runtime, f"--runtime-arg=--root={directory.state_directory.parent}",
        "-b", path, "-p", f"{path}/init.pid", "-P", f"{path}/conmon.pid",
        "-l", log, "--full-attach", "--persist-dir", path, "--no-sync-log",
    ]  # fmt: skip
    if config.tty:
        argv.append("-t")
    if config.open_stdin:
        argv += ["-i", "--leave-stdin-open"]
    return argv


def environment() -> dict[str, str]:
    """Return what conmon and the runtime need; nothing of the daemon's own reaches them."""
    return {"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC"}


async def create(binaries: Binaries, config: ContainerConfig, directory: ContainerDirectory) -> int:
    """Run conmon, which runs the runtime's `create`; return the PID of the waiting process.

    Raises:
        RuntimeFailedError: the runtime refuses, in a sentence about the cause.
    """
    read_end, write_end = os.pipe()
    try:
        process = _start(command(binaries, config, directory), write_end, directory.path)
    except OSError as error:
        os.close(read_end)
        raise RuntimeFailedError(f"cannot run {binaries.conmon}: {error.strerror}") from error
    finally:
        os.close(write_end)
    try:
        line = await _read_report(read_end)
        # Only the first of the two forks: it has ended, or is about to.
        await spawn.reap(process)
    finally:
        os.close(read_end)
        # One that was given up: what it has started is found by the container's ID.
        await spawn.end(process)
    return _pid_of(line, config)


def _start(argv: list[str], report: int, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        # It leaves a file named "oom" wherever it is when its container runs out of memory.
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment() | {"_OCI_SYNCPIPE": str(report)},
        pass_fds=(report,),
        start_new_session=True,
    )


async def _read_report(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    kept = bytearray()
    while b"\n" not in kept:
        await spawn.readable(descriptor)
        if not spawn.read_available(descriptor, kept, _REPORT_BYTES_MAX):
            break
    return bytes(kept).partition(b"\n")[0]


def _pid_of(line: bytes, config: ContainerConfig) -> int:
    try:
        # conmon passes bytes of the runtime on as they are, so they need not be UTF-8.
        report = msgspec.json.decode(line.decode(errors="replace"), type=_Report)
    except msgspec.DecodeError:
        raise RuntimeFailedError(
            "conmon ended before the container was created"
            + (f": {line.decode(errors='replace')}" if line else "")
        ) from None
    if report.data > 0:
        return report.data
    raise failure(report.message, config)


def failure(message: str, config: ContainerConfig) -> RuntimeFailedError:
    """Turn the last words of crun or runc into a sentence as Docker has it."""
    text = _plain(message)
    lower = text.lower()
    program = config.argv[0] if config.argv else ""
    if "no space left on device" in lower:
        return RuntimeFailedError(f"the disk is full: {text}")
    if lower.startswith(("executable file `", "exec: ")) and "not found in $path" in lower:
        reason = (
            f"stat {program}: no such file or directory"
            if "/" in program
            else "executable file not found in $PATH"
        )
        return RuntimeFailedError(f'exec: "{program}": {reason}')
    if lower.startswith("open executable: "):
        return RuntimeFailedError(f'exec: "{program}": {lower.partition(": ")[2]}')
    if "chdir" in lower:
        return RuntimeFailedError(
            f'cannot change to the working directory "{config.working_dir}": {text}'
        )
    return RuntimeFailedError(text or "the container runtime failed without a message")


def _plain(message: str) -> str:
    """Strip what the runtimes write around their sentence: time, level, what runc was doing."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    quoted = re.search(r'level=error msg="((?:[^"\\]|\\.)*)"', line)
    if quoted:
        line = quoted[1].replace('\\"', '"')
    for prefix in _PREFIXES:
        line = line.removeprefix(prefix)
    return line

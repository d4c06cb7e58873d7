"""Processes of the lab as the machine sees them: known again later, found by their mark, ended.

A lab outlives the command that made it, so processes are known by number and start time: a number
that the kernel gave to another process since is not taken for ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec
from typing_extensions import override

from proto.errors import RuntimeFailedError

MARK = "SWARM_LAB_HOLDER"
WAIT_SECONDS_MAX = 20.0
_PR_SET_PDEATHSIG = 1
# Fields of /proc/PID/stat after the command's name, which may hold anything: proc(5).
_STATE, _START_TIME = 0, 19


class ProcessRef(msgspec.Struct, frozen=True):
    """One process; `started` is in clock ticks since the machine's start."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """Take note of a process.

        Raises:
            RuntimeFailedError: it has ended already.
        """
        fields = _stat(pid)
        if fields is None:
            raise RuntimeFailedError(f"process {pid} of the lab has ended")
        return cls(pid, int(fields[_START_TIME]))

    @property
    def is_alive(self) -> bool:
        """Tell whether it runs; one that only waits for its parent to look does not."""
        fields = _stat(self.pid)
        return (
            fields is not None
            and int(fields[_START_TIME]) == self.started
            and fields[_STATE] not in "ZX"
        )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal if it still is the same process."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def spawn(
    command: Sequence[str],
    *,
    mark: str = "",
    dies_with_us: bool,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a process that a Ctrl-C in our terminal does not reach.

    Args:
        command: what to run.
        mark: for `marked` to find it by, whatever became of the program that started it.
        dies_with_us: end it when the calling thread ends, however that ends.
        environment: our own if not given.
        output: where its output and errors go.
    """
    chosen = dict(os.environ if environment is None else environment)
    if mark:
        chosen[MARK] = mark
    return _Lasting(
        command,
        env=chosen,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_die_with_parent if dies_with_us else None,
    )


class _Lasting(subprocess.Popen[bytes]):
    """A process that may outlive whoever started it: that is no leak to warn of."""

    @override
    def __del__(self) -> None:
        if self.returncode is None and self.poll() is None:
            # The base class would warn. The process is found again by its mark.
            self.returncode = 0
        super().__del__()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def marked(prefix: str) -> Iterator[ProcessRef]:
    """Find the processes whose mark begins so; an ended program's are found too."""
    wanted = f"{MARK}={prefix}".encode()
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if any(entry.startswith(wanted) for entry in environment.split(b"\0")):
                yield ProcessRef.of(pid)
        except (OSError, RuntimeFailedError):
            continue  # it ended while we looked


def bearing(mark: str) -> list[ProcessRef]:
    """Find the processes that have exactly this mark."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError, RuntimeFailedError):  # it ended while we looked
            if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(ProcessRef.of(pid))
    return found


def marks(prefix: str) -> set[str]:
    """List the marks in use that begin so."""
    found = set()
    wanted = f"{MARK}={prefix}".encode()
    for pid in _pids():
        try:
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        found |= {
            entry.partition(b"=")[2].decode() for entry in entries if entry.startswith(wanted)
        }
    return found


def first_child(pid: int) -> int | None:
    """Return the only child of one of our holders, if it has come to life."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(children[0]) if children else None


def command_name(pid: int) -> str:
    """Return the name of the program that a process runs, "" if there is no process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def outer(init_pid: int, inner_pid: int, program: str) -> ProcessRef | None:
    """Find a process of a host by its number inside.

    Args:
        init_pid: the host's init process, as the machine sees it.
        inner_pid: the number in the host's PID namespace.
        program: a part of its command line, in case the number belongs to another now.
    """
    try:
        space = Path(f"/proc/{init_pid}/ns/pid").readlink()
    except OSError:
        return None
    for pid in _pids():
        try:
            if Path(f"/proc/{pid}/ns/pid").readlink() != space:
                continue
            status = Path(f"/proc/{pid}/status").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        if int(numbers.split()[-1]) == inner_pid and program.encode() in command:
            return ProcessRef.of(pid)
    return None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 -- 500 Paths


def run(command: Sequence[str], text: str | None = None) -> str:
    """Run a command that has to succeed, and return what it printed.

    Raises:
        RuntimeFailedError: it did not.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError as error:
        raise RuntimeFailedError(f"the program {command[0]} is missing on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeFailedError(f"{' '.join(command)} did not end within 30 s") from error
    if done.returncode:
        raise RuntimeFailedError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def wait_for(
    condition: Callable[[], object],
    message: str,
    *,
    seconds: float = WAIT_SECONDS_MAX,
    poll_seconds: float = 0.01,
) -> None:
    """Wait until something holds.

    Raises:
        RuntimeFailedError: with the message, after `seconds`.
    """
    deadline = time.monotonic() + seconds  # noqa: TID251 -- a shell
    while not condition():
        if time.monotonic() > deadline:  # noqa: TID251 -- a shell
            raise RuntimeFailedError(message)
        time.sleep(poll_seconds)

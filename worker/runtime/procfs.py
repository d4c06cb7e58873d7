"""Facts about processes, read from /proc; and signals that cannot hit a stranger.

A PID alone names nothing: it may have been given to another process since it was written down.
A process is its PID together with the time it started (ticks since boot) and the boot itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from pathlib import Path

_STATE, _START = 0, 19  # of the fields after the command's name in /proc/PID/stat
_SIGNAL = re.compile(
    r"(?P<number>\d{1,3})|(?:SIG)?(?:RTMIN\+(?P<min>\d{1,2})|RTMAX-(?P<max>\d{1,2})|(?P<name>[A-Z0-9]+))",
    re.ASCII,
)
_ENDED = frozenset({b"Z", b"X"})
# No such number; a thread's: ENOENT since Linux 6.9, EINVAL before. Source: pidfd_open(2).
_NO_PROCESS = frozenset({errno.ESRCH, errno.ENOENT, errno.EINVAL})


def boot_id() -> str:
    """Return the identity of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_child(pid: int, program: str) -> bool:
    """Return whether it is a child of this process, alive or a zombie, that runs `program`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return values.get("Name") == program and values.get("PPid") == str(os.getpid())


def _stat(pid: int) -> tuple[bytes, int] | None:
    """Return the state and the start time; None if there is no such process."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = data[data.rindex(b")") + 2 :].split()
    return fields[_STATE], int(fields[_START])


def start_time(pid: int) -> int | None:
    """Return when `pid` started, in ticks since boot; None if it is gone or a zombie."""
    found = _stat(pid)
    return None if found is None or found[0] in _ENDED else found[1]


def reap(pid: int, started: int) -> None:
    """Bury the process if it is a zombie and our child.

    Monitors are not our children, except where the daemon is the first process of a PID namespace
    (a host of the lab) and so inherits them.
    """
    found = _stat(pid)
    if found is not None and found[0] in _ENDED and found[1] == started:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def bury_orphans() -> None:
    """Bury dead processes of containers that were left to us, if we are a namespace's first.

    A container's end waits for the burial of everything in its PID namespace, and a command run
    in it has a parent outside: the runtime, or after that one's death the first process. Our own
    programs are not in a namespace below ours, so their exit codes are not taken from anyone.
    """
    if os.getpid() != 1:
        return
    for word in Path("/proc/1/task/1/children").read_text().split():
        found = _stat(int(word))
        if found is not None and found[0] in _ENDED and _depth(int(word)) > _depth(1):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(word), os.WNOHANG)


def _depth(pid: int) -> int:
    """Return in how many PID namespaces that we can see the process has a number."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(len(line.split()) for line in status.splitlines() if line.startswith("NSpid:"))


def open_pidfd(pid: int, started: int) -> int | None:
    """Open a descriptor of exactly that process; None if it has ended."""
    descriptor = pidfd_of(pid)
    if descriptor is None:
        return None
    # Only now is the PID pinned: a match of the start time after opening proves the identity.
    if start_time(pid) == started:
        return descriptor
    os.close(descriptor)
    return None


def pidfd_of(pid: int) -> int | None:
    """Open a descriptor of the process that has this number now; None if none has.

    The number may be a thread's by now, for which the kernel has an error of its own.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise


def send_signal(pid: int, started: int, number: int) -> bool:
    """Signal exactly that process; False if it has ended."""
    descriptor = open_pidfd(pid, started)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def find_by_argument(program: str, argument: str) -> list[int]:
    """Return the PIDs of `program` (its base name) that have `argument` on their command line.

    Reads all of /proc: only for repairs, when no file tells the PID.
    """
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 -- names only, of a large directory
        if not entry.isdecimal():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] == program.encode() and argument.encode() in words:
                found.append(int(entry))
    return found


def parse_signal(text: str) -> int:
    """Return the number of "SIGTERM", "TERM", "SIGRTMIN+3" or "15".

    Raises:
        ValueError: there is no such signal.
    """
    match = _SIGNAL.fullmatch(text.upper())
    number = 0
    if match is None:
        number = 0
    elif match["number"]:
        number = int(match["number"])
    elif match["min"]:
        number = signal.SIGRTMIN + int(match["min"])
    elif match["max"]:
        number = signal.SIGRTMAX - int(match["max"])
    elif f"SIG{match['name']}" in signal.Signals.__members__:
        number = int(signal.Signals[f"SIG{match['name']}"])
    if not 0 < number < signal.NSIG:
        raise ValueError(f"invalid signal: {text}")
    return number


def is_in_cgroup(pid: int, name: str) -> bool:
    """Return whether the process is in a cgroup of that name, in any hierarchy."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(line.rpartition("/")[2] == name for line in text.splitlines())

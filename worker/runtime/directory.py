"""What a container leaves on disk, and how its state is read back from it.

The directory of a container is the truth; the daemon keeps nothing else. In the order of writing:

    container.json   the config: written first, so that whatever follows can be found and undone
    upper work rootfs      the overlay
    hosts hostname resolv.conf config.json   the bundle
    attach ctl winsz conmon.pid init.pid log       conmon's
    process.json     PIDs with start times and boot: its appearance completes the creation
    oom exit         conmon's last words

A directory without `process.json` is half made ("broken"), and so is one whose monitor is gone
without an `exit` file while the process lives. If the process is gone too, as after a restart of
the machine, the container has ended and nobody saw how. All files that we write appear by rename;
so does the directory itself with `container.json` in it, and before it is deleted it is renamed.
Hence names that begin with a dot are what a killed daemon left, and all others can be read.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from proto.ids import ContainerID
from worker.runtime import procfs
from worker.runtime.api import ContainerConfig, ContainerState, ExitStatus

# The runtime may wait for it while the container is created, and removes it when it is started;
# both crun and runc tell "created" from "running" by this file.
START_FIFO = "exec.fifo"
MAKING, DELETING = ".new-", ".gone-"
UNKNOWN_EXIT_CODE = 255
LOST_EXIT_CODE = 137
_EXIT_CODE_MAX = 255


class ProcessRecord(msgspec.Struct, frozen=True):
    """The container's first process and its monitor, each with its start time, in one boot."""

    boot_id: str
    pid: int
    pid_started: int
    monitor_pid: int
    monitor_started: int


class ContainerDirectory:
    """The paths of one container; `state_directory` is the runtime's own for it."""

    __slots__ = ("path", "state_directory")

    def __init__(self, path: Path, state_directory: Path) -> None:
        self.path = path
        self.state_directory = state_directory

    @property
    def log(self) -> Path:
        """Where conmon writes output."""
        return self.path / "log"

    @property
    def control(self) -> Path:
        """The FIFO by which conmon takes control messages."""
        return self.path / "ctl"

    @property
    def making(self) -> Path:
        """Where the directory is until its config is in it."""
        return self.path.with_name(MAKING + self.path.name)

    @property
    def deleting(self) -> Path:
        """Where the directory is while it is deleted."""
        return self.path.with_name(DELETING + self.path.name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the directory so that it is there whole or not at all."""
        temporary = self.path / f".{name}.new"
        write_private(temporary, data)
        os.rename(temporary, self.path / name)  # noqa: PTH104 -- half the cost on a hot path

    def config(self) -> ContainerConfig | None:
        """Read the config; None if it is not there or cannot be read."""
        try:
            return msgspec.json.decode(
                (self.path / "container.json").read_bytes(), type=ContainerConfig
            )
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def record(self) -> ProcessRecord | None:
        """Read the PIDs; None if the creation was not completed."""
        try:
            return msgspec.json.decode(
                (self.path / "process.json").read_bytes(), type=ProcessRecord
            )
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def read_pid(self, name: str) -> int | None:
        """Read a PID file; None if it is missing or empty."""
        return read_pid(self.path / name)

    def exit_status(self) -> ExitStatus | None:
        """Read how the container ended; None if conmon has not said."""
        file = self.path / "exit"
        try:
            text = file.read_text().strip()
            finished_at = file.stat().st_mtime
        except FileNotFoundError:
            return None
        code = int(text) if text.lstrip("-").isdecimal() else UNKNOWN_EXIT_CODE
        if not 0 <= code <= _EXIT_CODE_MAX:
            code = UNKNOWN_EXIT_CODE  # conmon writes -1 when it could not learn it
        return ExitStatus(code, finished_at, (self.path / "oom").exists())

    def _unseen_end(self) -> ExitStatus:
        """Guess how a container ended that nobody watched: its last output is its end."""
        names = (self.log, self.path / "process.json")
        times = [path.stat().st_mtime for path in names if path.exists()]
        return ExitStatus(LOST_EXIT_CODE, max(times, default=0.0), is_lost=True)

    def state(
        self, container_id: ContainerID, config: ContainerConfig | None, boot_id: str
    ) -> ContainerState:
        """Work out the state from the files and /proc; `config` as `config()` gave it."""
        name = config.name if config else ""
        labels = config.labels if config else {}
        record = self.record()
        if config is None or record is None:
            return ContainerState(container_id, name, "broken", labels=labels)
        ended = self.exit_status()
        if ended is None and not _is_monitored(record, boot_id):
            # It may have ended between the two looks: conmon writes the file, then ends.
            ended = self.exit_status()
            if ended is None and _has_process(record, boot_id):
                return ContainerState(container_id, name, "broken", labels=labels)
            ended = ended or self._unseen_end()
        if ended is not None:
            return ContainerState(container_id, name, "exited", exit=ended, labels=labels)
        waits = (self.state_directory / START_FIFO).exists()
        return ContainerState(
            container_id, name, "created" if waits else "running", record.pid, labels=labels
        )


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only root can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 -- a descriptor, not a path
        file.write(data)


def read_pid(path: Path) -> int | None:
    """Read a PID file; None if it is missing or empty."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() else None


def _has_process(record: ProcessRecord, boot_id: str) -> bool:
    return record.boot_id == boot_id and procfs.start_time(record.pid) == record.pid_started


def _is_monitored(record: ProcessRecord, boot_id: str) -> bool:
    return (
        record.boot_id == boot_id
        and procfs.start_time(record.monitor_pid) == record.monitor_started
    )

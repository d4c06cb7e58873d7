"""The seam between the worker and whatever runs containers.

`ContainerConfig` is all that a runtime needs to know: it holds resolved values only (no service,
no image reference to look up, no template), so that a service's task and, later, a container
created by hand are the same to it. A runtime never decides: stop signals, grace periods and
restarts belong to the task machine. Containers outlive the daemon; after a restart
`list_containers` finds them again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Literal, Protocol

import msgspec

from proto.ids import ContainerID
from proto.logs import LogOptions, LogRecord


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the plain values of this seam."""


class ContainerMount(Value, frozen=True):
    """A mount with its source resolved to a path (bind) or none (tmpfs)."""

    type: Literal["bind", "tmpfs"]
    target: str
    source: str = ""
    # Of a volume at `source`: the part to mount. It is resolved beneath the volume, when mounted.
    subpath: str = ""
    read_only: bool = False
    propagation: str = "rprivate"
    is_recursive: bool = True
    create_source: bool = False
    tmpfs_size_bytes: int = 0
    tmpfs_mode: int = 0o1777
    # A volume to be filled, while it is empty, with what the image has at `target`: the directory
    # that keeps the mark of that; "" fills nothing.
    fill_record: str = ""


class ContainerLimits(Value, frozen=True):
    """Limits of the cgroup; 0 means none.

    `pids` 0 means the node's default, -1 none. `swap_bytes` counts memory and swap together; None
    leaves it to the kernel.
    """

    nano_cpus: int = 0
    memory_bytes: int = 0
    memory_reservation_bytes: int = 0
    swap_bytes: int | None = None
    memory_swappiness: int | None = None
    pids: int = 0


class LogConfig(Value, frozen=True):
    """Where output goes; `max_bytes` 0 never rotates; `files_max` counts the current file too."""

    driver: Literal["json-file", "none"] = "json-file"
    max_bytes: int = 0
    files_max: int = 1


class ContainerConfig(Value, frozen=True):
    """A container to create.

    Attributes:
        id: 64 hex digits.
        name: shown to people; not unique to the runtime.
        layers: directories of the image's unpacked layers, lowest first.
        argv: the whole command line (entrypoint and arguments); never empty.
        env: `NAME=value`, complete and in order; later entries win.
        user: `uid`, `user`, `uid:gid`, `user:group` or "", looked up in the container's own files.
        netns_path: a network namespace made beforehand, or "" for the host's.
        hosts: lines for /etc/hosts beside the usual ones, each `address name [name …]`.
        labels: kept with the container and returned by `list_containers`.
    """

    id: ContainerID
    name: str = ""
    layers: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    address: str = ""
    hosts: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    netns_path: str = ""
    mounts: tuple[ContainerMount, ...] = ()
    limits: ContainerLimits = ContainerLimits()
    log: LogConfig = LogConfig()
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    init: bool = False
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: Literal["default", "unconfined", "custom"] = "default"
    seccomp_profile: bytes = b""
    apparmor: Literal["default", "unconfined"] = "default"
    sysctls: Mapping[str, str] = {}
    ulimits: tuple[tuple[str, int, int], ...] = ()
    oom_score_adj: int = 0
    labels: Mapping[str, str] = {}


class ExitStatus(Value, frozen=True):
    """How a container ended: 0-255, 128 + n for signal n; `oom_killed` if its cgroup was full.

    `is_lost` if nobody saw the end, as when the machine was restarted: code and time are guesses.
    `cause` says why the code is not the program's own, "" if it is.
    """

    exit_code: int
    finished_at: float
    oom_killed: bool = False
    is_lost: bool = False
    cause: str = ""


class ContainerState(Value, frozen=True):
    """What the runtime sees of a container. `created` has its process waiting for `start`."""

    id: ContainerID
    name: str
    state: Literal["created", "running", "exited", "broken"]
    pid: int = 0
    exit: ExitStatus | None = None
    labels: Mapping[str, str] = {}


class Probe(Value, frozen=True):
    """Whether a runtime can work on this machine, and in one sentence why (not)."""

    works: bool
    reason: str


class Runtime(Protocol):
    """Runs containers. All methods raise `RuntimeFailedError` when the world refuses.

    Each may be called again after a crash at any point of an earlier call, and then completes it.
    """

    name: str

    async def create(self, config: ContainerConfig) -> None:
        """Mount the root, write the bundle, and create the container up to its `start`."""

    async def start(self, container_id: ContainerID) -> int:
        """Start the created process; return its PID in the daemon's PID namespace."""

    async def wait(self, container_id: ContainerID) -> ExitStatus:
        """Return when the container has ended; at once if it ended before."""

    async def kill(self, container_id: ContainerID, signal: str) -> None:
        """Signal the main process ("SIGTERM", "TERM" or a number); nothing if it has ended."""

    async def remove(self, container_id: ContainerID) -> None:
        """Kill what is left; remove bundle, mounts, cgroup, log and directory. Idempotent."""

    async def exec(
        self,
        container_id: ContainerID,
        argv: tuple[str, ...],
        *,
        env: tuple[str, ...] = (),
        user: str = "",
        working_dir: str = "",
        timeout: float,
    ) -> tuple[int, bytes]:
        """Run a command inside the running container; return its exit code and its output.

        It starts with the container's own environment, user and working directory; `env` adds
        to the first, `user` and `working_dir` replace the others unless "". Both output streams
        come together, the last 4096 bytes at least. A command that takes longer than `timeout`
        seconds is killed, and `TimeoutError` raised.
        """

    async def list_containers(self) -> list[ContainerState]:
        """Return every container of this runtime, also those made by an earlier daemon."""

    def logs(self, container_id: ContainerID, options: LogOptions) -> AsyncIterator[LogRecord]:
        """Yield the container's output, oldest first; with `follow` until the container is gone."""

    async def close(self) -> None:
        """Stop watching. Containers go on."""

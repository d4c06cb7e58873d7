"""The runtime `oci`: real containers by crun or runc under conmon.

A thin shell: what a container is stands in its directory (`directory.py`), so this class holds
nothing that a crash could lose, and a new daemon continues where the old one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import structlog

from proto.clock import Clock, SystemClock
from proto.errors import RuntimeFailedError, SwarmError, reason_of
from proto.ids import ContainerID
from proto.logs import LogOptions, LogRecord
from worker.diskspace import FULL_ERRNOS, full_disk
from worker.runtime import (
    apparmor,
    binds,
    capabilities,
    cgroups,
    conmon,
    execution,
    procfs,
    removal,
    rootfs,
    spawn,
)
from worker.runtime.api import ContainerConfig, ContainerState, ExitStatus, LogConfig
from worker.runtime.conmon import Binaries
from worker.runtime.directory import LOST_EXIT_CODE, ContainerDirectory, ProcessRecord
from worker.runtime.filters import FilterCache
from worker.runtime.logs import LogReader
from worker.runtime.monitor import Monitor
from worker.runtime.prepare import Preparation
from worker.runtime.rotation import Rotator
from worker.runtime.spec import PIDS_DEFAULT, HostFacts
from worker.runtime.threads import Threads
from worker.runtime.watching import Watches

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

CREATE_SECONDS_MAX = 60.0
START_SECONDS_MAX = 60.0
_THREADS_MAX = 4
_FULL = "the disk is full"
_MONITOR_ENDED = "its monitor ended before it"
_MESSAGE_BYTES_MAX = 4096
_INIT_PROGRAMS = ("docker-init", "tini-static", "catatonit")
_ARCHITECTURES = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386",
    "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64",
}  # fmt: skip


_PROCESSORS = Path("/sys/devices/system/cpu")


def host_facts(
    layout: cgroups.Layout, *, pids_default: int = PIDS_DEFAULT, apparmor_profile: str = ""
) -> HostFacts:
    """Gather what containers' configurations depend on."""
    status = Path("/proc/self/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:"))
    uname = os.uname()
    major, minor = uname.release.split("-")[0].split("+")[0].split(".")[:2]
    found = (shutil.which(name) for name in _INIT_PROGRAMS)
    owned = capabilities.from_mask(int(mask, 16))
    own_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return HostFacts(
        cgroup_version=layout.version,
        has_swap_limit=layout.has_swap_limit,
        capabilities=owned,
        architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        kernel=(int(major), int(minor)),
        hostname=uname.nodename,
        init_path=next((path for path in found if path), ""),
        throttle_paths=tuple(sorted(map(str, _PROCESSORS.glob("cpu[0-9]*/thermal_throttle")))),
        # What cannot be limited is not, unless a service insists.
        pids_default=pids_default if cgroups.has_pids_limit(layout) else 0,
        # Only with this capability may a limit be higher than one's own.
        files_max=None
        if "CAP_SYS_RESOURCE" in owned or own_hard == resource.RLIM_INFINITY
        else own_hard,
        apparmor_profile=apparmor_profile,
    )


class OciRuntime:
    """Runs containers by an OCI runtime; implements `worker.runtime.api.Runtime`."""

    name = "oci"

    def __init__(
        self,
        root: Path,
        run: Path,
        binaries: Binaries,
        *,
        cgroup_parent: str = "/swarm",
        pids_default: int = PIDS_DEFAULT,
        clock: Clock | None = None,
    ) -> None:
        """Take over the containers below `root`.

        Args:
            root: holds a directory per container; survives a reboot.
            run: for the runtime's own state; gone after a reboot.
            binaries: what `probe.probe` found.
            cgroup_parent: the cgroup under which each container has its own.
            pids_default: processes of a container that asks for no limit; 0 gives it none.
            clock: the machine's, if not given.
        """
        self._root = root
        self._state = run / binaries.name
        self._scratch = run / "exec"
        self._binaries = binaries
        self._cgroup_parent = cgroup_parent.rstrip("/")
        self._clock = clock or SystemClock()
        self._layout = cgroups.detect()
        self._facts = host_facts(
            self._layout, pids_default=pids_default, apparmor_profile=apparmor.load_default()
        )
        self._boot_id = procfs.boot_id()
        self._monitor = Monitor()
        self._rotator = Rotator()
        self._watches = Watches()
        self._removing: set[ContainerID] = set()
        self._filters = FilterCache(binaries.name)
        self._volume_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads = Threads(_THREADS_MAX)
        # Called after each step with its name; tests stop the world there.
        self.after_step: Callable[[str], None] = _nothing
        for directory in (self._root, self._state, self._scratch):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What a daemon that was killed left half made or half deleted; none of our own work yet.
        self._leftovers = [name for name in os.listdir(root) if name.startswith(".")]  # noqa: PTH208 -- names

    def _directory(self, container_id: ContainerID) -> ContainerDirectory:
        return ContainerDirectory(self._root / container_id, self._state / container_id)

    def _cgroup(self, container_id: ContainerID) -> str:
        return f"{self._cgroup_parent}/{container_id}"

    async def create(self, config: ContainerConfig) -> None:
        """Mount the root, write the bundle, and create the container up to its `start`.

        A container that was created before is left as it is; one half made is made anew.

        Raises:
            RuntimeFailedError: the world refuses; nothing is left of the attempt.
        """
        if not config.argv:
            raise RuntimeFailedError("no command specified")
        directory = self._directory(config.id)
        if directory.path.exists() or directory.state_directory.exists():
            state = directory.state(config.id, directory.config(), self._boot_id)
            if state.state != "broken":
                return
            await self._destroy(config.id)
        preparation = Preparation(
            config,
            self._facts,
            directory,
            cgroup=self._cgroup(config.id),
            filters=self._filters,
            after_step=self.after_step,
        )
        try:
            async with self._filling(config):
                await self._threads.run(config.id, preparation.run)
            async with asyncio.timeout(CREATE_SECONDS_MAX):
                pid = await conmon.create(self._binaries, config, directory)
            self.after_step("created")
            if any(mount.subpath for mount in config.mounts):
                await self._threads.run(config.id, partial(binds.unpin, directory.path))
            self.after_step("unpinned")
            self._write_record(directory, pid)
            self.after_step("recorded")
        except Exception as error:
            await self._undo(config.id)
            raise self._with_disk(_sentence(error, config.id)) from error
        except asyncio.CancelledError:
            await self._undo(config.id)
            raise
        preparation.learn()
        self._rotator.add(config.id, directory, config.log)
        log.debug("container_created", container_id=config.id, pid=pid)

    @contextlib.asynccontextmanager
    async def _filling(self, config: ContainerConfig) -> AsyncIterator[None]:
        """Keep others away from the volumes that the container may be the first to fill.

        Whoever comes second waits here, holding no thread, and finds what the first has made.
        Always in one order, so that no two wait for each other.
        """
        async with contextlib.AsyncExitStack() as stack:
            filled = {mount.source for mount in config.mounts if mount.fill_record}
            # Two volumes may be names of one directory.
            for directory in sorted({os.path.realpath(source) for source in filled}):
                lock = self._volume_locks.get(directory)
                if lock is None:
                    lock = self._volume_locks[directory] = asyncio.Lock()
                await stack.enter_async_context(lock)
            yield

    def _with_disk(self, error: RuntimeFailedError) -> RuntimeFailedError:
        """Name a full disk where there is one: programs fail on it in ways that do not tell."""
        full = "" if error.message.startswith(_FULL) else full_disk(self._root)
        return RuntimeFailedError(f"{_FULL}: {error.message} ({full})") if full else error

    async def _undo(self, container_id: ContainerID) -> None:
        """Remove a failed attempt; the failure itself is what the caller must hear of."""
        try:
            await self._destroy(container_id)
        except RuntimeFailedError as error:
            log.warning("container_cleanup_failed", container_id=container_id, error=error.message)

    def _write_record(self, directory: ContainerDirectory, pid: int) -> None:
        monitor_pid = directory.read_pid("conmon.pid") or 0
        monitor_started = procfs.start_time(monitor_pid)
        if monitor_started is None:
            raise RuntimeFailedError("conmon ended while the container was created")
        record = ProcessRecord(
            boot_id=self._boot_id,
            pid=pid,
            pid_started=procfs.start_time(pid) or 0,
            monitor_pid=monitor_pid,
            monitor_started=monitor_started,
        )
        directory.write("process.json", msgspec.json.encode(record))

    async def start(self, container_id: ContainerID) -> int:
        """Start the created process; return its PID. Nothing if it was started before."""
        directory = self._directory(container_id)
        config = directory.config()
        state = directory.state(container_id, config, self._boot_id)
        record = directory.record()
        if state.state == "broken" or record is None or config is None:
            raise RuntimeFailedError(f"container {container_id[:12]} is not created")
        if state.state != "created":
            return record.pid
        root = f"--root={self._state}"
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                finished = await spawn.run(
                    [self._binaries.runtime, root, "start", container_id],
                    environment=conmon.environment(),
                    output_bytes_max=_MESSAGE_BYTES_MAX,
                )
        except TimeoutError as error:
            raise RuntimeFailedError(
                f"the container runtime did not start container {container_id[:12]} within "
                f"{START_SECONDS_MAX:g} s"
            ) from error
        if finished.code != 0:
            raise self._with_disk(conmon.failure(finished.output.decode(errors="replace"), config))
        return record.pid

    async def wait(self, container_id: ContainerID) -> ExitStatus:
        """Return when the container has ended; at once if it ended before.

        A container whose monitor was killed cannot tell its exit code and writes its output to
        nobody: it is killed, and counts as ended by SIGKILL.
        """
        directory = self._directory(container_id)
        ended = directory.exit_status()
        if ended is None:
            record = directory.record()
            if record is None:
                raise RuntimeFailedError(f"container {container_id[:12]} does not exist")
            if record.boot_id == self._boot_id:
                await self._monitor.ended(container_id, record.monitor_pid, record.monitor_started)
            ended = directory.exit_status() or await self._lost(directory, container_id, record)
        return self._with_memory(directory, container_id, ended)

    async def _lost(
        self, directory: ContainerDirectory, container_id: ContainerID, record: ProcessRecord
    ) -> ExitStatus:
        if container_id in self._removing or directory.record() is None:
            # Its files are being deleted: nothing may be written among them any more.
            return ExitStatus(LOST_EXIT_CODE, self._clock.wall())
        log.warning("container_monitor_lost", container_id=container_id, pid=record.pid)
        if record.boot_id == self._boot_id:
            await self._threads.run(container_id, partial(removal.kill_recorded, record))
        # A full disk ends monitors: they cannot write how their container ended.
        full = full_disk(self._root)
        try:
            directory.write("exit", str(LOST_EXIT_CODE).encode())
        except OSError as error:
            # Without the file the end is guessed anew each time.
            log.warning("exit_not_written", container_id=container_id, error=reason_of(error))
            full = full or (reason_of(error) if error.errno in FULL_ERRNOS else "")
        cause = f"{_FULL}, so its monitor ended before it ({full})" if full else _MONITOR_ENDED
        ended = directory.exit_status() or ExitStatus(LOST_EXIT_CODE, self._clock.wall())
        return msgspec.structs.replace(ended, cause=cause)

    def _with_memory(
        self, directory: ContainerDirectory, container_id: ContainerID, ended: ExitStatus
    ) -> ExitStatus:
        """Add that the kernel killed a process for memory, which conmon may have missed."""
        if ended.oom_killed or not cgroups.oom_kills(self._layout, self._cgroup(container_id)):
            return ended
        if container_id not in self._removing and directory.path.exists():
            with contextlib.suppress(OSError):  # a full disk; the cgroup still tells
                directory.write("oom", b"")
        return msgspec.structs.replace(ended, oom_killed=True)

    async def kill(self, container_id: ContainerID, signal_name: str) -> None:
        """Signal the main process ("SIGTERM", "TERM" or a number); nothing if it has ended."""
        try:
            number = procfs.parse_signal(signal_name)
        except ValueError as error:
            raise RuntimeFailedError(str(error)) from error
        directory = self._directory(container_id)
        record = directory.record()
        if record is None or record.boot_id != self._boot_id:
            return
        procfs.send_signal(record.pid, record.pid_started, number)

    async def remove(self, container_id: ContainerID) -> None:
        """Kill what is left; remove bundle, mounts, cgroup, log and directory. Idempotent."""
        self._rotator.remove(container_id)
        await self._destroy(container_id)

    async def _destroy(self, container_id: ContainerID) -> None:
        self._removing.add(container_id)
        try:
            await self._threads.run(
                container_id,
                partial(
                    removal.destroy,
                    self._directory(container_id),
                    container_id,
                    layout=self._layout,
                    cgroup=self._cgroup(container_id),
                    boot_id=self._boot_id,
                    after_step=self.after_step,
                ),
            )
        finally:
            self._removing.discard(container_id)

    async def list_containers(self) -> list[ContainerState]:
        """Return every container of this runtime, also those made by an earlier daemon."""
        states = await self._threads.run(ContainerID(""), self._list)
        for state, log_config in states:
            if state.state in {"created", "running"}:
                self._rotator.add(state.id, self._directory(state.id), log_config)
        return [state for state, _ in states]

    def _list(self) -> list[tuple[ContainerState, LogConfig]]:
        result = []
        while self._leftovers:
            try:
                removal.delete(self._root / self._leftovers.pop())
            except RuntimeFailedError as error:
                # It is nobody's, and no reason not to start; the next daemon tries again.
                log.warning("container_rest_not_removed", error=error.message)
        for name in sorted(os.listdir(self._root)):  # noqa: PTH208 -- names, not paths
            if name.startswith("."):
                continue
            container_id = ContainerID(name)
            directory = self._directory(container_id)
            config = directory.config()
            state = directory.state(container_id, config, self._boot_id)
            if state.exit is not None:
                ended = self._with_memory(directory, container_id, state.exit)
                state = msgspec.structs.replace(state, exit=ended)
            result.append((state, config.log if config else LogConfig()))
        return result

    async def logs(
        self, container_id: ContainerID, options: LogOptions
    ) -> AsyncIterator[LogRecord]:
        """Yield the container's output, oldest first; with `follow` until the container is gone."""
        directory = self._directory(container_id)
        config = directory.config()
        if config is None:
            raise RuntimeFailedError(f"container {container_id[:12]} does not exist")
        if config.log.driver == "none":
            raise RuntimeFailedError("configured logging driver does not support reading")
        reader = LogReader(directory.path, options, self._clock, self._watches)
        records = reader.records(self._end_of(directory, container_id) if options.follow else None)
        try:
            async for record in records:
                yield record
        except OSError as error:
            raise RuntimeFailedError(
                f"the output of container {container_id[:12]} cannot be read: {error.strerror}"
            ) from error
        finally:
            await records.aclose()

    def _end_of(
        self, directory: ContainerDirectory, container_id: ContainerID
    ) -> Callable[[], Awaitable[None]]:
        async def ended() -> None:
            record = directory.record()
            if record is not None and record.boot_id == self._boot_id:
                await self._monitor.ended(container_id, record.monitor_pid, record.monitor_started)

        return ended

    async def exec(
        self,
        container_id: ContainerID,
        argv: Sequence[str],
        *,
        env: Sequence[str] = (),
        user: str = "",
        working_dir: str = "",
        timeout: float,
    ) -> tuple[int, bytes]:
        """Run a command in a running container; return its exit code and first 4 KiB of output.

        Added to the container's own environment is `env`; an empty `user` or `working_dir` is
        the container's. After `timeout` seconds the command is killed.

        Raises:
            TimeoutError: the command took longer.
            RuntimeFailedError: the container does not run.
        """
        directory = self._directory(container_id)
        config = directory.config()
        state = directory.state(container_id, config, self._boot_id)
        if config is None or state.state != "running":
            raise RuntimeFailedError(f"container {container_id[:12]} is not running")
        command = execution.Command(tuple(argv), tuple(env), user, working_dir)
        try:
            with rootfs.opened(directory.path) as root_fd:
                document = execution.process_document(command, config, self._facts, root_fd)
        except (SwarmError, OSError) as error:
            raise _sentence(error, container_id) from error
        return await execution.run(
            self._binaries,
            directory,
            container_id,
            document,
            scratch=self._scratch,
            timeout=timeout,
        )

    async def close(self) -> None:
        """Stop watching. Containers go on."""
        await self._rotator.close()
        self._monitor.close()
        await self._threads.close()


def _nothing(_step: str) -> None:
    pass


def _sentence(error: Exception, container_id: ContainerID) -> RuntimeFailedError:
    """Turn whatever stopped a creation into the one error of this seam."""
    match error:
        case RuntimeFailedError():
            return error
        case SwarmError():
            return RuntimeFailedError(error.message)
        case TimeoutError():
            return RuntimeFailedError(
                f"the container runtime did not answer within {CREATE_SECONDS_MAX:.0f} s"
            )
        case OSError() if error.errno in FULL_ERRNOS:
            return RuntimeFailedError(f"{_FULL}: container {container_id[:12]} cannot be created")
        case OSError():
            return RuntimeFailedError(
                f"container {container_id[:12]} cannot be created: {error.strerror}"
                + (f": {error.filename}" if error.filename else "")
            )
        case _:
            raise error

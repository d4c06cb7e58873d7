"""A runtime and a network made of nothing, for tests, the simulator and scale runs.

`SimRuntime` has virtual containers: a `SimScript` says how long each step takes, what fails, when
the process ends and how it obeys. Time passes by `asyncio.sleep`, so a loop with virtual time makes
it instant. Containers outlive `close`, as real ones do: a second agent adopts them from the same
object. Both classes assert what a caller must never do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Literal

import msgspec

from overlay.api import Attachment, PublishedPort
from proto.clock import Clock
from proto.errors import RuntimeFailedError
from proto.ids import ContainerID
from proto.logs import LogOptions, LogRecord
from worker.runtime.api import ContainerConfig, ContainerState, ExitStatus

_SIGNAL_NUMBERS = {"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "TERM": 15}
_KILL = 9
_ADDRESSES_MAX = 2**16 - 2


class SimScript(msgspec.Struct, frozen=True, kw_only=True):
    """How a virtual container behaves.

    Attributes:
        create_error: a sentence makes `create` fail; so do the others.
        run_seconds: when the process ends by itself; None means never.
        term_seconds: how long it takes to obey a signal; None means it ignores all but SIGKILL.
        health: exit codes of the checks in their order; the last one is repeated.
    """

    create_seconds: float = 0.0
    create_error: str = ""
    start_seconds: float = 0.0
    start_error: str = ""
    wait_error: str = ""
    remove_errors: int = 0
    run_seconds: float | None = None
    exit_code: int = 0
    is_oom_killed: bool = False
    term_seconds: float | None = 0.0
    health: tuple[int, ...] = (0,)
    output: tuple[bytes, ...] = ()


class _Container:
    """A virtual container; `ended` is set when its process is gone."""

    def __init__(self, config: ContainerConfig, script: SimScript) -> None:
        self.config = config
        self.script = script
        self.pid = 0
        self.exit: ExitStatus | None = None
        self.ended = asyncio.Event()
        self.removed = asyncio.Event()
        self.timers: list[asyncio.TimerHandle] = []
        self.checks = 0
        self.remove_errors = script.remove_errors
        self.signals: list[str] = []


class SimRuntime:
    """A `Runtime`; `script_of` decides for each container as it is created."""

    name = "sim"

    def __init__(
        self, clock: Clock, script_of: Callable[[ContainerConfig], SimScript] | None = None
    ) -> None:
        """Begin with no container."""
        self._clock = clock
        self.script_of = script_of if script_of is not None else lambda _: SimScript()
        self._containers: dict[ContainerID, _Container] = {}
        self._pids = 1000
        # What was done, in order, for tests to look at.
        self.calls: list[tuple[str, ContainerID]] = []

    def configs(self) -> Mapping[ContainerID, ContainerConfig]:
        """Return the containers' configurations."""
        return {container_id: c.config for container_id, c in self._containers.items()}

    def end(self, container_id: ContainerID, exit_code: int) -> None:
        """Let the process of a container end now."""
        self._end(self._containers[container_id], exit_code)

    def signals(self, container_id: ContainerID) -> tuple[str, ...]:
        """Return the signals that a container has got."""
        return tuple(self._containers[container_id].signals)

    async def create(self, config: ContainerConfig) -> None:
        """Make a virtual container."""
        assert config.argv
        self.calls.append(("create", config.id))
        script = self.script_of(config)
        await asyncio.sleep(script.create_seconds)
        if script.create_error:
            raise RuntimeFailedError(script.create_error)
        existing = self._containers.get(config.id)
        assert existing is None or not existing.pid, "created again while it ran"
        self._containers[config.id] = _Container(config, script)

    async def start(self, container_id: ContainerID) -> int:
        """Begin its virtual process."""
        self.calls.append(("start", container_id))
        container = self._found(container_id)
        assert not container.pid, "started twice"
        await asyncio.sleep(container.script.start_seconds)
        if container.script.start_error:
            raise RuntimeFailedError(container.script.start_error)
        self._pids += 1
        container.pid = self._pids
        if container.script.run_seconds is not None:
            self._later(container, container.script.run_seconds, container.script.exit_code)
        return container.pid

    async def wait(self, container_id: ContainerID) -> ExitStatus:
        """Return when the virtual process has ended."""
        container = self._found(container_id)
        if container.script.wait_error:
            raise RuntimeFailedError(container.script.wait_error)
        await container.ended.wait()
        assert container.exit is not None
        return container.exit

    async def kill(self, container_id: ContainerID, signal: str) -> None:
        """Deliver a signal; whether it is obeyed is up to the script."""
        self.calls.append(("kill " + signal, container_id))
        container = self._found(container_id)
        container.signals.append(signal)
        if container.exit is not None or not container.pid:
            return
        name = signal.removeprefix("SIG")
        number = int(name) if name.isdigit() else _SIGNAL_NUMBERS.get(name, 1)
        if number == _KILL:
            self._end(container, 128 + number)
        elif container.script.term_seconds is not None:
            self._later(container, container.script.term_seconds, 128 + number)

    async def remove(self, container_id: ContainerID) -> None:
        """Forget the container, its process too."""
        self.calls.append(("remove", container_id))
        await asyncio.sleep(0)
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.remove_errors:
            container.remove_errors -= 1
            raise RuntimeFailedError(f"container {container_id}: device or resource busy")
        self._end(container, 128 + _KILL)
        container.removed.set()
        del self._containers[container_id]

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
        """Return the next scripted exit code."""
        del env, user, working_dir, timeout
        self.calls.append(("exec", container_id))
        container = self._found(container_id)
        if container.exit is not None or not container.pid:
            raise RuntimeFailedError(f"container {container_id} is not running")
        health = container.script.health
        code = health[min(container.checks, len(health) - 1)]
        container.checks += 1
        await asyncio.sleep(0)
        return code, " ".join(argv).encode()

    async def list_containers(self) -> list[ContainerState]:
        """Return all containers, sorted by ID."""
        return [self._state(self._containers[i]) for i in sorted(self._containers)]

    async def logs(
        self, container_id: ContainerID, options: LogOptions
    ) -> AsyncIterator[LogRecord]:
        """Yield the scripted lines as standard output."""
        container = self._found(container_id)
        lines = container.script.output if options.stdout else ()
        if options.tail >= 0:
            lines = lines[len(lines) - min(options.tail, len(lines)) :]
        for line in lines:
            yield LogRecord(time_ns=int(self._clock.wall() * 1e9), stream="stdout", data=line)
        if options.follow:
            await container.removed.wait()

    async def close(self) -> None:
        """Do nothing: the virtual containers go on."""

    def _found(self, container_id: ContainerID) -> _Container:
        container = self._containers.get(container_id)
        if container is None:
            raise RuntimeFailedError(f"container {container_id} does not exist")
        return container

    def _later(self, container: _Container, seconds: float, exit_code: int) -> None:
        loop = asyncio.get_running_loop()
        container.timers.append(loop.call_later(seconds, self._end, container, exit_code))

    def _end(self, container: _Container, exit_code: int) -> None:
        if container.exit is not None:
            return
        for timer in container.timers:
            timer.cancel()
        script = container.script
        container.exit = ExitStatus(
            exit_code=exit_code, finished_at=self._clock.wall(), oom_killed=script.is_oom_killed
        )
        container.ended.set()

    @staticmethod
    def _state(container: _Container) -> ContainerState:
        state: Literal["created", "running", "exited"] = "created"
        if container.exit is not None:
            state = "exited"
        elif container.pid:
            state = "running"
        return ContainerState(
            id=container.config.id,
            name=container.config.name,
            state=state,
            pid=container.pid,
            exit=container.exit,
            labels=container.config.labels,
        )


class SimNetwork:
    """A `NodeNetwork` that only keeps books.

    Attributes:
        attachments: who has which address.
        published: every set of ports that was asked for, oldest first.
        publish_errors: so many calls of `publish` fail first.
    """

    def __init__(self) -> None:
        """Begin with no attachment."""
        self.attachments: dict[ContainerID, Attachment] = {}
        self.published: list[tuple[PublishedPort, ...]] = []
        self.publish_errors = 0
        self.publish_seconds = 0.0
        self._is_publishing = False

    async def start(self, live: frozenset[ContainerID]) -> dict[ContainerID, Attachment]:
        """Keep the attachments in `live`."""
        self.attachments = {i: a for i, a in self.attachments.items() if i in live}
        return dict(self.attachments)

    async def attach(self, container_id: ContainerID) -> Attachment:
        """Give the lowest free address."""
        existing = self.attachments.get(container_id)
        if existing is not None:
            return existing
        used = {a.address for a in self.attachments.values()}
        addresses = (f"172.18.{n // 256}.{n % 256}" for n in range(2, _ADDRESSES_MAX))
        address = next(a for a in addresses if a not in used)
        attachment = Attachment(
            container_id=container_id,
            netns_path=f"/run/sim/{container_id}",
            address=address,
            prefix_length=16,
            gateway="172.18.0.1",
            mac="02:42:00:00:00:00",
        )
        self.attachments[container_id] = attachment
        return attachment

    async def detach(self, container_id: ContainerID) -> None:
        """Free the address, which no published port may lead to any more."""
        attachment = self.attachments.pop(container_id, None)
        if attachment is not None and self.published:
            backends = {b for port in self.published[-1] for b in port.backends}
            assert attachment.address not in backends, "detached while published"

    async def publish(self, ports: tuple[PublishedPort, ...]) -> None:
        """Note the ports."""
        assert not self._is_publishing, "published twice at the same time"
        assert list(ports) == sorted(ports)
        self._is_publishing = True
        try:
            await asyncio.sleep(self.publish_seconds)
        finally:
            self._is_publishing = False
        if self.publish_errors:
            self.publish_errors -= 1
            raise RuntimeFailedError("cannot change the published ports: netlink says no")
        self.published.append(ports)

    async def close(self) -> None:
        """Do nothing: attachments stay."""

    async def destroy(self) -> None:
        """Forget everything."""
        self.attachments.clear()
        self.published.append(())

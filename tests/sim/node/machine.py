"""The machine below the daemon: pretended containers, network and images that outlive it.

Each part may be killed in the middle of a call: `crash` decides by a coin how far it got. What no
correct worker may ever do is checked here, at the moment that it does it.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from overlay.api import Attachment, PublishedPort
from proto.clock import Clock
from proto.errors import NotFoundError, RuntimeFailedError
from proto.ids import ContainerID, ImageID
from worker.images.api import Image, ImageConfig, Progress
from worker.runtime.api import ContainerConfig, ContainerState
from worker.runtime.sim import SimNetwork, SimRuntime, SimScript, _Container

GOOD_IMAGES = ("web:1", "web:2", "web:3")
FAR_IMAGE = "far:1"  # has to be pulled
BAD_IMAGE = "bad:1"  # no registry has it
CRASHING_IMAGE = "crash:1"
ENDING_IMAGE = "done:1"  # does its work and ends
_LOCAL_IMAGES = (*GOOD_IMAGES, CRASHING_IMAGE, ENDING_IMAGE)
SERVICE_LABEL = "com.docker.swarm.service.id"
TASK_LABEL = "com.docker.swarm.task.id"
NAME_LABEL = "com.docker.swarm.task.name"
# How long a port may lead to a process that has just ended by itself.
WITHDRAW_SECONDS_MAX = 10.0
# What a crash may wait for.
TRAPS = ("create", "start", "kill", "remove", "publish")


class Machine:
    """What happens to the machine while the daemon is watched.

    Attributes:
        is_rough: whether things fail by themselves.
        trap: the kind of call at whose next beginning `trapped` is set.
        violations: what must never happen, but did.
    """

    def __init__(self, clock: Clock, rng: random.Random, root: Path) -> None:
        self.clock = clock
        self.rng = rng
        self.root = root
        self.is_rough = True
        self.violations: list[str] = []
        self.trap = ""
        self.trapped = asyncio.Event()
        self.network = Network(self)
        self.runtime = Runtime(self)
        self.images = Images(self)

    def chance(self, probability: float) -> bool:
        """Toss a coin, in rough times only."""
        return self.is_rough and self.rng.random() < probability

    def reached(self, kind: str) -> None:
        """Note that a call of this kind begins."""
        if kind == self.trap:
            self.trapped.set()

    def crash(self) -> None:
        """The daemon died: what it was in the middle of got as far as the coins say."""
        self.runtime.crash()
        self.network.crash()

    def reboot(self) -> None:
        """The machine lost its power: processes, attachments and rules are gone."""
        self.runtime.reboot()
        self.network.attachments.clear()
        self.network.published.append(())


class Runtime(SimRuntime):
    """Pretended containers whose timers belong to no program.

    Attributes:
        broken: half-made containers.
        on_start: is told of each process that starts.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.clock, self._script)
        self._machine = machine
        self._world = contextvars.copy_context()
        self._making: dict[ContainerID, ContainerConfig] = {}
        self._starting: dict[ContainerID, None] = {}
        self.broken: dict[ContainerID, ContainerConfig] = {}
        self.on_start: Callable[[ContainerConfig], None] = lambda _: None

    def _script(self, config: ContainerConfig) -> SimScript:
        rng, chance = self._machine.rng, self._machine.chance
        run_seconds, exit_code = None, 0
        if config.argv[0] == "/crash":
            run_seconds, exit_code = rng.uniform(0.1, 3.0), 1
        elif config.argv[0] == "/done":
            run_seconds = rng.uniform(1.0, 10.0)
        elif chance(0.15):
            run_seconds, exit_code = rng.uniform(0.0, 90.0), rng.choice((0, 1, 137))
        return SimScript(
            create_seconds=rng.choice((0.05, 0.3, 15.0)) if chance(0.5) else 0.05,
            create_error="no space left on device" if chance(0.05) else "",
            start_seconds=rng.choice((0.02, 0.5, 8.0)) if chance(0.5) else 0.02,
            start_error="exec format error" if chance(0.05) else "",
            wait_error="conmon has gone" if chance(0.02) else "",
            remove_errors=rng.randint(1, 3) if chance(0.2) else 0,
            run_seconds=run_seconds,
            exit_code=exit_code,
            is_oom_killed=exit_code == 137,
            term_seconds=rng.choice((0.0, 1.0, 20.0, None)) if chance(0.5) else 0.1,
            health=(1, 1, 1, 0) if chance(0.2) else (0,),
        )

    def _later(self, container: _Container, seconds: float, exit_code: int) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self._end, container, exit_code, context=self._world)
        container.timers.append(timer)

    def running(self) -> dict[ContainerID, ContainerConfig]:
        """Return the containers with a living process."""
        return {i: c.config for i, c in self._containers.items() if c.pid and c.exit is None}

    def all_ids(self) -> set[ContainerID]:
        """Return every container, broken ones too."""
        return {*self._containers, *self.broken}

    def exit_code_of(self, container_id: ContainerID) -> int | None:
        """Return how a process ended, if that is known."""
        container = self._containers.get(container_id)
        return None if container is None or container.exit is None else container.exit.exit_code

    def ended_for(self, container_id: ContainerID) -> float | None:
        """Return how long ago the process ended; None while it runs."""
        container = self._containers.get(container_id)
        if container is None:
            return WITHDRAW_SECONDS_MAX * 2
        if container.exit is None:
            return None if container.pid else WITHDRAW_SECONDS_MAX * 2
        return self._machine.clock.wall() - container.exit.finished_at

    async def create(self, config: ContainerConfig) -> None:
        """Make a container, unless a broken one is in the way."""
        if config.id in self.broken:
            raise RuntimeFailedError(f"container {config.id} exists already")
        self._making[config.id] = config
        self._machine.reached("create")
        try:
            await super().create(config)
        finally:
            self._making.pop(config.id, None)

    async def start(self, container_id: ContainerID) -> int:
        """Start a container."""
        self._starting[container_id] = None
        self._machine.reached("start")
        try:
            pid = await super().start(container_id)
        finally:
            self._starting.pop(container_id, None)
        self.on_start(self._containers[container_id].config)
        return pid

    async def kill(self, container_id: ContainerID, signal: str) -> None:
        """Signal a container that no port leads to."""
        self._machine.reached("kill")
        if "KILL" not in signal:
            self._machine.network.check_withdrawn(container_id, signal)
        await super().kill(container_id, signal)

    async def remove(self, container_id: ContainerID) -> None:
        """Remove a container, also a broken one."""
        self._machine.reached("remove")
        await super().remove(container_id)
        self.broken.pop(container_id, None)

    async def list_containers(self) -> list[ContainerState]:
        """Return all containers."""
        states = await super().list_containers()
        states += [
            ContainerState(id=i, name=c.name, state="broken", labels=c.labels)
            for i, c in self.broken.items()
        ]
        return sorted(states, key=lambda state: state.id)

    def crash(self) -> None:
        """Let the runtime's own processes end what they began, or not."""
        for container_id, config in self._making.items():
            outcome = self._machine.rng.choice(("nothing", "broken", "made"))
            if outcome == "broken":
                self.broken[container_id] = config
            elif outcome == "made":
                self._containers[container_id] = _Container(config, self._script(config))
        self._making = {}
        for container_id in self._starting:
            container = self._containers.get(container_id)
            if container is not None and self._machine.rng.random() < 0.5:
                self._pids += 1
                container.pid = self._pids
                if container.script.run_seconds is not None:
                    self._later(container, container.script.run_seconds, container.script.exit_code)
                self.on_start(container.config)
        self._starting = {}

    def reboot(self) -> None:
        """End every process; nobody was there to note how."""
        for container_id, container in list(self._containers.items()):
            if container.exit is None:
                for timer in container.timers:
                    timer.cancel()
                del self._containers[container_id]
                self.broken[container_id] = container.config


class Network(SimNetwork):
    """Attachments and ports; a port may only lead to a container that runs."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self._asked: tuple[PublishedPort, ...] = ()
        self.published.append(())
        # Attachments of ended containers that could not be removed; removal tries again.
        self.kept: set[ContainerID] = set()
        # The kernel refused the last change of ports: tasks may be stopped all the same.
        self.is_refused = False

    async def start(self, live: frozenset[ContainerID]) -> dict[ContainerID, Attachment]:
        """Adopt what lives; no port leads to an address that is free again."""
        adopted = await super().start(live)
        addresses = {attachment.address for attachment in adopted.values()}
        self.published.append(
            tuple(
                msgspec.structs.replace(
                    port, backends=tuple(a for a in port.backends if a in addresses)
                )
                for port in self.published[-1]
            )
        )
        return adopted

    async def attach(self, container_id: ContainerID) -> Attachment:
        """Attach, or fail."""
        if self._machine.chance(0.02):
            raise RuntimeFailedError("cannot make the veth pair: netlink says no")
        return await super().attach(container_id)

    async def detach(self, container_id: ContainerID) -> None:
        """Detach, or fail."""
        if self._machine.chance(0.05):
            self.kept.add(container_id)
            raise RuntimeFailedError("cannot remove the namespace: device or resource busy")
        if self.is_refused:
            self.attachments.pop(container_id, None)
        await super().detach(container_id)

    async def publish(self, ports: tuple[PublishedPort, ...]) -> None:
        """Publish ports that lead to running containers, or fail."""
        self._asked = ports
        self._machine.reached("publish")
        self.publish_seconds = self._machine.rng.uniform(0.0, 0.2)
        self.publish_errors = int(self._machine.chance(0.05))
        self.is_refused = bool(self.publish_errors) or self.is_refused
        await super().publish(ports)
        self.is_refused = False
        del self.published[:-1]
        self.check("as published")

    def crash(self) -> None:
        """What was being published is in force, or not."""
        if self._is_publishing and self._machine.rng.random() < 0.5:
            self.published.append(self._asked)
        self._is_publishing = False

    def backends(self) -> dict[str, int]:
        """Return the addresses that ports lead to, with the port."""
        ports = self.published[-1]
        return {address: port.published_port for port in ports for address in port.backends}

    def check(self, when: str) -> None:
        """Find ports that lead nowhere."""
        owners = {a.address: i for i, a in self.attachments.items()}
        for address, port in self.backends().items():
            owner = owners.get(address)
            ended = 0.0 if owner is None else self._machine.runtime.ended_for(owner)
            if owner is None or (ended is not None and ended > WITHDRAW_SECONDS_MAX):
                self._machine.violations.append(
                    f"{when}: port {port} leads to {address} ({owner or 'nobody'}), "
                    "where nothing runs"
                )

    def check_withdrawn(self, container_id: ContainerID, signal: str) -> None:
        """Find a stop signal to a container that still gets connections."""
        attachment = self.attachments.get(container_id)
        if self.is_refused or attachment is None:
            return
        if attachment.address in self.backends():
            self._machine.violations.append(
                f"container {container_id[:12]} got {signal} while port "
                f"{self.backends()[attachment.address]} led to it"
            )


class Images:
    """The node's images and a registry."""

    has_hidden = False

    fault = ""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._held = {ref: _image(ref) for ref in _LOCAL_IMAGES}

    def resolve(self, ref: str) -> Image:
        """Return an image of this node."""
        if ref not in self._held:
            raise NotFoundError("image", ref)
        return self._held[ref]

    async def pull(self, ref: str, *, progress: Callable[[Progress], None]) -> Image:
        """Return an image of the registry, after a while."""
        progress(Progress(status="Retrying in 1 seconds: the registry is tired"))
        await asyncio.sleep(self._machine.rng.choice((0.2, 3.0, 20.0)))
        if ref == BAD_IMAGE or self._machine.chance(0.2):
            raise NotFoundError("image", ref, f"No such image: {ref}")
        self._held[ref] = _image(ref)
        return self._held[ref]

    def images(self) -> list[Image]:
        """Return all images."""
        return list(self._held.values())

    async def close(self) -> None:
        """Do nothing."""


def _image(ref: str) -> Image:
    name = ref.partition(":")[0]
    return Image(
        id=ImageID(f"sha256:{name}"), repo_tags=(ref,), config=ImageConfig(cmd=(f"/{name}",))
    )

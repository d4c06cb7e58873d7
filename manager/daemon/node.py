"""The node: what the Engine API calls, composed of a worker and perhaps a manager.

States of the membership, as `docker info` names them: *inactive* (in no swarm), *active*,
*locked* (a manager whose keys are sealed: its containers run on, the swarm's API does not),
*error* (the state on disk cannot be used; the reason is kept and shown). Changes of membership
are serialised, and each writes the identity last or removes it first, so that a crash in between
leaves nothing half made.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import structlog

from manager.daemon.addresses import resolve_advertise, resolve_listen
from manager.daemon.config import DaemonConfig
from manager.daemon.facts import facts_of
from manager.daemon.identity import Identity, read_identity, remove_identity, write_identity
from manager.daemon.logs import merge
from manager.daemon.machine import Machine, RuntimeFacts, describe, machine_addresses
from manager.daemon.membership import Membership, NewCluster, NodeControl
from manager.daemon.supervisor import Supervisor
from manager.dispatcher.switch import DispatcherSwitch
from manager.httpapi.backend import InitRequest, LocalNodeState, NodeFacts
from manager.store import Watch
from overlay.api import NodeNetwork
from proto.clock import Clock
from proto.errors import ConflictError, InvalidError, LockedError, SwarmError, UnavailableError
from proto.ids import ContainerID, ImageID, NodeID, TaskID
from proto.objects import Node, NodeState, Object, Task
from raft.files import Files
from raft.keys import Kek
from worker.agent import Agent
from worker.images.removal import ImageUse
from worker.images.store import ImageStore
from worker.runtime.api import LogOptions, LogRecord, Runtime
from worker.volumes import VolumeStore, directory_bytes

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# How long `swarm init` waits for the node's own worker to report.
READY_SECONDS_MAX = 5.0
# How long to wait before a state that could not be opened after a fault is tried again.
REOPEN_SECONDS = 2.0

_NOT_IN_SWARM = (
    'This node is not a swarm manager. Use "swarm init" or "swarm join" to connect this node '
    "to swarm and try again."
)
_ALREADY_IN_SWARM = (
    'This node is already part of a swarm. Use "swarm leave" to leave this swarm and join '
    "another one."
)
_LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. "
    "Removing the last manager erases all current state of the swarm. Use `--force` to ignore "
    "this message."
)


class SwarmNode:
    """The daemon behind the API."""

    def __init__(
        self,
        config: DaemonConfig,
        machine: Machine,
        *,
        images: ImageStore,
        runtime: Runtime,
        runtime_facts: RuntimeFacts,
        network: NodeNetwork,
        clock: Clock,
        rng: random.Random,
        files: Files | None = None,
    ) -> None:
        """Compose a node of its parts; `start` takes up what the disk says.

        `files` is the disk of the manager's state, the machine's own if not given.
        """
        self._config = config
        self._machine = machine
        self._images = images
        self._runtime = runtime
        self._runtime_facts = runtime_facts
        self._network = network
        self._clock = clock
        self._rng = rng
        self._files = files
        self._changing = asyncio.Lock()
        self._supervisor = Supervisor()
        self._dispatcher = DispatcherSwitch()
        self._identity: Identity | None = None
        self._membership: Membership | None = None
        self._control: NodeControl | None = None
        self._agent: Agent | None = None
        self._is_locked = False
        self._error = ""
        self._watchdog: asyncio.Task[None] | None = None
        self._releasing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up the membership that the disk holds; an unusable one is shown, no end."""
        async with self._changing:
            try:
                self._identity = read_identity(self._config.identity_file)
                if self._identity is None:
                    return
                self._start_agent(self._identity)
                await self._open_membership(None)
            except LockedError:
                self._is_locked = True
                log.warning("swarm_locked")
            except SwarmError as error:
                self._error = error.message
                log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- it is the whole story

    async def close(self) -> None:
        """Stop working; containers go on."""
        async with self._changing:
            await self._stop_manager()
            await self._stop_agent()
            await self._runtime.close()
            if self._releasing is not None:
                await self._releasing
            await self._images.close()

    def _start_agent(self, identity: Identity) -> None:
        self._supervisor.start("agent", lambda: self._run_agent(identity))

    async def _run_agent(self, identity: Identity) -> None:
        """Run one agent to its end; a restart makes a new one, which adopts what runs."""
        agent = Agent(
            self._config.worker_dir,
            identity.node_id,
            describe(self._machine),
            runtime=self._runtime,
            images=self._images,
            network=self._network,
            dispatcher=self._dispatcher,
            clock=self._clock,
            rng=self._rng,
            removed=self._release_images,
        )
        self._agent = agent
        try:
            await agent.run()
        finally:
            await self._network.close()

    async def _stop_agent(self) -> None:
        if self._agent is not None:
            await self._agent.close()
        await self._supervisor.stop("agent")
        self._agent = None

    async def _open_membership(self, kek: Kek | None) -> None:
        membership = await Membership.open(
            self._config.raft_dir, kek, clock=self._clock, rng=self._rng, files=self._files
        )
        self._take_up(membership)

    def _take_up(self, membership: Membership) -> None:
        """Begin to lead with an open membership."""
        self._membership = membership
        self._control = NodeControl(membership, self._rng, self._clock)
        self._is_locked = False
        self._error = ""
        self._dispatcher.connect(membership.dispatcher())
        orchestrator = membership.orchestrator(self._clock, self._rng)
        self._supervisor.start("orchestrator", orchestrator.run)
        self._watchdog = asyncio.create_task(self._reopen_when_broken(membership))

    async def _reopen_when_broken(self, membership: Membership) -> None:
        """Open the state anew after a fault that left it unknown what is stored."""
        await membership.store.broken.wait()
        log.error("membership_broken", remedy="opening the log anew")
        async with self._changing:
            if self._membership is not membership:
                return
            kek = membership.unlock_key()
            await self._stop_manager(is_watchdog=True)
        while not await self._is_reopened(kek):  # noqa: ASYNC110 -- no event tells that a disk is well
            await asyncio.sleep(REOPEN_SECONDS)

    async def _is_reopened(self, kek: Kek | None) -> bool:
        """Try once; whoever wants to stop or leave meanwhile gets the turn between two attempts."""
        async with self._changing:
            try:
                await self._open_membership(kek)
            except SwarmError as error:
                self._error = error.message
                log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- one line
            return self._membership is not None

    async def _stop_manager(self, *, is_watchdog: bool = False) -> None:
        self._dispatcher.disconnect()
        if self._watchdog is not None and not is_watchdog:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
            self._watchdog = None
        await self._supervisor.stop("orchestrator")
        membership, self._membership, self._control = self._membership, None, None
        if membership is not None:
            try:
                await membership.close()
            except SwarmError as error:
                # The disk fails; what was acknowledged had reached it before.
                log.warning("membership_not_closed", error=error.message)

    # ----------------------------------------------------------- membership

    async def swarm_init(self, request: InitRequest) -> str:
        """Begin a cluster of which this node is the manager; return its ID."""
        async with self._changing:
            if self._identity is not None:
                raise UnavailableError(_ALREADY_IN_SWARM)
            if request.force_new_cluster:
                raise UnavailableError(
                    "there is no cluster on this node to make a new one from; "
                    "leave out --force-new-cluster"
                )
            listen_addr = resolve_listen(request.listen_addr)
            advertise_addr = resolve_advertise(
                request.advertise_addr, listen_addr, machine_addresses()
            )
            # What an interrupted init or leave left behind belongs to no swarm.
            self._clear_state()
            membership, cluster_id, node_id = await Membership.create(
                self._config.raft_dir,
                _new_cluster(request, advertise_addr, self._machine),
                clock=self._clock,
                rng=self._rng,
                files=self._files,
            )
            identity = Identity(
                node_id=node_id,
                cluster_id=cluster_id,
                role="manager",
                advertise_addr=advertise_addr,
                listen_addr=listen_addr,
                data_path_addr=request.data_path_addr,
            )
            try:
                write_identity(self._config.identity_file, identity)
            except BaseException:
                await membership.close()
                raise
            self._identity = identity
            self._take_up(membership)
            self._start_agent(identity)
            log.info("swarm_initialised", node_id=node_id, advertise_addr=advertise_addr)
        await self._wait_for_agent(membership, node_id)
        return node_id

    @staticmethod
    async def _wait_for_agent(membership: Membership, node_id: NodeID) -> None:
        """Let `node ls` right after `swarm init` show what it will show from then on."""
        try:
            async with (
                asyncio.timeout(READY_SECONDS_MAX),
                membership.store.watch(Node) as watch,
            ):
                node = watch.view.nodes.get(node_id)
                while node is not None and node.status.state is not NodeState.READY:
                    await anext(watch)
                    node = membership.store.view().nodes.get(node_id)
        except (TimeoutError, StopAsyncIteration):
            # The cluster exists and says why the node is not ready; that is no failure to begin it.
            log.warning("agent_not_ready", node_id=node_id, waited_seconds=READY_SECONDS_MAX)

    async def swarm_leave(self, *, force: bool) -> None:
        """Leave the swarm: every task's container goes, then the state."""
        async with self._changing:
            if self._identity is None:
                raise UnavailableError("This node is not part of a swarm")
            if self._identity.role == "manager" and not force:
                raise UnavailableError(_LAST_MANAGER)
            remove_identity(self._config.identity_file)
            await self._stop_manager()
            if self._agent is not None:
                await self._agent.leave()
            await self._stop_agent()
            await self._network.destroy()
            self._identity = None
            self._is_locked = False
            self._error = ""
            self._clear_state()
            log.info("swarm_left")

    def _clear_state(self) -> None:
        """Drop the manager's state; volumes and images are the node's and stay."""
        if self._config.raft_dir.exists():
            shutil.rmtree(self._config.raft_dir)

    async def swarm_unlock(self, key: str) -> None:
        """Open the manager's sealed keys with the operator's unlock key."""
        async with self._changing:
            if self._identity is None:
                raise UnavailableError(_NOT_IN_SWARM)
            if not self._is_locked:
                raise ConflictError("swarm is not locked")
            try:
                await self._open_membership(Kek.parse(key))
            except InvalidError as error:
                raise InvalidError("swarm could not be unlocked: invalid key provided") from error

    def swarm_unlock_key(self) -> str:
        """Return the unlock key; "" when managers are not locked."""
        self.control()
        assert self._membership is not None
        return self._membership.cluster().unlock_key

    # -------------------------------------------------------------- queries

    @property
    def images(self) -> ImageStore:
        """The node's images."""
        return self._images

    def control(self) -> NodeControl:
        """Return the cluster's objects, or raise the reason why there are none."""
        if self._control is not None:
            return self._control
        if self._is_locked:
            raise LockedError
        if self._error:
            raise UnavailableError(f"this node's swarm state cannot be used: {self._error}")
        raise UnavailableError(_NOT_IN_SWARM)

    async def read_barrier(self) -> None:
        """Wait until the store shows everything committed before; nothing to do on a worker."""
        if self._membership is not None:
            await self._membership.store.read_barrier()

    def watch(self, *kinds: type[Object]) -> Watch:
        """Watch committed objects; raises as `control`."""
        self.control()
        assert self._membership is not None
        return self._membership.store.watch(*kinds)

    @property
    def version(self) -> str:
        """The product's version."""
        return self._machine.version

    @property
    def state(self) -> LocalNodeState:
        """The membership's state in `docker info`'s words."""
        if self._is_locked:
            return "locked"
        if self._error:
            return "error"
        return "active" if self._identity is not None else "inactive"

    def facts(self) -> NodeFacts:
        """Describe this node now."""
        view = self._membership.store.view() if self._membership is not None else None
        return facts_of(
            self._machine,
            self._config,
            identity=self._identity,
            state=self.state,
            error=self._error,
            view=view,
            runtime=self._runtime_facts,
            counts=self._agent.container_counts() if self._agent is not None else (0, 0),
            images=len(self._images.images()),
        )

    def images_in_use(self) -> Mapping[ImageID, ImageUse]:
        """Map images to a container that needs each, a running one if there is one."""
        if self._agent is None:
            return {}
        running = self._agent.running_containers()
        uses: dict[ImageID, ImageUse] = {}
        for image_id, containers in self._agent.images_in_use().items():
            chosen = min(containers, key=lambda container: (container not in running, container))
            uses[image_id] = ImageUse(container_id=chosen, is_running=chosen in running)
        return uses

    @property
    def volumes(self) -> VolumeStore:
        """The node's volumes, which are there without a swarm too."""
        return VolumeStore(self._config.worker_dir)

    def volumes_in_use(self) -> Mapping[str, tuple[ContainerID, ...]]:
        """Map each volume that a container has to those containers."""
        return self._agent.volumes_in_use() if self._agent is not None else {}

    def container_bytes(self) -> Mapping[ContainerID, int]:
        """Measure the containers' own layers."""
        return {
            ContainerID(directory.name): directory_bytes(str(directory / "upper"))
            for directory in self._config.containers_dir.glob("[!.]*")
        }

    def _release_images(self) -> None:
        """Free the layers of images that were removed by force while a container had them."""
        is_busy = self._releasing is not None and not self._releasing.done()
        if self._images.has_hidden and not is_busy:
            self._releasing = asyncio.create_task(self._release_until_done())

    async def _release_until_done(self) -> None:
        """Go on while containers are removed: one of them may have been an image's last."""
        in_use = None
        while in_use != (now_in_use := self.images_in_use()):
            in_use = now_in_use
            try:
                await self._images.release(in_use)
            except SwarmError as error:
                # The next removal of a container or an image frees them.
                log.warning("images_not_released", error=error.message)

    def task_logs(
        self, task_ids: Sequence[TaskID], options: LogOptions
    ) -> AsyncIterator[tuple[Task, LogRecord]]:
        """Yield the output of tasks, each task's oldest first."""
        control = self.control()
        tasks = [control.task(task_id) for task_id in task_ids]
        return merge([self._logs_of(task, options) for task in tasks])

    async def _logs_of(
        self, task: Task, options: LogOptions
    ) -> AsyncIterator[tuple[Task, LogRecord]]:
        assert self._agent is not None
        async for record in self._agent.logs(task.id, options):
            yield task, record


def _new_cluster(request: InitRequest, advertise_addr: str, machine: Machine) -> NewCluster:
    spec = request.spec
    if request.auto_lock:
        spec = msgspec.structs.replace(spec, auto_lock_managers=True)
    return NewCluster(
        spec=spec,
        availability=request.availability,
        description=describe(machine),
        advertise_addr=advertise_addr,
        default_address_pool=request.default_addr_pool or ("10.0.0.0/8",),
        subnet_size=request.subnet_size or 24,
        data_path_port=request.data_path_port or 4789,
    )


def node_id_of(identity: Identity | None) -> NodeID:
    """Return this node's ID, or "" when it is in no swarm."""
    return identity.node_id if identity is not None else NodeID("")

"""The node: what the Engine API calls, composed of a worker and perhaps a manager.

States of the membership, as `docker info` names them: *inactive* (in no swarm), *active*,
*locked* (a manager whose keys are sealed: its containers run on, the swarm's API does not),
*error* (the state on disk cannot be used, or the cluster does not have this node any more; the
reason is kept and shown). The agent lives through changes of the node's role: its containers never
learn of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import structlog

from manager.daemon.changes import NOT_IN_SWARM, Changes
from manager.daemon.facts import facts_of
from manager.daemon.identity import read_identity
from manager.daemon.logs import TaskLogs
from manager.daemon.manager import Manager
from manager.daemon.membership import (
    NodeControl,
)
from manager.httpapi.attempts import no_leader
from manager.httpapi.backend import (
    Joined,
    LeaderInfo,
    LocalNodeState,
    NodeFacts,
    Quorum,
    RemoteManager,
)
from manager.store import Watch
from proto.errors import (
    LockedError,
    SwarmError,
    UnavailableError,
)
from proto.ids import ContainerID, ImageID, NodeID, TaskID
from proto.logs import LogOptions, LogRecord
from proto.objects import NodeAvailability, NodeRole, Object, Task
from raft.transport.identity import MANAGER_ROLE, Credentials
from worker.images.removal import ImageUse
from worker.images.store import ImageStore
from worker.volumes import VolumeStore

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster "
    "state. Please run this command on a manager node or promote the current node to a manager."
)


class SwarmNode(Changes):
    """The daemon behind the API. `start` takes up what the disk says."""

    async def start(self) -> None:
        """Take up the membership that the disk holds; an unusable one is shown, no end."""
        async with self._changing:
            try:
                identity = self._identity = read_identity(self._config.identity_file)
                if identity is None:
                    return
                if identity.is_leaving:
                    await self._finish_leaving(identity)
                    return
                self._start_agent(identity)
                try:
                    await self._try_to_take_up(identity, None)
                except LockedError:
                    self._is_locked = True
                    log.warning("swarm_locked")
                    await self._serve_locked(identity)
            except SwarmError as error:
                self._error = error.message
                if self._identity is None:  # else it was logged, and is tried again
                    log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- one line

    async def close(self) -> None:
        """Stop working; containers go on."""
        async with self._changing:
            await self._stop_jobs()
            await self._stop_manager()
            await self._stop_client()
            await self._stop_agent()
            await self._runtime.close()
            await self._resources.close()
            await self._images.close()

    def swarm_unlock_key(self) -> str:
        """Return the unlock key; "" when managers are not locked."""
        return self._managing().membership.cluster().unlock_key

    @property
    def images(self) -> ImageStore:
        """The node's images."""
        return self._images

    def _managing(self) -> Manager:
        """Return the manager at work, or raise the reason why there is none."""
        if self._manager is not None:
            return self._manager
        if self._is_locked:
            raise LockedError
        if self._error:
            raise UnavailableError(f"this node's swarm state cannot be used: {self._error}")
        raise UnavailableError(_WORKER if self._identity is not None else NOT_IN_SWARM)

    def control(self) -> NodeControl:
        """Return the cluster's objects, or raise the reason why there are none."""
        return self._managing().control

    @property
    def is_leader(self) -> bool:
        """Whether this node decides for the cluster now."""
        return self._manager is not None and self._manager.store.term != 0

    def leader(self) -> LeaderInfo | None:
        """Return who leads, as far as this manager knows."""
        manager = self._managing()
        node_id, address = manager.leader_node_id(), manager.leader_api_address()
        return LeaderInfo(node_id, address) if node_id and address else None

    @property
    def is_majority_lost(self) -> bool:
        """Whether this node is a manager that knows that it reaches no majority of them."""
        return self._manager is not None and self._manager.is_majority_lost

    def quorum(self) -> Quorum:
        """Count the managers that this one hears."""
        reachable, total, has_leader = self._managing().quorum()
        return Quorum(reachable=reachable, total=total, has_leader=has_leader)

    def credentials(self) -> Credentials:
        """Return what this node shows to others."""
        if self._credentials is None:
            raise UnavailableError(NOT_IN_SWARM)
        return self._credentials.source()

    async def issue_for_join(
        self,
        token: str,
        csr_pem: bytes,
        *,
        hostname: str,
        availability: NodeAvailability,
        address: str,
    ) -> Joined:
        """Admit a node that shows a token."""
        manager = self._managing()
        issued = await manager.issue_for_join(
            token, csr_pem, hostname=hostname, availability=availability, address=address
        )
        return Joined(
            node_id=issued.node_id,
            cluster_id=issued.cluster_id,
            role=NodeRole.MANAGER if issued.role == MANAGER_ROLE else NodeRole.WORKER,
            certificate_pem=issued.certificate_pem,
            roots_pem=issued.roots_pem,
            managers=tuple(RemoteManager(peer.node_id, peer.address) for peer in manager.peers()),
            api_managers=tuple(
                RemoteManager(node_id, status.addr)
                for node_id, status in sorted(manager.manager_statuses().items())
            ),
        )

    async def withdraw(self, node_id: NodeID) -> None:
        """Forget a node that was let in and could not begin."""
        await self._managing().withdraw(node_id)

    async def read_barrier(self) -> None:
        """Wait until the store shows everything committed before; nothing to do on a worker."""
        if self._manager is not None:
            await self._manager.store.read_barrier()

    def watch(self, *kinds: type[Object]) -> Watch:
        """Watch committed objects; raises as `control`."""
        return self._managing().store.watch(*kinds)

    @property
    def version(self) -> str:
        """The product's version."""
        return self._machine.version

    def _reason(self) -> str:
        """Say why this node cannot take part in its swarm; "" if it can."""
        refusal = self.agent.refusal if self.agent is not None else ""
        return self._error or refusal or self._certificate_problem()

    def _quorum_lost(self) -> str:
        """Say that nothing can be changed now; "" if it can, or will be after an election."""
        if self._manager is None:
            return ""
        quorum = self.quorum()
        return "" if quorum.has_leader or quorum.is_reachable else no_leader(quorum)

    @property
    def state(self) -> LocalNodeState:
        """The membership's state in `docker info`'s words."""
        if self._is_locked:
            return "locked"
        if self._reason():
            return "error"
        return "active" if self._identity is not None else "inactive"

    def facts(self) -> NodeFacts:
        """Describe this node now."""
        agent = self._resources.agent
        return facts_of(
            self._machine,
            self._config,
            identity=self._identity,
            state=self.state,
            error=self._reason() or self._quorum_lost(),
            view=self._manager.store.view() if self._manager is not None else None,
            remotes=self._remotes.peers() if self._identity is not None else (),
            runtime=self._runtime_facts,
            counts=agent.container_counts() if agent is not None else (0, 0),
            images=len(self._images.images()),
            warnings=tuple(text for text in (self.protection.warning, *self._troubles()) if text),
        )

    @property
    def volumes(self) -> VolumeStore:
        """The node's volumes, which are there without a swarm too."""
        return self._resources.volumes

    def images_in_use(self) -> Mapping[ImageID, ImageUse]:
        """Map images to a container that needs each, a running one if there is one."""
        return self._resources.images_in_use()

    def volumes_in_use(self) -> Mapping[str, tuple[ContainerID, ...]]:
        """Map each volume that a container has to those containers."""
        return self._resources.volumes_in_use()

    def container_bytes(self) -> Mapping[ContainerID, int]:
        """Measure the containers' own layers."""
        return self._resources.container_bytes()

    def task_logs(
        self, task_ids: Sequence[TaskID], options: LogOptions
    ) -> AsyncIterator[tuple[Task, LogRecord]]:
        """Yield the output of tasks, each task's oldest first; last, say what is missing."""
        manager = self._managing()
        assert self._identity is not None
        tasks = [manager.control.task(task_id) for task_id in task_ids]
        logs = TaskLogs(
            self._identity.node_id,
            manager.store.view,
            here=self._resources.lines,
            elsewhere=lambda: manager.logs,
        )
        return logs.read(tasks, options)

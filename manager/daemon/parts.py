"""What a node is made of while it is in a cluster: its agent, its certificate, its way to managers.

The lowest of the layers of one class. `place` takes these parts up from the disk and gives them up
again; here they keep working while the leader, the managers, and the certificate change.
"""

from __future__ import annotations

import abc
import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Protocol

import structlog

from manager.ca.clocks import explain_dates
from manager.ca.credentials import NodeCredentials
from manager.ca.renewal import Renewer
from manager.daemon.addresses import (
    split_port,
)
from manager.daemon.config import DaemonConfig
from manager.daemon.identity import Identity
from manager.daemon.machine import (
    Machine,
    RuntimeFacts,
    describe,
)
from manager.daemon.manager import Manager
from manager.daemon.protection import PortProtection
from manager.daemon.publishing import Publishing
from manager.daemon.remembered import (
    RememberedMember,
    read_remembered,
    write_remembered,
)
from manager.daemon.resources import Resources
from manager.daemon.supervisor import Supervisor
from manager.dispatcher.switch import DispatcherSwitch
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.store.tables import View
from overlay.api import NodeNetwork
from proto.clock import Clock
from proto.errors import InvalidError, ResourceExhaustedError, SwarmError, reason_of
from proto.logs import LogRequest
from proto.objects import NodeDescription, NodeRole
from raft.core import NOBODY, RaftID
from raft.files import Files
from raft.kek import Kek
from raft.node import Settings
from raft.transport.identity import MANAGER_ROLE, Credentials
from worker.agent import Agent
from worker.images.store import ImageStore
from worker.runtime.api import Runtime

if TYPE_CHECKING:
    from manager.dispatcher.client import DispatcherClient
    from manager.dispatcher.session import Session
    from manager.nodeport.leader import LeaderClient

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class TlsListener(Protocol):
    """What serves the API on TLS."""

    async def close(self) -> None:
        """Stop."""

    def reload(self) -> None:
        """Show the present certificate from now on."""


ServeTls = Callable[[str, Callable[[], Credentials]], Awaitable[TlsListener]]
"""Serves the API on a listen address with credentials that are asked for."""


class Parts(abc.ABC):
    """See the module."""

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
        # Set by the program; without it (in the simulator) no other node can reach this one.
        self.serve_tls: ServeTls | None = None
        self.protection = PortProtection()
        self._settings = Settings(
            tick_seconds=config.raft_tick_seconds, has_lease_reads=config.has_lease_reads
        )
        self._changing = asyncio.Lock()
        self._supervisor = Supervisor()
        self._dispatcher = DispatcherSwitch(self._on_session, self._on_wish, self._described)
        self._resources = Resources(config, images)
        self._publishing = Publishing(self._resources.lines)
        self._identity: Identity | None = None
        self._credentials: NodeCredentials | None = None
        self._shown = b""
        self._renewer: Renewer | None = None
        self._remotes = Remotes()
        self._client: DispatcherClient | None = None
        self._manager: Manager | None = None
        self._listener: TlsListener | None = None
        self._is_locked = False
        # What opened the manager's keys last, if it does not lie beside them.
        self._kek: Kek | None = None
        self._error = ""
        # What the cluster wants this node to be, "manager" or "worker", and why it is not yet.
        self._wanted_role = ""
        self._is_leaving_group = False
        self._role_problem = ""
        # Before a manager that broke soon after it was opened is opened again.
        self._pause = 1.0
        # Under this number this manager takes no part any more: it forgot what it had confirmed.
        self._forgotten_id: RaftID = NOBODY
        self._watchdog: asyncio.Task[None] | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    def _described(self) -> NodeDescription:
        """Return what this node says of itself now."""
        return describe(self._machine, "; ".join(self._troubles()))

    def _troubles(self) -> tuple[str, ...]:
        """Say what keeps this node from all that it is to do, and what it waits for."""
        renewing = "" if self._renewer is None else self._renewer.trouble
        found = (self._role_problem, renewing, *self._resources.troubles())
        return tuple(text for text in found if text)

    def _start_agent(self, identity: Identity) -> None:
        self._supervisor.start("agent", lambda: self._run_agent(identity))

    async def _run_agent(self, identity: Identity) -> None:
        """Run one agent to its end; a restart makes a new one, which adopts what runs."""
        agent = self._resources.agent = self._new_agent(identity)
        try:
            await agent.run()
        finally:
            await self._network.close()

    def _new_agent(self, identity: Identity) -> Agent:
        return Agent(
            self._config.worker_dir,
            identity.node_id,
            self._described(),
            runtime=self._runtime,
            images=self._images,
            network=self._network,
            dispatcher=self._dispatcher,
            clock=self._clock,
            rng=self._rng,
            removed=self._resources.release_images,
        )

    async def _stop_agent(self) -> None:
        if self._resources.agent is not None:
            await self._resources.agent.close()
        await self._supervisor.stop("agent")
        self._resources.agent = None

    def _use(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Show this certificate from now on, and keep it from ending."""
        assert self._credentials is None
        self._identity = identity
        self._credentials = credentials
        self._shown = credentials.source().certificate_pem
        credentials.subscribe(self._credentials_changed)
        renewer = Renewer(credentials, self._request_certificate, clock=self._clock, rng=self._rng)
        self._renewer = renewer
        self._supervisor.start("renewer", renewer.run)
        self._supervisor.start("protection", lambda: self.protection.run(self._to_protect))

    def _to_protect(self) -> tuple[Identity | None, Sequence[ManagerPeer], View | None]:
        """Return what decides who may connect to this node's ports."""
        view = self._manager.store.view() if self._manager is not None else None
        return self._identity, self._remotes.peers(), view

    async def _drop_credentials(self) -> None:
        await self._supervisor.stop("renewer", "protection")
        self._renewer = None
        self._credentials = None

    def _credentials_changed(self) -> None:
        """Let whatever shows the certificate take up the new one."""
        assert self._credentials is not None
        certificate_pem = self._credentials.source().certificate_pem
        if self._client is not None and certificate_pem != self._shown:
            # A session is as good as the certificate that it was opened with.
            self._client.interrupt("the certificate changed")
        self._shown = certificate_pem
        if self._manager is not None:
            self._manager.credentials_changed()
        if self._listener is not None:
            self._listener.reload()

    def _trust(self, roots_pem: bytes) -> None:
        """Trust these roots from now on, and let the authority know that this node does."""
        if self._credentials is None or self._renewer is None:
            return
        try:
            self._credentials.set_roots(roots_pem)
        except (ResourceExhaustedError, OSError) as error:
            # The session goes on, and the next one tells them again.
            log.warning("roots_not_stored", error=reason_of(error))
        except InvalidError as error:
            # Nobody would trust this node's own certificate: it has to be renewed first.
            log.warning("roots_not_taken", error=error.message)
            self._renewer.hurry()
        else:
            self._renewer.confirm()

    def _hurry_renewal(self) -> None:
        if self._renewer is not None:
            self._renewer.hurry()

    async def _request_certificate(self, csr_pem: bytes) -> tuple[bytes, bytes]:
        """Have the authority sign; it is where the leader is."""
        assert self._identity is not None
        manager = self._manager
        if manager is not None and manager.store.term:
            return await manager.authority.renew(self._identity.node_id, csr_pem)
        if manager is not None and self._certificate_problem():
            # Nobody would talk to this node, and perhaps there is no leader because of that.
            return await manager.authority.issue_for_itself(self._identity.node_id, csr_pem)
        from manager.daemon.asking import renew  # noqa: PLC0415 -- grpc only when it is needed

        return await renew(self._leader_client(), csr_pem)

    def _certificate_problem(self) -> str:
        """Say why nobody takes this node's certificate now, and what to do; "" if they do."""
        credentials, now = self._credentials, self._clock.wall()
        if credentials is None or credentials.is_valid_at(now):
            return ""
        return explain_dates(
            credentials.valid_from,
            credentials.identity.valid_until,
            now,
            is_manager=credentials.identity.role == MANAGER_ROLE,
        )

    def _leader_client(self) -> LeaderClient:
        from manager.nodeport.leader import LeaderClient  # noqa: PLC0415 -- as above

        assert self._identity is not None
        assert self._credentials is not None
        return LeaderClient(
            self._credentials.source,
            self._remotes,
            self._identity.cluster_id,
            rng=self._rng,
        )

    def _ensure_client(self) -> None:
        """Have the agent ask the leader wherever it is."""
        if self._client is not None:
            return
        # Only now: grpc takes memory that a node alone does without.
        from manager.dispatcher.client import DispatcherClient  # noqa: PLC0415

        assert self._identity is not None
        assert self._credentials is not None
        self._client = DispatcherClient(
            self._identity.node_id,
            self._identity.cluster_id,
            self._credentials.source,
            self._remotes,
            clock=self._clock,
            rng=self._rng,
            on_session=self._on_session,
            on_wish=self._on_wish,
            describe=self._described,
            address=split_port(self._identity.advertise_addr, "address")[0],
        )
        self._dispatcher.use(self._client)

    async def _stop_client(self, *, is_goodbye: bool = False) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close(is_goodbye=is_goodbye)
        self._dispatcher.use(None)
        await self._publishing.close()

    def _on_session(self, session: Session) -> None:
        """Follow what the leader tells of this node and of the managers."""
        if self._identity is None or self._credentials is None:
            return
        self._remember(session.managers)
        if session.roots_pem and session.roots_pem != self._credentials.source().roots_pem:
            self._trust(session.roots_pem)
        wanted = "manager" if session.node.role is NodeRole.MANAGER else "worker"
        self._wanted_role = wanted
        if not self._has_role(wanted):
            self._begin(self._change_role(), "role")
        elif session.renew_certificate:
            self._hurry_renewal()

    def _on_wish(self, request: LogRequest) -> None:
        """Send the output of a task to the manager that wishes for it."""
        if self._identity is not None and self._credentials is not None:
            self._publishing.take(request, self._identity.cluster_id, self._credentials.source)

    def _remember(self, managers: Sequence[ManagerPeer]) -> None:
        """Know these managers from now on, and at the next start."""
        if not managers or self._identity is None:
            return
        self._remotes.replace([peer for peer in managers if peer.node_id != self._identity.node_id])
        members = {member.node_id: member for member in read_remembered(self._config.managers_file)}
        found = tuple(
            RememberedMember(
                node_id=peer.node_id,
                address=peer.address,
                member_id=members[peer.node_id].member_id if peer.node_id in members else 0,
            )
            for peer in managers
        )
        if found != tuple(members.values()):
            try:
                write_remembered(self._config.managers_file, found)
            except SwarmError as error:
                # It is told again with every session, and only needed to find the first.
                log.warning("managers_not_remembered", error=error.message)
            self.protection.look_again()

    def _begin(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run work in the background, one of each name."""
        if any(job.get_name() == name and not job.done() for job in self._jobs):
            work.close()
            return
        job = asyncio.create_task(work, name=name)
        self._jobs.add(job)
        job.add_done_callback(self._job_ended)

    def _job_ended(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        if not job.cancelled() and (bug := job.exception()) is not None:
            log.error("job_crashed", job=job.get_name(), exc_info=bug)

    async def _stop_jobs(self) -> None:
        jobs = [job for job in self._jobs if job is not asyncio.current_task()]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    @property
    def agent(self) -> Agent | None:
        """Who runs this node's containers, while it is in a swarm."""
        return self._resources.agent

    @abc.abstractmethod
    def _has_role(self, wanted: str) -> bool:
        """Tell whether this node is, and works as, a "manager" or "worker"."""

    @abc.abstractmethod
    async def _change_role(self) -> None:
        """Become what the cluster wants this node to be, and what it wants may change meanwhile."""

"""The node: what the Engine API calls, composed of a worker and perhaps a manager.

States of the membership, as `docker info` names them: *inactive* (in no swarm), *active*,
*locked* (a manager whose keys are sealed: its containers run on, the swarm's API does not),
*error* (the state on disk cannot be used; the reason is kept and shown). Changes of membership
are serialised, and each writes the identity last or removes it first, so that a crash in between
leaves nothing half made. The agent lives through changes of the node's role: its containers never
learn of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from manager.ca.credentials import NodeCredentials
from manager.ca.external_rules import check_external_cas
from manager.ca.issue import new_key_and_csr
from manager.ca.renewal import Renewer
from manager.daemon.addresses import (
    join_port,
    resolve_advertise,
    resolve_listen,
    split_port,
)
from manager.daemon.config import DaemonConfig
from manager.daemon.facts import facts_of
from manager.daemon.identity import Identity, read_identity, remove_identity, write_identity
from manager.daemon.logs import merge
from manager.daemon.machine import (
    Machine,
    RuntimeFacts,
    address_towards,
    describe,
    machine_addresses,
)
from manager.daemon.manager import Manager, leave_group
from manager.daemon.membership import (
    Admission,
    Membership,
    NewCluster,
    NodeControl,
    node_port_address,
)
from manager.daemon.remembered import (
    RememberedMember,
    read_remembered,
    to_raft,
    write_remembered,
)
from manager.daemon.resources import Resources
from manager.daemon.supervisor import Supervisor
from manager.dispatcher.switch import DispatcherSwitch
from manager.httpapi.backend import (
    InitRequest,
    Joined,
    JoinRequest,
    LeaderInfo,
    LocalNodeState,
    NodeFacts,
    Quorum,
    RemoteManager,
)
from manager.httpapi.tls import throwaway_credentials
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.store import Watch
from overlay.api import NodeNetwork
from proto.clock import Clock
from proto.errors import (
    ConflictError,
    CorruptError,
    InvalidError,
    LockedError,
    SwarmError,
    UnavailableError,
)
from proto.ids import ContainerID, ImageID, NodeID, TaskID
from proto.objects import Node, NodeAvailability, NodeRole, NodeState, Object, Task
from raft.files import Files
from raft.keys import Kek, KeyRing
from raft.node import Settings, force_cluster_of_one
from raft.transport.identity import MANAGER_ROLE, Credentials
from worker.agent import Agent
from worker.images.removal import ImageUse
from worker.images.store import ImageStore
from worker.runtime.api import LogOptions, LogRecord, Runtime
from worker.volumes import VolumeStore

if TYPE_CHECKING:
    from manager.dispatcher.client import DispatcherClient
    from manager.dispatcher.session import Session
    from manager.nodeport.leader import LeaderClient

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# How long `swarm init` and `swarm join` wait for the node's own worker to report.
READY_SECONDS_MAX = 5.0
# How long a node that joins as a manager waits for its vote.
VOTER_SECONDS_MAX = 20.0
# How long to wait before a state that could not be opened after a fault is tried again.
REOPEN_SECONDS = 2.0
ROLE_RETRY_SECONDS = 1.0
# How long a manager that leaves waits for the others to let it go.
FAREWELL_SECONDS_MAX = 5.0

_NOT_IN_SWARM = (
    'This node is not a swarm manager. Use "swarm init" or "swarm join" to connect this node '
    "to swarm and try again."
)
_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster "
    "state. Please run this command on a manager node or promote the current node to a manager."
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
_MANAGER_LEAVES = (
    "You are attempting to leave the swarm on a node that is participating as a manager. "
    "Demote it first (swarm node demote), or use `--force`: {rest}"
)


class TlsListener(Protocol):
    """What serves the API on TLS."""

    async def close(self) -> None:
        """Stop."""

    def reload(self) -> None:
        """Show the present certificate from now on."""


ServeTls = Callable[[str, Callable[[], Credentials]], Awaitable[TlsListener]]
"""Serves the API on a listen address with credentials that are asked for."""


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
        # Set by the program; without it (in the simulator) no other node can reach this one.
        self.serve_tls: ServeTls | None = None
        self._settings = Settings(tick_seconds=config.raft_tick_seconds)
        self._changing = asyncio.Lock()
        self._supervisor = Supervisor()
        self._dispatcher = DispatcherSwitch(self._on_session)
        self._resources = Resources(config, images)
        self._identity: Identity | None = None
        self._credentials: NodeCredentials | None = None
        self._shown = b""
        self._renewer: Renewer | None = None
        self._remotes = Remotes()
        self._client: DispatcherClient | None = None
        self._manager: Manager | None = None
        self._listener: TlsListener | None = None
        self._is_locked = False
        self._error = ""
        self._watchdog: asyncio.Task[None] | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up the membership that the disk holds; an unusable one is shown, no end."""
        async with self._changing:
            try:
                identity = self._identity = read_identity(self._config.identity_file)
                if identity is None:
                    return
                self._start_agent(identity)
                try:
                    await self._take_up(identity, None)
                except LockedError:
                    self._is_locked = True
                    log.warning("swarm_locked")
                    await self._serve_locked(identity)
            except SwarmError as error:
                self._error = error.message
                log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- it is the whole story

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
            removed=self._resources.release_images,
        )
        self._resources.agent = agent
        try:
            await agent.run()
        finally:
            await self._network.close()

    async def _stop_agent(self) -> None:
        if self._resources.agent is not None:
            await self._resources.agent.close()
        await self._supervisor.stop("agent")
        self._resources.agent = None

    # ------------------------------------------------- taking up a membership

    async def _take_up(self, identity: Identity, kek: Kek | None) -> None:
        """Begin to work as what the disk says that this node is.

        Raises:
            LockedError: the keys are sealed and no key was given.
            InvalidError: the key is not the one.
            SwarmError: what is stored cannot be used.
        """
        remembered = read_remembered(self._config.managers_file)
        self._remotes.add(
            ManagerPeer(member.node_id, member.address)
            for member in remembered
            if member.node_id != identity.node_id
        )
        if identity.role == "worker":
            credentials = await asyncio.to_thread(
                NodeCredentials.open, self._config.certificates_dir, None, files=self._files
            )
            self._use(identity, credentials)
            self._ensure_client()
        else:
            membership = await Membership.open(
                self._config.raft_dir,
                kek,
                node_id=identity.node_id,
                address=node_port_address(identity.advertise_addr),
                peers=to_raft(remembered),
                clock=self._clock,
                rng=self._rng,
                settings=self._settings,
                files=self._files,
            )
            try:
                credentials = await asyncio.to_thread(self._open_credentials, membership)
                await self._begin_manager(identity, membership, credentials)
            except BaseException:
                await self._abandon(membership)
                raise
        self._is_locked = False
        self._error = ""

    async def _serve_locked(self, identity: Identity) -> None:
        """Tell those who want to join that this manager is locked: its own key is sealed."""
        if self.serve_tls is None:
            return
        credentials = throwaway_credentials(self._clock.wall())
        try:
            self._listener = await self.serve_tls(identity.listen_addr, lambda: credentials)
        except SwarmError as error:
            log.warning("api_not_served", error=error.message)

    async def _stop_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    async def _abandon(self, membership: Membership) -> None:
        """Close a membership that could not be taken up."""
        if self._manager is not None:
            await self._stop_manager()
            return
        with contextlib.suppress(SwarmError):  # the first error is the one to show
            await membership.close()

    def _open_credentials(self, membership: Membership) -> NodeCredentials:
        """Open the certificate with whichever key of the ring fits; blocks."""
        keys = membership.tls_keys()
        if not keys:
            raise CorruptError(str(self._config.raft_dir), 0, "the TLS key's key is missing")
        return NodeCredentials.open(
            self._config.certificates_dir, keys[0], other_kek=keys[-1], files=self._files
        )

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

    async def _drop_credentials(self) -> None:
        await self._supervisor.stop("renewer")
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
        from manager.daemon.asking import renew  # noqa: PLC0415 -- grpc only when it is needed

        return await renew(self._leader_client(), csr_pem)

    def _leader_client(self) -> LeaderClient:
        from manager.nodeport.leader import LeaderClient  # noqa: PLC0415 -- as above

        assert self._identity is not None
        assert self._credentials is not None
        return LeaderClient(
            self._credentials.source,
            self._known_remotes(),
            self._identity.cluster_id,
            rng=self._rng,
        )

    def _known_remotes(self) -> Remotes:
        if self._manager is not None and self._identity is not None:
            me = self._identity.node_id
            self._remotes.add(peer for peer in self._manager.peers() if peer.node_id != me)
        return self._remotes

    # ------------------------------------------------------- sessions and roles

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
            self._known_remotes(),
            clock=self._clock,
            rng=self._rng,
            on_session=self._on_session,
            describe=lambda: describe(self._machine),
            address=split_port(self._identity.advertise_addr, "address")[0],
        )
        self._dispatcher.use(self._client)

    async def _stop_client(self, *, is_goodbye: bool = False) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close(is_goodbye=is_goodbye)
        self._dispatcher.use(None)

    def _on_session(self, session: Session) -> None:
        """Follow what the leader tells of this node and of the managers."""
        if self._identity is None or self._credentials is None:
            return
        self._remember(session.managers)
        if session.roots_pem and session.roots_pem != self._credentials.source().roots_pem:
            self._trust(session.roots_pem)
        wanted = "manager" if session.node.role is NodeRole.MANAGER else "worker"
        if wanted != self._identity.role:
            self._begin(self._change_role(wanted), "role")
        elif session.renew_certificate:
            self._hurry_renewal()

    def _remember(self, managers: Sequence[ManagerPeer]) -> None:
        """Keep the managers' addresses for the next start; a manager has them in its log."""
        assert self._identity is not None
        if not managers:
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
            write_remembered(self._config.managers_file, found)

    async def _change_role(self, wanted: str) -> None:
        """Become what the cluster wants this node to be; tried until it is so."""
        while True:
            async with self._changing:
                identity, credentials = self._identity, self._credentials
                if identity is None or credentials is None or identity.role == wanted:
                    return
                try:
                    if wanted == "manager":
                        await self._become_manager(identity, credentials)
                    else:
                        await self._become_worker(identity, credentials)
                except SwarmError as error:
                    log.warning("role_not_taken", wanted=wanted, error=error.message)
                else:
                    log.info("role_taken", role=wanted)
                    return
            await asyncio.sleep(ROLE_RETRY_SECONDS)

    async def _become_manager(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Get a manager's certificate, join the group as a learner, and begin to serve."""
        assert self._renewer is not None
        await self._renewer.renew_now()
        if credentials.identity.role != MANAGER_ROLE:
            raise UnavailableError("the authority does not issue a manager's certificate yet")
        await self._join_group(identity, credentials)

    async def _join_group(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Join the managers' group with a manager's certificate.

        The identity is written before anything is acknowledged to the leader: a log that was
        begun must never be forgotten by the same member.
        """
        from manager.daemon.asking import join_group  # noqa: PLC0415 -- grpc only when it is needed

        address = node_port_address(identity.advertise_addr)
        admission = await join_group(
            self._leader_client(), address=address, api_address=identity.advertise_addr
        )
        self._clear_state()
        membership = await Membership.join(
            self._config.raft_dir,
            admission,
            node_id=identity.node_id,
            address=address,
            clock=self._clock,
            rng=self._rng,
            settings=self._settings,
            files=self._files,
        )
        try:
            self._write_members(admission)
            await asyncio.to_thread(credentials.seal, membership.tls_keys()[0])
            identity = msgspec.structs.replace(identity, role="manager")
            write_identity(self._config.identity_file, identity)
            self._identity = identity
            await self._begin_manager(identity, membership, credentials)
        except BaseException:
            await self._abandon(membership)
            raise

    def _write_members(self, admission: Admission) -> None:
        write_remembered(
            self._config.managers_file,
            [
                RememberedMember(
                    node_id=NodeID(member.node_id),
                    address=member.address,
                    member_id=member.id,
                    is_voter=member.is_voter,
                )
                for member in admission.members
            ],
        )

    async def _become_worker(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Stop to be a manager, which the group has let go of already."""
        self._ensure_client()
        await self._stop_manager()
        await asyncio.to_thread(credentials.seal, None)
        identity = msgspec.structs.replace(identity, role="worker")
        write_identity(self._config.identity_file, identity)
        self._identity = identity
        self._clear_state()
        assert self._renewer is not None
        await self._renewer.renew_now()

    # ---------------------------------------------------------------- manager

    async def _begin_manager(
        self, identity: Identity, membership: Membership, credentials: NodeCredentials
    ) -> None:
        """Begin to work as a manager with an open membership.

        Raises:
            UnavailableError: an address cannot be listened on.
        """
        if self._credentials is None:
            self._use(identity, credentials)
        manager = Manager(
            membership,
            credentials,
            identity,
            switch=self._dispatcher,
            hurry_renewal=self._hurry_renewal,
            follow=self._ensure_client,
            trust=self._trust,
            clock=self._clock,
            rng=self._rng,
        )
        self._manager = manager
        if self.serve_tls is not None:
            await self._stop_listener()  # that of a locked manager
            self._listener = await self.serve_tls(identity.listen_addr, credentials.source)
        await manager.start()
        self._watchdog = asyncio.create_task(self._reopen_when_broken(manager))

    async def _reopen_when_broken(self, manager: Manager) -> None:
        """Open the state anew after a fault that left it unknown what is stored."""
        await manager.store.broken.wait()
        log.error("membership_broken", remedy="opening the log anew")
        async with self._changing:
            if self._manager is not manager:
                return
            kek = manager.membership.unlock_key()
            await self._stop_manager(is_watchdog=True)
            await self._drop_credentials()
        while not await self._is_reopened(kek):  # noqa: ASYNC110 -- no event tells that a disk is well
            await asyncio.sleep(REOPEN_SECONDS)

    async def _is_reopened(self, kek: Kek | None) -> bool:
        """Try once; whoever wants to stop or leave meanwhile gets the turn between two attempts."""
        async with self._changing:
            if self._identity is None:
                return True
            try:
                await self._take_up(self._identity, kek)
            except SwarmError as error:
                self._error = error.message
                log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- one line
            return self._manager is not None

    async def _stop_manager(self, *, is_watchdog: bool = False) -> None:
        if self._watchdog is not None and not is_watchdog:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
        self._watchdog = None
        await self._stop_listener()
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                await manager.close()
            except SwarmError as error:
                # The disk fails; what was acknowledged had reached it before.
                log.warning("membership_not_closed", error=error.message)

    # -------------------------------------------------------- begin and join

    async def swarm_init(self, request: InitRequest) -> str:
        """Begin a cluster of which this node is the manager; return its ID."""
        async with self._changing:
            if request.force_new_cluster and self._identity is not None:
                return await self._force_new_cluster(self._identity)
            if self._identity is not None:
                raise UnavailableError(_ALREADY_IN_SWARM)
            if request.force_new_cluster:
                raise UnavailableError(
                    "there is no cluster on this node to make a new one from; "
                    "leave out --force-new-cluster"
                )
            check_external_cas(request.spec)
            listen_addr = resolve_listen(request.listen_addr)
            advertise_addr = resolve_advertise(
                request.advertise_addr, listen_addr, machine_addresses()
            )
            # What an interrupted init or leave left behind belongs to no swarm.
            self._clear_all()
            membership, founding = await Membership.create(
                self._config.raft_dir,
                _new_cluster(request, advertise_addr, self._machine),
                clock=self._clock,
                rng=self._rng,
                settings=self._settings,
                files=self._files,
            )
            identity = Identity(
                node_id=founding.node_id,
                cluster_id=founding.cluster_id,
                role="manager",
                advertise_addr=advertise_addr,
                listen_addr=listen_addr,
                data_path_addr=request.data_path_addr,
            )
            try:
                credentials = await asyncio.to_thread(
                    NodeCredentials.save_new,
                    self._config.certificates_dir,
                    certificate_pem=founding.certificate_pem,
                    key_pem=founding.key_pem,
                    roots_pem=founding.roots_pem,
                    kek=membership.tls_keys()[0],
                    files=self._files,
                )
                await self._begin_manager(identity, membership, credentials)
                write_identity(self._config.identity_file, identity)
            except BaseException:
                await self._abandon(membership)
                await self._forget()
                raise
            self._start_agent(identity)
            log.info("swarm_initialised", node_id=founding.node_id, advertise_addr=advertise_addr)
            manager = self._manager
        assert manager is not None
        await self._wait_for_agent(manager, founding.node_id)
        return founding.node_id

    @staticmethod
    async def _wait_for_agent(manager: Manager, node_id: NodeID) -> None:
        """Let `node ls` right after `swarm init` show what it will show from then on."""
        store = manager.store
        try:
            async with asyncio.timeout(READY_SECONDS_MAX), store.watch(Node) as watch:
                node = watch.view.nodes.get(node_id)
                while node is not None and node.status.state is not NodeState.READY:
                    await anext(watch)
                    node = store.view().nodes.get(node_id)
        except (TimeoutError, StopAsyncIteration):
            # The cluster exists and says why the node is not ready; that is no failure to begin it.
            log.warning("agent_not_ready", node_id=node_id, waited_seconds=READY_SECONDS_MAX)

    async def swarm_join(self, request: JoinRequest) -> None:
        """Join the swarm of a manager at one of the given addresses, by its token."""
        async with self._changing:
            if self._identity is not None:
                raise UnavailableError(_ALREADY_IN_SWARM)
            listen_addr = resolve_listen(request.listen_addr)
            joined, advertise_addr, key_pem = await self._ask_to_join(request, listen_addr)
            self._clear_all()
            identity = Identity(
                node_id=joined.node_id,
                cluster_id=joined.cluster_id,
                role="worker",
                advertise_addr=advertise_addr,
                listen_addr=listen_addr,
                data_path_addr=request.data_path_addr,
            )
            try:
                await self._enter(identity, joined, key_pem)
            except BaseException:
                await self._stop_manager()
                await self._forget()
                raise
            self._start_agent(identity)
            log.info("swarm_joined", node_id=joined.node_id, role=joined.role.name)
        await self._wait_for_membership()

    async def _ask_to_join(
        self, request: JoinRequest, listen_addr: str
    ) -> tuple[Joined, str, bytes]:
        """Ask each remote address in turn; the last refusal is the one that is raised."""
        if not request.remote_addrs:
            raise InvalidError("at least 1 RemoteAddr is required to join")
        from manager.httpapi.joinclient import fetch_certificate  # noqa: PLC0415 -- once in a life

        key_pem, csr_pem = new_key_and_csr()
        failure: SwarmError | None = None
        for text in request.remote_addrs:
            remote = join_port(*split_port(text, "remote address"))
            advertise_addr = self._advertise(request, listen_addr, remote)
            try:
                joined = await fetch_certificate(
                    remote,
                    request.join_token,
                    csr_pem,
                    hostname=self._machine.hostname,
                    availability=request.availability,
                    address=split_port(advertise_addr, "advertise address")[0],
                    now=self._clock.wall(),
                )
            except UnavailableError as error:
                failure = error
                continue
            return joined, advertise_addr, key_pem
        assert failure is not None
        raise failure

    def _advertise(self, request: JoinRequest, listen_addr: str, remote: str) -> str:
        """Choose what to advertise: what was asked for, else the address that leads there."""
        listen_host, listen_port = split_port(listen_addr, "listen address")
        if not request.advertise_addr and listen_host in {"0.0.0.0", "::"}:  # noqa: S104 -- read only
            own = address_towards(remote)
            if own:
                return join_port(own, listen_port)
        return resolve_advertise(request.advertise_addr, listen_addr, machine_addresses())

    async def _enter(self, identity: Identity, joined: Joined, key_pem: bytes) -> None:
        """Keep what was got, become a manager if the token was one's, and write who we are."""
        credentials = await asyncio.to_thread(
            NodeCredentials.save_new,
            self._config.certificates_dir,
            certificate_pem=joined.certificate_pem,
            key_pem=key_pem,
            roots_pem=joined.roots_pem,
            kek=None,
            files=self._files,
        )
        self._use(identity, credentials)
        self._remotes.add(ManagerPeer(peer.node_id, peer.addr) for peer in joined.managers)
        write_remembered(
            self._config.managers_file,
            [RememberedMember(node_id=peer.node_id, address=peer.addr) for peer in joined.managers],
        )
        if joined.role is NodeRole.MANAGER:
            await self._join_group(identity, credentials)
        else:
            write_identity(self._config.identity_file, identity)
            self._ensure_client()

    async def _wait_for_membership(self) -> None:
        """Return when the node works as what it joined as, or has had time enough for it."""
        seconds = VOTER_SECONDS_MAX if self._manager is not None else READY_SECONDS_MAX
        try:
            async with asyncio.timeout(seconds):
                while not self._is_settled():  # noqa: ASYNC110 -- several things change
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("join_not_settled", waited_seconds=seconds)

    def _is_settled(self) -> bool:
        agent = self._resources.agent
        if self._identity is None or (agent is not None and agent.node is not None):
            return self._manager is None or self._manager.is_voter
        return False

    async def _force_new_cluster(self, identity: Identity) -> str:
        """Make a cluster of this one manager out of what it has stored."""
        if identity.role != "manager":
            raise UnavailableError(
                "this node is a worker: only a manager has the state that a new cluster needs"
            )
        if self._is_locked:
            raise LockedError
        kek = self._manager.membership.unlock_key() if self._manager is not None else None
        await self._stop_manager()
        await self._drop_credentials()
        await asyncio.to_thread(self._force_log, identity, kek)
        self._remotes = Remotes()
        await self._stop_client()
        write_remembered(self._config.managers_file, ())
        await self._take_up(identity, kek)
        assert self._manager is not None
        await self._manager.forget_others()
        log.warning("new_cluster_forced", node_id=identity.node_id)
        return identity.node_id

    def _force_log(self, identity: Identity, kek: Kek | None) -> None:
        keys = KeyRing.open(
            self._config.raft_dir, kek, rng_bytes=self._rng.randbytes, files=self._files
        )
        try:
            force_cluster_of_one(
                self._config.raft_dir,
                keys,
                node_id=identity.node_id,
                address=node_port_address(identity.advertise_addr),
                rng=self._rng,
                files=self._files,
            )
        finally:
            keys.close()

    # ------------------------------------------------------------------ leave

    async def swarm_leave(self, *, force: bool) -> None:
        """Leave the swarm: every task's container goes, then the state."""
        async with self._changing:
            identity = self._identity
            if identity is None:
                raise UnavailableError("This node is not part of a swarm")
            if identity.role == "manager" and not force:
                raise UnavailableError(self._refusal_to_leave())
            await self._stop_jobs()
            if self._manager is not None and not self._manager.is_alone:
                await self._leave_group(self._manager)
            remove_identity(self._config.identity_file)
            await self._stop_manager()
            if self._resources.agent is not None:
                await self._resources.agent.leave()
            await self._stop_client(is_goodbye=True)
            await self._stop_agent()
            await self._network.destroy()
            await self._forget()
            log.info("swarm_left")

    async def _leave_group(self, manager: Manager) -> None:
        """Have the other managers go on without this one, if they are enough."""
        from manager.daemon.asking import leave  # noqa: PLC0415 -- grpc only when it is needed

        if manager.store.term:
            with contextlib.suppress(SwarmError):
                await manager.raft.transfer_leadership()
        await leave_group(lambda: leave(self._leader_client()), FAREWELL_SECONDS_MAX)

    def _refusal_to_leave(self) -> str:
        if self._manager is None or self._manager.is_alone:
            return _LAST_MANAGER
        reachable, total, _ = self._manager.quorum()
        left = total - 1
        if reachable - 1 > left // 2:
            rest = f"the other {left} managers go on."
        else:
            rest = (
                f"of the other {left} managers {reachable - 1} can be reached: "
                "without a majority the swarm cannot be managed."
            )
        return _MANAGER_LEAVES.format(rest=rest)

    async def _forget(self) -> None:
        """Be in no swarm: nothing of it stays in memory or on the disk."""
        await self._stop_client()
        await self._drop_credentials()
        self._identity = None
        self._remotes = Remotes()
        self._is_locked = False
        self._error = ""
        self._clear_all()

    def _clear_state(self) -> None:
        """Drop the manager's state; volumes and images are the node's and stay."""
        if self._config.raft_dir.exists():
            shutil.rmtree(self._config.raft_dir)

    def _clear_all(self) -> None:
        """Drop all that a membership leaves, the manager's state and the certificate."""
        self._clear_state()
        NodeCredentials.remove(self._config.certificates_dir, files=self._files)
        self._config.managers_file.unlink(missing_ok=True)

    # ----------------------------------------------------------------- unlock

    async def swarm_unlock(self, key: str) -> None:
        """Open the manager's sealed keys with the operator's unlock key."""
        async with self._changing:
            if self._identity is None:
                raise UnavailableError(_NOT_IN_SWARM)
            if not self._is_locked:
                raise ConflictError("swarm is not locked")
            try:
                await self._take_up(self._identity, Kek.parse(key))
            except InvalidError as error:
                raise InvalidError("swarm could not be unlocked: invalid key provided") from error

    def swarm_unlock_key(self) -> str:
        """Return the unlock key; "" when managers are not locked."""
        return self._managing().membership.cluster().unlock_key

    # ------------------------------------------------------------------- jobs

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

    # ---------------------------------------------------------------- queries

    @property
    def agent(self) -> Agent | None:
        """Who runs this node's containers, while it is in a swarm."""
        return self._resources.agent

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
        raise UnavailableError(_WORKER if self._identity is not None else _NOT_IN_SWARM)

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

    def quorum(self) -> Quorum:
        """Count the managers that this one hears."""
        reachable, total, has_leader = self._managing().quorum()
        return Quorum(reachable=reachable, total=total, has_leader=has_leader)

    def credentials(self) -> Credentials:
        """Return what this node shows to others."""
        if self._credentials is None:
            raise UnavailableError(_NOT_IN_SWARM)
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
        return self._error or (self.agent.refusal if self.agent is not None else "")

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
            error=self._reason(),
            view=self._manager.store.view() if self._manager is not None else None,
            remotes=self._remotes.peers() if self._identity is not None else (),
            runtime=self._runtime_facts,
            counts=agent.container_counts() if agent is not None else (0, 0),
            images=len(self._images.images()),
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
        """Yield the output of tasks, each task's oldest first."""
        control = self.control()
        tasks = [control.task(task_id) for task_id in task_ids]
        return merge([self._resources.logs_of(task, options) for task in tasks])


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

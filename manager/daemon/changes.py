"""Changes of the membership that a user asks for: begin, join, leave, unlock, force.

Changes are serialised, and each writes the identity last or removes it first, so that a crash in
between leaves nothing half made.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import structlog

from manager.ca.credentials import NodeCredentials
from manager.ca.external_rules import check_external_cas
from manager.ca.issue import new_key_and_csr
from manager.daemon.addresses import (
    join_port,
    resolve_advertise,
    resolve_data_path,
    resolve_listen,
    split_port,
)
from manager.daemon.forcing import forced_identity, refuse_beside_force
from manager.daemon.identity import Identity, remove_identity, write_identity
from manager.daemon.machine import (
    Machine,
    address_towards,
    describe,
    machine_addresses,
)
from manager.daemon.manager import Manager, leave_group
from manager.daemon.membership import (
    Membership,
    NewCluster,
    node_port_address,
)
from manager.daemon.moving import is_own
from manager.daemon.place import Place
from manager.daemon.remembered import (
    RememberedMember,
    write_remembered,
)
from manager.httpapi.backend import (
    InitRequest,
    Joined,
    JoinRequest,
)
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.store import Transaction
from proto.errors import (
    ConflictError,
    InvalidError,
    LockedError,
    SwarmError,
    UnavailableError,
    reason_of,
)
from proto.ids import NodeID
from proto.objects import Node, NodeRole, NodeState
from raft.keys import Kek, KeyRing
from raft.node import force_cluster_of_one

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# How long `swarm init` and `swarm join` wait for the node's own worker to report.
READY_SECONDS_MAX = 5.0
# How long a node that joins as a manager waits for its vote.
VOTER_SECONDS_MAX = 20.0
# How long a manager that leaves waits for the others to let it go.
FAREWELL_SECONDS_MAX = 5.0

NOT_IN_SWARM = (
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
_MANAGER_LEAVES = (
    "You are attempting to leave the swarm on a node that is participating as a manager. "
    "Demote it first (swarm node demote), or use `--force`: {rest}"
)


class Changes(Place):
    """See the module."""

    async def swarm_init(self, request: InitRequest) -> str:
        """Begin a cluster of which this node is the manager; return its ID."""
        async with self._changing:
            if request.force_new_cluster and self._identity is not None:
                return await self._force_new_cluster(self._identity, request)
            if self._identity is not None:
                raise UnavailableError(_ALREADY_IN_SWARM)
            if request.force_new_cluster:
                raise UnavailableError(
                    "there is no cluster on this node to make a new one from; "
                    "leave out --force-new-cluster"
                )
            check_external_cas(request.spec)
            machine = machine_addresses()
            listen_addr = resolve_listen(request.listen_addr, machine)
            advertise_addr = resolve_advertise(request.advertise_addr, listen_addr, machine)
            data_path_addr = resolve_data_path(request.data_path_addr, machine)
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
                data_path_addr=data_path_addr,
                is_own_address=is_own(advertise_addr, machine),
            )
            try:
                credentials = await asyncio.to_thread(
                    NodeCredentials.save_new,
                    self._config.certificates_dir,
                    certificate_pem=founding.certificate_pem,
                    key_pem=founding.key_pem,
                    roots_pem=founding.roots_pem,
                    kek=membership.tls_key,
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
        except (TimeoutError, StopAsyncIteration) as error:
            # The cluster exists and says why the node is not ready; that is no failure to begin it.
            log.warning(
                "agent_not_ready",
                node_id=node_id,
                waited_seconds=READY_SECONDS_MAX,
                error=reason_of(error),
            )

    async def swarm_join(self, request: JoinRequest) -> None:
        """Join the swarm of a manager at one of the given addresses, by its token."""
        async with self._changing:
            if self._identity is not None:
                raise UnavailableError(_ALREADY_IN_SWARM)
            machine = machine_addresses()
            listen_addr = resolve_listen(request.listen_addr, machine)
            data_path_addr = resolve_data_path(request.data_path_addr, machine)
            joined, remote, advertise_addr, key_pem = await self._ask_to_join(request, listen_addr)
            self._clear_all()
            identity = Identity(
                node_id=joined.node_id,
                cluster_id=joined.cluster_id,
                role="worker",
                advertise_addr=advertise_addr,
                listen_addr=listen_addr,
                data_path_addr=data_path_addr,
                is_own_address=is_own(advertise_addr, machine),
            )
            try:
                await self._enter(identity, joined, key_pem)
            except BaseException as error:
                await self._stop_manager()
                if isinstance(error, SwarmError):
                    await self._withdraw(identity, remote)
                await self._forget()
                raise
            self._start_agent(identity)
            log.info("swarm_joined", node_id=joined.node_id, role=joined.role.name)
        await self._wait_for_membership()

    async def _ask_to_join(
        self, request: JoinRequest, listen_addr: str
    ) -> tuple[Joined, str, str, bytes]:
        """Ask each remote address in turn; the last refusal is the one that is raised.

        Returns:
            What was got, of whom, the address to advertise, and the key.
        """
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
            return joined, remote, advertise_addr, key_pem
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
        from manager.httpapi.joinclient import reach_any  # noqa: PLC0415 -- once in a life

        await reach_any([peer.addr for peer in joined.managers])
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

    async def _withdraw(self, identity: Identity, remote: str) -> None:
        """Leave no row behind of a join that failed; who does not hear of it shows a node more."""
        from manager.httpapi.joinclient import withdraw  # noqa: PLC0415 -- once in a life

        if self._credentials is None:
            return
        try:
            await withdraw(remote, identity.node_id, self._credentials.source())
        except SwarmError as error:
            log.warning("join_not_withdrawn", node_id=identity.node_id, error=error.message)

    async def _wait_for_membership(self) -> None:
        """Return when the node works as what it joined as, or has had time enough for it."""
        seconds = VOTER_SECONDS_MAX if self._manager is not None else READY_SECONDS_MAX
        try:
            async with asyncio.timeout(seconds):
                while not self._is_settled():  # noqa: ASYNC110 -- several things change
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            log.warning("join_not_settled", waited_seconds=seconds, error=reason_of(error))

    def _is_settled(self) -> bool:
        agent = self._resources.agent
        if self._identity is None or (agent is not None and agent.node is not None):
            return self._manager is None or self._manager.is_voter
        return False

    async def _force_new_cluster(self, identity: Identity, request: InitRequest) -> str:
        """Make a cluster of this one manager out of what it has stored.

        Raises:
            InvalidError: the request has an option that changes what is stored otherwise.
            SwarmError: it could not be done; what is stored is taken up again.
        """
        if identity.role != "manager":
            raise UnavailableError(
                "this node is a worker: only a manager has the state that a new cluster needs"
            )
        if self._is_locked:
            raise LockedError
        refuse_beside_force(request)
        wanted = forced_identity(identity, request, machine_addresses())
        kek = self._kek
        if self._manager is not None:
            kek = self._manager.membership.unlock_key()
        await self._stop_jobs()
        await self._stop_manager()
        await self._stop_client()
        await self._drop_credentials()
        self._remotes = Remotes()
        # First: after a crash whoever takes this up finds what is left to be done.
        self._write_identity(wanted)
        identity = wanted
        try:
            await asyncio.to_thread(self._force_log, identity, kek)
        except SwarmError:
            with contextlib.suppress(SwarmError):  # the first error is the one to show
                await self._try_to_take_up(identity, kek)
            raise
        write_remembered(self._config.managers_file, ())
        await self._try_to_take_up(identity, kek)
        assert self._manager is not None
        await self._settle_forced(self._manager, identity, request)
        log.warning("new_cluster_forced", node_id=identity.node_id)
        return identity.node_id

    @staticmethod
    async def _settle_forced(manager: Manager, identity: Identity, request: InitRequest) -> None:
        """Write what was asked for beside a new cluster into its rows."""
        address = node_port_address(identity.advertise_addr)
        if not manager.knows_address(identity.node_id, address, identity.advertise_addr):
            await manager.admit(identity.node_id, address, identity.advertise_addr)
        if request.data_path_port:

            def change(tx: Transaction) -> None:
                for cluster in tx.clusters:
                    tx.update(
                        msgspec.structs.replace(cluster, data_path_port=request.data_path_port)
                    )

            await manager.store.update(change)
        cluster = manager.control.cluster()
        if request.auto_lock and not cluster.spec.auto_lock_managers:
            spec = msgspec.structs.replace(cluster.spec, auto_lock_managers=True)
            await manager.control.update_cluster(cluster.version, spec)

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
            self._note_leaving(identity)
            await self._stop_manager()
            # First: the agent ends its session when it leaves, and a session's end says nothing.
            await self._stop_client(is_goodbye=True)
            await self._clear_node()

    def _note_leaving(self, identity: Identity) -> None:
        """See to it that whoever starts after a crash goes on with leaving, and never works again.

        On a full disk the mark cannot be made, and nothing then finishes what a crash interrupts.
        """
        try:
            write_identity(
                self._config.identity_file, msgspec.structs.replace(identity, is_leaving=True)
            )
        except SwarmError as error:
            log.warning("leaving_not_noted", error=error.message)
            remove_identity(self._config.identity_file)

    async def _clear_node(self) -> None:
        """Remove the containers and all else of the swarm; the identity goes last. Repeatable.

        Raises:
            SwarmError: something is left.
        """
        if self._resources.agent is not None:
            await self._resources.agent.leave()
        await self._stop_agent()
        await self._network.destroy()
        await self._forget()
        remove_identity(self._config.identity_file)
        log.info("swarm_left")

    async def _finish_leaving(self, identity: Identity) -> None:
        """Go on where a crash interrupted `swarm_leave`."""
        log.warning("leaving_resumed", node_id=identity.node_id)
        self._resources.agent = self._new_agent(identity)
        await self._clear_node()

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

    async def swarm_unlock(self, key: str) -> None:
        """Open the manager's sealed keys with the operator's unlock key."""
        async with self._changing:
            if self._identity is None:
                raise UnavailableError(NOT_IN_SWARM)
            if not self._is_locked:
                raise ConflictError("swarm is not locked")
            try:
                await self._try_to_take_up(self._identity, Kek.parse(key))
            except InvalidError as error:
                raise InvalidError("swarm could not be unlocked: invalid key provided") from error


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

"""A manager at work: the services it offers to other nodes, and the loops of whoever leads.

    Membership (keys, log, store) -- below
    Manager                       -- dispatcher, authority, node port; follows the log's leadership
    SwarmNode                     -- above: begins, ends and changes it

Loops run only while the store leads: they are begun anew for each leadership and read all they
need from the store, so nothing is handed over but the log. The node port needs grpc, which costs
more memory than the rest of a small node; so a manager that is alone opens it at the first join.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import msgspec
import structlog

from manager.ca.authority import CertificateAuthority, Joined
from manager.ca.credentials import NodeCredentials
from manager.ca.rotation import RootRotator
from manager.controlapi.control import with_removed
from manager.controlapi.ports import allocate_ports
from manager.daemon.addresses import split_port
from manager.daemon.identity import Identity
from manager.daemon.membership import Admission, Membership, NodeControl, node_port_address
from manager.daemon.roles import RoleManager
from manager.daemon.supervisor import Supervisor
from manager.dispatcher.core import DispatcherCore
from manager.dispatcher.switch import DispatcherSwitch
from manager.nodeport.remotes import ManagerPeer, Remotes
from manager.nodeport.standing import check_candidate, check_row
from manager.orchestrator.loop import Orchestrator
from manager.store import Transaction
from proto.clock import Clock
from proto.errors import ConflictError, DeniedError, NotLeaderError, SwarmError, UnavailableError
from proto.ids import NodeID
from proto.objects import (
    Cluster,
    ManagerStatus,
    Node,
    NodeAvailability,
    NodeRole,
    NodeState,
    Reachability,
    root_certificates_pem,
)

if TYPE_CHECKING:
    from manager.logbroker.collector import Collector
    from raft.node import Transport as RaftTransport
    from raft.transport.transport import Transport

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# How long to wait before keys that could not be sealed are tried again.
SEAL_RETRY_SECONDS = 1.0

LEADER_LOOPS = ("dispatcher", "orchestrator", "rotator", "roles")


class Manager:
    """An open membership with all that works on it."""

    def __init__(
        self,
        membership: Membership,
        credentials: NodeCredentials,
        identity: Identity,
        remotes: Remotes,
        *,
        switch: DispatcherSwitch,
        hurry_renewal: Callable[[], None],
        follow: Callable[[], None],
        trust: Callable[[bytes], None],
        learn: Callable[[Sequence[ManagerPeer]], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Start nothing yet.

        Args:
            membership: closed by `close`.
            credentials: this node's.
            identity: this node's.
            remotes: the other managers.
            switch: is told who dispatches to this node's agent.
            hurry_renewal: renews this node's certificate soon.
            follow: lets this node's agent ask another manager; called when another leads.
            trust: takes the roots that the cluster trusts now.
            learn: takes the managers as the log knows them now.
            clock: for everything.
            rng: for everything.
        """
        self.membership = membership
        self.store = membership.store
        self.raft = membership.raft
        self._credentials = credentials
        self._identity = identity
        self._remotes = remotes
        self._switch = switch
        self._hurry_renewal = hurry_renewal
        self._follow = follow
        self._trust = trust
        self._learn = learn
        self._clock = clock
        self._rng = rng
        self._supervisor = Supervisor()
        self._opening = asyncio.Lock()
        self._exposed_certificate = b""
        self._transport: Transport | None = None
        # Reads logs of other nodes; there is none while there are no other nodes.
        self.logs: Collector | None = None
        self.authority = CertificateAuthority(
            self.store, clock, rng, credentials=credentials.source
        )
        self._rotator = RootRotator(self.store, clock)
        self.dispatcher = DispatcherCore(
            self.store,
            clock=clock,
            rng=rng,
            managers=self.peers,
            must_renew=self._rotator.must_renew,
            is_unheard=self._is_unheard,
        )
        self.control = NodeControl(
            membership,
            rng,
            clock,
            seal=self.seal,
            manager_statuses=self.manager_statuses,
            credentials=credentials.source,
        )

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin to work; offers the node port at once if there is anybody to talk to."""
        if len(self.raft.membership.members) != 1 or len(self.store.view().nodes) > 1:
            await self.open_node_port()
        term = self.store.term
        if term:
            self._lead()
        elif not self.is_alone:
            self._follow()
        self._supervisor.start("leadership", lambda: self._follow_leadership(term))
        self._supervisor.start("self", self._follow_self)

    @property
    def is_alone(self) -> bool:
        """Whether there is no other manager."""
        return len(self.raft.membership.members) == 1

    @property
    def is_voter(self) -> bool:
        """Whether this manager counts for quorums, as far as it knows."""
        member = self.raft.membership.find(self.raft.member_id)
        return member is not None and member.is_voter

    async def forget_others(self) -> None:
        """Make all other managers workers: their group is no more.

        They are told so when they come back, and keep their tasks.
        """
        me = self._identity.node_id

        def change(tx: Transaction) -> None:
            for node in tx.nodes:
                if node.id == me or node.spec.role is NodeRole.WORKER:
                    continue
                spec = msgspec.structs.replace(node.spec, role=NodeRole.WORKER)
                tx.update(
                    msgspec.structs.replace(
                        node, spec=spec, role=NodeRole.WORKER, manager_status=None
                    )
                )

        await self.store.update(change)

    async def close(self) -> None:
        """Stop all loops, hand over, and close the membership.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; all is closed nevertheless.
        """
        self._switch.lead(None)
        await self._supervisor.stop()
        await self.membership.close()

    async def _follow_leadership(self, term: int) -> None:
        while True:
            term = await self.store.role_changed(term)
            log.info("leadership_changed", term=term, is_leader=term != 0)
            self._switch.lead(None)
            await self._supervisor.stop(*LEADER_LOOPS)
            if term:
                self._lead()
            elif not self.is_alone:
                self._follow()

    def _lead(self) -> None:
        orchestrator = Orchestrator(
            self.store, clock=self._clock, rng=self._rng, allocate_ports=allocate_ports
        )
        roles = RoleManager(self.store, self.raft, self._clock)
        loops: Mapping[str, Callable[[], Awaitable[None]]] = {
            "dispatcher": self.dispatcher.run,
            "orchestrator": orchestrator.run,
            "rotator": self._rotator.run,
            "roles": roles.run,
        }
        for name in LEADER_LOOPS:
            self._supervisor.start(name, loops[name])
        self._switch.lead(self.dispatcher)

    async def _follow_self(self) -> None:
        """Let this node's keys, roots and ways to the leader follow what the store says."""
        node_id = self._identity.node_id
        async with self.store.watch(Cluster, Node) as watch:
            while True:
                self._learn(self.peers())
                is_sealed = await self._is_sealed()
                view = self.store.view()
                for cluster in view.clusters:
                    roots = root_certificates_pem(cluster).encode()
                    if roots != self._credentials.source().roots_pem:
                        self._trust(roots)
                node = view.nodes.get(node_id)
                if node is not None and self.store.term and self._rotator.must_renew(node):
                    self._hurry_renewal()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if is_sealed else SEAL_RETRY_SECONDS):
                        await anext(watch)
                    watch.drain()

    async def _is_sealed(self) -> bool:
        """Seal if there is a cluster yet; without a quorum it has to wait."""
        if not list(self.store.view().clusters):
            return True
        try:
            await self.seal()
        except SwarmError as error:
            log.warning("keys_not_sealed", reason=error.message)
            return False
        return True

    async def seal(self) -> None:
        """Let the keys on this disk follow the cluster's unlock key."""
        await self.membership.seal_keys()
        # A TLS key that lay here sealed by a key that anybody could read may not serve any more.
        if await self.membership.replace_exposed_tls_key(self._credentials, self._rng):
            certificate = self._credentials.source().certificate_pem
            if certificate != self._exposed_certificate:
                # Once in a life: the renewer goes on until it is done.
                self._exposed_certificate = certificate
                self._hurry_renewal()

    # ------------------------------------------------------------- node port

    async def open_node_port(self) -> None:
        """Listen for other nodes, if that is not done yet.

        Raises:
            UnavailableError: the address cannot be listened on.
        """
        async with self._opening:
            if self._transport is not None:
                return
            # Only now: grpc takes memory that a node alone does without.
            from manager.daemon.nodeport import open_transport  # noqa: PLC0415

            self._transport, self.logs, authorizer = await open_transport(
                self,
                self._identity,
                self._credentials,
                self._remotes,
                listen_address=node_port_address(self._identity.listen_addr),
                clock=self._clock,
                rng=self._rng,
            )
            self.raft.connect(cast("RaftTransport", self._transport))
            self._supervisor.start("log requests", self.logs.run)
            self._supervisor.start("callers", authorizer.run)
            log.info("node_port_opened", address=node_port_address(self._identity.listen_addr))

    def credentials_changed(self) -> None:
        """Let connections to the other managers take up the new certificate."""
        if self._transport is not None:
            self._transport.refresh_credentials()

    async def issue_for_join(
        self,
        token: str,
        csr_pem: bytes,
        *,
        hostname: str,
        availability: NodeAvailability,
        address: str,
    ) -> Joined:
        """Admit a node that shows a token; see `CertificateAuthority.issue_for_join`."""
        joined = await self.authority.issue_for_join(
            token, csr_pem, hostname=hostname, availability=availability, address=address
        )
        await self.open_node_port()
        return joined

    async def admit(self, node_id: NodeID, address: str, api_address: str) -> Admission:
        """Let a manager into the group as a learner, or note that it is reached elsewhere now.

        Args:
            node_id: the manager's.
            address: of its node port.
            api_address: of its API port.

        Raises:
            NotLeaderError: another manager leads.
            RemovedError: there is no such node.
            DeniedError: it is no manager, or is to be none.
            SwarmError: as `RaftNode.add_learner`.
        """
        if not self.store.term:
            # Before all else: what this manager has not been told of yet may exist.
            raise NotLeaderError(self.leader_node_port())

        def check() -> None:
            # The head: a demotion that has its place in the log before this counts. It may never
            # be committed, so that what is answered is only that this is not known.
            try:
                check_candidate(self.store.head(), node_id)
            except SwarmError as error:
                raise UnavailableError(f"{error.message}; ask again") from error

        await self.store.update(lambda tx: check_candidate(tx, node_id))
        known = {member.node_id: member.address for member in self.raft.membership.members}
        if known.get(node_id, address) != address:
            await self.raft.change_address(node_id, address)
        member_id = await self.raft.add_learner(node_id, address, check=check)
        # Last: whoever sees the row change finds the group changed, too.
        unlock_key = await self.store.update(lambda tx: _note_addresses(tx, node_id, api_address))
        return Admission(member_id, self.raft.membership.members, unlock_key)

    async def withdraw(self, node_id: NodeID) -> None:
        """Forget a node that was let in and could not begin: its row, and its place in the group.

        Raises:
            NotLeaderError: another manager leads.
            ConflictError: it has begun to work.
        """
        await self.store.update(lambda tx: _refuse_begun(tx, node_id))
        await self.raft.remove(node_id)

        def forget(tx: Transaction) -> None:
            node = _refuse_begun(tx, node_id)
            if node is None:
                return
            tx.delete(Node, node_id)
            for cluster in tx.clusters:
                removed = with_removed(cluster, node, now=tx.now)
                tx.update(msgspec.structs.replace(cluster, removed_nodes=removed))

        await self.store.update(forget)
        log.info("join_withdrawn", node_id=node_id)

    async def dismiss(self, node_id: NodeID) -> None:
        """Take a manager out of the group on its own word; not one that is no manager any more.

        Raises:
            NotLeaderError: another manager leads.
            RemovedError, DeniedError: as `check_row`.
            SwarmError: as `RaftNode.remove`.
        """
        await self.store.update(lambda tx: check_row(tx, node_id, as_manager=True, is_newest=True))
        await self.raft.remove(node_id)

    # --------------------------------------------------------------- queries

    def knows_members(self) -> bool:
        """Tell whether the store is as new as the log's membership.

        If so every member has its row there: a node gets a manager's role before it becomes a
        member, and loses it after it has ceased to be one.
        """
        if self.store.term:
            return True
        view = self.store.view()
        return (
            bool(self.raft.membership.members)
            and bool(list(view.clusters))
            and self.store.applied_index >= self.raft.membership_index
        )

    def is_heard(self, node_id: NodeID) -> bool:
        """Tell whether the log listens to a node: a member of it, and a manager by its row."""
        if not self.raft.is_allowed(node_id):
            return False
        if not self.knows_members():
            return True
        node = self.store.view().nodes.get(node_id)
        return node is not None and node.role is NodeRole.MANAGER

    def knows_address(self, node_id: NodeID, address: str, api_address: str) -> bool:
        """Tell whether the group and the cluster know that a manager is reached there."""
        node = self.store.view().nodes.get(node_id)
        status = node.manager_status if node is not None else None
        return (
            status is not None
            and status.addr == api_address
            and any(
                (member.node_id, member.address) == (node_id, address)
                for member in self.raft.membership.members
            )
        )

    def peers(self) -> tuple[ManagerPeer, ...]:
        """List the managers that agents may be told of, this one too."""
        return tuple(
            ManagerPeer(NodeID(member.node_id), member.address)
            for member in self.raft.membership.members
            if member.node_id and member.is_voter
        )

    def leader_node_id(self) -> NodeID:
        """Return who leads, as far as this manager knows; "" if nobody."""
        for member in self.raft.status():
            if member.is_leader:
                return NodeID(member.node_id)
        return NodeID("")

    def leader_node_port(self) -> str:
        """Return where the leader's node port is; "" if that is not known."""
        for member in self.raft.status():
            if member.is_leader:
                return member.address
        return ""

    def leader_api_address(self) -> str:
        """Return where the leader's API is; "" if that is not known."""
        node = self.store.view().nodes.get(self.leader_node_id())
        if node is None or node.manager_status is None:
            return ""
        return node.manager_status.addr

    def _is_unheard(self, node_id: NodeID) -> bool:
        """Tell whether a node is a manager that the log does not hear from."""
        return any(
            member.node_id == node_id and not member.is_reachable for member in self.raft.status()
        )

    def manager_statuses(self) -> dict[NodeID, ManagerStatus]:
        """Describe the group's members as `node ls` shows them."""
        view = self.store.view()
        statuses = {}
        for member in self.raft.status():
            node = view.nodes.get(NodeID(member.node_id))
            known = node.manager_status if node is not None else None
            statuses[NodeID(member.node_id)] = ManagerStatus(
                is_leader=member.is_leader,
                reachability=Reachability.REACHABLE
                if member.is_reachable
                else Reachability.UNREACHABLE,
                addr=known.addr if known is not None else member.address,
            )
        return statuses

    @property
    def is_majority_lost(self) -> bool:
        """Whether this manager knows that no change can succeed until others come back."""
        return self.raft.has_lost_majority

    def quorum(self) -> tuple[int, int, bool]:
        """Return how many voters this manager hears, of how many, and if a leader is known."""
        voters = [member for member in self.raft.status() if member.is_voter]
        reachable = sum(member.is_reachable for member in voters)
        return reachable, len(voters), any(member.is_leader for member in voters)


async def leave_group(request: Callable[[], Awaitable[object]], seconds_max: float) -> None:
    """Ask to be taken out of the group; what cannot be had in time is not waited for."""
    try:
        async with asyncio.timeout(seconds_max):
            await request()
    except TimeoutError:
        log.warning("group_not_left", reason="no answer", waited_seconds=seconds_max)
    except SwarmError as error:
        log.warning("group_not_left", reason=error.message)


def _refuse_begun(tx: Transaction, node_id: NodeID) -> Node | None:
    """Return the row of a node that never worked, None if it is gone.

    Raises:
        ConflictError: it has begun to work.
    """
    node = tx.nodes.get(node_id)
    if node is not None and node.status.state is not NodeState.UNKNOWN:
        raise ConflictError(f"node {node_id} works in the swarm: let it leave, and remove it")
    return node


def _note_addresses(tx: Transaction, node_id: NodeID, api_address: str) -> str:
    """Write where the manager's API is; return the cluster's unlock key."""
    # Once more: it may have been demoted while it was let in, and gets no key then.
    check_candidate(tx, node_id)
    node = tx.nodes.get(node_id)
    assert node is not None
    if node.manager_status is None or node.manager_status.addr != api_address:
        # The leader's own agent, served in process, has no connection whose address is seen.
        host = split_port(api_address, "address")[0]
        tx.update(
            msgspec.structs.replace(
                node,
                status=msgspec.structs.replace(node.status, addr=host),
                manager_status=ManagerStatus(reachability=Reachability.REACHABLE, addr=api_address),
            )
        )
    for cluster in tx.clusters:
        return cluster.unlock_key
    raise DeniedError("this manager holds no cluster yet")

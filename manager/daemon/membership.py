"""A manager's part in the cluster: its keys, log and store, and the loops that work on them.

`Membership.create` begins a cluster, `Membership.open` takes up one after a restart. What is open
is closed by `close`, in the opposite order; nothing of it is needed for containers to go on.

The unlock key in the cluster's row is the wanted key-encryption key; the ring of keys on disk
follows it. The rule is level-based, so a crash between the two is mended at the next start: until
then the old key opens the ring, and its owner still has it.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from typing_extensions import override

from manager.ca.credentials import NodeCredentials
from manager.ca.issue import issue_certificate, new_key_and_csr, tls_info_of
from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from manager.controlapi import Control
from manager.daemon.addresses import join_port, split_port
from manager.daemon.tlskey import TLS_KEY, open_credentials, replace_exposed, tls_key
from manager.store import Store, Transaction
from proto.clock import Clock
from proto.errors import SwarmError
from proto.ids import ClusterID, NodeID, new_id
from proto.objects import (
    NANOSECONDS,
    Cluster,
    ClusterSpec,
    JoinTokens,
    ManagerStatus,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Reachability,
    root_certificates_pem,
)
from raft.core import Member, RaftID
from raft.files import Files
from raft.kek import KEY_BYTES
from raft.keys import Kek, KeyRing
from raft.node import RaftNode, Settings
from raft.transport.identity import MANAGER_ROLE, CredentialsSource, read_identity

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class NewCluster(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster begins with."""

    spec: ClusterSpec
    availability: NodeAvailability
    description: NodeDescription
    advertise_addr: str
    default_address_pool: tuple[str, ...]
    subnet_size: int
    data_path_port: int


class Founding(msgspec.Struct, frozen=True):
    """Who the first node of a cluster is, and its certificate; the key is clear, in PEM."""

    cluster_id: ClusterID
    node_id: NodeID
    certificate_pem: bytes
    key_pem: bytes
    roots_pem: bytes

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return f"Founding(node_id={self.node_id!r})"


class Admission(msgspec.Struct, frozen=True):
    """The leader's answer to a manager that joins the group."""

    member_id: RaftID
    members: tuple[Member, ...]
    unlock_key: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return f"Admission(member_id={self.member_id})"


class NodeControl(Control):
    """The control API of this node: a change of the unlock key is on disk before it returns."""

    def __init__(
        self,
        membership: Membership,
        rng: random.Random,
        clock: Clock,
        *,
        seal: Callable[[], Awaitable[None]],
        manager_statuses: Callable[[], Mapping[NodeID, ManagerStatus]],
        credentials: CredentialsSource,
    ) -> None:
        """Serve the membership's store.

        Args:
            membership: whose store is served.
            rng: draws IDs and secrets.
            clock: for times.
            seal: brings this manager's keys in line with the cluster's unlock key.
            manager_statuses: what is observed of the managers now.
            credentials: of this manager, for an authority outside the cluster.
        """
        super().__init__(membership.store, clock, rng, credentials=credentials)
        self._raft = membership.raft
        self._manager_statuses = manager_statuses
        self._seal = seal

    @override
    def nodes(self) -> list[Node]:
        """Return all nodes, managers with what is observed of them now."""
        statuses = self._manager_statuses()
        return [_observed(node, statuses) for node in super().nodes()]

    @override
    def node(self, ref: str) -> Node:
        """Return one node, with what is observed of it now."""
        return _observed(super().node(ref), self._manager_statuses())

    @override
    def _is_manager(self, node: Node) -> bool:
        """Ask the log too: whoever has left its group, and is down, is a manager by name only."""
        members = {member.node_id for member in self._raft.membership.members}
        return node.id in members or (
            super()._is_manager(node) and node.status.state is not NodeState.DOWN
        )

    @override
    async def update_cluster(self, *args: Any, **kwargs: Any) -> None:
        """Change the cluster and seal this manager's keys anew if the unlock key changed."""
        await super().update_cluster(*args, **kwargs)
        await self._seal()


class Membership:
    """An open manager.

    Attributes:
        store: the replicated state.
        raft: the log below it.
    """

    def __init__(self, keys: KeyRing, raft: RaftNode, store: Store) -> None:
        """Use `create`, `open` or `join`."""
        self._keys = keys
        self.raft = raft
        self._sealing = asyncio.Lock()
        self.store = store

    @classmethod
    async def create(
        cls,
        directory: Path,
        new: NewCluster,
        *,
        clock: Clock,
        rng: random.Random,
        settings: Settings = Settings(),  # noqa: B008 -- frozen
        files: Files | None = None,
    ) -> tuple[Membership, Founding]:
        """Begin a cluster of one in an empty directory; its first node has a certificate."""
        kek = Kek.generate(rng.randbytes) if new.spec.auto_lock_managers else None
        keys = await asyncio.to_thread(KeyRing.create, directory, rng.randbytes, kek, files=files)
        cluster_id, node_id = ClusterID(new_id(rng)), NodeID(new_id(rng))
        membership = await cls._take_up(
            keys,
            RaftNode.create(
                directory,
                keys,
                node_id=node_id,
                address=node_port_address(new.advertise_addr),
                clock=clock,
                rng=rng,
                settings=settings,
                files=files,
            ),
            clock,
        )
        now = clock.wall()
        cluster = _first_cluster(cluster_id, new, kek, now=now, rng=rng)
        founding = _found(cluster, node_id, now=now)
        node = _first_node(founding, new)

        def write(tx: Transaction) -> None:
            tx.create(cluster)
            tx.create(node)

        try:
            await asyncio.to_thread(keys.seal, TLS_KEY, rng.randbytes(KEY_BYTES))
            await membership.store.update(write)
        except BaseException:
            await membership.close()
            raise
        return membership, founding

    @classmethod
    async def join(
        cls,
        directory: Path,
        admission: Admission,
        *,
        node_id: NodeID,
        address: str,
        clock: Clock,
        rng: random.Random,
        settings: Settings = Settings(),  # noqa: B008 -- frozen
        files: Files | None = None,
    ) -> Membership:
        """Begin, in an empty directory, as the learner that the leader made of this node.

        Args:
            directory: the log's.
            admission: the leader's answer.
            node_id: this node's.
            address: of its node port.
            clock: for ticks and times.
            rng: for keys and time-outs.
            settings: the log's numbers.
            files: the disk.
        """
        kek = Kek.parse(admission.unlock_key) if admission.unlock_key else None
        keys = await asyncio.to_thread(KeyRing.create, directory, rng.randbytes, kek, files=files)
        membership = await cls._take_up(
            keys,
            RaftNode.join(
                directory,
                keys,
                member_id=admission.member_id,
                node_id=node_id,
                address=address,
                peers=admission.members,
                clock=clock,
                rng=rng,
                settings=settings,
                files=files,
            ),
            clock,
        )
        try:
            await asyncio.to_thread(keys.seal, TLS_KEY, rng.randbytes(KEY_BYTES))
        except BaseException:
            await membership.close()
            raise
        return membership

    @classmethod
    async def open(
        cls,
        directory: Path,
        kek: Kek | None,
        *,
        clock: Clock,
        rng: random.Random,
        node_id: NodeID = NodeID(""),  # noqa: B008 -- a string
        address: str = "",
        peers: Sequence[Member] = (),
        settings: Settings = Settings(),  # noqa: B008 -- frozen
        files: Files | None = None,
    ) -> Membership:
        """Open what `create` or `join` made; `files` is the disk, the machine's own if not given.

        `node_id`, `address` and `peers` are as for `join`, for a log that had got nothing yet.

        Raises:
            LockedError: autolock is on and no key was given.
            InvalidError: the key is not the one.
            CorruptError: the log or a snapshot is damaged.
        """
        keys = await asyncio.to_thread(
            KeyRing.open, directory, kek, rng_bytes=rng.randbytes, files=files
        )
        membership = await cls._take_up(
            keys,
            RaftNode.open(
                directory,
                keys,
                node_id=node_id,
                address=address,
                peers=peers,
                clock=clock,
                rng=rng,
                settings=settings,
                files=files,
            ),
            clock,
        )
        if membership.store.term:
            try:
                await membership.seal_keys()
            except SwarmError as error:
                # No reason not to open: the manager tries it again until it is done.
                log.warning("keys_not_sealed", reason=error.message)
        return membership

    @classmethod
    async def _take_up(
        cls, keys: KeyRing, opening: Coroutine[None, None, RaftNode], clock: Clock
    ) -> Membership:
        try:
            raft = await opening
            store = Store.open(raft, clock)
            # What was restored stays; walking it at every full collection would stall the loop.
            gc.freeze()
        except BaseException:
            keys.close()
            raise
        return cls(keys, raft, store)

    def open_credentials(self, directory: Path, files: Files | None) -> NodeCredentials:
        """Open this node's certificate with the ring's key; blocks. Raises as `tlskey` does."""
        return open_credentials(self._keys, directory, files)

    @property
    def tls_key(self) -> Kek:
        """What a new certificate's key is to be sealed with."""
        return tls_key(self._keys)

    async def replace_exposed_tls_key(
        self, credentials: NodeCredentials, rng: random.Random
    ) -> bool:
        """Replace what could be read before autolock; tell if the certificate is to be renewed."""
        new = rng.randbytes(KEY_BYTES)
        return await asyncio.to_thread(replace_exposed, self._keys, credentials, new)

    def cluster(self) -> Cluster:
        """Return the cluster's row."""
        (cluster,) = self.store.view().clusters
        return cluster

    def unlock_key(self) -> Kek | None:
        """Return the key that opens the ring, if it is not stored beside it."""
        return self._keys.kek if self._keys.is_autolocked else None

    async def seal_keys(self) -> None:
        """Make the ring of keys follow the cluster's unlock key, and what it seals be worth it.

        Each step looks at what is on the disk, so that whatever failed, or was cut short by the end
        of the process, is done by the next call.

        Raises:
            UnavailableError: it is not known which key that is; the ring is as it was.
            ResourceExhaustedError: the disk is full; repeat.
        """
        async with self._sealing:
            wanted = self.cluster().unlock_key
            if wanted != (self._keys.kek.format() if self._keys.is_autolocked else ""):
                # A manager that is catching up sees keys that were, or none: never seal by those.
                await self.store.read_barrier()
                wanted = self.cluster().unlock_key
            was_locked = self._keys.is_autolocked
            current = self._keys.kek.format() if was_locked else ""
            if wanted != current:
                kek = Kek.parse(wanted) if wanted else None
                await asyncio.to_thread(self._keys.rotate_kek, kek)
                log.info("keys_sealed", autolock=bool(wanted))
            elif self._keys.is_unfinished:
                await asyncio.to_thread(self._keys.finish_change)
            if self._keys.is_data_key_exposed:
                # What was written so far could be read with a key that lay on this disk.
                await self.raft.rotate_data_key()
            if self.raft.is_rotating:
                await self.store.save_snapshot()

    async def close(self) -> None:
        """Close store, log and keys; what was acknowledged is durable already.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; all is closed nevertheless.
        """
        try:
            await self.store.close()
            await self.raft.close()
        finally:
            self._keys.close()


def _first_cluster(
    cluster_id: ClusterID, new: NewCluster, kek: Kek | None, *, now: float, rng: random.Random
) -> Cluster:
    root = create_root(now=now)
    return Cluster(
        id=cluster_id,
        spec=new.spec,
        root_ca_certificate_pem=root.certificate_pem,
        root_ca_key_pem=root.key_pem,
        join_tokens=JoinTokens(
            worker=new_join_token(root.certificate_pem, rng),
            manager=new_join_token(root.certificate_pem, rng),
        ),
        unlock_key=kek.format() if kek is not None else "",
        default_address_pool=new.default_address_pool,
        subnet_size=new.subnet_size,
        data_path_port=new.data_path_port,
    )


def _found(cluster: Cluster, node_id: NodeID, *, now: float) -> Founding:
    key_pem, csr_pem = new_key_and_csr()
    certificate_pem = issue_certificate(
        cluster.root_ca_certificate_pem,
        cluster.root_ca_key_pem,
        csr_pem,
        node_id=node_id,
        role=MANAGER_ROLE,
        cluster_id=cluster.id,
        expiry_seconds=cluster.spec.node_cert_expiry_ns / NANOSECONDS,
        now=now,
    )
    roots_pem = root_certificates_pem(cluster).encode()
    return Founding(cluster.id, node_id, certificate_pem, key_pem, roots_pem)


def _first_node(founding: Founding, new: NewCluster) -> Node:
    host = new.advertise_addr.rpartition(":")[0].strip("[]")
    return Node(
        id=founding.node_id,
        spec=NodeSpec(role=NodeRole.MANAGER, availability=new.availability),
        description=new.description,
        status=NodeStatus(state=NodeState.UNKNOWN, addr=host),
        manager_status=ManagerStatus(
            is_leader=True, reachability=Reachability.REACHABLE, addr=new.advertise_addr
        ),
        role=NodeRole.MANAGER,
        tls_info=tls_info_of(founding.certificate_pem, founding.roots_pem),
        certificate_until=read_identity(founding.certificate_pem).valid_until,
    )


def _observed(node: Node, statuses: Mapping[NodeID, ManagerStatus]) -> Node:
    status = statuses.get(node.id)
    if status == node.manager_status:
        return node
    return msgspec.structs.replace(node, manager_status=status)


def node_port_address(api_address: str) -> str:
    """Return the address of the node port: that of the API with the next port."""
    host, port = split_port(api_address, "address")
    return join_port(host, port + 1)

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
from collections.abc import Coroutine
from pathlib import Path

import msgspec
import structlog
from typing_extensions import override

from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from manager.controlapi import Control
from manager.controlapi.ports import allocate_ports
from manager.dispatcher.local import LocalDispatcher
from manager.orchestrator.loop import Orchestrator
from manager.store import Store, Transaction
from proto.clock import Clock
from proto.ids import ClusterID, NodeID, new_id
from proto.objects import (
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
)
from raft.files import Files
from raft.keys import Kek, KeyRing
from raft.node import RaftNode

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


class NodeControl(Control):
    """The control API of this node: a change of the unlock key is on disk before it returns."""

    def __init__(self, membership: Membership, rng: random.Random, clock: Clock) -> None:
        """Serve the membership's store."""
        super().__init__(membership.store, clock, rng)
        self._membership = membership

    @override
    async def update_cluster(
        self,
        version: int,
        spec: ClusterSpec,
        *,
        rotate_worker_token: bool = False,
        rotate_manager_token: bool = False,
        rotate_unlock_key: bool = False,
    ) -> None:
        """Change the cluster and seal this manager's keys anew if the unlock key changed."""
        await super().update_cluster(
            version,
            spec,
            rotate_worker_token=rotate_worker_token,
            rotate_manager_token=rotate_manager_token,
            rotate_unlock_key=rotate_unlock_key,
        )
        await self._membership.seal_keys()


class Membership:
    """An open manager."""

    def __init__(self, keys: KeyRing, raft_log: RaftNode, store: Store) -> None:
        """Use `create` or `open`."""
        self._keys = keys
        self._log = raft_log
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
        files: Files | None = None,
    ) -> tuple[Membership, ClusterID, NodeID]:
        """Begin a cluster of one in an empty directory."""
        kek = Kek.generate(rng.randbytes) if new.spec.auto_lock_managers else None
        keys = await asyncio.to_thread(KeyRing.create, directory, rng.randbytes, kek, files=files)
        cluster_id, node_id = ClusterID(new_id(rng)), NodeID(new_id(rng))
        membership = await cls._take_up(
            keys,
            RaftNode.create(
                directory,
                keys,
                node_id=node_id,
                address=new.advertise_addr,
                clock=clock,
                rng=rng,
                files=files,
            ),
            clock,
        )
        cluster = _first_cluster(cluster_id, new, kek, now=clock.wall(), rng=rng)
        node = _first_node(node_id, new)

        def write(tx: Transaction) -> None:
            tx.create(cluster)
            tx.create(node)

        try:
            await membership.store.update(write)
        except BaseException:
            await membership.close()
            raise
        return membership, cluster_id, node_id

    @classmethod
    async def open(
        cls,
        directory: Path,
        kek: Kek | None,
        *,
        clock: Clock,
        rng: random.Random,
        node_id: NodeID = NodeID(""),  # noqa: B008 -- a string
        advertise_addr: str = "",
        files: Files | None = None,
    ) -> Membership:
        """Open what `create` made; `files` is the disk, the machine's own if not given.

        `node_id` and `advertise_addr` are this node's, for a log that does not name its owner.

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
                address=advertise_addr,
                clock=clock,
                rng=rng,
                files=files,
            ),
            clock,
        )
        await membership.seal_keys()
        return membership

    @classmethod
    async def _take_up(
        cls, keys: KeyRing, opening: Coroutine[None, None, RaftNode], clock: Clock
    ) -> Membership:
        try:
            raft_log = await opening
            store = Store.open(raft_log, clock)
            # What was restored stays; walking it at every full collection would stall the loop.
            gc.freeze()
        except BaseException:
            keys.close()
            raise
        return cls(keys, raft_log, store)

    def cluster(self) -> Cluster:
        """Return the cluster's row."""
        (cluster,) = self.store.view().clusters
        return cluster

    def unlock_key(self) -> Kek | None:
        """Return the key that opens the ring, if it is not stored beside it."""
        return self._keys.kek if self._keys.is_autolocked else None

    async def seal_keys(self) -> None:
        """Make the ring of keys follow the cluster's unlock key."""
        async with self._sealing:
            wanted = self.cluster().unlock_key
            was_locked = self._keys.is_autolocked
            current = self._keys.kek.format() if was_locked else ""
            if wanted != current:
                kek = Kek.parse(wanted) if wanted else None
                await asyncio.to_thread(self._keys.rotate_kek, kek)
                log.info("keys_sealed", autolock=bool(wanted))
                if kek is not None and not was_locked:
                    # What was written so far could be read with a key that lay on this disk.
                    await self._log.rotate_data_key()
            if self._log.is_rotating:
                await self.store.save_snapshot()

    def dispatcher(self) -> LocalDispatcher:
        """Return the dispatcher for this node's agent."""
        return LocalDispatcher(self.store)

    def orchestrator(self, clock: Clock, rng: random.Random) -> Orchestrator:
        """Return the loop that turns services into tasks."""
        return Orchestrator(self.store, clock=clock, rng=rng, allocate_ports=allocate_ports)

    async def close(self) -> None:
        """Close store, log and keys; what was acknowledged is durable already.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; all is closed nevertheless.
        """
        try:
            await self.store.close()
            await self._log.close()
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


def _first_node(node_id: NodeID, new: NewCluster) -> Node:
    host = new.advertise_addr.rpartition(":")[0].strip("[]")
    return Node(
        id=node_id,
        spec=NodeSpec(role=NodeRole.MANAGER, availability=new.availability),
        description=new.description,
        status=NodeStatus(state=NodeState.UNKNOWN, addr=host),
        manager_status=ManagerStatus(
            is_leader=True, reachability=Reachability.REACHABLE, addr=new.advertise_addr
        ),
        role=NodeRole.MANAGER,
    )

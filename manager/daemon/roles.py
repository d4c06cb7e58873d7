"""Brings the managers' group in line with the roles that users want. Runs on the leader.

`Node.spec.role` is wanted, `Node.role` is what certificates are issued for, and the replicated
log's membership is who votes. The order keeps a quorum safe: a node becomes a manager by
certificate first, joins as a learner and votes when it has caught up; it leaves the group before
it loses the certificate. Source of the rules: swarmkit manager/role_manager.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from manager.store import Store, Transaction
from proto.clock import Clock
from proto.errors import ConflictError, NotLeaderError, SwarmError
from proto.ids import NodeID
from proto.objects import Node, NodeRole
from raft.node import MemberStatus, RaftNode

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# What could not be done is tried again after this time, and everything is looked at anew.
RECONCILE_SECONDS = 5.0


class SetRole(msgspec.Struct, frozen=True):
    """Issue certificates for this role from now on."""

    node_id: NodeID
    role: NodeRole


class Expel(msgspec.Struct, frozen=True):
    """Take a member out of the group."""

    node_id: NodeID


class Admit(msgspec.Struct, frozen=True):
    """See that a learner is promoted when it has caught up; a new leader is asked again."""

    node_id: NodeID
    address: str


Action = SetRole | Expel | Admit


def plan(nodes: Iterable[Node], members: Sequence[MemberStatus]) -> list[Action]:
    """Return what is to be done now, in its order. Pure.

    Args:
        nodes: all nodes of the cluster.
        members: the group's members. One whose node is not (or no more) in the cluster is
            expelled; so is one that shall be a worker, and only then its role changes.
    """
    by_id = {node.id: node for node in nodes}
    member_ids = {member.node_id for member in members}
    actions: list[Action] = []
    for node in sorted(by_id.values(), key=lambda node: node.id):
        if node.role is node.spec.role:
            continue
        if node.spec.role is NodeRole.MANAGER:
            actions.append(SetRole(node.id, NodeRole.MANAGER))
        elif node.id not in member_ids:
            actions.append(SetRole(node.id, NodeRole.WORKER))
    for member in sorted(members, key=lambda member: member.node_id):
        known = by_id.get(NodeID(member.node_id))
        if known is None or known.spec.role is NodeRole.WORKER:
            actions.append(Expel(NodeID(member.node_id)))
        elif not member.is_voter:
            actions.append(Admit(known.id, member.address))
    return actions


class RoleManager:
    """The shell around `plan`; one is made for each leadership."""

    def __init__(self, store: Store, raft: RaftNode, clock: Clock) -> None:
        """Keep what is reconciled."""
        self._store = store
        self._raft = raft
        self._clock = clock
        self._admitted: set[NodeID] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with self._store.watch(Node) as watch:
            while True:
                is_settled = await self.reconcile()
                try:
                    async with asyncio.timeout(None if is_settled else RECONCILE_SECONDS):
                        await anext(watch)
                    watch.drain()
                except TimeoutError:
                    pass

    async def reconcile(self) -> bool:
        """Do what is due; tell whether nothing is left to do but to wait for events."""
        while True:
            actions = plan(self._store.view().nodes, self._raft.status())
            todo = [
                a for a in actions if not (isinstance(a, Admit) and a.node_id in self._admitted)
            ]
            if not todo:
                return not actions
            for action in todo:
                if not await self._is_done(action):
                    return False

    async def _is_done(self, action: Action) -> bool:
        try:
            match action:
                case SetRole(node_id=node_id, role=role):
                    await self._store.update_without_barrier(
                        lambda tx: _set_role(tx, node_id, role)
                    )
                    log.info("node_role_set", node_id=node_id, role=role.name)
                case Expel(node_id=node_id):
                    await self._raft.remove(node_id)
                    log.info("manager_expelled", node_id=node_id)
                case Admit(node_id=node_id, address=address):
                    # The log promotes it by itself from here on.
                    await self._raft.add_learner(node_id, address)
                    self._admitted.add(node_id)
        except NotLeaderError:
            return False  # The next leader has a role manager too.
        except ConflictError as error:
            log.warning("role_not_changed", action=repr(action), reason=error.message)
            return False
        except SwarmError as error:
            log.warning("role_not_changed", action=repr(action), error=error.message)
            return False
        return True


def _set_role(tx: Transaction, node_id: NodeID, role: NodeRole) -> None:
    node = tx.nodes.get(node_id)
    if node is None or node.spec.role is not role:
        return
    manager_status = node.manager_status if role is NodeRole.MANAGER else None
    tx.update(msgspec.structs.replace(node, role=role, manager_status=manager_status))

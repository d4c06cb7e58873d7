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

from manager.nodeport.standing import check_candidate
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
        if node.spec.role is NodeRole.MANAGER:
            if node.role is not NodeRole.MANAGER:
                actions.append(SetRole(node.id, NodeRole.MANAGER))
        elif node.id not in member_ids and (
            node.role is not NodeRole.WORKER or node.manager_status is not None
        ):
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
        """Work until cancelled.

        Everything is looked at again every few seconds, also when all seems settled: who is a
        member may change without any change of a node. A node that is alone is left in peace.
        """
        async with self._store.watch(Node) as watch:
            while True:
                await self.reconcile()
                is_alone = len(self._store.view().nodes) == len(self._raft.membership.members) == 1
                try:
                    async with asyncio.timeout(None if is_alone else RECONCILE_SECONDS):
                        await anext(watch)
                    watch.drain()
                except TimeoutError:
                    pass

    async def reconcile(self) -> None:
        """Do what is due, each once; what cannot be done keeps nothing else from being done."""
        tried: set[Action] = set()
        while True:
            todo = [
                action
                for action in plan(self._store.view().nodes, self._raft.status())
                if action not in tried
                and not (isinstance(action, Admit) and action.node_id in self._admitted)
            ]
            if not todo:
                return
            # One, then look again: who may have which role depends on who is a member now.
            tried.add(todo[0])
            await self._try(todo[0])

    async def _try(self, action: Action) -> None:
        try:
            match action:
                case SetRole(node_id=node_id, role=role):
                    await self._store.update_without_barrier(
                        lambda tx: _set_role(tx, node_id, role, is_member=self._is_member(node_id))
                    )
                    log.info("node_role_set", node_id=node_id, role=role.name)
                case Expel(node_id=node_id):
                    await self._raft.remove(node_id)
                    self._admitted.discard(node_id)
                    log.info("manager_expelled", node_id=node_id)
                case Admit(node_id=node_id, address=address):
                    # The log promotes it by itself from here on.
                    await self._raft.add_learner(
                        node_id,
                        address,
                        check=lambda: check_candidate(self._store.head(), node_id),
                    )
                    self._admitted.add(node_id)
        except NotLeaderError as error:
            # The next leader has a role manager too.
            log.info("role_left_to_leader", action=repr(action), reason=error.message)
        except SwarmError as error:
            log.warning("role_not_changed", action=repr(action), reason=error.message)

    def _is_member(self, node_id: NodeID) -> bool:
        return any(member.node_id == node_id for member in self._raft.membership.members)


def _set_role(tx: Transaction, node_id: NodeID, role: NodeRole, *, is_member: bool) -> None:
    node = tx.nodes.get(node_id)
    if node is None or node.spec.role is not role:
        return
    if role is NodeRole.WORKER and is_member:
        # It came back in since it was looked at. A member has the role of a manager, always:
        # managers that the log has told less than others rely on it.
        raise ConflictError(f"node {node_id} is a member of the managers' group again")
    manager_status = node.manager_status if role is NodeRole.MANAGER else None
    tx.update(msgspec.structs.replace(node, role=role, manager_status=manager_status))

"""The node port of a manager: all services on one server. Imported only when it is opened."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import structlog
from grpc import aio
from typing_extensions import override

from manager.ca.credentials import NodeCredentials
from manager.ca.service import CAService
from manager.daemon.identity import Identity
from manager.daemon.membership import node_port_address
from manager.dispatcher.service import DispatcherService
from manager.logbroker.asker import Asker
from manager.logbroker.collector import Collector
from manager.logbroker.service import LogsService
from manager.nodeport.authorize import Authorizer, authorizing_interceptor
from manager.nodeport.claims import checked_port_address
from manager.nodeport.errors import abort
from manager.nodeport.peer import identity_of
from manager.nodeport.remotes import Remotes
from proto.clock import Clock
from proto.errors import SwarmError
from proto.ids import NodeID
from proto.v1 import (
    ca_pb2_grpc,
    dispatcher_pb2_grpc,
    logs_pb2_grpc,
    managers_pb2,
    managers_pb2_grpc,
)
from raft.transport.transport import Transport

if TYPE_CHECKING:
    from manager.daemon.manager import Manager

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class ManagersService(managers_pb2_grpc.ManagersServicer):
    """Lets managers into the group and out of it. Served by the leader."""

    def __init__(self, manager: Manager) -> None:
        """Serve this manager's log and store."""
        self._manager = manager

    @override
    async def Join(
        self,
        request: managers_pb2.ManagerJoinRequest,
        context: aio.ServicerContext[
            managers_pb2.ManagerJoinRequest, managers_pb2.ManagerJoinReply
        ],
    ) -> managers_pb2.ManagerJoinReply:
        """Make the caller a learner, or tell it again what it was told."""
        try:
            return await self._join(identity_of(context).node_id, request)
        except SwarmError as error:
            await abort(context, error)
            raise

    async def _join(
        self, node_id: NodeID, request: managers_pb2.ManagerJoinRequest
    ) -> managers_pb2.ManagerJoinReply:
        admission = await self._manager.admit(
            node_id,
            checked_port_address(request.address, "the address of the node port"),
            checked_port_address(request.api_address, "the address of the API port"),
        )
        return managers_pb2.ManagerJoinReply(
            member_id=admission.member_id,
            members=[
                managers_pb2.RaftMember(
                    member_id=member.id,
                    node_id=member.node_id,
                    address=member.address,
                    is_voter=member.is_voter,
                )
                for member in admission.members
            ],
            unlock_key=admission.unlock_key,
        )

    @override
    async def Leave(
        self,
        request: managers_pb2.ManagerLeaveRequest,
        context: aio.ServicerContext[
            managers_pb2.ManagerLeaveRequest, managers_pb2.ManagerLeaveReply
        ],
    ) -> managers_pb2.ManagerLeaveReply:
        """Take the caller out of the group; refused when the others would have no quorum."""
        try:
            await self._manager.dismiss(identity_of(context).node_id)
        except SwarmError as error:
            await abort(context, error)
        return managers_pb2.ManagerLeaveReply()


async def open_transport(
    manager: Manager,
    identity: Identity,
    credentials: NodeCredentials,
    remotes: Remotes,
    *,
    listen_address: str,
    clock: Clock,
    rng: random.Random,
) -> tuple[Transport, Collector, Authorizer]:
    """Serve all services of the node port; return it, what reads logs of other nodes, and its gate.

    Raises:
        UnavailableError: the address cannot be listened on.
    """
    raft = manager.raft
    transport = Transport(
        identity.node_id,
        identity.cluster_id,
        credentials.source,
        on_messages=raft.on_messages,
        on_snapshot=raft.on_snapshot,
        on_unreachable=raft.on_unreachable,
        is_allowed=manager.is_heard,
        clock=clock,
        rng=rng,
        address=node_port_address(identity.advertise_addr),
    )
    asker = Asker(
        identity.cluster_id,
        credentials.source,
        remotes,
        is_leader=lambda: manager.store.term != 0,
        own_wishes=manager.dispatcher.wishes,
        rng=rng,
    )
    collector = Collector(
        identity.node_id,
        node_port_address(identity.advertise_addr),
        manager.store.view,
        rng,
        asker,
    )
    logs = LogsService(collector, manager.dispatcher.wishes, manager.leader_node_port)
    dispatcher = DispatcherService(manager.dispatcher, manager.leader_node_port)
    authority = CAService(manager.authority, clock)
    managers = ManagersService(manager)
    authorizer = authorizing_interceptor(
        identity.cluster_id, lambda: manager.store, clock, knows_members=manager.knows_members
    )
    await transport.start(
        listen_address,
        add_services=[
            lambda server: dispatcher_pb2_grpc.add_DispatcherServicer_to_server(dispatcher, server),
            lambda server: ca_pb2_grpc.add_CAServicer_to_server(authority, server),
            lambda server: logs_pb2_grpc.add_LogsServicer_to_server(logs, server),
            lambda server: managers_pb2_grpc.add_ManagersServicer_to_server(managers, server),
        ],
        interceptors=[authorizer],
    )
    return transport, collector, authorizer

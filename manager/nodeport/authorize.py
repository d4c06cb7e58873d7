"""Who may call what on the node port.

The handshake proved that a caller's certificate comes from this cluster's authority. The
interceptor checks the rest before any service sees a call: the role (`AUTHORIZED` names, for each
RPC, the roles that may), the cluster, the dates, and that the node was not removed. An RPC that
is not in the table is not served, and a server that has one refuses to start.

What outlives its beginning (a stream) is checked again by its service.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc import aio
from typing_extensions import override

from manager.nodeport.errors import abort
from manager.nodeport.peer import identity_of
from manager.store import Store, View
from proto.clock import Clock
from proto.errors import (
    DeniedError,
    InvariantViolationError,
    NotImplementedYetError,
    RemovedError,
    SwarmError,
)
from proto.ids import ClusterID, NodeID
from raft.transport.channels import Guard
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Identity
from raft.transport.throttle import Throttle

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

_MANAGERS = frozenset({MANAGER_ROLE})
_NODES = frozenset({MANAGER_ROLE, WORKER_ROLE})

AUTHORIZED: dict[str, frozenset[str]] = {
    "/swarm.v1.Raft/Messages": _MANAGERS,
    "/swarm.v1.Raft/Snapshot": _MANAGERS,
    "/swarm.v1.Dispatcher/Session": _NODES,
    "/swarm.v1.CA/Renew": _NODES,
    "/swarm.v1.Logs/Ask": _MANAGERS,
    "/swarm.v1.Logs/Publish": _NODES,
    "/swarm.v1.Managers/Join": _MANAGERS,
    "/swarm.v1.Managers/Leave": _MANAGERS,
}
"""Every RPC of the node port, and the roles that may call it."""

_RAFT = "/swarm.v1.Raft/"

if TYPE_CHECKING:  # generic for the type checker only
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = aio.ServicerContext[Any, Any]
else:
    Handler, Context = grpc.RpcMethodHandler, aio.ServicerContext
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


def check_role(identity: Identity, method: str, cluster_id: ClusterID, now: float) -> None:
    """Refuse a caller whose certificate does not let it call this. Pure.

    Args:
        identity: what the certificate says.
        method: the full name of the RPC.
        cluster_id: this cluster.
        now: seconds since the epoch.

    Raises:
        DeniedError: with the reason.
        NotImplementedYetError: there is no such RPC.
    """
    roles = AUTHORIZED.get(method)
    if roles is None:
        raise NotImplementedYetError(f"{method} is not served here")
    node_id = identity.node_id
    if identity.cluster_id != cluster_id:
        raise DeniedError(
            f"node {node_id} belongs to cluster {identity.cluster_id}, this is {cluster_id}"
        )
    if identity.role not in roles:
        wanted = " or ".join(sorted(roles))
        raise DeniedError(
            f"node {node_id} has the role {identity.role}, only a {wanted} may call {method}"
        )
    if now >= identity.valid_until:
        raise DeniedError(f"the certificate of node {node_id} has expired; it must join anew")


def check_member(view: View, node_id: NodeID, *, is_leader: bool, is_raft: bool = False) -> None:
    """Refuse a node that is not, or no longer, in the cluster. Pure.

    Only the leader knows that a node it has never heard of does not exist: another manager may
    not have been told yet. The log's own messages are what tells a new manager, so for them only
    the list of removed nodes counts, besides the log's own members.

    Raises:
        RemovedError: it is not.
    """
    if node_id in view.nodes:
        return
    for cluster in view.clusters:
        if any(removed.id == node_id for removed in cluster.removed_nodes):
            raise RemovedError(node_id, is_known=True)
    if is_leader and not is_raft:
        # Its certificate is the cluster's, so it was in it once.
        raise RemovedError(node_id)


async def _check_membership(store: Store, node_id: NodeID, method: str) -> None:
    """Refuse a node as `check_member` does; a node takes this for the truth and stops its tasks.

    So it is said only of a state that is proven to be the newest: another manager may lead by now,
    and have let the node in.

    Raises:
        RemovedError: it is not in the cluster.
        UnavailableError: this is not known; another manager has to be asked.
    """
    is_raft = method.startswith(_RAFT)
    view = store.view()
    # A removal that is on record is committed, and so for ever.
    check_member(view, node_id, is_leader=False, is_raft=is_raft)
    if node_id not in view.nodes and store.term and not is_raft:
        check_member(await store.newest(), node_id, is_leader=True)


class _Authorizer(Guard):
    """The interceptor."""

    def __init__(
        self, cluster_id: ClusterID, store: Callable[[], Store | None], clock: Clock
    ) -> None:
        self._cluster_id = cluster_id
        self._store = store
        self._clock = clock
        self._throttle = Throttle()

    @override
    def check_methods(self, methods: Collection[str]) -> None:
        for method in sorted(methods):
            if method not in AUTHORIZED:
                raise InvariantViolationError(f"nobody said who may call {method}")

    @override
    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method

        async def admit(context: Context) -> None:
            try:
                await self._check(context, method)
            except SwarmError as error:
                await abort(context, error)

        return _guarded(handler, admit)

    async def _check(self, context: Context, method: str) -> None:
        """Raise the reason why this caller may not."""
        caller = "unknown"
        try:
            identity = identity_of(context)
            caller = identity.node_id
            check_role(identity, method, self._cluster_id, self._clock.wall())
            store = self._store()
            if store is not None:
                await _check_membership(store, identity.node_id, method)
        except SwarmError as error:
            if self._throttle.is_due((caller, error.message), self._clock.monotonic()):
                log.warning("call_refused", peer_id=caller, method=method, reason=error.message)
            raise


def _guarded(handler: Handler, admit: Callable[[Context], Awaitable[None]]) -> Handler:
    """Return the handler with `admit` before it, whichever of the four kinds it is."""
    if handler.response_streaming:
        kind = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(
            _streaming(kind, admit), handler.request_deserializer, handler.response_serializer
        )
    behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )

    async def answer(request: Any, context: Any) -> Any:
        await admit(context)
        return await _awaited(behaviour, request, context)

    return make_unary(answer, handler.request_deserializer, handler.response_serializer)


async def _awaited(behaviour: Any, request: Any, context: Any) -> Any:
    return await behaviour(request, context)


def _streaming(behaviour: Any, admit: Callable[[Context], Awaitable[None]]) -> Any:
    """Guard a behaviour that streams: an async generator stays one, a coroutine as well."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            await admit(context)
            async for response in behaviour(request, context):
                yield response

        return generate

    async def write(request: Any, context: Context) -> None:
        await admit(context)
        await behaviour(request, context)

    return write


def authorizing_interceptor(
    cluster_id: ClusterID, store: Callable[[], Store | None], clock: Clock
) -> Guard:
    """Make the interceptor of the node port's server.

    Args:
        cluster_id: this cluster.
        store: returns the store that knows the nodes; None while there is none yet.
        clock: for the dates of certificates.
    """
    return _Authorizer(cluster_id, store, clock)

"""Who may call what on the node port.

The handshake proved that a caller's certificate comes from this cluster's authority. The
interceptor checks the rest before any service sees a call: the role (`AUTHORIZED` names, for each
RPC, the roles that may), the cluster, the dates, and that the node still is in the cluster and, for
what only managers may call, that it still is a manager (`standing`). An RPC that is not in the
table is not served, and a server that has one refuses to start.

What outlives its beginning (a stream) is checked again when the caller's row changes, and ended.
What changes the state is checked by its service once more, in the transaction.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc import aio
from typing_extensions import override

from manager.nodeport.errors import abort
from manager.nodeport.peer import identity_of
from manager.nodeport.standing import OpenCalls, check_row
from manager.store import Store
from proto.clock import Clock
from proto.errors import (
    DeniedError,
    InvariantViolationError,
    NotImplementedYetError,
    SwarmError,
    UnavailableError,
)
from proto.ids import ClusterID, NodeID
from proto.objects import Node
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


class Authorizer(Guard):
    """The interceptor; `authorizing_interceptor` makes it."""

    def __init__(
        self,
        cluster_id: ClusterID,
        store: Callable[[], Store | None],
        clock: Clock,
        knows_members: Callable[[], bool],
    ) -> None:
        """See `authorizing_interceptor`."""
        self._cluster_id = cluster_id
        self._store = store
        self._clock = clock
        self._knows_members = knows_members
        self._throttle = Throttle()
        self._calls = OpenCalls(clock)

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
        lasts = handler.request_streaming or handler.response_streaming

        @asynccontextmanager
        async def guard(context: Context) -> AsyncIterator[None]:
            try:
                identity = await self._admitted(context, method)
                if not lasts:
                    yield
                    return
                with self._calls.opened(identity, lambda: self._check_again(identity, method)):
                    yield
            except SwarmError as error:
                await abort(context, error)

        return _guarded(handler, guard)

    async def run(self) -> None:
        """End the streams of callers that are not what they were, until cancelled."""
        store = self._store()
        assert store is not None
        await self._calls.follow(store.watch(Node))

    async def _admitted(self, context: Context, method: str) -> Identity:
        """Return who calls, or raise the reason why this caller may not."""
        caller = "unknown"
        try:
            identity = identity_of(context)
            caller = identity.node_id
            check_role(identity, method, self._cluster_id, self._clock.wall())
            store = self._store()
            if store is None:
                return identity
            if method.startswith(_RAFT):
                _check_member(store, caller, knows_members=self._knows_members())
            else:
                await _check_row(store, caller, as_manager=_is_of_managers(method))
        except SwarmError as error:
            if self._throttle.is_due((caller, error.message), self._clock.monotonic()):
                log.warning("call_refused", peer_id=caller, method=method, reason=error.message)
            raise
        return identity

    def _check_again(self, identity: Identity, method: str) -> None:
        """Raise the reason why a caller that was admitted may go on no longer."""
        check_role(identity, method, self._cluster_id, self._clock.wall())
        store = self._store()
        if store is None:
            return
        if method.startswith(_RAFT):
            _check_member(store, identity.node_id, knows_members=self._knows_members())
            return
        view = store.view()
        # What was not so when the caller was admitted became so since: a row says it for good.
        check_row(
            view,
            identity.node_id,
            as_manager=_is_of_managers(method),
            is_newest=identity.node_id in view.nodes,
        )


def _is_of_managers(method: str) -> bool:
    return WORKER_ROLE not in AUTHORIZED[method]


async def _check_row(store: Store, node_id: NodeID, *, as_manager: bool) -> None:
    """Refuse a node as `check_row` does; a node takes this for the truth and stops its tasks.

    So it is said only of a state that is proven to be the newest: another manager may lead by now,
    and have let the node in, or promoted it. What another manager than the leader says is only that
    it does not know.
    """
    view = store.view()
    try:
        # A removal that is on record is committed, and so for ever.
        check_row(view, node_id, as_manager=as_manager, is_newest=False)
    except UnavailableError:
        if not store.term:
            raise
    else:
        if node_id in view.nodes or not store.term:
            return
    check_row(await store.newest(), node_id, as_manager=as_manager, is_newest=True)


def _check_member(store: Store, node_id: NodeID, *, knows_members: bool) -> None:
    """Refuse a node that speaks for the log and is no manager by its row.

    The log's messages are what tells a manager of the newest rows. Until it has been told as much
    as it knows of the members, only these count, besides the list of those who were removed.
    """
    view = store.view()
    if knows_members and node_id not in view.nodes:
        check_row(view, node_id, as_manager=False, is_newest=False)
        raise DeniedError(f"node {node_id} is not in this cluster, as far as this manager was told")
    check_row(view, node_id, as_manager=knows_members, is_newest=knows_members)


Admission = Callable[[Context], AbstractAsyncContextManager[None]]


def _guarded(handler: Handler, guard: Admission) -> Handler:
    """Return the handler inside of `guard`, whichever of the four kinds it is."""
    if handler.response_streaming:
        kind = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(
            _streaming(kind, guard), handler.request_deserializer, handler.response_serializer
        )
    behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )

    async def answer(request: Any, context: Any) -> Any:
        async with guard(context):
            return await _awaited(behaviour, request, context)

    return make_unary(answer, handler.request_deserializer, handler.response_serializer)


async def _awaited(behaviour: Any, request: Any, context: Any) -> Any:
    return await behaviour(request, context)


def _streaming(behaviour: Any, guard: Admission) -> Any:
    """Guard a behaviour that streams: an async generator stays one, a coroutine as well."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            async with guard(context):
                async for response in behaviour(request, context):
                    yield response

        return generate

    async def write(request: Any, context: Context) -> None:
        async with guard(context):
            await behaviour(request, context)

    return write


def authorizing_interceptor(
    cluster_id: ClusterID,
    store: Callable[[], Store | None],
    clock: Clock,
    *,
    knows_members: Callable[[], bool] = lambda: False,
) -> Authorizer:
    """Make the interceptor of the node port's server; its `run` ends streams.

    Args:
        cluster_id: this cluster.
        store: returns the store that knows the nodes; None while there is none yet.
        clock: for the dates of certificates.
        knows_members: whether the store is as new as the log's membership, so that every member has
            its row there. Must be quick.
    """
    return Authorizer(cluster_id, store, clock, knows_members)

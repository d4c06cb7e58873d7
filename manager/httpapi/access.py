"""Who may call what on the API port. Pure, but for the middleware at the end.

On the unix socket the file's mode decides. On TLS a manager of this cluster, by its certificate,
may call everything; everybody else, a worker too, only what joining needs. Whether it is a manager
says its row, when it calls and for as long as an answer lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from aiohttp import web
from aiohttp.typedefs import Handler

from manager.httpapi.backend import Backend
from manager.httpapi.contexts import peer_identity
from manager.httpapi.forward import FORWARDED
from manager.httpapi.requests import CALLER, CLOCK, backend_of
from manager.nodeport.standing import OpenCall, OpenCalls
from proto.clock import Clock
from proto.errors import DeniedError, InvalidError, NotFoundError
from proto.objects import Cluster, Node, NodeRole
from raft.transport.identity import MANAGER_ROLE, Identity, check_manager

# A request for a certificate takes 1 KiB.
JOIN_BYTES_MAX = 64 * 1024
JOIN_PATHS = frozenset({"/join/v1/root", "/join/v1/certificate"})
WITHDRAW_PATH = "/join/v1/node"

_ONLY_READ = frozenset({"GET", "HEAD"})

_ONLY_MANAGERS = (
    "this port serves managers of the cluster only, by their certificates; use the socket of the "
    "daemon on a manager"
)


def check_caller(identity: Identity, cluster: Cluster, node: Node | None, now: float) -> None:
    """Refuse a certificate that is no longer, or never was, that of a manager.

    Args:
        identity: what it says; the chain was verified.
        cluster: this one.
        node: the caller's row, None if there is none.
        now: seconds since the epoch.

    Raises:
        DeniedError: with the reason.
    """
    check_manager(identity, cluster.id, now)
    if node is None:
        was_removed = any(removed.id == identity.node_id for removed in cluster.removed_nodes)
        what = "was removed from" if was_removed else "is not in"
        raise DeniedError(f"node {identity.node_id} {what} this cluster")
    if node.role is not NodeRole.MANAGER:
        raise DeniedError(f"node {identity.node_id} is no manager any more")


@web.middleware
async def only_managers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through managers, and anybody who wants to join."""
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical in JOIN_PATHS:
        await _read_small_body(request)
        return await handler(request)
    if resource is not None and resource.canonical == WITHDRAW_PATH:
        await _check_own(request)
        return await handler(request)
    caller = request[CALLER] = await _checked_caller(request)
    if request.method not in _ONLY_READ:
        # What was begun is done; it was asked for by who was a manager.
        return await handler(request)
    with request.app[CALLERS].opened(request, caller) as call:
        try:
            return await handler(request)
        finally:
            if call.refusal is not None and request.transport is not None:
                # A part of the answer may have been sent: there is no other way to end it.
                request.transport.abort()


async def _check_own(request: web.Request) -> None:
    """Let a node take back its own join; a manager brings it to the leader."""
    identity = _shown(request)
    if identity.role == MANAGER_ROLE and FORWARDED in request.headers:
        request[CALLER] = await _checked_caller(request)
        return
    cluster = backend_of(request).control().cluster()
    if identity.cluster_id != cluster.id or request.app[CLOCK].wall() >= identity.valid_until:
        raise DeniedError(f"the certificate of node {identity.node_id} is none of this cluster now")
    if request.query.get("id") != identity.node_id:
        raise DeniedError(f"node {identity.node_id} may take back its own join only")


class Callers:
    """The managers whose requests are being answered: an answer that lasts ends when they may not.

    Begins to watch the nodes at the first request; `close` ends it.
    """

    def __init__(self, backend: Backend, clock: Clock) -> None:
        """Watch nobody yet."""
        self._backend = backend
        self._clock = clock
        self._calls = OpenCalls(clock)
        self._following: asyncio.Task[None] | None = None

    def opened(
        self, request: web.Request, caller: Identity
    ) -> contextlib.AbstractContextManager[OpenCall]:
        """Keep a request for as long as it is being answered."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._calls.follow(self._backend.watch(Node)))
        return self._calls.opened(caller, lambda: _check_now(request, caller))

    async def close(self) -> None:
        """Watch no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])


CALLERS: web.AppKey[Callers] = web.AppKey("callers", Callers)


async def _read_small_body(request: web.Request) -> None:
    """Read a stranger's body while the time for the request's head still runs."""
    if not request.body_exists:
        return
    size = request.content_length
    if size is None or size > JOIN_BYTES_MAX:
        raise InvalidError(
            f"the request body is larger than {JOIN_BYTES_MAX} bytes, or does not say its size"
        )
    await request.read()  # kept: whoever reads it again gets the same


def _shown(request: web.Request) -> Identity:
    """Return what the certificate of the other end says."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    identity = peer_identity(tls) if isinstance(tls, ssl.SSLObject) else None
    if identity is None:
        raise DeniedError(_ONLY_MANAGERS)
    return identity


async def _checked_caller(request: web.Request) -> Identity:
    identity = _shown(request)
    await _check_proven(request, identity)
    return identity


async def _check_proven(request: web.Request, identity: Identity) -> None:
    """Raise the reason why a caller is no manager: of a state that is proven to be the newest.

    This manager may have been cut off, or not been told yet of one that the others let in.

    Raises:
        DeniedError: it is none.
        UnavailableError: this is not known now.
    """
    try:
        _check_now(request, identity)
    except DeniedError:
        backend = backend_of(request)
        check_manager(identity, backend.control().cluster().id, request.app[CLOCK].wall())
        await backend.read_barrier()
        _check_now(request, identity)


def _check_now(request: web.Request, identity: Identity) -> None:
    """Raise the reason why a caller is no manager, or no longer."""
    control = backend_of(request).control()
    try:
        node = control.node(identity.node_id)
    except NotFoundError:
        node = None
    if node is not None and node.id != identity.node_id:
        node = None  # a reference may be a name too; a certificate's is an ID
    check_caller(identity, control.cluster(), node, request.app[CLOCK].wall())

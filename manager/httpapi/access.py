"""Who may call what on the API port. Pure, but for the middleware at the end.

On the unix socket the file's mode decides. On TLS a manager of this cluster, by its certificate,
may call everything; everybody else, a worker too, only what joining needs.
"""

from __future__ import annotations

import ssl

from aiohttp import web
from aiohttp.typedefs import Handler

from manager.httpapi.contexts import peer_identity
from manager.httpapi.requests import CALLER, CLOCK, backend_of
from proto.errors import DeniedError, InvalidError, NotFoundError
from proto.objects import Cluster, Node, NodeRole
from raft.transport.identity import Identity, check_manager

# A request for a certificate takes 1 KiB.
JOIN_BYTES_MAX = 64 * 1024
JOIN_PATHS = frozenset({"/join/v1/root", "/join/v1/certificate"})

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
    if resource is None or resource.canonical not in JOIN_PATHS:
        request[CALLER] = _checked_caller(request)
    else:
        await _read_small_body(request)
    return await handler(request)


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


def _checked_caller(request: web.Request) -> Identity:
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    identity = peer_identity(tls) if isinstance(tls, ssl.SSLObject) else None
    if identity is None:
        raise DeniedError(_ONLY_MANAGERS)
    control = backend_of(request).control()
    try:
        node = control.node(identity.node_id)
    except NotFoundError:
        node = None
    if node is not None and node.id != identity.node_id:
        node = None  # a reference may be a name too; a certificate's is an ID
    check_caller(identity, control.cluster(), node, request.app[CLOCK].wall())
    return identity

"""/nodes."""

from __future__ import annotations

from aiohttp import web

from manager.httpapi.convert.node import node_spec_of, node_to_json
from manager.httpapi.filters import NODE_FILTERS, parse_filters, select_nodes
from manager.httpapi.repeats import is_gone, settle_removal, settle_update
from manager.httpapi.requests import (
    attempt_of,
    backend_of,
    flag,
    json_body,
    json_response,
    version_of,
)
from proto.errors import NotFoundError, SequenceConflictError

SELF = "self"


def node_ref(request: web.Request, ref: str) -> str:
    """Resolve `self`, which the stock client does for some commands only."""
    return backend_of(request).facts().node_id if ref == SELF else ref


async def list_all(request: web.Request) -> web.StreamResponse:
    """List nodes."""
    control = backend_of(request).control()
    filters = parse_filters(request.query.get("filters", ""), NODE_FILTERS)
    cluster = control.cluster()
    nodes = select_nodes(control.nodes(), filters)
    return json_response([node_to_json(node, cluster) for node in nodes])


async def inspect(request: web.Request) -> web.StreamResponse:
    """Describe a node."""
    control = backend_of(request).control()
    node = control.node(node_ref(request, request.match_info["id"]))
    return json_response(node_to_json(node, control.cluster()))


async def update(request: web.Request) -> web.StreamResponse:
    """Change a node's spec."""
    control = backend_of(request).control()
    version = version_of(request, "node")
    spec = node_spec_of(await json_body(request))
    reference = node_ref(request, request.match_info["id"])
    try:
        await control.update_node(reference, version, spec)
    except SequenceConflictError as error:
        if not attempt_of(request).is_repeat:
            raise
        found = control.node(reference)
        settle_update(
            error,
            given=version,
            committed=found.version,
            is_wanted=found.spec == spec,
        )
    return web.Response()


async def remove(request: web.Request) -> web.StreamResponse:
    """Remove a node."""
    control = backend_of(request).control()
    reference = node_ref(request, request.match_info["id"])
    try:
        await control.remove_node(reference, force=flag(request, "force"))
    except NotFoundError:
        if not attempt_of(request).is_repeat:
            raise
        settle_removal(is_committed=is_gone(control.node, reference))
    return web.Response()


ROUTES = (
    ("GET", "/nodes", list_all),
    ("GET", "/nodes/{id}", inspect),
    ("POST", "/nodes/{id}/update", update),
    ("DELETE", "/nodes/{id}", remove),
)

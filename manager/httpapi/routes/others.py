"""Lists that are empty in this version, so that clients which only look are told the truth."""

from __future__ import annotations

from aiohttp import web

from manager.httpapi.requests import backend_of, json_response
from proto.errors import NotFoundError


async def no_networks(_request: web.Request) -> web.StreamResponse:
    """List networks: none."""
    return json_response([])


async def no_network(request: web.Request) -> web.StreamResponse:
    """Describe a network: there is none."""
    raise NotFoundError("network", request.match_info["id"])


async def no_volumes(_request: web.Request) -> web.StreamResponse:
    """List volumes: none."""
    return json_response({"Volumes": [], "Warnings": None})


async def none_of_the_cluster(request: web.Request) -> web.StreamResponse:
    """List secrets or configs: none, but only a manager may say so."""
    backend_of(request).control()
    return json_response([])


ROUTES = (
    ("GET", "/networks", no_networks),
    ("GET", "/networks/{id}", no_network),
    ("GET", "/volumes", no_volumes),
    ("GET", "/secrets", none_of_the_cluster),
    ("GET", "/configs", none_of_the_cluster),
)

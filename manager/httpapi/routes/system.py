"""/_ping, /version, /info and /system/df."""

from __future__ import annotations

from aiohttp import web

from manager.httpapi.convert.image import image_summary_to_json
from manager.httpapi.convert.info import info_to_json, ping_swarm_header, version_to_json
from manager.httpapi.requests import CLOCK, STREAMS, backend_of, json_response
from manager.httpapi.timestamps import nanoseconds


async def ping(request: web.Request) -> web.StreamResponse:
    """Say that the daemon lives, and in which state its node is."""
    facts = backend_of(request).facts()
    return web.Response(
        text="OK" if request.method == "GET" else None,
        content_type="text/plain",
        headers={
            "Swarm": ping_swarm_header(facts.swarm),
            "Builder-Version": "1",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
        },
    )


async def version(request: web.Request) -> web.StreamResponse:
    """Describe the server's version."""
    return json_response(version_to_json(backend_of(request).facts()))


async def info(request: web.Request) -> web.StreamResponse:
    """Describe the node."""
    now_ns = nanoseconds(request.app[CLOCK].wall())
    streams = request.app[STREAMS]
    facts = backend_of(request).facts()
    return json_response(info_to_json(facts, now_ns=now_ns, listener_count=streams.count))


async def disk_usage(request: web.Request) -> web.StreamResponse:
    """Count what images take; containers and volumes are not counted yet."""
    backend = backend_of(request)
    in_use = backend.images_in_use()
    images = list(backend.images.images())
    return json_response(
        {
            "LayersSize": sum(image.size_bytes for image in images),
            "Images": [
                image_summary_to_json(image, containers=int(image.id in in_use)) for image in images
            ],
            "Containers": [],
            "Volumes": [],
            "BuildCache": [],
        }
    )


ROUTES = (
    ("HEAD", "/_ping", ping),
    ("GET", "/_ping", ping),
    ("GET", "/version", version),
    ("GET", "/info", info),
    ("GET", "/system/df", disk_usage),
)

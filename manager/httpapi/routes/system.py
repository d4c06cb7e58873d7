"""/_ping, /version, /info and /system/df."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from aiohttp import web

from manager.httpapi.backend import Backend
from manager.httpapi.convert.common import Json
from manager.httpapi.convert.image import image_summary_to_json
from manager.httpapi.convert.info import info_to_json, ping_swarm_header, version_to_json
from manager.httpapi.convert.volume import volume_usage_to_json
from manager.httpapi.requests import CLOCK, STREAMS, backend_of, json_response
from manager.httpapi.routes.tasks import container_summaries
from manager.httpapi.timestamps import nanoseconds
from proto.ids import ContainerID
from worker.files import tree


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
    """Measure what images, containers and volumes take."""
    backend = backend_of(request)
    layers = backend.images.layer_bytes()
    return json_response(
        {
            "LayersSize": sum(layers.values()),
            "Images": _images_usage(backend, layers),
            "Containers": await _containers_usage(request),
            "Volumes": await asyncio.to_thread(_volumes_usage, backend, backend.volumes_in_use()),
            "BuildCache": [],
        }
    )


def _images_usage(backend: Backend, layers: Mapping[str, int]) -> list[Json]:
    in_use = backend.images_in_use()
    images = list(backend.images.images())
    owners = Counter(diff_id for image in images for diff_id in set(image.diff_ids))
    return [
        image_summary_to_json(
            image,
            containers=int(image.id in in_use),
            shared_bytes=sum(layers.get(i, 0) for i in set(image.diff_ids) if owners[i] > 1),
        )
        for image in images
    ]


async def _containers_usage(request: web.Request) -> list[Json]:
    sizes = await asyncio.to_thread(backend_of(request).container_bytes)
    return [
        {**summary, "SizeRw": sizes.get(summary["Id"], 0)}
        for summary in container_summaries(request, show_all=True)
    ]


def _volumes_usage(backend: Backend, in_use: Mapping[str, Sequence[ContainerID]]) -> list[Json]:
    return [
        volume_usage_to_json(
            volume,
            size_bytes=tree.size_bytes(volume.mountpoint),
            users=len(in_use.get(volume.name, ())),
        )
        for volume in backend.volumes.all()
    ]


ROUTES = (
    ("HEAD", "/_ping", ping),
    ("GET", "/_ping", ping),
    ("GET", "/version", version),
    ("GET", "/info", info),
    ("GET", "/system/df", disk_usage),
)

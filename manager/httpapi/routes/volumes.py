"""/volumes: this node's volumes. Who uses one is asked of the worker at every removal."""

from __future__ import annotations

import asyncio
import secrets

import msgspec
from aiohttp import web

from manager.httpapi.convert.volume import ANONYMOUS_LABEL, is_anonymous, volume_to_json
from manager.httpapi.filters import (
    VOLUME_FILTERS,
    VOLUME_PRUNE_FILTERS,
    flag_of,
    parse_filters,
    select_volumes,
)
from manager.httpapi.requests import CLOCK, backend_of, flag, json_body, json_response
from manager.httpapi.versions import negotiated
from proto.errors import (
    InUseError,
    InvalidError,
    NotFoundError,
    NotImplementedYetError,
    RuntimeFailedError,
)
from worker.files import tree
from worker.volumes import DATA

# From this version on a prune takes anonymous volumes only, unless asked for all.
_PRUNES_ANONYMOUS = (1, 42)


class _Wanted(msgspec.Struct, frozen=True):
    """The body of /volumes/create."""

    Name: str = ""
    Driver: str = ""
    DriverOpts: dict[str, str] | None = None
    Labels: dict[str, str] | None = None
    ClusterVolumeSpec: dict[str, msgspec.Raw] | None = None


async def list_all(request: web.Request) -> web.StreamResponse:
    """List volumes."""
    backend = backend_of(request)
    filters = parse_filters(request.query.get("filters", ""), VOLUME_FILTERS)
    found = select_volumes(backend.volumes.all(), filters, backend.volumes_in_use())
    return json_response({"Volumes": [volume_to_json(one) for one in found], "Warnings": None})


async def inspect(request: web.Request) -> web.StreamResponse:
    """Describe a volume."""
    return json_response(
        volume_to_json(backend_of(request).volumes.inspect(request.match_info["name"]))
    )


async def create(request: web.Request) -> web.StreamResponse:
    """Make a volume; one of this name that exists is as good."""
    try:
        wanted = msgspec.convert(await json_body(request), _Wanted)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the request body is not valid: {error}") from None
    if wanted.ClusterVolumeSpec is not None:
        raise NotImplementedYetError("cluster volumes: not served by this version of Swarm")
    labels = wanted.Labels or {}
    volume = backend_of(request).volumes.create(
        wanted.Name or secrets.token_hex(32),
        now=request.app[CLOCK].wall(),
        driver=wanted.Driver,
        labels=labels if wanted.Name else {ANONYMOUS_LABEL: "", **labels},
        options=wanted.DriverOpts,
    )
    return json_response(volume_to_json(volume), 201)


async def remove(request: web.Request) -> web.StreamResponse:
    """Remove a volume that no container uses."""
    backend, name = backend_of(request), request.match_info["name"]
    try:
        backend.volumes.inspect(name)
    except NotFoundError:
        if flag(request, "force"):
            return web.Response(status=204)
        raise
    except RuntimeFailedError:
        # Its record is damaged: to remove it is the way out that it names.
        pass
    users = backend.volumes_in_use().get(name, ())
    if users:
        raise InUseError(f"remove {name}: volume is in use - [{', '.join(users)}]")
    # In one breath with the look at who uses it: nobody can ask for the volume in between.
    aside = backend.volumes.set_aside(name)
    await asyncio.to_thread(backend.volumes.delete, aside)
    return web.Response(status=204)


async def prune(request: web.Request) -> web.StreamResponse:
    """Remove the volumes that no container uses: the anonymous ones, or all."""
    backend = backend_of(request)
    filters = parse_filters(request.query.get("filters", ""), VOLUME_PRUNE_FILTERS)
    version = negotiated(request.match_info.get("version", ""))
    takes_all = flag_of(filters, "all", default=version < _PRUNES_ANONYMOUS)
    others = {name: values for name, values in filters.items() if name != "all"}
    removed: list[str] = []
    freed_bytes = 0
    for volume in select_volumes(backend.volumes.all(), others, {}):
        # Asked each time: a task may have begun while the one before was deleted.
        if volume.name in backend.volumes_in_use() or not (takes_all or is_anonymous(volume)):
            continue
        aside = backend.volumes.set_aside(volume.name)
        removed.append(volume.name)
        freed_bytes += await asyncio.to_thread(tree.size_bytes, str(aside / DATA))
        await asyncio.to_thread(backend.volumes.delete, aside)
    return json_response({"VolumesDeleted": removed or None, "SpaceReclaimed": freed_bytes})


ROUTES = (
    ("GET", "/volumes", list_all),
    ("POST", "/volumes/create", create),
    ("POST", "/volumes/prune", prune),
    ("GET", "/volumes/{name}", inspect),
    ("DELETE", "/volumes/{name}", remove),
)

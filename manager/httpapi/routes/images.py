"""/images: what this node holds, and fetching, loading, naming and removing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from aiohttp import web

from manager.httpapi.backend import ShowProgress
from manager.httpapi.convert.image import (
    deleted_to_json,
    history_to_json,
    image_summary_to_json,
    image_to_json,
)
from manager.httpapi.filters import (
    IMAGE_FILTERS,
    IMAGE_PRUNE_FILTERS,
    Filters,
    ImageBounds,
    duration_seconds,
    flag_of,
    parse_filters,
    select_images,
)
from manager.httpapi.frames import json_line, stream_line
from manager.httpapi.requests import (
    CLOCK,
    STREAMS,
    backend_of,
    flag,
    json_response,
    registry_auth,
)
from manager.httpapi.streams import closed, with_progress
from manager.httpapi.timestamps import parse_moment
from proto.errors import InvalidError, NotImplementedYetError
from proto.objects import NANOSECONDS
from worker.images.api import Image
from worker.images.references import parse, parse_tagged

UPLOAD_PIECE_BYTES = 256 * 1024
# A client that sends an image may pause for so long (it may be reading a slow disk).
UPLOAD_PAUSE_SECONDS_MAX = 300.0


def _bounds(request: web.Request, filters: Filters) -> ImageBounds:
    """Resolve the images and times that filters name; several narrow the span."""
    images = backend_of(request).images
    before = [images.resolve(ref).created for ref in filters.get("before", ())]
    since = [images.resolve(ref).created for ref in filters.get("since", ())]
    now = request.app[CLOCK].wall()
    for text in filters.get("until", ()):
        age = duration_seconds(text)
        moment = now - age if age is not None else parse_moment(text, "until") / NANOSECONDS
        before.append(moment)
    return ImageBounds(before=min(before) if before else None, since=max(since) if since else None)


async def list_all(request: web.Request) -> web.StreamResponse:
    """List images, newest first."""
    filters = parse_filters(request.query.get("filters", ""), IMAGE_FILTERS)
    store = backend_of(request).images
    images = select_images(store.images(), filters, _bounds(request, filters))
    return json_response([image_summary_to_json(image) for image in images])


async def inspect(request: web.Request) -> web.StreamResponse:
    """Describe an image."""
    backend = backend_of(request)
    image = backend.images.resolve(request.match_info["name"])
    return json_response(image_to_json(image, backend.facts().driver))


async def history(request: web.Request) -> web.StreamResponse:
    """List how an image was made."""
    image = backend_of(request).images.resolve(request.match_info["name"])
    return json_response(history_to_json(image))


async def tag(request: web.Request) -> web.StreamResponse:
    """Give an image a further name."""
    repository = request.query.get("repo", "")
    if not repository:
        raise InvalidError("the new name is missing: give ?repo=, and ?tag= if not latest")
    name = request.query.get("tag", "")
    target = f"{repository}:{name}" if name else repository
    await backend_of(request).images.tag(request.match_info["name"], target)
    return web.Response(status=201)


async def remove(request: web.Request) -> web.StreamResponse:
    """Remove a name of an image, and the image with its last name."""
    backend = backend_of(request)
    deleted = await backend.images.remove(
        request.match_info["name"],
        force=flag(request, "force"),
        prune=not flag(request, "noprune"),
        in_use=backend.images_in_use(),
    )
    return json_response(deleted_to_json(deleted))


async def prune(request: web.Request) -> web.StreamResponse:
    """Remove images that no container uses: those without a name, or all of them."""
    backend = backend_of(request)
    filters = parse_filters(request.query.get("filters", ""), IMAGE_PRUNE_FILTERS)
    only_dangling = flag_of(filters, "dangling", default=True)
    others = {name: values for name, values in filters.items() if name != "dangling"}
    deleted, freed_bytes = await backend.images.prune(
        all=not only_dangling, in_use=backend.images_in_use(), filters=others
    )
    return json_response(
        {"ImagesDeleted": deleted_to_json(deleted) or None, "SpaceReclaimed": freed_bytes}
    )


async def _json_stream(request: web.Request, chunks: AsyncGenerator[bytes]) -> web.StreamResponse:
    """Answer with a JSON stream; an error before its first line still sets the status."""
    try:
        first = await anext(chunks)
    except BaseException:
        await chunks.aclose()
        raise
    response = web.StreamResponse()
    response.content_type = "application/json"
    return await request.app[STREAMS].send(request, response, _prepended(first, chunks))


async def _prepended(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()


async def create(request: web.Request) -> web.StreamResponse:
    """Pull an image (`fromImage`) or make one of a root file system (`fromSrc`)."""
    if request.query.get("fromImage"):
        return await _pull(request)
    if request.query.get("fromSrc"):
        return await _import(request)
    raise InvalidError("nothing to create an image from: give ?fromImage= or ?fromSrc=-")


async def _pull(request: web.Request) -> web.StreamResponse:
    reference = parse(request.query["fromImage"])
    name = request.query.get("tag", "")
    if name:
        separator = "@" if ":" in name else ":"
        reference = parse(f"{reference.familiar_name}{separator}{name}")
    if reference.is_name_only:
        raise NotImplementedYetError(
            f"pulling all tags of {reference.familiar} is not served by this version of Swarm: "
            f"name one, such as {reference.familiar}:latest"
        )
    store = backend_of(request).images
    auth = registry_auth(request)
    platform = request.query.get("platform", "")
    ref = reference.familiar

    async def run(show: ShowProgress) -> Image:
        return await store.pull(ref, auth=auth, platform=platform, progress=show)

    # Whether the image exists is known after the first step: its absence is still a status.
    return await _json_stream(request, with_progress(run, held_count=1))


async def _import(request: web.Request) -> web.StreamResponse:
    source = request.query["fromSrc"]
    if source != "-":
        raise NotImplementedYetError(
            "importing from a URL is not served by this version of Swarm: "
            "fetch the file and import it from standard input"
        )
    repository, name = request.query.get("repo", ""), request.query.get("tag", "")
    ref = f"{repository}:{name}" if name else repository
    if ref:
        ref = parse_tagged(ref).familiar
    store = backend_of(request).images
    changes = tuple(request.query.getall("changes", []))
    message = request.query.get("message", "")

    async def run(show: ShowProgress) -> Image:
        return await store.import_rootfs(
            _upload(request), ref, changes=changes, message=message, progress=show
        )

    return await _json_stream(request, with_progress(run))


async def load(request: web.Request) -> web.StreamResponse:
    """Read images from a tar."""
    _refuse_platform(request, "load")
    store = backend_of(request).images

    async def run(show: ShowProgress) -> list[str]:
        return list(await store.load(_upload(request), progress=show))

    def finish(refs: list[str]) -> bytes:
        return b"".join(
            stream_line(f"Loaded image ID: {ref}" if _is_id(ref) else f"Loaded image: {ref}")
            for ref in refs
        )

    return await _json_stream(request, with_progress(run, finish=finish))


def _is_id(ref: str) -> bool:
    return ref.startswith("sha256:")


def _refuse_platform(request: web.Request, what: str) -> None:
    if request.query.get("platform"):
        raise NotImplementedYetError(
            f"choosing a platform to {what} is not served by this version of Swarm: "
            "images here have one platform, leave it out"
        )


async def _upload(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the request's body; no limit but the disk's.

    Raises:
        InvalidError: the client paused for too long.
    """
    while True:
        try:
            async with asyncio.timeout(UPLOAD_PAUSE_SECONDS_MAX):
                piece = await request.content.read(UPLOAD_PIECE_BYTES)
        except TimeoutError:
            raise InvalidError(
                f"the upload paused for more than {UPLOAD_PAUSE_SECONDS_MAX:.0f} s"
            ) from None
        if not piece:
            return
        yield piece


async def save_one(request: web.Request) -> web.StreamResponse:
    """Send an image as a tar."""
    return await _save(request, [request.match_info["name"]])


async def save_many(request: web.Request) -> web.StreamResponse:
    """Send several images as one tar."""
    names = [name for given in request.query.getall("names", []) for name in given.split(",")]
    if not any(names):
        raise InvalidError("no image was named: give ?names=")
    return await _save(request, [name for name in names if name])


async def _save(request: web.Request, names: list[str]) -> web.StreamResponse:
    _refuse_platform(request, "save")
    store = backend_of(request).images
    pieces = _pieces(store.save(names))  # a name that is not here raises before the response
    response = web.StreamResponse()
    response.content_type = "application/x-tar"
    return await request.app[STREAMS].send(request, response, pieces)


async def _pieces(source: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    try:
        async for piece in source:
            yield piece
    finally:
        await closed(source)


async def push(request: web.Request) -> web.StreamResponse:
    """Send an image to its registry."""
    name = request.query.get("tag", "")
    if not name:
        name = "latest"
    reference = parse(request.match_info["name"])
    if reference.is_name_only:
        reference = parse(f"{reference.familiar}:{name}")
    ref = reference.familiar
    store = backend_of(request).images
    store.resolve(ref)
    auth = registry_auth(request)

    async def run(show: ShowProgress) -> str:
        return await store.push(ref, auth=auth, progress=show)

    def finish(digest: str) -> bytes:
        name = reference.tag or reference.digest
        summary = {"status": f"{name}: digest: {digest}"}
        # The status is for people, `aux` for programs.
        return json_line(summary) + json_line({"aux": {"Tag": name, "Digest": digest}})

    return await _json_stream(request, with_progress(run, finish=finish))


ROUTES = (
    ("GET", "/images/json", list_all),
    ("GET", "/images/get", save_many),
    ("POST", "/images/create", create),
    ("POST", "/images/load", load),
    ("POST", "/images/prune", prune),
    ("GET", "/images/{name:.+}/json", inspect),
    ("GET", "/images/{name:.+}/history", history),
    ("GET", "/images/{name:.+}/get", save_one),
    ("POST", "/images/{name:.+}/tag", tag),
    ("POST", "/images/{name:.+}/push", push),
    ("DELETE", "/images/{name:.+}", remove),
)

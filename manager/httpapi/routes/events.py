"""/events: changes of services and nodes, as they are committed.

There is no history: `since` in the past gives what happens from now on. A node that is in no
swarm has no events; it is asked again until it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from aiohttp import web

from manager.httpapi.backend import Backend
from manager.httpapi.convert.common import Json
from manager.httpapi.convert.event import event_of, matches_event
from manager.httpapi.filters import EVENT_FILTERS, Filters, parse_filters
from manager.httpapi.frames import json_line
from manager.httpapi.requests import CLOCK, STREAMS, backend_of
from manager.httpapi.timestamps import parse_moment
from manager.store.watch import Resync
from proto.clock import Clock
from proto.errors import UnavailableError
from proto.objects import NANOSECONDS, Node, Service

# How often a node that is in no swarm is asked whether it is in one now.
ABSENT_SECONDS = 1.0


async def stream(request: web.Request) -> web.StreamResponse:
    """Stream events until `until`, or until the client goes away."""
    filters = parse_filters(request.query.get("filters", ""), EVENT_FILTERS)
    parse_moment(request.query.get("since", ""), "since")
    until_ns = parse_moment(request.query.get("until", ""), "until")
    clock = request.app[CLOCK]
    remaining = until_ns / NANOSECONDS - clock.wall() if until_ns else None
    response = web.StreamResponse()
    response.content_type = "application/json"
    events = _lines(backend_of(request), filters, clock, remaining)
    return await request.app[STREAMS].send(request, response, events)


async def _lines(
    backend: Backend, filters: Filters, clock: Clock, remaining: float | None
) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    end = None if remaining is None else loop.time() + remaining
    while end is None or loop.time() < end:
        async for event in _events(backend, clock, end):
            if matches_event(event, filters):
                yield json_line(event)
        await asyncio.sleep(ABSENT_SECONDS if end is None else _up_to(end - loop.time()))


def _up_to(seconds: float) -> float:
    return max(0.0, min(ABSENT_SECONDS, seconds))


async def _events(backend: Backend, clock: Clock, end: float | None) -> AsyncGenerator[Json]:
    """Yield events until the store is closed or the time is over; none without a store."""
    try:
        watch = backend.watch(Service, Node)
    except UnavailableError:
        return
    async with watch:
        while True:
            try:
                async with asyncio.timeout_at(end):
                    changes = await anext(watch)
            except (StopAsyncIteration, TimeoutError):
                return
            for change in changes:
                event = None if isinstance(change, Resync) else event_of(change, now=clock.wall())
                if event is not None:
                    yield event


ROUTES = (("GET", "/events", stream),)

"""Puts routes, middleware and the daemon together into an aiohttp application."""

from __future__ import annotations

import random

from aiohttp import web

from manager.httpapi.backend import Backend, Peers
from manager.httpapi.forward import FORWARDER, PAUSE_SECONDS_MAX, Forwarder, forwarded
from manager.httpapi.freshness import Freshness, Patience
from manager.httpapi.middleware import (
    access_logged,
    add_headers,
    checked_version,
    errors_as_json,
    linearized,
)
from manager.httpapi.requests import (
    BACKEND,
    BODY_BYTES_MAX,
    CLOCK,
    FRESHNESS,
    HEADERS,
    PEERS,
    RNG,
    STREAMS,
)
from manager.httpapi.routes import (
    distribution,
    events,
    images,
    join,
    logs,
    nodes,
    others,
    services,
    swarm,
    system,
    tasks,
    volumes,
)
from manager.httpapi.streams import Streams
from manager.httpapi.versions import API_VERSION, text_of
from proto.clock import Clock, SystemClock

_TABLES = (
    system.ROUTES,
    swarm.ROUTES,
    join.ROUTES,
    nodes.ROUTES,
    services.ROUTES,
    tasks.ROUTES,
    logs.ROUTES,
    images.ROUTES,
    events.ROUTES,
    distribution.ROUTES,
    volumes.ROUTES,
    others.ROUTES,
)


def make_app(
    backend: Backend,
    *,
    peers: Peers | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    pause_seconds_max: float = PAUSE_SECONDS_MAX,
) -> web.Application:
    """Build the application that serves `backend`, for one listener.

    Args:
        backend: the daemon.
        peers: the other managers; without them every request is served here.
        clock: for dates.
        rng: draws names and IDs.
        pause_seconds_max: how long a request waits for somebody to lead.
    """
    app = web.Application(
        middlewares=[access_logged, errors_as_json, checked_version, forwarded, linearized],
        client_max_size=BODY_BYTES_MAX,
    )
    app[BACKEND] = backend
    app[PEERS] = peers
    patience = Patience()
    if peers is not None:
        app[FORWARDER] = Forwarder(peers, patience, pause_seconds_max)
        app.on_cleanup.append(_close_forwarder)
    app[STREAMS] = Streams()
    app[FRESHNESS] = Freshness(patience)
    app[CLOCK] = clock or SystemClock()
    app[RNG] = rng or random.SystemRandom()
    app[HEADERS] = _headers_of(backend)
    for table in _TABLES:
        for method, path, handler in table:
            app.router.add_route(method, path, handler)
            app.router.add_route(method, "/v{version:[0-9]{1,4}\\.[0-9]{1,4}}" + path, handler)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(_end_streams)
    return app


def _headers_of(backend: Backend) -> dict[str, str]:
    """Write what does not change while the daemon runs, once and not for each response."""
    facts = backend.facts()
    return {
        "Api-Version": text_of(API_VERSION),
        "Docker-Experimental": "false",
        "Ostype": facts.os,
        "Server": f"Swarm/{facts.version} ({facts.os})",
    }


async def _end_streams(app: web.Application) -> None:
    app[STREAMS].close()
    if FORWARDER in app:
        app[FORWARDER].stop_waiting()


async def _close_forwarder(app: web.Application) -> None:
    await app[FORWARDER].close()

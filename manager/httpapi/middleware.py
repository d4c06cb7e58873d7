"""What happens around every request: the version, errors as JSON, headers, the access log."""

from __future__ import annotations

import asyncio

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from manager.httpapi.requests import (
    BODY_BYTES_MAX,
    CALLER,
    FRESHNESS,
    HEADERS,
    STALE,
    backend_of,
    json_response,
)
from manager.httpapi.versions import negotiated
from proto.errors import (
    LockedError,
    NotImplementedYetError,
    NotLeaderError,
    SwarmError,
    UnavailableError,
)
from proto.text import printable_lines

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# First parts of paths that the Engine has and this version does not serve (or not all of).
_UNSERVED = {
    "auth": "logging in to a registry through the daemon",
    "build": "building images",
    "commit": "making an image of a container",
    "configs": "configs",
    "containers": "commands on single containers",
    "exec": "running commands in containers",
    "networks": "networks made by hand",
    "plugins": "plugins",
    "secrets": "secrets",
    "session": "building images",
    "volumes": "this command on volumes",
}


# First parts of paths that show the replicated state.
_CLUSTER_READS = frozenset({"nodes", "services", "swarm", "tasks"})


# Tells a manager that forwarded a request what may be done about a refusal.
REFUSAL = "Swarm-Refusal"
NOT_LEADER = "not-leader"
UNKNOWN = "unknown"
# Source: RFC 7234, 5.5.1.
STALE_WARNING = '110 swarm "Response is Stale"'


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into `{"message": …}`; what was not foreseen is logged, not shown."""
    try:
        return await handler(request)
    except SwarmError as error:
        answer = _refusal_response(error.message, error.http_status)
        if CALLER in request and (refusal := _refusal_of(error)):
            answer.headers[REFUSAL] = refusal
        return answer
    except web.HTTPException as error:
        return _http_error(request, error)
    except ConnectionResetError:
        raise  # the client went away: there is nobody to answer
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path)
        message = "the request failed for a reason that was not foreseen; the daemon's log has it"
        return json_response({"message": message}, 500)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        message = f"the request body is larger than {BODY_BYTES_MAX} bytes"
        return json_response({"message": message}, error.status)
    if isinstance(error, web.HTTPNotFound | web.HTTPMethodNotAllowed):
        what = _UNSERVED.get(_first_part(request.path))
        if what is not None:
            refusal = NotImplementedYetError(f"{what}: not served by this version of Swarm")
            return _refusal_response(refusal.message, refusal.http_status)
        return json_response({"message": "page not found"}, web.HTTPNotFound.status_code)
    return json_response({"message": error.reason}, error.status)


def _refusal_response(message: str, status: int) -> web.Response:
    """Answer with a sentence; what it quotes may be anything that somebody sent."""
    return json_response({"message": printable_lines(message)}, status)


def _refusal_of(error: SwarmError) -> str:
    match error:
        case NotLeaderError():
            return NOT_LEADER
        case LockedError():
            return ""
        case UnavailableError():
            return UNKNOWN
        case _:
            return ""


def unversioned(path: str) -> str:
    """Return a path without the API's version at its beginning."""
    parts = path.strip("/").split("/")
    if parts[0].startswith("v1."):
        parts = parts[1:]
    return "/" + "/".join(parts)


def _first_part(path: str) -> str:
    return unversioned(path).strip("/").split("/")[0]


@web.middleware
async def linearized(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a read of the cluster's objects see everything committed before it, on any manager.

    Without a quorum, or during an election that takes too long, it shows what this manager has,
    and a header says that it may be stale. `?consistency=stale` asks for that at once.
    """
    is_read = request.method in {"GET", "HEAD"} and _first_part(request.path) in _CLUSTER_READS
    if not is_read or request.query.get("consistency") == "stale":
        return await handler(request)
    request[STALE] = not await request.app[FRESHNESS].is_fresh(backend_of(request))
    return await handler(request)


@web.middleware
async def checked_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse clients that are too old or too new."""
    negotiated(request.match_info.get("version", ""))
    return await handler(request)


@web.middleware
async def access_logged(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log each request at debug; never its query, headers or body."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    response = await handler(request)
    log.debug(
        "request_served",
        method=request.method,
        path=request.path,
        status=response.status,
        seconds=round(loop.time() - start, 6),
    )
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put the headers that clients negotiate by on every response."""
    response.headers.update(request.app[HEADERS])
    if request.get(STALE):
        response.headers["Warning"] = STALE_WARNING

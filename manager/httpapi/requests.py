"""Reading requests and writing plain responses; what all routes share."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from manager.httpapi.backend import Backend, Peers
from manager.httpapi.freshness import Freshness
from manager.httpapi.streams import Streams
from proto.clock import Clock
from proto.errors import InvalidError
from proto.json_text import JsonError, decode_json
from raft.transport.identity import Identity
from worker.images.api import RegistryAuth

BACKEND: web.AppKey[Backend] = web.AppKey("backend")
PEERS: web.AppKey[Peers | None] = web.AppKey("peers")
STREAMS: web.AppKey[Streams] = web.AppKey("streams", Streams)
CLOCK: web.AppKey[Clock] = web.AppKey("clock")
RNG: web.AppKey[random.Random] = web.AppKey("rng", random.Random)
FRESHNESS: web.AppKey[Freshness] = web.AppKey("freshness", Freshness)
HEADERS: web.AppKey[Mapping[str, str]] = web.AppKey("headers")


class Attempt(msgspec.Struct, frozen=True):
    """One attempt to do what a request asks; a fail-over may make another one necessary.

    Attributes:
        object_id: of the object to create, "" leaves it to be drawn. A second attempt that finds
            an object with it knows that the first one had succeeded.
        is_repeat: whether an earlier attempt may have succeeded without our knowing.
    """

    object_id: str = ""
    is_repeat: bool = False


# Who calls, on TLS with a manager's certificate; nobody has it on the unix socket.
CALLER: web.RequestKey[Identity] = web.RequestKey("caller", Identity)
ATTEMPT: web.RequestKey[Attempt] = web.RequestKey("attempt", Attempt)
# Set when an answer may lack what was committed lately.
STALE: web.RequestKey[bool] = web.RequestKey("stale", bool)

# A service's spec of this size could not be stored anyway (the log takes 1.5 MiB).
BODY_BYTES_MAX = 4 * 1024 * 1024
BODY_SECONDS_MAX = 30.0
# Larger numbers do not fit what they count (an int64).
_DIGITS_MAX = 18

_FALSE_WORDS = frozenset({"", "0", "no", "false", "none"})


def backend_of(request: web.Request) -> Backend:
    """Return the daemon."""
    return request.app[BACKEND]


def attempt_of(request: web.Request) -> Attempt:
    """Tell which attempt at the request this is."""
    attempt = request.get(ATTEMPT)
    return attempt if attempt is not None else Attempt()


def json_response(value: Any, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


def flag(request: web.Request, name: str) -> bool:
    """Read a query parameter as the Engine reads booleans: anything but a word for no is yes."""
    return request.query.get(name, "").strip().lower() not in _FALSE_WORDS


def version_of(request: web.Request, kind: str) -> int:
    """Read the version that an update was made for.

    Raises:
        InvalidError: it is missing or no number.
    """
    version = whole_number(request.query.get("version", ""))
    if version is None:
        raise InvalidError(
            f"invalid {kind} version: give ?version= with the Version.Index that was read"
        )
    return version


def whole_number(text: str) -> int | None:
    """Read a number of a query; None if it is none, or a huge one."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
        return None
    return int(text)


async def body_bytes(request: web.Request) -> bytes:
    """Read a body whole; a second call gives the same.

    Raises:
        InvalidError: it does not arrive in time.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            return await request.read()
    except TimeoutError:
        raise InvalidError(
            f"the request body did not arrive within {BODY_SECONDS_MAX:.0f} s"
        ) from None


async def json_body(request: web.Request) -> Any:
    """Read a JSON body.

    Raises:
        InvalidError: there is none, it is not JSON, or it does not arrive in time.
    """
    body = await body_bytes(request)
    if not body.strip():
        raise InvalidError("the request body is empty: it must be a JSON object")
    try:
        return decode_json(body, object)
    except JsonError as error:
        raise InvalidError(f"the request body {error}") from None


class _AuthHeader(msgspec.Struct, frozen=True):
    """The members of X-Registry-Auth that matter."""

    username: str = ""
    password: str = ""
    serveraddress: str = ""
    identitytoken: str = ""


def registry_auth(request: web.Request) -> RegistryAuth | None:
    """Read the credentials of X-Registry-Auth; they are never logged nor put into errors.

    Raises:
        InvalidError: the header is not base64 of a JSON object.
    """
    text = request.headers.get("X-Registry-Auth", "").strip()
    if not text:
        return None
    padded = text + "=" * (-len(text) % 4)
    try:
        raw = base64.b64decode(padded, altchars=b"-_" if "-" in text or "_" in text else None)
        header = decode_json(raw, _AuthHeader)
    except ValueError:  # of base64, of text that is not ASCII, of JSON
        raise InvalidError(
            "the X-Registry-Auth header is not valid: it must be base64url of a JSON object"
        ) from None
    auth = RegistryAuth(
        username=header.username,
        password=header.password,
        server_address=header.serveraddress,
        identity_token=header.identitytoken,
    )
    return None if not (auth.username or auth.identity_token) else auth

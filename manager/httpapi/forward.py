"""Sends what only the leader can do to the leader, and waits while there is none.

A follower asks the leader's API port, with its own certificate, and checks that the very node
answers. A fail-over becomes a pause: what `attempts` finds safe is tried again until somebody
leads. A request that was forwarded once is never forwarded again.
"""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from manager.httpapi.attempts import (
    Ended,
    Kind,
    Place,
    Progress,
    Step,
    in_doubt,
    kind_of,
    next_attempt,
    no_leader,
    place_of,
)
from manager.httpapi.backend import LeaderInfo, Peers
from manager.httpapi.freshness import Patience
from manager.httpapi.leader import LeaderSession, LeaderWatch
from manager.httpapi.middleware import NOT_LEADER, REFUSAL, UNKNOWN, unversioned
from manager.httpapi.requests import ATTEMPT, CALLER, RNG, Attempt, backend_of, body_bytes
from proto.errors import LockedError, NotLeaderError, ResourceExhaustedError, UnavailableError
from proto.ids import NodeID, new_id
from proto.json_text import JsonError, decode_json

# Source: moby daemon/cluster/cluster.go (swarmRequestTimeout).
PAUSE_SECONDS_MAX = 20.0
# One who joins waits in front of a terminal, and can ask another manager.
JOIN_PAUSE_SECONDS_MAX = 4.0
ANSWER_SECONDS_MAX = 30.0
WAITING_MAX = 4096

FORWARDED = "Swarm-Forwarded-By"
OBJECT_ID = "Swarm-Object-Id"
REPEAT = "Swarm-Repeat"
SELF = "self"
JOIN_PREFIX = "/join/"

_SENT_HEADERS = ("Content-Type", "X-Registry-Auth")
_PASSED_HEADERS = ("Content-Type", "Warning")

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class _Unsettled(msgspec.Struct, frozen=True):
    """An attempt that gave no answer; `sentence` is what was said instead."""

    ended: Ended
    sentence: str = ""


class _Message(msgspec.Struct, frozen=True):
    """The body of an error."""

    message: str = ""


class Forwarder:
    """Brings requests to the leader, for one application."""

    def __init__(
        self, peers: Peers, patience: Patience, pause_seconds_max: float = PAUSE_SECONDS_MAX
    ) -> None:
        """Ask `peers` who leads; a fail-over may take `pause_seconds_max`, for reads `patience`."""
        self._peers = peers
        self._pause_seconds_max = pause_seconds_max
        self._watch = LeaderWatch(peers.leader, lambda: peers.is_majority_lost)
        self._session = LeaderSession(peers.credentials)
        self._waiting = 0
        self._patience = patience
        self._is_closing = False

    async def serve(self, request: web.Request, handler: Handler, kind: Kind) -> web.StreamResponse:
        """Let the leader do it, this manager or another one, when there is a leader.

        Raises:
            SwarmError: the handler's; or that there is no leader.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = self._limit_of(request, kind)
        object_id = new_id(request.app[RNG])
        progress = Progress()
        if self._waiting >= WAITING_MAX:
            raise ResourceExhaustedError(
                f"{self._waiting} requests wait for the leader already: try again later"
            )
        self._waiting += 1
        try:
            while True:
                backend_of(request).control()  # a node that is no manager, or locked, says so
                attempt = Attempt(object_id, is_repeat=progress.is_in_doubt)
                done = await self._try(request, handler, kind, attempt)
                if isinstance(done, web.StreamResponse):
                    return done
                step, progress = next_attempt(
                    done.ended,
                    kind,
                    progress,
                    waited=loop.time() - started,
                    limit=limit,
                    is_majority_lost=self._peers.is_majority_lost,
                )
                if step is Step.STOP_WITHOUT_LEADER and kind is Kind.READ:
                    self._patience.failed(loop.time())
                    return await handler(request)  # what this manager has; it says how old
                if step is not Step.REPEAT:
                    if request.path.startswith(JOIN_PREFIX) and done.sentence:
                        # Joining again does no harm, and the reason is what matters.
                        raise UnavailableError(done.sentence)
                    raise self._given_up(step, done.sentence)
                await self._watch.tick()
                if self._is_closing:
                    raise UnavailableError("this daemon is stopping: ask another manager")
        finally:
            self._waiting -= 1

    def _limit_of(self, request: web.Request, kind: Kind) -> float:
        if kind is Kind.READ:
            # This manager has something to show.
            pause = self._patience.seconds(asyncio.get_running_loop().time())
            return min(pause, self._pause_seconds_max)
        if request.path.startswith(JOIN_PREFIX):
            return min(JOIN_PAUSE_SECONDS_MAX, self._pause_seconds_max)
        return self._pause_seconds_max

    def _given_up(self, step: Step, sentence: str) -> UnavailableError:
        if step is Step.STOP_IN_DOUBT and sentence and not self._peers.is_majority_lost:
            return UnavailableError(in_doubt(sentence))
        reason = no_leader(self._peers.quorum())
        return UnavailableError(in_doubt(reason) if step is Step.STOP_IN_DOUBT else reason)

    async def _try(
        self, request: web.Request, handler: Handler, kind: Kind, attempt: Attempt
    ) -> web.StreamResponse | _Unsettled:
        leader = self._peers.leader()
        is_leader = self._peers.is_leader
        if is_leader:
            return await _here(request, handler, attempt)
        own = self._session.own().node_id
        if leader is None or place_of(own, leader, is_leader=is_leader) is not Place.THERE:
            return _Unsettled(Ended.NOTHING_DONE)
        return await self._there(request, leader, kind, attempt)

    async def _there(
        self, request: web.Request, leader: LeaderInfo, kind: Kind, attempt: Attempt
    ) -> web.StreamResponse | _Unsettled:
        """Ask the leader."""
        body = await body_bytes(request)
        own = self._session.own()
        headers = {name: request.headers[name] for name in _SENT_HEADERS if name in request.headers}
        headers |= {FORWARDED: own.node_id, OBJECT_ID: attempt.object_id}
        if attempt.is_repeat:
            headers[REPEAT] = "1"
        lost = f"the connection to the leader {leader.node_id} ({leader.address}) broke"
        try:
            async with (
                self._watch.while_leading(leader, ANSWER_SECONDS_MAX),
                self._session.ask(
                    leader,
                    request.method,
                    _path_there(request, own.node_id),
                    body=body,
                    headers=headers,
                    # Of a broken connection of the pool it is not known what was done.
                    is_pooled=kind is not Kind.ONCE and request.method != "DELETE",
                ) as answer,
            ):
                refusal = answer.headers.get(REFUSAL, "")
                if refusal == NOT_LEADER:
                    return _Unsettled(Ended.NOTHING_DONE)
                if refusal == UNKNOWN:
                    return _Unsettled(Ended.UNKNOWN, _sentence_in(await answer.read()))
                return _answered(answer, await answer.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            log.debug("leader_not_reached", node_id=leader.node_id, error=type(error).__name__)
            return _Unsettled(Ended.NOTHING_DONE)
        except (aiohttp.ClientError, OSError) as error:  # a time-out is an OSError
            log.debug("leader_lost", node_id=leader.node_id, error=type(error).__name__)
            return _Unsettled(Ended.UNKNOWN, lost)

    def stop_waiting(self) -> None:
        """Refuse those who wait for a leader: the server stops."""
        self._is_closing = True
        self._watch.wake()

    async def close(self) -> None:
        """Close the connections to the leader."""
        await self._session.close()


FORWARDER: web.AppKey[Forwarder] = web.AppKey("forwarder", Forwarder)


async def _here(
    request: web.Request, handler: Handler, attempt: Attempt
) -> web.StreamResponse | _Unsettled:
    """Do it on this manager."""
    request[ATTEMPT] = attempt
    try:
        return await handler(request)
    except NotLeaderError:
        return _Unsettled(Ended.NOTHING_DONE)
    except LockedError:
        raise
    except UnavailableError as error:
        return _Unsettled(Ended.UNKNOWN, error.message)


def _sentence_in(body: bytes) -> str:
    """Return what the leader said of its error."""
    try:
        return decode_json(body, _Message).message
    except JsonError:
        return "the leader failed"


def _answered(answer: aiohttp.ClientResponse, body: bytes) -> web.Response:
    """Pass the leader's answer on."""
    headers = {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
    return web.Response(status=answer.status, body=body, headers=headers)


def _path_there(request: web.Request, own: NodeID) -> str:
    """Return the path for the leader; `self` is this node, not the one that answers."""
    path = request.rel_url.raw_path_qs
    parts = path.partition("?")[0].split("/")
    if "nodes" in parts and SELF in parts:
        return path.replace(f"/{SELF}", f"/{own}", 1)
    return path


@web.middleware
async def forwarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Bring what only the leader can do to the leader; everything else is done here."""
    forwarder = request.app.get(FORWARDER)
    if forwarder is None:
        return await handler(request)
    if CALLER in request and FORWARDED in request.headers:
        # By another manager: a second hop would go in circles.
        request[ATTEMPT] = Attempt(
            request.headers.get(OBJECT_ID, ""), is_repeat=REPEAT in request.headers
        )
        return await handler(request)
    resource = request.match_info.route.resource
    kind = None
    if resource is not None:
        kind = kind_of(request.method, unversioned(request.path), request.query)
    if kind is None:
        return await handler(request)
    return await forwarder.serve(request, handler, kind)

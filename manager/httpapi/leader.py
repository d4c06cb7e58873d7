"""The way to the manager that leads: who it is, followed while somebody waits, and a session to it.

The shell of `forward`. A request to a leader is given up when another node leads, for a dead
machine closes no connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from manager.httpapi.backend import LeaderInfo
from manager.httpapi.contexts import client_context
from proto.errors import SwarmError
from raft.transport.identity import MANAGER_ROLE, Credentials, Identity, full_name, read_identity

POLL_SECONDS = 0.02
CONNECT_SECONDS_MAX = 2.0
# Less than the other end's, so that connections are not closed under a request.
IDLE_SECONDS_MAX = 45.0
CONNECTIONS_MAX = 64


class LeaderWatch:
    """Looks at who leads while somebody waits for it, with one timer for all."""

    def __init__(
        self, leader: Callable[[], LeaderInfo | None], is_majority_lost: Callable[[], bool]
    ) -> None:
        """Ask these two, which must be quick."""
        self._leader = leader
        self._is_majority_lost = is_majority_lost
        self._ticks: list[asyncio.Future[None]] = []
        self._asked: dict[asyncio.Timeout, LeaderInfo] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def tick(self) -> None:
        """Wait until it is worth looking again."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ticks.append(future)
        self._arm()
        await future

    @asynccontextmanager
    async def while_leading(self, leader: LeaderInfo, seconds_max: float) -> AsyncIterator[None]:
        """Bound a block: `TimeoutError` when another node leads, none can, or after this time."""
        async with asyncio.timeout(seconds_max) as limit:
            self._asked[limit] = leader
            self._arm()
            try:
                yield
            finally:
                del self._asked[limit]

    def wake(self) -> None:
        """Let those who wait look now."""
        ticks, self._ticks = self._ticks, []
        for future in ticks:
            if not future.done():
                future.set_result(None)

    def _known_leader(self) -> LeaderInfo | None:
        try:
            return self._leader()
        except SwarmError:
            return None  # this node is no manager any more; the request itself finds out

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self.wake()
        leader = self._known_leader() if self._asked else None
        is_lost = bool(self._asked) and self._is_majority_lost()
        now = asyncio.get_running_loop().time()
        for limit, asked in self._asked.items():
            is_other = leader is not None and asked.node_id != leader.node_id
            if (is_other or is_lost) and not limit.expired():
                limit.reschedule(now)
        if self._asked:
            self._arm()


class LeaderSession:
    """The connections to the leader's API port; new ones when this node's certificate is new."""

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        """Ask for credentials at each request; nothing is opened before the first."""
        self._credentials = credentials
        self._known: Credentials | None = None
        self._context: ssl.SSLContext | None = None
        self._identity: Identity | None = None
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def own(self) -> Identity:
        """Return who this node is, by its certificate of now."""
        credentials = self._credentials()
        if self._identity is None or credentials != self._known:
            self._context = client_context(credentials.roots_pem.decode("ascii"), credentials)
            self._identity = read_identity(credentials.certificate_pem)
            self._known = credentials
        return self._identity

    @asynccontextmanager
    async def ask(
        self,
        leader: LeaderInfo,
        method: str,
        raw_path: str,
        *,
        body: bytes,
        headers: Mapping[str, str],
        is_pooled: bool,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one request, and never a second one, of the very node that is named.

        Args:
            leader: whom to ask.
            method: of HTTP.
            raw_path: encoded, with the query.
            body: sent whole.
            headers: sent besides the usual ones.
            is_pooled: whether a connection may be used that was there before. Such a one may be
                closed by the other end at any time, and the library repeats some methods then.
        """
        own = self.own()
        assert self._context is not None
        async with self._session(is_pooled=is_pooled).request(
            method,
            URL(f"https://{leader.address}{raw_path}", encoded=True),
            data=body or None,
            headers=headers,
            ssl=self._context,
            server_hostname=full_name(leader.node_id, MANAGER_ROLE, own.cluster_id),
            allow_redirects=False,
        ) as answer:
            yield answer

    def _session(self, *, is_pooled: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(is_pooled)
        if session is None:
            connector = (
                aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=IDLE_SECONDS_MAX)
                if is_pooled
                else aiohttp.TCPConnector(limit=CONNECTIONS_MAX, force_close=True)
            )
            session = self._sessions[is_pooled] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX),
            )
        return session

    async def close(self) -> None:
        """Close all connections."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

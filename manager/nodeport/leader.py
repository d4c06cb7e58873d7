"""Calls that only the leader answers, from any node: it is found, and errors come back as ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from grpc import aio

from manager.nodeport.channel import ChannelLimits, open_channel
from manager.nodeport.errors import error_of_call
from manager.nodeport.remotes import ManagerPeer, Remotes
from proto.errors import NotLeaderError, SwarmError, UnavailableError
from proto.ids import ClusterID
from raft.transport.identity import CredentialsSource

CALL_SECONDS_MAX = 5.0
"""What one manager may take to answer."""

HOPS_MAX = 8
"""How many managers are asked before the caller has to wait and try again."""

Reply = TypeVar("Reply")
StubMethod = Callable[[aio.Channel], Callable[..., Awaitable[Any]]]


class Search:
    """The order in which managers are asked: the leader if one was named, else by weight."""

    def __init__(self, remotes: Remotes, rng: random.Random) -> None:
        """Begin with all of them untried."""
        self._remotes = remotes
        self._rng = rng
        self._tried: set[str] = set()
        self._named = ""
        self._hops = 0

    def next(self) -> ManagerPeer | None:
        """Return whom to ask now; None when all have been."""
        self._hops += 1
        if self._hops > HOPS_MAX:
            return None
        address, self._named = self._named, ""
        peer = self._remotes.find(address) if address else None
        if peer is None:
            peer = self._remotes.choose(self._rng, tried=self._tried)
        if peer is not None:
            self._tried.add(peer.address)
        return peer

    def failed(self, peer: ManagerPeer, error: SwarmError) -> None:
        """Note how a manager answered, and the leader if it named one that was not asked yet."""
        if isinstance(error, NotLeaderError):
            self._remotes.observe(peer.address, is_good=True)
            if error.leader_address and error.leader_address not in self._tried:
                self._named = error.leader_address
        elif isinstance(error, UnavailableError):
            self._remotes.observe(peer.address, is_good=False)


class LeaderClient:
    """Calls the leader's services."""

    def __init__(
        self,
        credentials: CredentialsSource,
        remotes: Remotes,
        cluster_id: ClusterID,
        *,
        rng: random.Random,
        limits: ChannelLimits = ChannelLimits(),  # noqa: B008 -- frozen
    ) -> None:
        """Connect to nobody yet."""
        self._credentials = credentials
        self._remotes = remotes
        self._cluster_id = cluster_id
        self._rng = rng
        self._limits = limits

    async def call(
        self,
        method: Callable[[aio.Channel], Callable[..., Awaitable[Reply]]],
        request: object,
        *,
        timeout: float = CALL_SECONDS_MAX,
    ) -> Reply:
        """Ask one manager after the other until the leader answers.

        A call whose connection broke is asked again elsewhere, so it must bear that: what the
        leader did the first time is not known.

        Args:
            method: makes the stub's method, e.g. `lambda channel: CAStub(channel).Renew`.
            request: its message.
            timeout: seconds that each manager may take.

        Raises:
            UnavailableError: no leader answered; try again later.
            SwarmError: what the leader answered.
        """
        search = Search(self._remotes, self._rng)
        reason = "this node knows no manager"
        while (peer := search.next()) is not None:
            try:
                reply = await self._ask(peer, method, request, timeout)
            except UnavailableError as error:
                search.failed(peer, error)
                reason = f"{peer.address}: {error.message}"
                continue
            self._remotes.observe(peer.address, is_good=True)
            return reply
        raise UnavailableError(f"no manager answered as leader ({reason})")

    async def _ask(
        self,
        peer: ManagerPeer,
        method: Callable[[aio.Channel], Callable[..., Awaitable[Reply]]],
        request: object,
        timeout: float,
    ) -> Reply:
        async with self._channel(peer) as channel:
            try:
                async with asyncio.timeout(timeout):
                    return await method(channel)(request)
            except TimeoutError as error:
                raise UnavailableError("it did not answer in time") from error
            except aio.AioRpcError as error:
                raise error_of_call(error) from error

    @asynccontextmanager
    async def _channel(self, peer: ManagerPeer) -> AsyncIterator[aio.Channel]:
        channel = open_channel(peer, self._cluster_id, self._credentials(), self._limits)
        try:
            yield channel
        finally:
            await channel.close(None)

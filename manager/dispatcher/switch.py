"""What the agent holds: its own manager's dispatcher while that one leads, else a client.

On the leader's node the agent is served in process, without grpc, sockets and copies. When the
leadership moves the session ends, and the agent's next one is with whoever leads then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import structlog

from manager.dispatcher.core import DispatcherCore
from manager.dispatcher.describing import keep_described
from manager.dispatcher.session import OpenSession, Session
from proto.assignments import AssignmentMessage, StatusUpdate
from proto.errors import SwarmError, UnavailableError
from proto.ids import NodeID
from proto.logs import LogRequest
from proto.objects import Node, NodeDescription

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Client(Protocol):
    """What is used of a `DispatcherClient`; this module does not load grpc."""

    def interrupt(self, reason: str) -> None:
        """Let the session end."""

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session."""

    def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield this node's assignments."""

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Report statuses."""


class _Local:
    """A session with the core of this process."""

    def __init__(
        self,
        core: DispatcherCore,
        session: OpenSession,
        on_session: Callable[[Session], None],
        on_wish: Callable[[LogRequest], None],
        describe: Callable[[], NodeDescription] | None,
    ) -> None:
        self._describe = describe
        self._core = core
        self._session = session
        self._on_session = on_session
        self._on_wish = on_wish

    def interrupt(self, reason: str) -> None:
        self._session.close(UnavailableError(reason))

    async def assignments(self, _node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        describing = asyncio.create_task(self._keep_described())
        try:
            async for message in self._session.messages():
                if isinstance(message, Session):
                    self._on_session(message)
                elif isinstance(message, LogRequest):
                    self._on_wish(message)
                else:
                    yield message.content
        finally:
            describing.cancel()
            await asyncio.gather(describing, return_exceptions=True)
            self._core.end(self._session)

    async def _keep_described(self) -> None:
        """Let the rows of the store have what this node says of itself, as other nodes do."""
        if self._describe is None:
            return
        told = self._session.told.node.description
        while True:
            try:
                await keep_described(
                    told,
                    self._describe,
                    lambda newer: self._core.describe(self._session, newer),
                    is_own=True,
                )
            except SwarmError as error:
                log.warning("description_not_stored", error=error.message)

    async def update_statuses(self, _node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        await self._core.update_statuses(self._session, updates)


class DispatcherSwitch:
    """Passes calls on to the dispatcher of now; waits while there is none."""

    def __init__(
        self,
        on_session: Callable[[Session], None] = lambda _session: None,
        on_wish: Callable[[LogRequest], None] = lambda _wish: None,
        describe: Callable[[], NodeDescription] | None = None,
    ) -> None:
        """Start without a dispatcher.

        Args:
            on_session: told of each `Session` in process; a client tells its own callback.
            on_wish: likewise of each wish for the output of one of this node's tasks.
            describe: returns what this node says of itself now; a client has its own.
        """
        self._describe = describe
        self._on_session = on_session
        self._on_wish = on_wish
        self._core: DispatcherCore | None = None
        self._client: Client | None = None
        self._current: _Local | Client | None = None
        self._is_served = asyncio.Event()

    def lead(self, core: DispatcherCore | None) -> None:
        """Use this manager's core from now on, since it leads; None: it does not."""
        if core is not self._core:
            self._core = core
            self._changed("the leadership moved")

    def use(self, client: Client | None) -> None:
        """Use this client while this node does not lead; None: there is none."""
        if client is not self._client:
            is_used = self._current is not None and self._current is self._client
            self._client = client
            self._changed("this node's client was replaced", is_moved=is_used or not self._current)

    def _changed(self, reason: str, *, is_moved: bool = True) -> None:
        if self._core is not None or self._client is not None:
            self._is_served.set()
        else:
            self._is_served.clear()
        if is_moved and self._current is not None:
            self._current.interrupt(reason)
            self._current = None

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session; waits for a dispatcher, since there is nothing better to do."""
        await self._is_served.wait()
        core, client = self._core, self._client
        if core is not None:
            session = await core.register(node_id, description, is_local=True)
            if core is not self._core:
                core.end(session)
                raise UnavailableError("the leadership moved")
            self._current = _Local(core, session, self._on_session, self._on_wish, self._describe)
            return session.told.node
        if client is None:
            raise UnavailableError("no manager can be reached")
        node = await client.register(node_id, description)
        if client is not self._client or self._core is not None:
            client.interrupt("the leadership moved")
            raise UnavailableError("the leadership moved")
        self._current = client
        return node

    def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield this node's assignments."""
        return self._session().assignments(node_id)

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Report statuses."""
        await self._session().update_statuses(node_id, updates)

    def _session(self) -> _Local | Client:
        if self._current is None:
            raise UnavailableError("no manager can be reached")
        return self._current

"""The network between a worker's agent and the manager: slow, cut, or with nobody at its end.

`Wire` is what an agent holds for its dispatcher, in the place of the gRPC client and service. What
the manager does for a call is done as a part of the manager's program, so that it goes on when the
agent dies, and ends with the manager. While the link is cut nothing passes, either way: what was on
its way arrives when the link is healed soon, else the agent gives the session up.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from manager.dispatcher.core import DispatcherCore
from manager.dispatcher.session import OpenSession, Session
from proto.assignments import AssignmentMessage, StatusUpdate
from proto.errors import SwarmError, UnavailableError
from proto.ids import NodeID
from proto.objects import Node, NodeDescription

# After so long without a sign of life an agent gives a session up.
SILENCE_SECONDS = 2.0
DELAY_SECONDS_MAX = 0.02

Operation = Callable[[DispatcherCore], Awaitable[Any]]


class ManagerEnd(Protocol):
    """What the wire needs of the manager's side."""

    def core(self) -> DispatcherCore | None:
        """Return the dispatcher, if the manager is up."""

    def ask(self, operation: Operation) -> asyncio.Future[Any]:
        """Do something as a part of the manager's program; fails when that dies."""

    def do(self, function: Callable[[], Any]) -> None:
        """Call a function as a part of the manager's program."""


class Link:
    """A worker's connection with the network."""

    def __init__(self) -> None:
        self.is_cut = False
        self._healed: list[asyncio.Future[None]] = []

    def cut(self) -> None:
        """Let nothing pass."""
        self.is_cut = True

    def heal(self) -> None:
        """Let all pass."""
        self.is_cut = False
        waiting, self._healed = self._healed, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def passable(self) -> None:
        """Wait for a cut link, but not for long.

        Raises:
            UnavailableError: it stays cut.
        """
        if not self.is_cut:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._healed.append(future)
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await future
        except TimeoutError:
            raise UnavailableError("no sign of life of the manager") from None


class _Inbox:
    """What came from the manager, until the agent takes it."""

    def __init__(self) -> None:
        self._messages: deque[AssignmentMessage] = deque()
        self._end: SwarmError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, message: AssignmentMessage) -> None:
        self._messages.append(message)
        self._wake()

    def close(self, reason: SwarmError) -> None:
        self._end = self._end or reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> AssignmentMessage:
        while not self._messages:
            if self._end is not None:
                raise self._end
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._messages.popleft()


class Wire:
    """Implements `worker.api.Dispatcher` for one agent."""

    def __init__(self, manager: ManagerEnd, link: Link, rng: random.Random, address: str) -> None:
        self._manager = manager
        self._link = link
        self._rng = rng
        self._address = address
        self._session: OpenSession | None = None
        self._inbox = _Inbox()
        self._beating: asyncio.Task[None] | None = None

    def manager_died(self) -> None:
        """The manager's end of the connection is gone."""
        self._inbox.close(UnavailableError("connection reset by peer"))

    def agent_died(self) -> None:
        """The agent's end is gone: the manager's side sees it, if anything passes."""
        if self._session is not None and not self._link.is_cut:
            self._end(self._session)

    async def _call(self, operation: Operation) -> Any:
        await asyncio.sleep(self._rng.uniform(0.0, DELAY_SECONDS_MAX))
        await self._link.passable()
        outcome = await self._manager.ask(operation)
        await self._link.passable()
        return outcome

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session with the manager."""
        self._stop_beating()
        session: OpenSession = await self._call(
            lambda core: core.register(node_id, description, address=self._address)
        )
        self._session = session
        inbox = self._inbox = _Inbox()

        async def pump(_core: DispatcherCore) -> None:
            try:
                while True:
                    message = await session.next()
                    if not isinstance(message, Session):
                        inbox.put(message.content)
            except SwarmError as error:
                inbox.close(error)

        self._manager.ask(pump)
        self._beating = asyncio.create_task(self._beat(session, inbox))
        return session.told.node

    async def _beat(self, session: OpenSession, inbox: _Inbox) -> None:
        """Give signs of life; give up when none can have been seen for a while."""
        silent_seconds = 0.0
        while self._session is session:
            await asyncio.sleep(session.told.heartbeat_seconds)
            core = self._manager.core()
            if self._link.is_cut:
                silent_seconds += session.told.heartbeat_seconds
                if silent_seconds >= SILENCE_SECONDS:
                    inbox.close(UnavailableError("no sign of life of the manager"))
                    return
            elif core is not None and session.end is None:
                silent_seconds = 0.0
                self._manager.do(lambda core=core: core.heartbeat(session))

    def _stop_beating(self) -> None:
        self._session = None
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None

    async def assignments(self, _node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield what the manager tells, in its order."""
        session, inbox = self._session, self._inbox
        assert session is not None
        try:
            while True:
                message = await inbox.take()
                await asyncio.sleep(self._rng.uniform(0.0, DELAY_SECONDS_MAX))
                await self._link.passable()
                yield message
        finally:
            if self._session is session:
                self._stop_beating()
            if not self._link.is_cut:
                self._end(session)

    def _end(self, session: OpenSession) -> None:
        core = self._manager.core()
        if core is not None and session.end is None:
            self._manager.do(lambda: core.end(session))

    async def update_statuses(self, _node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Report statuses."""
        session = self._session
        if session is None:
            raise UnavailableError("there is no session")
        await self._call(lambda core: core.update_statuses(session, updates))

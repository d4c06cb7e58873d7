"""A dispatcher that may be absent: what the agent holds while its manager comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from manager.dispatcher.local import LocalDispatcher
from proto.assignments import AssignmentMessage, StatusUpdate
from proto.errors import UnavailableError
from proto.ids import NodeID
from proto.objects import Node, NodeDescription


class DispatcherSwitch:
    """Passes calls on to the connected dispatcher; without one, raises `UnavailableError`."""

    def __init__(self) -> None:
        """Start without a dispatcher."""
        self._dispatcher: LocalDispatcher | None = None
        self._connected = asyncio.Event()

    def connect(self, dispatcher: LocalDispatcher) -> None:
        """Pass calls on to this dispatcher from now on."""
        self._dispatcher = dispatcher
        self._connected.set()

    def disconnect(self) -> None:
        """Let calls fail from now on; sessions end with their store."""
        self._dispatcher = None
        self._connected.clear()

    def _get(self) -> LocalDispatcher:
        if self._dispatcher is None:
            raise UnavailableError("no manager can be reached")
        return self._dispatcher

    async def register(self, node_id: NodeID, description: NodeDescription) -> Node:
        """Open a session; waits for a manager, since there is nothing better to do."""
        await self._connected.wait()
        return await self._get().register(node_id, description)

    def assignments(self, node_id: NodeID) -> AsyncIterator[AssignmentMessage]:
        """Yield this node's assignments."""
        return self._get().assignments(node_id)

    async def update_statuses(self, node_id: NodeID, updates: Sequence[StatusUpdate]) -> None:
        """Report statuses."""
        await self._get().update_statuses(node_id, updates)

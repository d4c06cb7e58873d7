"""One node's session as the leader keeps it: what the node is still to be told.

Nothing is queued: a session remembers *that* its node has to be told of a task, and the message is
made of the present state when whoever carries it asks. So a node that reads slowly costs a set of
IDs, and gets the newest state when it comes back to reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import islice

import msgspec

from manager.dispatcher.assignments import CHANGES_MAX, assignment_changes, complete_assignments
from manager.nodeport.remotes import ManagerPeer
from manager.store.tables import View
from proto.assignments import AssignmentMessage
from proto.errors import SwarmError
from proto.ids import NodeID, TaskID
from proto.logs import LogRequest
from proto.objects import Node, NodeRole
from raft.transport.identity import MANAGER_ROLE


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is told of itself and of the managers; sent first and when it changes.

    Attributes:
        session_id: for logs.
        node: the node as the managers see it.
        managers: all of them, this one too.
        heartbeat_seconds: how often to give a sign of life.
        roots_pem: the authorities to trust; two while the root is being changed.
        renew_certificate: whether to renew the certificate now.
        spread_seconds: over how long to spread attempts to come back when the session is lost.
    """

    session_id: str
    node: Node
    managers: tuple[ManagerPeer, ...] = ()
    heartbeat_seconds: float = 1.0
    roots_pem: bytes = b""
    renew_certificate: bool = False
    spread_seconds: float = 0.0

    def says_the_same(self, other: Session) -> bool:
        """Tell whether another one is no news: what a node says of itself is none."""
        mine, its = self.node, other.node
        return (
            mine.spec == its.spec
            and mine.role is its.role
            and self.managers == other.managers
            and self.heartbeat_seconds == other.heartbeat_seconds
            and self.roots_pem == other.roots_pem
            and self.renew_certificate == other.renew_certificate
            and self.spread_seconds == other.spread_seconds
        )


class Numbered(msgspec.Struct, frozen=True):
    """Assignments with their place in the session's chain."""

    content: AssignmentMessage
    is_complete: bool
    applies_to: int
    results_in: int


Outgoing = Session | Numbered | LogRequest


class OpenSession:
    """A session that lives, or has just ended.

    Attributes:
        node_id: the node's.
        told: what it was told last, or will be told next.
        certificate_role: the role in the certificate it showed; "" in process.
        certificate_until: when that ends, seconds since the epoch.
        is_local: the agent runs in this process, so it needs no heartbeats.
        instance: of the program at the other end; "" if it did not say.
        end: why it ended; None while it lives.
        said_goodbye: the agent ended it, on purpose.
    """

    def __init__(
        self,
        told: Session,
        view: Callable[[], View],
        *,
        is_local: bool,
        certificate_role: str = "",
        certificate_until: float = float("inf"),
        instance: str = "",
    ) -> None:
        """Have everything to tell."""
        self.instance = instance
        self.node_id: NodeID = told.node.id
        self.told = told
        self.certificate_role = certificate_role
        self.certificate_until = certificate_until
        self.is_local = is_local
        self.end: SwarmError | None = None
        self.said_goodbye = False
        self._view = view
        self._touched: dict[TaskID, None] = {}
        self._wishes: dict[str, LogRequest] = {}
        self._is_due = False
        self._has_info = True
        self._is_behind = True
        self._number = 0
        self._waiter: asyncio.Future[None] | None = None

    def check_open(self) -> None:
        """Raise the reason why it ended, if it has."""
        if self.end is not None:
            raise self.end

    def shows_other_role(self, node: Node) -> bool:
        """Tell whether the certificate that the node showed is for another role than it has now."""
        if not self.certificate_role:
            return False
        return (self.certificate_role == MANAGER_ROLE) is not (node.role is NodeRole.MANAGER)

    def tell(self, told: Session) -> None:
        """Let the node know what changed about it or the managers."""
        self.told = told
        self._has_info = True
        self.wake()

    def touch(self, task_id: TaskID) -> None:
        """Note that the node has to be told of a task, after `release`."""
        if not self._is_behind:
            self._touched[task_id] = None

    def release(self) -> None:
        """Let the node be told of the touched tasks now."""
        self._is_due = True
        self.wake()

    def wish(self, request: LogRequest) -> None:
        """Let the node be told that the output of one of its tasks is wished for."""
        self._wishes[request.id] = request
        self.wake()

    def start_again(self) -> None:
        """Let the node have everything anew: changes were lost."""
        self._is_behind = True
        self._touched.clear()
        self.wake()

    def close(self, reason: SwarmError) -> None:
        """End it."""
        if self.end is None:
            self.end = reason
        self.wake()

    def wake(self) -> None:
        """Let whoever waits in `next` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def messages(self) -> AsyncIterator[Outgoing]:
        """Yield what the node is to be told, the `Session` first.

        Raises:
            SwarmError: the reason why it ended.
        """
        while True:
            yield await self.next()

    async def next(self) -> Outgoing:
        """Wait until there is something to tell, and return it.

        Raises:
            SwarmError: the reason why it ended.
        """
        assert self._waiter is None, "a session has one reader"
        while True:
            if self.end is not None:
                raise self.end
            message = self._take()
            if message is not None:
                return message
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _take(self) -> Outgoing | None:
        if self._has_info:
            self._has_info = False
            return self.told
        before = self._number
        if self._is_behind:
            self._is_behind = False
            self._touched.clear()
            self._number += 1
            complete = complete_assignments(self._view(), self.node_id)
            return Numbered(complete, True, before, self._number)
        if self._touched and self._is_due:
            taken = tuple(islice(self._touched, CHANGES_MAX))
            for task_id in taken:
                del self._touched[task_id]
            self._is_due = bool(self._touched)
            self._number += 1
            changes = assignment_changes(self._view(), self.node_id, taken)
            return Numbered(changes, False, before, self._number)
        if self._wishes:
            # After the tasks: the node is to know what it is asked about.
            return self._wishes.pop(next(iter(self._wishes)))
        return None

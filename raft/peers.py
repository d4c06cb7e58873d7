"""The peers of a member: who they are, what they are sent, whom of them is listened to.

Messages are gathered by peer and lane. A commit index with no news beside it is held back for a
moment, since the next batch carries it along. The node that is proven speaks for its own member
only.
"""

from __future__ import annotations

import functools
from abc import abstractmethod

from proto.errors import (
    DeniedError,
)
from raft.core import (
    Member,
    Message,
    RaftID,
    encode,
)
from raft.core.messages import Append, Heartbeat, Install
from raft.settings import NodeName
from raft.state import State
from raft.transport.limits import Lane as Way

# A commit index alone waits so long for a batch that takes it along.
HOLD_SECONDS = 0.002
# A removed peer stays connected so long, to learn of its removal.
FAREWELL_SECONDS = 2.0


class Peers(State):
    """The layer of peers; see the module."""

    def is_allowed(self, node_id: NodeName) -> bool:
        """Tell whether a manager's messages are listened to.

        A member's are; and any manager's while we wait to be told who the members are.
        """
        if not self._core.membership.members:
            return True
        return any(member.node_id == node_id for member in self._known.values())

    def _check_sender(self, node_id: NodeName, message: Message) -> None:
        member = self._known.get(message.sender)
        if (member is not None and member.node_id != node_id) or message.sender == self._me.id:
            raise DeniedError(f"node {node_id} speaks for member {message.sender}, not its own")

    def on_unreachable(self, node_id: NodeName) -> None:
        """Messages to a peer were lost, or may have been."""

        def work() -> None:
            for member_id, member in self._known.items():
                if member.node_id == node_id:
                    self._core.unreachable(member_id)
            self._pump()

        self._guarded(work)

    # Sending.

    def _post(self, messages: list[Message]) -> None:
        """Send messages, gathered by peer; a bare commit index waits a moment."""
        if self._transport is None:
            return
        urgent: dict[RaftID, list[Message]] = {}
        for message in messages:
            if isinstance(message, Append):
                self._held.pop(message.to, None)
                self._send(message.to, encode([message]), Way.ENTRIES)
            elif isinstance(message, Heartbeat) and message.round == 0:
                self._hold(message.to, message)
            elif isinstance(message, Install):
                self._offer(message)
            else:
                urgent.setdefault(message.to, []).append(message)
        for to, gathered in urgent.items():
            self._send(to, encode(gathered), Way.CONTROL)

    def _send(self, to: RaftID, data: bytes, way: Way) -> None:
        member = self._known.get(to)
        if member is not None and self._transport is not None:
            self._transport.send(member.node_id, (data,), lane=way)

    def _hold(self, to: RaftID, heartbeat: Heartbeat) -> None:
        self._held[to] = heartbeat
        if self._hold_timer is None:
            self._hold_timer = self._loop.call_later(HOLD_SECONDS, self._on_hold_timer)

    def _on_hold_timer(self) -> None:
        self._hold_timer = None
        self._guarded(self._release_held)

    def _release_held(self) -> None:
        held, self._held = self._held, {}
        if self._core.is_leader:
            for to, heartbeat in held.items():
                self._send(to, encode([heartbeat]), Way.CONTROL)

    @abstractmethod
    def _offer(self, install: Install) -> None:
        """Send a snapshot; `shipping.py` knows how."""

    # Membership.

    def _members_changed(self) -> None:
        """Connect to whom we have to; those who left stay connected for a moment."""
        self._membership = membership = self._core.membership
        self._is_alone = [member.id for member in membership.members] == [self._me.id]
        self._known |= {member.id: member for member in membership.members}
        for member in membership.members:
            # By name: an older membership may still have us under a number from a former life.
            if member.node_id not in ("", self._me.node_id):
                self._link(member)
        members = {member.node_id for member in membership.members}
        gone = [node_id for node_id in self._linked if node_id not in members]
        if gone and membership.members:
            part = functools.partial(self._part, gone)
            self._loop.call_later(FAREWELL_SECONDS, self._guarded, part)

    def _link(self, member: Member) -> None:
        if self._transport is not None and self._linked.get(member.node_id) != member.address:
            self._linked[member.node_id] = member.address
            self._transport.set_peer(member.node_id, member.address)

    def _part(self, node_ids: list[NodeName]) -> None:
        """End the connections with those who are still no members."""
        if self._is_closed or self._transport is None:
            return
        membership = self._core.membership
        members = {member.node_id for member in membership.members}
        for node_id in node_ids:
            if node_id not in members and self._linked.pop(node_id, None) is not None:
                self._transport.remove_peer(node_id)
        kept = {member.id for member in membership.members}
        self._known = {key: member for key, member in self._known.items() if key in kept}

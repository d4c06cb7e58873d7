"""The session's messages between our values and protobuf. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from manager.dispatcher.session import Numbered, Outgoing, Session
from manager.nodeport.logs import wish_to_wire
from manager.nodeport.remotes import ManagerPeer
from proto.assignments import (
    AssignmentChanges,
    AssignmentMessage,
    CompleteAssignments,
    StatusUpdate,
)
from proto.errors import InvalidError
from proto.ids import NodeID
from proto.logs import LogRequest
from proto.objects import Node, NodeDescription
from proto.v1 import dispatcher_pb2 as pb

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_nodes = msgspec.msgpack.Decoder(Node)
_descriptions = msgspec.msgpack.Decoder(NodeDescription)
_updates = msgspec.msgpack.Decoder(list[StatusUpdate])
_completes = msgspec.msgpack.Decoder(CompleteAssignments)
_changes = msgspec.msgpack.Decoder(AssignmentChanges)

HEARTBEAT = pb.FromAgent(heartbeat=pb.Heartbeat())


def hello(description: NodeDescription, address: str, instance: str) -> pb.FromAgent:
    """Make an agent's first message."""
    encoded = _encoder.encode(description)
    return pb.FromAgent(hello=pb.Hello(description=encoded, address=address, instance=instance))


def node_report(description: NodeDescription) -> pb.FromAgent:
    """Make the message that tells of a changed description."""
    return pb.FromAgent(node=pb.NodeReport(description=_encoder.encode(description)))


def status_report(number: int, updates: Sequence[StatusUpdate]) -> pb.FromAgent:
    """Make a report of statuses."""
    return pb.FromAgent(
        statuses=pb.StatusReport(number=number, updates=_encoder.encode(list(updates)))
    )


def ack(number: int) -> pb.ToAgent:
    """Make the message that says that a report is stored."""
    return pb.ToAgent(ack=pb.StatusAck(number=number))


def to_agent(message: Outgoing) -> pb.ToAgent:
    """Make the message for what a node is told."""
    if isinstance(message, Session):
        return pb.ToAgent(session=_info(message))
    if isinstance(message, LogRequest):
        return pb.ToAgent(log_request=wish_to_wire(message))
    return pb.ToAgent(
        assignments=pb.Assignments(
            is_complete=message.is_complete,
            applies_to=message.applies_to,
            results_in=message.results_in,
            content=_encoder.encode(message.content),
        )
    )


def _info(session: Session) -> pb.SessionInfo:
    return pb.SessionInfo(
        session_id=session.session_id,
        node=_encoder.encode(session.node),
        managers=[
            pb.ManagerPeer(node_id=peer.node_id, address=peer.address, weight=max(peer.weight, 0))
            for peer in session.managers
        ],
        heartbeat_milliseconds=max(1, round(session.heartbeat_seconds * 1000)),
        roots_pem=session.roots_pem,
        renew_certificate=session.renew_certificate,
        spread_milliseconds=round(session.spread_seconds * 1000),
    )


def session_of(info: pb.SessionInfo) -> Session:
    """Read what a manager tells a node of itself.

    Raises:
        InvalidError: it cannot be read.
    """
    return Session(
        session_id=info.session_id,
        node=_decoded(_nodes, info.node),
        managers=tuple(
            ManagerPeer(NodeID(peer.node_id), peer.address, peer.weight) for peer in info.managers
        ),
        heartbeat_seconds=max(info.heartbeat_milliseconds, 1) / 1000,
        roots_pem=info.roots_pem,
        renew_certificate=info.renew_certificate,
        spread_seconds=info.spread_milliseconds / 1000,
    )


def assignments_of(message: pb.Assignments) -> Numbered:
    """Read assignments.

    Raises:
        InvalidError: they cannot be read.
    """
    content: AssignmentMessage
    if message.is_complete:
        content = _decoded(_completes, message.content)
    else:
        content = _decoded(_changes, message.content)
    return Numbered(content, message.is_complete, message.applies_to, message.results_in)


def description_of(data: bytes) -> NodeDescription:
    """Read a node's description.

    Raises:
        InvalidError: it cannot be read.
    """
    return _decoded(_descriptions, data)


def updates_of(data: bytes) -> list[StatusUpdate]:
    """Read a report of statuses.

    Raises:
        InvalidError: it cannot be read.
    """
    return _decoded(_updates, data)


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidError(f"a message of the session cannot be read: {error}") from error

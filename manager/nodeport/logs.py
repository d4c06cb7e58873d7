"""Wishes for output, and the lines themselves, between our values and protobuf. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from manager.nodeport.claims import checked_record
from proto.errors import InvalidError
from proto.ids import NodeID, TaskID
from proto.logs import LogOptions, LogRecord, LogRequest
from proto.v1 import logs_pb2 as pb

T = TypeVar("T")

WISH_KEY = "swarm-log-request"
"""Metadata of a stream of lines: the ID of the wish that it fulfils."""

_encoder = msgspec.msgpack.Encoder()
_options = msgspec.msgpack.Decoder(LogOptions)
_NONE = _encoder.encode([])
_records = msgspec.msgpack.Decoder(list[LogRecord])


def wish_to_wire(request: LogRequest) -> pb.LogRequest:
    """Make the message of a wish."""
    return pb.LogRequest(
        id=request.id,
        task_id=request.task_id,
        options=_encoder.encode(request.options),
        manager_id=request.manager_id,
        address=request.address,
    )


def wish_of(message: pb.LogRequest) -> LogRequest:
    """Read a wish.

    Raises:
        InvalidError: it cannot be read.
    """
    return LogRequest(
        id=message.id,
        task_id=TaskID(message.task_id),
        options=_decoded(_options, message.options),
        manager_id=NodeID(message.manager_id),
        address=message.address,
    )


def lines_to_wire(records: Sequence[LogRecord], *, is_last: bool = False) -> pb.LogLines:
    """Make the message that carries lines."""
    return pb.LogLines(records=_encoder.encode(records) if records else b"", is_last=is_last)


def lines_of(message: pb.LogLines) -> list[LogRecord]:
    """Read lines.

    Raises:
        InvalidError: they cannot be read.
    """
    return [checked_record(record) for record in _decoded(_records, message.records or _NONE)]


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidError(f"a message about logs cannot be read: {error}") from error

"""How errors travel over gRPC: a status code, the sentence, and the fields in trailing metadata.

The receiver gets the same class of `SwarmError` with the same fields, so that it decides by type
and not by reading the sentence. What is no error of ours (the connection broke, the server had a
bug) becomes an `UnavailableError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import grpc
import msgspec
from grpc import aio

from proto.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    DuplicateNodeError,
    InUseError,
    InvalidError,
    LockedError,
    NameConflictError,
    NotFoundError,
    NotImplementedYetError,
    NotLeaderError,
    RemovedError,
    ResourceExhaustedError,
    RuntimeFailedError,
    SequenceConflictError,
    SwarmError,
    UnavailableError,
)

ERROR_KEY = "swarm-error-bin"
"""Trailing metadata: msgpack of `_Wire`."""

# Headers as a whole may have 8 KiB; a sentence needs far less.
MESSAGE_CHARACTERS_MAX = 2_000

_CODES: dict[type[SwarmError], grpc.StatusCode] = {
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    SequenceConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    NameConflictError: grpc.StatusCode.ALREADY_EXISTS,
    InUseError: grpc.StatusCode.FAILED_PRECONDITION,
    ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    RemovedError: grpc.StatusCode.PERMISSION_DENIED,
    DeniedError: grpc.StatusCode.PERMISSION_DENIED,
    DuplicateNodeError: grpc.StatusCode.UNAVAILABLE,
    NotLeaderError: grpc.StatusCode.UNAVAILABLE,
    LockedError: grpc.StatusCode.UNAVAILABLE,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotImplementedYetError: grpc.StatusCode.UNIMPLEMENTED,
    CorruptError: grpc.StatusCode.DATA_LOSS,
    RuntimeFailedError: grpc.StatusCode.INTERNAL,
    SwarmError: grpc.StatusCode.UNKNOWN,
}
_CLASSES = {kind.__name__: kind for kind in _CODES}

Metadatum = tuple[str, str | bytes]


class _Wire(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error's class and its fields."""

    kind: str
    fields: dict[str, str | int] = {}


class Aborts(Protocol):
    """The part of a servicer's context that ends a call."""

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any, /) -> object:
        """End the call; never returns normally."""


def status_of(error: SwarmError) -> tuple[grpc.StatusCode, str, tuple[Metadatum, ...]]:
    """Return code, sentence and trailing metadata for an error."""
    kind = next(kind for kind in type(error).__mro__ if kind in _CODES)
    fields = {
        name: value
        for name, value in vars(error).items()
        if name != "message" and isinstance(value, str | int)
    }
    if sum(len(str(value)) for value in fields.values()) > MESSAGE_CHARACTERS_MAX:
        fields, kind = {}, SwarmError
    wire = msgspec.msgpack.encode(_Wire(kind.__name__, fields))
    return _CODES[kind], error.message[:MESSAGE_CHARACTERS_MAX], ((ERROR_KEY, wire),)


async def abort(context: Aborts, error: SwarmError) -> None:
    """End a call with an error; raises what grpc wants raised."""
    code, message, metadata = status_of(error)
    await context.abort(code, message, metadata)


def error_of(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, object]] | None
) -> SwarmError:
    """Return the error that a call ended with."""
    message = details or "the connection was lost"
    for key, value in metadata or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            try:
                wire = msgspec.msgpack.decode(value, type=_Wire)
            except msgspec.MsgspecError:
                break
            return _rebuilt(wire, message)
    match code:
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return DeniedError(message)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidError(message)
        case grpc.StatusCode.UNIMPLEMENTED:
            return NotImplementedYetError(message)
        case _:
            return UnavailableError(message)


def error_of_call(error: aio.AioRpcError) -> SwarmError:
    """Return the error that grpc's exception stands for."""
    return error_of(
        error.code(),
        error.details(),
        cast("Iterable[tuple[str, object]] | None", error.trailing_metadata()),
    )


def _rebuilt(wire: _Wire, message: str) -> SwarmError:
    """Make the error anew, without its constructor: the sentence came whole."""
    kind = _CLASSES.get(wire.kind, SwarmError)
    error = kind.__new__(kind)
    SwarmError.__init__(error, message)
    for name, value in wire.fields.items():
        setattr(error, name, value)
    return error

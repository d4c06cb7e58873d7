"""A netlink socket: batches of requests out, acknowledgements and dumps in.

The kernel works through a batch inside the `send` call and has answered it when the call returns,
so reading never waits for long and a process that is killed leaves a batch whole or undone, never
half done.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from overlay.rtnetlink import NLM_F_ACK, NLM_F_DUMP, Message, attributes

_HEADER = struct.Struct("=IHHII")
_ERROR_CODE = struct.Struct("=i")
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP_INTERRUPTED = 0x10
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 10, 11

_RECEIVE_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES_MAX = 1 << 15
_DUMP_ATTEMPTS_MAX = 5
_ANSWER_SECONDS_MAX = 10.0


class NetlinkError(OSError):
    """The kernel refused a request; `position` is its place in the batch."""

    def __init__(self, number: int, text: str, position: int) -> None:
        super().__init__(number, f"{os.strerror(number)}: {text}" if text else os.strerror(number))
        self.position = position


class NetlinkSocket:
    """A socket in the network namespace of the thread that made it. Not for concurrent use."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._sequence = 0
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._socket.settimeout(_ANSWER_SECONDS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, *messages: Message) -> list[bytes]:
        """Carry out messages in order; a refused one does not stop those after it.

        Returns:
            The bodies of the replies other than acknowledgements, in order.

        Raises:
            NetlinkError: the first refusal, after the whole batch was worked through.
        """
        replies, errors = self._exchange(messages)
        if errors:
            raise errors[0]
        return replies

    def attempt(self, messages: Sequence[Message]) -> list[NetlinkError]:
        """Carry out many messages, in several sends; return the refusals."""
        errors: list[NetlinkError] = []
        batch: list[Message] = []
        size = 0
        for message in messages:
            if size > _BATCH_BYTES_MAX:
                errors += self._exchange(batch)[1]
                batch, size = [], 0
            batch.append(message)
            size += len(message.body) + _HEADER.size
        if batch:
            errors += self._exchange(batch)[1]
        return errors

    def dump(self, message: Message) -> list[bytes]:
        """List what the kernel has; repeated when it changed meanwhile.

        Raises:
            NetlinkError: the kernel refused.
        """
        assert message.flags & NLM_F_DUMP == NLM_F_DUMP
        bodies: list[bytes] = []
        for _ in range(_DUMP_ATTEMPTS_MAX):
            bodies, is_consistent = self._dump_once(message)
            if is_consistent:
                break
        return bodies

    def _send(self, messages: Sequence[Message], flags: int) -> int:
        first = self._sequence + 1
        packet = bytearray()
        for message in messages:
            self._sequence += 1
            length = _HEADER.size + len(message.body)
            packet += _HEADER.pack(
                length, message.type, message.flags | _NLM_F_REQUEST | flags, self._sequence, 0
            )
            packet += message.body
            packet += bytes(-length % 4)
        self._socket.send(packet)
        return first

    def _exchange(self, messages: Sequence[Message]) -> tuple[list[bytes], list[NetlinkError]]:
        first = self._send(messages, NLM_F_ACK)
        replies: list[bytes] = []
        errors: list[NetlinkError] = []
        waiting = len(messages)
        while waiting:
            for kind, flags, sequence, body in _split(self._socket.recv(_RECEIVE_BYTES)):
                if sequence < first:
                    continue
                if kind != _NLMSG_ERROR:
                    replies.append(body)
                    continue
                waiting -= 1
                error = _error(body, flags, sequence - first)
                if error is not None:
                    errors.append(error)
        return replies, errors

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        first = self._send([message], 0)
        bodies: list[bytes] = []
        is_consistent = True
        while True:
            for kind, flags, sequence, body in _split(self._socket.recv(_RECEIVE_BYTES)):
                if sequence < first:
                    continue
                if flags & _NLM_F_DUMP_INTERRUPTED:
                    is_consistent = False
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    error = _error(body, flags, 0)
                    if error is not None:
                        raise error
                    return bodies, is_consistent
                bodies.append(body)


def _split(packet: bytes) -> list[tuple[int, int, int, bytes]]:
    messages: list[tuple[int, int, int, bytes]] = []
    offset = 0
    while offset + _HEADER.size <= len(packet):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(packet, offset)
        assert length >= _HEADER.size
        messages.append((kind, flags, sequence, packet[offset + _HEADER.size : offset + length]))
        offset += (length + 3) & ~3
    return messages


def _error(body: bytes, flags: int, position: int) -> NetlinkError | None:
    if len(body) < _ERROR_CODE.size:
        return None
    (code,) = _ERROR_CODE.unpack_from(body)
    if code == 0:
        return None
    text = ""
    if flags & _NLM_F_ACK_TLVS:
        found = dict(attributes(body[_ERROR_CODE.size + _HEADER.size :]))
        text = found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    return NetlinkError(-code, text, position)

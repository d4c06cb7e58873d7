"""How clients speak with members: lines of JSON over a unix socket, many requests under way.

A unix socket is reached across network namespaces, so a member that is cut off from the others
still hears its clients: the case in which a deposed leader must not acknowledge.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import threading
from collections.abc import Callable

import msgspec
from checker import REFUSED, UNKNOWN

LINE_BYTES_MAX = 256 << 20


class Request(msgspec.Struct, omit_defaults=True):
    """What a client asks: to "append", "read", "status", "dump" or "change" the membership."""

    id: int
    op: str
    key: str = ""
    value: int = 0
    change: str = ""


class Reply(msgspec.Struct, omit_defaults=True):
    """The answer; which fields count depends on what was asked.

    Attributes:
        id: the request's.
        outcome: ACKED, REFUSED or UNKNOWN of an append, a read or a change.
        reason: why it is not ACKED.
        leader: who leads, as far as the member knows; -1 if it does not.
        is_leader: whether it leads itself.
        length: what a read returned.
        digest: the same.
        applied: how far the member has applied the log.
        term: its term.
        lists: a dump: all that it holds.
        members: those that it takes for the group: number, whether it votes, node, address.
        member_id: the number of who was added.
    """

    id: int
    outcome: str = ""
    reason: str = ""
    leader: int = -1
    is_leader: bool = False
    length: int = 0
    digest: int = 0
    applied: int = 0
    term: int = 0
    lists: dict[str, list[int]] = {}
    members: list[tuple[int, bool, str, str]] = []
    member_id: int = 0


Answer = Callable[[Reply], None]
Handler = Callable[[Request, Answer], None]

_ENCODER = msgspec.json.Encoder()
_REQUESTS = msgspec.json.Decoder(Request)
_REPLIES = msgspec.json.Decoder(Reply)


async def serve(path: str, handler: Handler) -> asyncio.Server:
    """Let a member answer; `handler` is called on the loop and answers when it can."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def answer(reply: Reply) -> None:
            if not writer.is_closing():
                writer.write(_ENCODER.encode(reply) + b"\n")

        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                handler(_REQUESTS.decode(line), answer)
        writer.close()

    return await asyncio.start_unix_server(connected, path, limit=LINE_BYTES_MAX)


def serve_in_threads(path: str, handler: Handler) -> None:
    """Do the same without a loop, for a library with a thread of its own; never returns.

    An answer is in the kernel's hands when `answer` returns, on whatever thread, so a member that
    is killed right after it acknowledged cannot take that back.
    """

    def connected(connection: socket.socket) -> None:
        mutex = threading.Lock()

        def answer(reply: Reply) -> None:
            with mutex, contextlib.suppress(OSError):
                connection.sendall(_ENCODER.encode(reply) + b"\n")

        with contextlib.suppress(ConnectionError), connection, connection.makefile("rb") as lines:
            for line in lines:
                handler(_REQUESTS.decode(line), answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=connected, args=(connection,), daemon=True).start()


class Client:
    """The way to one member; connects when it is needed, forgets a connection that broke."""

    def __init__(self, path: str) -> None:
        """Do nothing yet."""
        self._path = path
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, op: str, *, timeout: float = math.inf, **fields: object) -> Reply:
        """Return the member's answer, or one of REFUSED if it was surely not asked, or UNKNOWN."""
        try:
            async with self._connecting:
                if self._writer is None:
                    async with asyncio.timeout(1.0):
                        await self._connect()
        except (OSError, TimeoutError):
            return Reply(0, REFUSED, "no connection")
        writer = self._writer
        if writer is None:
            return Reply(0, REFUSED, "the connection broke")
        number = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        writer.write(_ENCODER.encode(Request(number, op, **fields)) + b"\n")
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                return await future
        except TimeoutError:
            return Reply(number, UNKNOWN, "no answer in time")
        finally:
            self._waiting.pop(number, None)

    async def _connect(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(self._path, limit=LINE_BYTES_MAX)
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                reply = _REPLIES.decode(line)
                future = self._waiting.get(reply.id)
                if future is not None and not future.done():
                    future.set_result(reply)
        except ConnectionError:
            pass
        except (msgspec.DecodeError, ValueError):
            # A member that was killed while it wrote: half a line, then the end.
            pass
        self.close()

    def close(self) -> None:
        """Forget the connection; what was under way is UNKNOWN."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_result(Reply(0, UNKNOWN, "the connection broke"))

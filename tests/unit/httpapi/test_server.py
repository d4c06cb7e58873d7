"""The socket itself."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proto.errors import InUseError, UnavailableError

if TYPE_CHECKING:
    from manager.httpapi.server import Listener
    from tests.unit.httpapi.conftest import Served

Serve = Callable[..., Awaitable["Listener"]]


async def test_the_socket_is_for_root_and_one_group(serve: Serve) -> None:
    """Mode 0660 and the group that was given; nothing else lies beside it."""
    listener = await serve(gid=os.getgid())
    status = listener.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getgid()
    assert [path.name for path in listener.path.parent.iterdir()] == ["docker.sock"]
    await listener.close()
    assert list(listener.path.parent.iterdir()) == []


async def test_a_living_daemon_keeps_its_socket(serve: Serve) -> None:
    """The second one is told which path it is about, and changes nothing."""
    listener = await serve()
    with pytest.raises(InUseError, match=str(listener.path)):
        await serve()
    assert listener.path.is_socket()
    await listener.close()


async def test_a_stale_socket_is_replaced(serve: Serve, tmp_path: Path) -> None:
    """A daemon that was killed leaves its file."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "docker.sock"))
    listener = await serve()
    _, writer = await asyncio.open_unix_connection(str(listener.path))
    writer.close()
    await listener.close()


async def test_a_file_that_is_no_socket_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    """It may be somebody's data."""
    path = tmp_path / "docker.sock"
    path.write_text("data")
    with pytest.raises(InUseError, match="is no socket"):
        await serve()
    assert path.read_text() == "data"


@pytest.mark.parametrize("name", ["x" * 200, "missing/../" * 30 + "s"])
async def test_a_place_that_cannot_be_is_named(serve: Serve, name: str) -> None:
    """A path that is too long for a socket is a sentence, not a traceback."""
    with pytest.raises(UnavailableError, match=r"cannot be served on .*: "):
        await serve(name)


async def test_a_successors_socket_survives_our_end(serve: Serve) -> None:
    """Closing removes our file, not the one that took its place."""
    listener = await serve()
    listener.path.unlink()
    successor = await serve()
    await listener.close()
    assert successor.path.is_socket()
    await successor.close()


@pytest.mark.parametrize("sent", [b"", b"GET /_ping HTTP/1.1\r\nHost: x"])
async def test_half_a_request_is_not_waited_for(serve: Serve, sent: bytes) -> None:
    """A connection without a complete request is closed in time."""
    listener = await serve(head_seconds_max=0.05)
    reader, writer = await asyncio.open_unix_connection(str(listener.path))
    writer.write(sent)
    async with asyncio.timeout(5):
        await reader.read()
        assert reader.at_eof()
    writer.close()
    await listener.close()


async def test_a_second_half_request_is_not_waited_for(serve: Serve) -> None:
    """The first request's success does not buy more time."""
    listener = await serve(head_seconds_max=0.05)
    reader, writer = await asyncio.open_unix_connection(str(listener.path))
    writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\nGET /_ping HT")
    async with asyncio.timeout(5):
        answer = await reader.read()
    assert answer.count(b"HTTP/1.1 200") == 1
    writer.close()
    await listener.close()


async def test_a_long_answer_is_not_cut(served: Served) -> None:
    """The limit counts between requests only, not while one is served."""
    reader, writer = await served.open("GET", "/events")
    async with asyncio.timeout(5):
        await reader.readuntil(b"\r\n\r\n")
    writer.close()

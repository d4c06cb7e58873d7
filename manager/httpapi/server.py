"""Serves the application on a unix socket; `tls` does on the API port.

The socket is made under another name and moved into place once its owner and mode are right: at
no moment can somebody connect who may not, and a stale file of a daemon that died is replaced in
one step. A connection that sends no complete request in time is closed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from manager.httpapi.app import make_app
from manager.httpapi.idle import IdleGuard
from manager.httpapi.serverlog import SERVER_LOGGER
from manager.httpapi.tls import TlsListener, serve_tls
from proto.errors import InUseError, UnavailableError

__all__ = [
    "HEAD_SECONDS_MAX",
    "Listener",
    "TlsListener",
    "make_app",
    "serve_tls",
    "serve_unix",
]

SOCKET_MODE = 0o660
BACKLOG = 128
# A request's head must be complete by then, counted from the connection or the last response.
HEAD_SECONDS_MAX = 90.0
KEEPALIVE_SECONDS_MAX = 75.0
SHUTDOWN_SECONDS_MAX = 5.0

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Listener:
    """A served socket."""

    def __init__(
        self, path: Path, server: asyncio.Server, runner: web.AppRunner, guard: IdleGuard
    ) -> None:
        """Take over what `serve_unix` made."""
        self.path = path
        self._inode = path.stat().st_ino
        self._server = server
        self._runner = runner
        self._guard = guard

    async def close(self) -> None:
        """Take no more connections, end streams, finish requests, remove the socket."""
        if _inode_of(self.path) == self._inode:  # else another daemon has taken the name
            self.path.unlink()
        # Nobody can connect now. What was accepted must reach its protocol before the server
        # closes: asyncio would forget it half made. Select, accept, attach: one turn for each.
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        await self._runner.cleanup()
        self._guard.close()
        await self._server.wait_closed()
        log.info("api_closed", path=str(self.path))


async def serve_unix(
    app: web.Application,
    path: Path,
    gid: int | None = None,
    *,
    head_seconds_max: float = HEAD_SECONDS_MAX,
) -> Listener:
    """Serve the application on a unix socket that root and one group may use.

    Args:
        app: of `make_app`; served once.
        path: where; its folder is made if it is missing.
        gid: the group (of `swarm`, if there is one); None leaves root's.
        head_seconds_max: how long a connection may be between requests.

    Raises:
        InUseError: a living daemon serves the path, or it is no socket.
        UnavailableError: the socket cannot be made there.
    """
    guard = IdleGuard(head_seconds_max)
    app.middlewares.insert(0, guard.middleware())
    listening = _listen(path, gid)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=SERVER_LOGGER,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_SECONDS_MAX,
        shutdown_timeout=SHUTDOWN_SECONDS_MAX,
    )
    await runner.setup()
    make_protocol = runner.server
    assert make_protocol is not None

    def guarded_protocol() -> RequestHandler:
        protocol: RequestHandler = make_protocol()
        guard.watch(protocol)
        return protocol

    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(guarded_protocol, sock=listening, backlog=BACKLOG)
    log.info("api_served", path=str(path))
    return Listener(path, server, runner, guard)


def _listen(path: Path, gid: int | None) -> socket.socket:
    """Make the socket and move it into place."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{path.parent} cannot be made: {error.strerror}") from error
    _check_free(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.bind(str(draft))
        draft.chmod(SOCKET_MODE)
        if gid is not None:
            os.chown(draft, -1, gid)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        draft.rename(path)
    except OSError as error:
        listening.close()
        draft.unlink(missing_ok=True)
        reason = error.strerror or str(error)  # a path that is too long has no number
        raise UnavailableError(f"the API cannot be served on {path}: {reason}") from error
    return listening


def _check_free(path: Path) -> None:
    """Refuse a path that a living daemon serves, or that is something else than a socket."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InUseError(f"{path} is there and is no socket: move it away or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in {errno.ECONNREFUSED, errno.ENOENT}:
                return  # stale: nobody listens
            raise InUseError(f"{path} cannot be tried ({error.strerror})") from error
    raise InUseError(f"another daemon serves {path}: stop it, or choose another path")


def _inode_of(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0

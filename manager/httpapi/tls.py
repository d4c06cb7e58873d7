"""Serves the application on the API port, over TLS: to managers, and to nodes that join.

Strangers reach this port, so what a connection may cost is bounded. It waits for its first byte
with a socket and a timer only; what is no TLS is closed then. Handshake and head of the request
have their times. When the room is full, the one that has been waiting longest to say something
goes, so that nobody can keep managers out by holding connections. The listening socket is kept when
certificates change: the next handshake has the new ones.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from typing_extensions import override

from manager.ca.root import create_root
from manager.httpapi.access import CALLERS, Callers, only_managers
from manager.httpapi.contexts import server_context
from manager.httpapi.idle import IdleGuard
from manager.httpapi.middleware import errors_as_json
from manager.httpapi.requests import BACKEND, CALLER, CLOCK
from manager.httpapi.serverlog import SERVER_LOGGER
from proto.errors import InUseError, InvalidError, UnavailableError, reason_of
from raft.transport.identity import Credentials

BACKLOG = 1024
# Each that has begun TLS takes some 50 KiB. Where nftables work, `overlay/firewall_rules` lets far
# fewer strangers as far as this.
CONNECTIONS_MAX = 1_024
# File descriptors that the rest of the daemon may need; connections never take these.
DESCRIPTORS_RESERVED = 512
# Handshakes take the processor; the loop is given to others between so many.
ACCEPTS_PER_TURN = 32
FIRST_BYTE_SECONDS_MAX = 10.0
HANDSHAKE_SECONDS_MAX = 10.0
HEAD_SECONDS_MAX = 10.0
MANAGER_IDLE_SECONDS_MAX = 90.0
SHUTDOWN_SECONDS_MAX = 5.0
TLS_SHUTDOWN_SECONDS_MAX = 2.0
NO_ROOM_SECONDS = 0.1
# asyncio's own are 256 KiB for each connection.
BUFFER_BYTES = 16 * 1024
TLS_HANDSHAKE_BYTE = b"\x16"
PORT_MAX = 65_535
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN})

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class _Connection(SSLProtocol):
    """TLS of one connection, with small buffers; tells when the connection has ended."""

    max_size = BUFFER_BYTES

    def __init__(
        self,
        app_protocol: RequestHandler,
        context: ssl.SSLContext,
        handshake_seconds_max: float,
        ended: Callable[[_Connection], None],
    ) -> None:
        self.app_protocol = app_protocol
        self._tell_ended = ended
        self._below: asyncio.BaseTransport | None = None
        super().__init__(
            asyncio.get_running_loop(),
            app_protocol,
            context,
            None,  # type: ignore[arg-type]  # nobody waits on the server's side
            server_side=True,
            ssl_handshake_timeout=handshake_seconds_max,  # type: ignore[arg-type]  # parts too
            ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS_MAX,
        )

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = transport
        super().connection_made(transport)

    def abort(self) -> None:
        """End without a farewell, also in the middle of the handshake."""
        if isinstance(self._below, asyncio.Transport):
            self._below.abort()

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._tell_ended(self)


class _Room:
    """The connections of the listener, from before their first byte to their end."""

    def __init__(
        self,
        make_protocol: Callable[[], RequestHandler],
        guard: IdleGuard,
        *,
        connections_max: int,
        seconds_max: float,
    ) -> None:
        self._make_protocol = make_protocol
        self._guard = guard
        self._connections_max = connections_max
        self._seconds_max = seconds_max
        self._knocking: dict[socket.socket, asyncio.TimerHandle] = {}
        self._open: dict[RequestHandler, _Connection] = {}
        self._attaching: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def count(self) -> int:
        return len(self._knocking) + len(self._open)

    def take(self, accepted: socket.socket, context: Callable[[], ssl.SSLContext]) -> None:
        """Wait for the first byte; then begin TLS with the context of that moment."""
        if self.count >= self._connections_max and not self._make_room():
            accepted.close()
            return
        accepted.setblocking(False)
        self._knocking[accepted] = self._loop.call_later(
            min(FIRST_BYTE_SECONDS_MAX, self._seconds_max), self._refuse, accepted
        )
        self._loop.add_reader(accepted, self._on_first_byte, accepted, context)

    def _make_room(self) -> bool:
        """Close the one that has been waiting longest for a byte, or else for a request.

        It is taken from where more are waiting, so that few newcomers do not push each other out
        while many sit idle.
        """
        if len(self._knocking) > self._guard.waiting_count:
            self._refuse(next(iter(self._knocking)))
            return True
        protocol = self._guard.longest_waiting()
        if protocol is None:
            return False
        self._guard.forget(protocol)
        self._open.pop(protocol).abort()
        return True

    def _refuse(self, accepted: socket.socket) -> None:
        self._stop_waiting(accepted)
        accepted.close()

    def _stop_waiting(self, accepted: socket.socket) -> None:
        self._knocking.pop(accepted).cancel()
        self._loop.remove_reader(accepted)

    def _on_first_byte(
        self, accepted: socket.socket, context: Callable[[], ssl.SSLContext]
    ) -> None:
        try:
            first = accepted.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        if first != TLS_HANDSHAKE_BYTE:
            self._refuse(accepted)
            return
        self._stop_waiting(accepted)
        protocol = self._make_protocol()
        connection = _Connection(
            protocol, context(), min(HANDSHAKE_SECONDS_MAX, self._seconds_max), self._on_ended
        )
        self._open[protocol] = connection
        self._guard.watch(protocol)
        task = self._loop.create_task(self._attach(connection, accepted))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def _attach(self, connection: _Connection, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as error:
            log.debug("connection_not_attached", error=reason_of(error))
            accepted.close()
            self._on_ended(connection)

    def _on_ended(self, connection: _Connection) -> None:
        self._open.pop(connection.app_protocol, None)
        self._guard.forget(connection.app_protocol)

    def refuse_all(self) -> None:
        """Close those that have not begun TLS."""
        for accepted in tuple(self._knocking):
            self._refuse(accepted)

    async def close(self) -> None:
        """End what is left, after the requests had their time."""
        if self._attaching:
            await asyncio.wait(self._attaching)
        for connection in tuple(self._open.values()):
            connection.abort()
        while self._open:  # noqa: ASYNC110 -- a turn of the loop or two
            await asyncio.sleep(0)


class TlsListener:
    """A served API port; made by `serve_tls`."""

    def __init__(
        self,
        listening: socket.socket,
        credentials: Callable[[], Credentials],
        runner: web.AppRunner,
        room: _Room,
        guard: IdleGuard,
    ) -> None:
        """Take over what `serve_tls` made, and begin to accept."""
        self._listening = listening
        self._credentials = credentials
        self._context = server_context(credentials())
        self._runner = runner
        self._room = room
        self._guard = guard
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        host, port = listening.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._loop.add_reader(listening, self._on_acceptable)

    @property
    def connection_count(self) -> int:
        """How many connections there are, those in the handshake too."""
        return self._room.count

    def reload(self) -> None:
        """Show the credentials of now to new connections; those that exist stay."""
        self._context = server_context(self._credentials())
        log.info("api_credentials_reloaded", address=self.address)

    async def close(self) -> None:
        """Take no more connections, end streams, finish requests."""
        self._loop.remove_reader(self._listening)
        if self._pause is not None:
            self._pause.cancel()
        self._listening.close()
        self._room.refuse_all()
        await self._runner.cleanup()
        self._guard.close()
        await self._room.close()
        log.info("api_closed", address=self.address)

    def _on_acceptable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno not in _NO_ROOM:
                    raise
                log.warning("connections_not_accepted", address=self.address, error=error.strerror)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(NO_ROOM_SECONDS, self._go_on)
                return
            self._room.take(accepted, lambda: self._context)

    def _go_on(self) -> None:
        self._loop.add_reader(self._listening, self._on_acceptable)


async def serve_tls(
    app: web.Application,
    listen_addr: str,
    credentials: Callable[[], Credentials],
    *,
    connections_max: int = CONNECTIONS_MAX,
    head_seconds_max: float = HEAD_SECONDS_MAX,
) -> TlsListener:
    """Serve the application on the API port.

    Args:
        app: of `make_app`, one for each listener.
        listen_addr: host:port with a numeric host.
        credentials: asked now and at each `reload`; must be quick.
        connections_max: beyond these the stranger that has waited longest is closed.
        head_seconds_max: how long a stranger may take for a handshake, and for a request.

    Raises:
        InvalidError: the address is none.
        InUseError: something else listens there.
        UnavailableError: it is no address of this machine, or may not be used.
    """
    listening = _listen(listen_addr)
    guard = IdleGuard(
        head_seconds_max,
        lambda request: MANAGER_IDLE_SECONDS_MAX if CALLER in request else head_seconds_max,
    )
    # The guard waits on while a stranger sends its body, and while it is refused.
    callers = app[CALLERS] = Callers(app[BACKEND], app[CLOCK])
    inside = app.middlewares.index(errors_as_json) + 1
    app.middlewares[inside:inside] = [only_managers, guard.middleware()]
    app.on_cleanup.append(lambda _app: callers.close())
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=SERVER_LOGGER,
        handler_cancellation=True,
        keepalive_timeout=MANAGER_IDLE_SECONDS_MAX,
        shutdown_timeout=SHUTDOWN_SECONDS_MAX,
    )
    try:
        await runner.setup()
        make_protocol = runner.server
        assert make_protocol is not None
        room = _Room(
            make_protocol,
            guard,
            connections_max=_room_for(connections_max),
            seconds_max=head_seconds_max,
        )
        listener = TlsListener(listening, credentials, runner, room, guard)
    except BaseException:
        listening.close()
        await runner.cleanup()
        raise
    log.info("api_served", address=listener.address)
    return listener


def throwaway_credentials(now: float) -> Credentials:
    """Make credentials that prove nothing, for a locked manager: its key is sealed.

    With them it can tell those who want to join that it is locked; nobody's certificate is
    accepted.

    Args:
        now: seconds since the epoch.
    """
    root = create_root(now)
    pem = root.certificate_pem.encode("ascii")
    return Credentials(certificate_pem=pem, key_pem=root.key_pem.encode("ascii"), roots_pem=pem)


def _room_for(connections_max: int) -> int:
    """Raise this process's limit of open files as far as it may; return what fits under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, connections_max + 2 * DESCRIPTORS_RESERVED)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(1, min(connections_max, soft - DESCRIPTORS_RESERVED))


def _listen(listen_addr: str) -> socket.socket:
    """Listen on an address; on both families where it is every one, as the node port does."""
    host, _, port = listen_addr.rpartition(":")
    host = host.strip("[]")
    is_every = host in {"", "0.0.0.0", "::"}  # noqa: S104 -- the default of `--listen-addr`
    if is_every and socket.has_dualstack_ipv6():
        host = "::"
    try:
        if not 0 <= int(port) <= PORT_MAX:
            raise ValueError(port)  # noqa: TRY301 -- the same as what int() raises
        family, kind, number, _, address = socket.getaddrinfo(
            host or "0.0.0.0",  # noqa: S104 -- the default of `--listen-addr`
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE,
        )[0]
    except (ValueError, OverflowError, socket.gaierror):
        raise InvalidError(
            f"the listen address {listen_addr!r} is not valid: give HOST:PORT with a numeric host"
        ) from None
    listening = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, number)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not is_every))
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InUseError(
                f"something else listens on {listen_addr}: stop it, or choose another --listen-addr"
            ) from error
        raise UnavailableError(
            f"cannot listen on {listen_addr}: {error.strerror or error}"
        ) from error
    return listening

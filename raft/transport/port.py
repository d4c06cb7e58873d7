"""The node port's server, which is made anew when the node's credentials change.

grpc can ask for credentials at each handshake. It does so in Python and under a lock, on the few
threads that serve all connections; when the interpreter is busy, a hundred handshakes a second are
enough to stop every heartbeat (measured; see DESIGN.md). So a server has the credentials of its
beginning. When they change it stops to listen, and another one listens on the same port; calls
that are under way go on with the old one until they end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import structlog
from grpc import aio

from proto.errors import SwarmError, UnavailableError, reason_of
from raft.transport.channels import (
    Guard,
    Interceptor,
    Services,
    secure_server,
    server_credentials,
)
from raft.transport.identity import Credentials, CredentialsSource
from raft.transport.limits import Limits
from raft.transport.link import report_bug

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

DRAIN_SECONDS = 3600.0
"""How long calls may go on that began before the credentials changed."""

STOP_SECONDS = 0.2
"""How long peers may take to notice that the server stops."""

RETRY_SECONDS = 0.1


class Port:
    """Listens on one address."""

    def __init__(
        self,
        credentials: CredentialsSource,
        limits: Limits,
        *,
        add_services: Sequence[Callable[[aio.Server], None]],
        interceptors: Sequence[Interceptor],
    ) -> None:
        """Do nothing yet."""
        self._credentials = credentials
        self._limits = limits
        self._add_services = add_services
        self._interceptors = interceptors
        self._server: aio.Server | None = None
        self._shown: Credentials | None = None
        self._address = ""
        self._renewing: asyncio.Task[None] | None = None
        self._draining: dict[aio.Server, asyncio.Task[None]] = {}

    async def open(self, listen_address: str) -> int:
        """Listen; return the port.

        Raises:
            UnavailableError: the address cannot be listened on.
        """
        assert self._server is None
        port = await self._listen(listen_address)
        self._address = f"{listen_address.rpartition(':')[0]}:{port}"
        return port

    def renew(self) -> None:
        """Show the credentials of now from the next handshakes on, soon after this call."""
        if self._server is not None and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="node-port-renewal")
            self._renewing.add_done_callback(report_bug)

    async def renewed(self) -> None:
        """Wait until `renew` is done."""
        if self._renewing is not None:
            await asyncio.wait([self._renewing])

    async def close(self) -> None:
        """Stop to listen and end all calls."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        server, self._server = self._server, None
        servers = [*self._draining, *([] if server is None else [server])]
        await asyncio.gather(*(one.stop(STOP_SECONDS) for one in servers))
        if self._draining:
            await asyncio.wait(list(self._draining.values()))

    async def _listen(self, address: str) -> int:
        shown = self._credentials()
        server = secure_server(self._limits, self._interceptors)
        services = Services(server)
        for add in self._add_services:
            add(cast("aio.Server", services))
        for interceptor in self._interceptors:
            if isinstance(interceptor, Guard):
                interceptor.check_methods(services.methods)
        try:
            port = server.add_secure_port(address, server_credentials(shown))
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {address}; is another program using it?"
            ) from error
        await server.start()
        self._server, self._shown = server, shown
        return port

    async def _renew(self) -> None:
        try:
            while self._server is not None and self._credentials() != self._shown:
                self._drain(self._server)
                await self._listen_again()
                log.info("node_port_renewed", address=self._address)
        finally:
            self._renewing = None

    def _drain(self, server: aio.Server) -> None:
        """Let a server listen no more and end with its calls."""
        task = asyncio.create_task(server.stop(DRAIN_SECONDS))
        self._draining[server] = task
        task.add_done_callback(lambda _task: self._draining.pop(server, None))

    async def _listen_again(self) -> None:
        is_told = False
        while True:
            # The old one lets go of the port within a turn or two of the loop.
            await asyncio.sleep(RETRY_SECONDS if is_told else 0.0)
            try:
                await self._listen(self._address)
            except (SwarmError, OSError) as error:
                if not is_told:
                    log.warning("node_port_not_renewed", reason=reason_of(error))
                is_told = True
            else:
                return

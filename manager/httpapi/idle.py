"""Closes connections that send no complete request in time.

The time counts from the connection or from the end of the last answer, never while a request is
served: answers may take as long as they like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler


class IdleGuard:
    """The connections of one listener that are between requests."""

    def __init__(
        self, seconds: float, between: Callable[[web.Request], float] | None = None
    ) -> None:
        """Keep how long to wait.

        Args:
            seconds: for the first request of a connection, and for later ones.
            between: how long to wait after a request for the next one, in place of `seconds`.
        """
        self._seconds = seconds
        self._between = between
        self._timers: dict[RequestHandler, asyncio.TimerHandle] = {}
        self._is_closed = False

    def watch(self, protocol: RequestHandler, seconds: float | None = None) -> None:
        """Begin to wait for a request."""
        self.forget(protocol)
        loop = asyncio.get_running_loop()
        if self._is_closed:
            # Accepted just before the end. It gets its transport in the next turn of the loop.
            loop.call_soon(loop.call_soon, protocol.force_close)
            return
        wait = self._seconds if seconds is None else seconds
        self._timers[protocol] = loop.call_later(wait, self._expire, protocol)

    def forget(self, protocol: RequestHandler) -> None:
        """Wait no more."""
        timer = self._timers.pop(protocol, None)
        if timer is not None:
            timer.cancel()

    @property
    def waiting_count(self) -> int:
        """How many are waited for."""
        return len(self._timers)

    def longest_waiting(self) -> RequestHandler | None:
        """Return the one that has been waited for longest, if any."""
        return next(iter(self._timers), None)

    def close(self) -> None:
        """Close all that are between requests."""
        self._is_closed = True
        for protocol, timer in self._timers.items():
            timer.cancel()
            protocol.force_close()
        self._timers.clear()

    def _expire(self, protocol: RequestHandler) -> None:
        del self._timers[protocol]
        protocol.force_close()

    def middleware(self) -> Middleware:
        """Return what has to be around every request."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.forget(request.protocol)
            try:
                return await handler(request)
            finally:
                if request.transport is not None:
                    seconds = None if self._between is None else self._between(request)
                    self.watch(request.protocol, seconds)

        return guarded

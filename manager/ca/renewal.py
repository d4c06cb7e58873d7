"""When a certificate is renewed, and the loop that does it. The first half is pure.

A certificate is renewed at a random point between 50 and 80 % of its life, so that nodes which
joined together do not come together, and so that there is time left for a cluster without a leader
to come back. The life counts from when it was issued, not from its back-dated beginning. A renewal
that fails is tried again after 5 s, doubling up to an hour.

A renewal has two calls: a request, answered by a certificate; and, once that is on disk, the
certificate itself, which tells the authority that the node has it. A change of the root waits for
the second: an answer that was lost must not count.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from manager.ca.credentials import NodeCredentials
from manager.ca.issue import new_key_and_csr
from manager.ca.root import BACKDATE_SECONDS
from proto.clock import Clock
from proto.errors import SwarmError, UnavailableError
from proto.text import time_of_day

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# Source: swarmkit ca/config.go (CertLowerRotationRange, CertUpperRotationRange).
LIFE_MIN = 0.5
LIFE_MAX = 0.8
# Source: swarmkit ca/renewer.go (the back-off of RequestAndSaveNewCertificates).
RETRY_SECONDS_MIN = 5.0
RETRY_SECONDS_MAX = 3_600.0
# The clock may be set while we wait, so it is looked at again this often.
NAP_SECONDS_MAX = 600.0

Request = Callable[[bytes], Awaitable[tuple[bytes, bytes]]]
"""Sends a certificate request, or the certificate now held, to the leader's authority.

The answer is a certificate with its intermediate ones (none to a certificate) and the roots.
"""


def renewal_time(valid_from: float, valid_until: float, rng: random.Random) -> float:
    """Draw the moment at which a certificate is to be renewed; all in seconds since the epoch."""
    issued = min(valid_from + BACKDATE_SECONDS, valid_until)
    return issued + rng.uniform(LIFE_MIN, LIFE_MAX) * (valid_until - issued)


def retry_seconds(failures: int, rng: random.Random) -> float:
    """Return the pause after so many failures in a row: 5 s, doubling up to an hour.

    It is spread by a fifth, downwards, so that nodes do not try in step; never under 5 s.
    """
    assert failures >= 1
    # The exponent is bounded, because a float is not.
    pause = min(RETRY_SECONDS_MIN * 2.0 ** min(failures - 1, 32), RETRY_SECONDS_MAX)
    return max(pause * rng.uniform(0.8, 1.0), RETRY_SECONDS_MIN)


class Renewer:
    """Keeps this node's certificate fresh; one per node, whatever its role."""

    def __init__(
        self, credentials: NodeCredentials, request: Request, *, clock: Clock, rng: random.Random
    ) -> None:
        """Renew `credentials` by `request`; nothing happens before `run` or `renew_now`."""
        self._credentials = credentials
        self._request = request
        self._clock = clock
        self._rng = rng
        self._woken = asyncio.Event()
        self._is_hurried = False
        self._renewing = asyncio.Lock()
        # The certificate is stored, but the authority was not told yet.
        self._is_untold = False
        self._due = 0.0
        self._failing_since = 0.0
        self._reason = ""

    def hurry(self) -> None:
        """Renew at once: the root changes, or the role did. Asked in vain, it costs a renewal."""
        self._is_hurried = True
        self._woken.set()

    def confirm(self) -> None:
        """Tell the authority soon what this node holds and trusts: the roots changed."""
        self._is_untold = True
        self._due = self._clock.wall()
        self._woken.set()

    async def renew_now(self) -> None:
        """Renew once.

        Raises:
            SwarmError: it failed; the old certificate stays unless only the last call failed.
        """
        await self._renew()

    async def renew_if(self, is_needed: Callable[[], bool]) -> None:
        """Renew if it still is needed when the renewal under way is done; `run` tells of it soon.

        Raises:
            SwarmError: it failed; the old certificate stays.
        """
        async with self._renewing:
            if not is_needed():
                return
            await self._replace()
        self._due = self._clock.wall()
        self._woken.set()

    @property
    def trouble(self) -> str:
        """Say that the authority gives no certificate, since when and why; "" if it does."""
        if not self._reason:
            return ""
        return (
            "waiting for a new certificate of this node since "
            f"{time_of_day(self._failing_since)} ({self._reason})"
        )

    async def run(self) -> None:
        """Renew whenever it is time, until cancelled."""
        failures = 0
        self._due = self._draw()
        while True:
            await self._wait()
            is_hurried, self._is_hurried = self._is_hurried, False
            self._woken.clear()
            try:
                await (self._tell() if self._is_untold and not is_hurried else self._renew())
            except SwarmError as error:
                failures += 1
                self._failing_since = self._failing_since or self._clock.wall()
                self._reason = error.message
                pause = self._pause(failures)
                self._due = self._clock.wall() + pause
                # What was refused, unlike what did not arrive, would be refused again.
                self._is_untold = self._is_untold and isinstance(error, UnavailableError)
                log.warning(
                    "certificate_not_renewed",
                    error=error.message,
                    failures=failures,
                    retry_seconds=round(pause),
                )
            else:
                failures = 0
                self._failing_since, self._reason = 0.0, ""
                self._due = self._draw()

    def _pause(self, failures: int) -> float:
        """Return the time to the next attempt: not past the end of the certificate.

        At its end there may be another way to get one.
        """
        pause = retry_seconds(failures, self._rng)
        rest = self._credentials.identity.valid_until - self._clock.wall()
        return min(pause, max(rest, RETRY_SECONDS_MIN)) if rest > 0 else pause

    def _draw(self) -> float:
        valid_until = self._credentials.identity.valid_until
        return renewal_time(self._credentials.valid_from, valid_until, self._rng)

    async def _wait(self) -> None:
        """Wait until it is time, or hurried; or until the clock was set to before the certificate.

        Such a certificate is from a time when the clock was ahead, and nobody takes it.
        """
        was_valid = self._credentials.is_valid_at(self._clock.wall())
        while not self._woken.is_set():
            now = self._clock.wall()
            rest = self._due - now
            if rest <= 0 or (was_valid and now < self._credentials.valid_from):
                return
            try:
                async with asyncio.timeout(min(rest, NAP_SECONDS_MAX)):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _renew(self) -> None:
        async with self._renewing:
            await self._replace()
        # It may take long, and nobody needs to wait for it who wants to show the certificate.
        await self._tell()

    async def _replace(self) -> None:
        key_pem, csr_pem = new_key_and_csr(self._credentials.identity.node_id)
        certificate_pem, roots_pem = await self._request(csr_pem)
        # It waits for the disk.
        await asyncio.to_thread(
            self._credentials.replace,
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            roots_pem=roots_pem,
        )
        self._is_untold = True
        self._due = self._draw()
        identity = self._credentials.identity
        log.info("certificate_renewed", role=identity.role, valid_until=round(identity.valid_until))

    async def _tell(self) -> None:
        """Show the authority the certificate that is now held."""
        # The roots in the answer are not taken: the session may have told newer ones meanwhile.
        await self._request(self._credentials.source().certificate_pem)
        self._is_untold = False

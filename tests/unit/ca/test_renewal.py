"""When certificates are renewed, and that one that is renewed is in use at once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from manager.ca import renewal
from manager.ca.credentials import NodeCredentials
from manager.ca.issue import new_key_and_csr
from manager.ca.renewal import (
    RETRY_SECONDS_MAX,
    RETRY_SECONDS_MIN,
    Renewer,
    renewal_time,
    retry_seconds,
)
from proto.errors import DeniedError, UnavailableError
from proto.objects import NodeAvailability
from raft.simdisk import SimFiles

PLACE = Path("/state/certificates")
NOW = 1_800_000_000.0


@pytest.fixture
def rng() -> random.Random:
    """Give a seeded generator."""
    return random.Random(5)


@pytest.fixture
async def credentials(authority, cluster) -> NodeCredentials:
    """Give the credentials of a node that joined."""
    key_pem, csr_pem = new_key_and_csr()
    joined = await authority.issue_for_join(
        cluster.join_tokens.worker,
        csr_pem,
        hostname="host1",
        availability=NodeAvailability.ACTIVE,
        address="",
    )
    return NodeCredentials.save_new(
        PLACE,
        certificate_pem=joined.certificate_pem,
        key_pem=key_pem,
        roots_pem=joined.roots_pem,
        kek=None,
        files=SimFiles(random.Random(1)),
    )


class Requests:
    """The way to the authority, which may break."""

    def __init__(self, authority, credentials):
        self.authority = authority
        self.credentials = credentials
        self.sent = []
        self.failures = []

    async def __call__(self, text):
        """Ask, unless a failure is due."""
        self.sent.append("held" if b"BEGIN CERTIFICATE-----" in text else "request")
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return await self.authority.renew(self.credentials.identity.node_id, text)


@pytest.fixture
def requests(authority, credentials) -> Requests:
    """Give the way to the authority."""
    return Requests(authority, credentials)


@pytest.fixture
def renewer(credentials, requests, clock, rng) -> Renewer:
    """Give a renewer."""
    return Renewer(credentials, requests, clock=clock, rng=rng)


async def until(condition):
    """Wait for a condition."""
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110 -- what is waited for tells nobody
            await asyncio.sleep(0.001)


def test_renewal_is_between_50_and_80_percent_of_life(rng):
    """Over many draws, all of the range and nothing else; counted from the issue."""
    day = 86_400.0
    drawn = [renewal_time(NOW - 3_600, NOW + 90 * day, rng) for _ in range(2_000)]
    assert min(drawn) >= NOW + 45 * day
    assert max(drawn) <= NOW + 72 * day
    assert max(drawn) - min(drawn) > 26 * day


def test_the_shortest_certificate_is_not_renewed_at_once(rng):
    """One of an hour is renewed after half an hour at the earliest, back-dating or not."""
    drawn = [renewal_time(NOW - 3_600, NOW + 3_600, rng) for _ in range(200)]
    assert min(drawn) >= NOW + 1_800
    assert max(drawn) <= NOW + 2_880


def test_pauses_grow_from_5_seconds_to_an_hour(rng):
    """Doubling, bounded at both ends, however often it failed."""
    pauses = [retry_seconds(count, rng) for count in range(1, 200)]
    assert pauses[0] == RETRY_SECONDS_MIN
    assert all(RETRY_SECONDS_MIN <= pause <= RETRY_SECONDS_MAX for pause in pauses)
    assert 8.0 <= pauses[1] <= 10.0
    assert min(pauses[20:]) >= 0.8 * RETRY_SECONDS_MAX
    assert retry_seconds(10**9, rng) <= RETRY_SECONDS_MAX


async def test_a_renewed_certificate_is_in_use_and_told(
    renewer, requests, credentials, store, clock
):
    """Key and certificate are new, subscribers know, the authority was shown it."""
    before = credentials.source()
    changes = []
    credentials.subscribe(lambda: changes.append(1))
    clock.now += 1_000.0
    await renewer.renew_now()
    after = credentials.source()
    assert after.key_pem != before.key_pem
    assert credentials.identity.valid_until == clock.now + 90 * 86_400
    await until(lambda: changes == [1])
    assert requests.sent == ["request", "held"]
    node = store.view().nodes.get(credentials.identity.node_id)
    assert node.certificate_until == credentials.identity.valid_until
    assert node.tls_info is not None


async def test_renew_now_raises(renewer, requests, credentials):
    """The old certificate stays."""
    before = credentials.source()
    requests.failures = [UnavailableError("no leader")]
    with pytest.raises(UnavailableError):
        await renewer.renew_now()
    assert credentials.source() == before


async def test_the_loop_waits_for_its_time(renewer, requests, clock):
    """Nothing is asked before 50 % of the life; at 80 % it was."""
    clock.now += 44 * 86_400
    running = asyncio.create_task(renewer.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert requests.sent == []
    running.cancel()
    clock.now += 29 * 86_400
    running = asyncio.create_task(renewer.run())
    await until(lambda: len(requests.sent) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert requests.sent == ["request", "held"]
    running.cancel()


async def test_hurry_renews_at_once_and_once(renewer, requests):
    """Also when it is asked for twice."""
    running = asyncio.create_task(renewer.run())
    await asyncio.sleep(0)
    renewer.hurry()
    renewer.hurry()
    await until(lambda: len(requests.sent) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert requests.sent == ["request", "held"]
    renewer.hurry()
    await until(lambda: len(requests.sent) == 4)
    running.cancel()


async def test_an_untold_certificate_is_told_not_renewed(renewer, requests, credentials, clock):
    """When only the second call failed, only that is repeated, after a pause."""
    running = asyncio.create_task(renewer.run())
    await asyncio.sleep(0)
    requests.failures = [None, UnavailableError("the connection was lost")]
    renewer.hurry()
    await until(lambda: len(requests.sent) == 2)
    await until(lambda: renewer._due <= clock.now + RETRY_SECONDS_MIN)
    held = credentials.source()
    running.cancel()
    clock.now = renewer._due
    assert renewer._is_untold
    await asyncio.wait_for(_one_round(renewer, requests), 5.0)
    assert requests.sent == ["request", "held", "held"]
    assert credentials.source() == held


async def _one_round(renewer, requests):
    """Let the loop do what is due now."""
    count = len(requests.sent)
    draw = renewer._draw
    due = renewer._due

    def first():
        renewer._draw = draw
        return due

    renewer._draw = first
    running = asyncio.create_task(renewer.run())
    await until(lambda: len(requests.sent) > count and not renewer._renewing.locked())
    running.cancel()


async def test_a_refused_showing_leads_to_another_renewal(renewer, requests):
    """What the authority refuses to take note of is not shown for ever."""
    running = asyncio.create_task(renewer.run())
    await asyncio.sleep(0)
    requests.failures = [None, DeniedError("no")]
    renewer.hurry()
    await until(lambda: len(requests.sent) == 2 and not renewer._renewing.locked())
    await until(lambda: not renewer._is_untold)
    running.cancel()


async def test_failures_are_tried_again_after_a_pause(renewer, requests, clock):
    """The loop goes on; hurry cuts the pause short."""
    running = asyncio.create_task(renewer.run())
    await asyncio.sleep(0)
    requests.failures = [UnavailableError("no leader"), UnavailableError("no leader")]
    renewer.hurry()
    await until(lambda: len(requests.sent) == 1 and renewer._due == clock.now + 5.0)
    renewer.hurry()
    await until(lambda: len(requests.sent) == 2 and clock.now + 8 <= renewer._due <= clock.now + 10)
    renewer.hurry()
    await until(lambda: requests.sent == ["request", "request", "request", "held"])
    running.cancel()


async def test_what_was_renewed_meanwhile_is_not_renewed_again(renewer, requests, credentials):
    """Whoever needs a valid certificate waits for the renewal under way, and takes it."""
    before = credentials.source()
    await renewer.renew_if(lambda: credentials.source() == before)
    assert credentials.source() != before
    await renewer.renew_if(lambda: credentials.source() == before)
    assert requests.sent == ["request"]


async def test_the_end_of_a_certificate_is_not_slept_through(renewer, credentials, clock):
    """However long the pauses have grown: then there may be another way to get one."""
    until = credentials.identity.valid_until
    clock.now = until - 100.0
    for _ in range(20):
        assert renewer._pause(12) <= 100.0
    clock.now = until + 1.0
    assert renewer._pause(12) > 100.0


async def test_a_certificate_from_a_clock_that_was_ahead_is_renewed(
    renewer, requests, credentials, clock, monkeypatch
):
    """Once the clock is right, its time has not begun."""
    monkeypatch.setattr(renewal, "NAP_SECONDS_MAX", 0.01)
    running = asyncio.create_task(renewer.run())
    await asyncio.sleep(0)
    assert requests.sent == []
    clock.now = credentials.valid_from - 10.0
    async with asyncio.timeout(10):
        while len(requests.sent) < 2:  # noqa: ASYNC110 -- the disk is a thread's
            await asyncio.sleep(0.01)
    assert credentials.is_valid_at(clock.now)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_renewal_that_fails_is_named_until_it_succeeds(renewer, requests):
    """Since when and why the authority gives no certificate; nothing when it does."""
    requests.failures = [UnavailableError("no manager answered as leader")]
    running = asyncio.create_task(renewer.run())
    await asyncio.sleep(0)
    assert renewer.trouble == ""
    renewer.hurry()
    await until(lambda: renewer.trouble != "")
    assert renewer.trouble.startswith("waiting for a new certificate of this node since ")
    assert renewer.trouble.endswith(" UTC (no manager answered as leader)")
    renewer.hurry()
    await until(lambda: renewer.trouble == "")
    running.cancel()

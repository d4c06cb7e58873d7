"""Whatever a stranger sends to the API port: a sentence, never a traceback."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.integration.httpapi.conftest import client_context

if TYPE_CHECKING:
    from tests.integration.httpapi.conftest import Managers

pytestmark = pytest.mark.integration

CERTIFICATE = "/join/v1/certificate"
DEEP = b'{"token":' * 20_000
BODIES = [
    b"\xff\xfe",
    b'{"token":"\xff"}',
    b'{"token":"\\ud800","csr":"\\udfff"}',
    b"[" * 50_000,
    DEEP,
    b'{"x":' * 700 + b"1" + b"}" * 700,
    b"null",
    b"{}",
    b'{"token":1}',
    b'{"token":"SWMTKN-1-\x1b[2J"}',
    b'{"token":"' + "\u202e\u0000".encode() + b'"}',
    b'{"availability":"' + b"9" * 60_000 + b'"}',
    b'{"address":"%s"}' % (b"1" * 60_000),
    b"x" * 65_537,
]


@pytest.mark.parametrize("name", ["m1", "m2"])
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_a_request_to_join_that_is_none_is_refused(
    managers: Managers, name: str, body: bytes
) -> None:
    """On the leader and by way of a follower: 4xx and a sentence that a terminal only shows."""
    with structlog.testing.capture_logs() as lines:
        answer = await managers.ask_tls(name, CERTIFICATE, None, method="POST", body=body)
    assert 400 <= answer.status < 500
    assert answer.message.isprintable()
    assert answer.message
    assert "request_failed" not in {line["event"] for line in lines}


async def raw(managers: Managers, data: bytes) -> bytes:
    """Send bytes to m1 after the handshake and read what comes, until the end or for a while."""
    host, _, port = managers.all["m1"].address.rpartition(":")
    context = client_context(managers.folder, None)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(data)
        async with asyncio.timeout(2):
            return await reader.read(65_536)
    except (TimeoutError, ConnectionError):
        return b""
    finally:
        writer.close()


def requests(rng: random.Random) -> bytes:
    """Make a request of parts that fit and parts that do not."""
    noise = rng.randbytes(rng.randrange(40))
    method = rng.choice([b"GET", b"POST", b"PUT", b"\xff", b"A" * 200])
    path = rng.choice(
        [b"/join/v1/root", b"/join/v1/certificate", b"/nodes", b"/%ff%fe", b"/join/v1/../x", noise]
    )
    query = rng.choice([b"", b"?a=%ff", b"?" + noise, b"?filters=" + b"%5B" * 1_000])
    header = rng.choice(
        [
            b"",
            b"X-Registry-Auth: \xff\r\n",
            b"Swarm-Forwarded-By: m2\r\n",
            b"Content-Length: -1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: " + noise + b"\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Host: " + noise + b"\r\n",
        ]
    )
    body = rng.choice([b"", noise, b"{}", DEEP[:20_000]])
    length = b"Content-Length: %d\r\n" % len(body) if rng.random() < 0.7 else b""
    return b"%s %s%s HTTP/1.1\r\nConnection: close\r\n%s%s\r\n%s" % (
        method,
        path,
        query,
        header,
        length,
        body,
    )


@pytest.mark.parametrize("seed", range(4))
async def test_noise_makes_no_traceback(
    managers: Managers, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests of every kind, as far as a stranger gets: the daemon answers or hangs up."""
    rng = random.Random(seed)
    with structlog.testing.capture_logs() as lines, caplog.at_level(logging.WARNING):
        for _ in range(40):
            answer = await raw(managers, requests(rng))
            status = answer[9:12]
            assert not status.startswith(b"5") or status in {b"501", b"505"}, answer[:300]
    assert [line for line in lines if line["log_level"] == "error"] == []
    assert [record for record in caplog.records if record.exc_info] == []

"""The API port among strangers: who gets in, and what they cannot do to it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest

from manager.httpapi.app import make_app
from manager.httpapi.server import TlsListener, serve_tls
from manager.httpapi.tls import throwaway_credentials
from proto.errors import InUseError, InvalidError, UnavailableError
from raft.transport.identity import WORKER_ROLE, Credentials

if TYPE_CHECKING:
    from tests.integration.httpapi.conftest import Managers

pytestmark = pytest.mark.integration

STRANGERS = 1_500


async def serve(managers: Managers, **options: Any) -> TlsListener:
    """Serve m1's API on another port."""
    manager = managers.all["m1"]
    app = make_app(manager, peers=manager)
    return await serve_tls(app, "127.0.0.1:0", manager.credentials, **options)


def connect(address: str) -> socket.socket:
    """Open a plain connection."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


async def is_closed(connection: socket.socket, within: float = 5.0) -> bool:
    """Tell whether the other end closes the connection in time."""
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(within):
            while await loop.sock_recv(connection, 4096):
                pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


async def is_serving(managers: Managers, name: str = "m1") -> bool:
    """Tell whether a manager still gets an answer, soon."""
    async with asyncio.timeout(5):
        answer = await managers.ask_tls(name, "/_ping", managers.pki.credentials("m2"))
    return (answer.status, answer.body) == (200, b"OK")


async def test_a_manager_gets_everything(managers: Managers) -> None:
    """By its certificate, as on the socket."""
    mine = managers.pki.credentials("m2")
    assert (await managers.ask_tls("m1", "/v1.50/services", mine)).json() == []
    assert (await managers.ask_tls("m1", "/info", mine)).status == 200


async def test_without_a_manager_s_certificate_there_is_only_joining(managers: Managers) -> None:
    """A stranger and a worker get the root certificate, and not even a "not found" beyond."""
    worker = managers.pki.credentials("w1", WORKER_ROLE)
    for who in (None, worker):
        root = await managers.ask_tls("m1", "/join/v1/root", who)
        assert (root.status, root.body.decode()) == (200, managers.pki.root.certificate_pem)
        for path in ("/_ping", "/info", "/nodes", "/swarm", "/nowhere", "/v1.50/join/v1/x"):
            answer = await managers.ask_tls("m1", path, who)
            assert (path, answer.status) == (path, 403)
    refused = await managers.ask_tls("m1", "/nodes", worker)
    assert "node w1 has the role swarm-worker" in refused.message


@pytest.mark.parametrize(
    ("node_id", "sentence"),
    [("gone", "node gone was removed from"), ("never", "node never is not in this cluster")],
)
async def test_a_removed_node_is_told_so(managers: Managers, node_id: str, sentence: str) -> None:
    """Its certificate is still good, so the handshake lets it in; the row decides."""
    answer = await managers.ask_tls("m1", "/nodes", managers.pki.credentials(node_id))
    assert answer.status == 403
    assert sentence in answer.message


@pytest.mark.parametrize("kind", ["foreign", "expired", "early"])
async def test_the_handshake_refuses_what_is_not_the_cluster_s(
    managers: Managers, kind: str
) -> None:
    """Another cluster's, an expired and a not yet valid certificate; even joining is refused."""
    shown: Credentials
    if kind == "foreign":
        shown = type(managers.pki)().credentials("m2")
    elif kind == "expired":
        shown = managers.pki.credentials("m2", now=time.time() - 86_400, expiry_seconds=3_600)
    else:
        shown = managers.pki.credentials("m2", now=time.time() + 86_400)
    with pytest.raises((ssl.SSLError, ConnectionError, ValueError, IndexError)):
        await managers.ask_tls("m1", "/join/v1/root", shown)
    assert await is_serving(managers)


@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-GCM-SHA384"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_tls_and_weak_ciphers_are_refused(
    managers: Managers, version: ssl.TLSVersion, ciphers: str
) -> None:
    """TLS 1.1, a cipher without ECDHE, one without AEAD."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(ciphers)
    context.minimum_version = context.maximum_version = version
    host, _, port = managers.all["m1"].address.rpartition(":")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(host, int(port), ssl=context)
    assert await is_serving(managers)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(managers: Managers, version: ssl.TLSVersion) -> None:
    """With both, a request is answered."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    host, _, port = managers.all["m1"].address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(b"GET /join/v1/root HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 4096, b"\x16\x03\x01\xff\xff" + b"x" * 70_000],
)
async def test_garbage_is_hung_up_on(managers: Managers, garbage: bytes) -> None:
    """Plain HTTP, zeros, and what only begins like TLS."""
    with connect(managers.all["m1"].address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(garbage)
        assert await is_closed(connection)
    assert await is_serving(managers)


async def test_whoever_is_slow_is_hung_up_on(managers: Managers) -> None:
    """Nothing at all, half a handshake, half a head, a head that trickles in."""
    listener = await serve(managers, head_seconds_max=0.3)
    silent, half = connect(listener.address), connect(listener.address)
    half.sendall(b"\x16\x03\x01\x02\x00\x01")
    host, _, port = listener.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    head = b"GET /join/v1/root HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100
    started = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for at in range(len(head)):
            writer.write(head[at : at + 1])
            await writer.drain()
            if reader.at_eof():
                break
            await asyncio.sleep(0.01)
    assert await reader.read() == b""
    assert time.monotonic() - started < 5
    assert await is_closed(silent)
    assert await is_closed(half)
    writer.transport.abort()
    silent.close()
    half.close()
    assert listener.connection_count == 0
    await listener.close()


async def test_a_slow_body_is_hung_up_on(managers: Managers) -> None:
    """A stranger's request has to be there in the same time as its head."""
    listener = await serve(managers, head_seconds_max=0.3)
    host, _, port = listener.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(b"POST /join/v1/certificate HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.transport.abort()
    await listener.close()


async def test_thousands_that_only_hold_connections_keep_nobody_out(managers: Managers) -> None:
    """With more strangers than there is room, managers are served, and the socket too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * STRANGERS), hard))
    listener = await serve(managers, connections_max=STRANGERS // 3)
    held = []
    try:
        for number in range(STRANGERS):
            held.append(connect(listener.address))
            if number % 2:
                held[-1].sendall(b"\x16\x03\x01\x02\x00\x01")
            if number % 50 == 0:
                await asyncio.sleep(0)
                assert listener.connection_count <= STRANGERS // 3
        managers.all["m3"].tls, kept = listener, managers.all["m3"].tls
        assert await is_serving(managers, "m3")
        managers.all["m3"].tls = kept
        assert (await managers.ask("m1", "GET", "/_ping")).status == 200
    finally:
        for connection in held:
            connection.close()
        await listener.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_new_credentials_count_from_the_next_handshake_without_a_gap(
    managers: Managers,
) -> None:
    """What exists goes on, what comes sees the new certificate, and nobody is refused between."""
    manager = managers.all["m1"]
    assert manager.tls is not None
    host, _, port = manager.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    async def shown() -> tuple[bytes, Any, Any]:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return der, reader, writer

    before, reader, writer = await shown()
    manager.shown = managers.pki.credentials("m1")
    manager.tls.reload()
    after, _, other = await shown()
    other.transport.abort()
    assert before != after
    assert after == ssl.PEM_cert_to_DER_cert(manager.shown.certificate_pem.decode())
    writer.write(b"GET /join/v1/root HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


async def test_a_locked_manager_says_so_to_those_who_join(managers: Managers) -> None:
    """It has no key to prove anything with; the sentence needs none."""
    manager = managers.all["m1"]
    manager.is_locked = True
    throwaway = throwaway_credentials(time.time())
    listener = await serve_tls(make_app(manager, peers=manager), "127.0.0.1:0", lambda: throwaway)
    managers.all["m3"].tls, kept = listener, managers.all["m3"].tls
    answer = await managers.ask_tls("m3", "/join/v1/root", None)
    managers.all["m3"].tls = kept
    await listener.close()
    assert answer.status == 503
    assert "Swarm is encrypted and needs to be unlocked" in answer.message


async def test_an_address_that_cannot_be_is_named(managers: Managers) -> None:
    """Taken, not this machine's, and none at all."""
    manager = managers.all["m1"]
    for address, kind in (
        (manager.address, InUseError),
        ("192.0.2.1:2377", UnavailableError),
        ("nonsense", InvalidError),
        ("10.0.0.1:99999", InvalidError),
    ):
        with pytest.raises(kind, match=address):
            await serve_tls(make_app(manager), address, manager.credentials)

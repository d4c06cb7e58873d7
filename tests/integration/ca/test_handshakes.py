"""Both TLS libraries agree with us on who may talk to whom while the root changes."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import ssl
import time
from collections import Counter

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from grpc import aio

from manager.ca.issue import new_key_and_csr
from manager.ca.renewal import Renewer
from manager.ca.rotation import NewRoot, RootRotator, begin_rotation, progress
from manager.ca.service import CAService
from manager.ca.tls import client_context, load_identity
from manager.nodeport.errors import error_of_call
from proto.clock import SystemClock
from proto.errors import DeniedError
from proto.objects import Node, root_certificates_pem
from proto.v1 import ca_pb2, ca_pb2_grpc
from raft.transport.channels import secure_channel, secure_server, server_credentials
from raft.transport.identity import MANAGER_ROLE, Credentials, full_name
from raft.transport.limits import Limits

pytestmark = pytest.mark.integration
replace = msgspec.structs.replace


def rsa_root():
    """Make an RSA root as a user may bring one."""
    key = rsa.generate_private_key(65_537, 2_048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Our own")])
    now = dt.datetime.fromtimestamp(int(time.time()), tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=3_650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return NewRoot(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def shake_hands(client: Credentials, server: Credentials) -> None:
    """Make a handshake of the standard library's `ssl`, in memory; raises if either refuses."""
    listening = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cadata=server.roots_pem.decode()
    )
    listening.verify_mode = ssl.CERT_REQUIRED
    load_identity(listening, server)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    calling = client_context(client.roots_pem.decode(), client)
    ends = [
        calling.wrap_bio(to_client, to_server, server_hostname=MANAGER_ROLE),
        listening.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(20):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        if all(end.version() and not end.pending() for end in ends):
            break
    # In TLS 1.3 the client is done before the server has seen its certificate.
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"


async def call(client: Credentials, server: Credentials) -> None:
    """Make a handshake of grpc's own library; raises if either refuses."""
    listening = secure_server(Limits())
    port = listening.add_secure_port("127.0.0.1:0", server_credentials(server))
    await listening.start()
    channel = secure_channel(f"127.0.0.1:{port}", MANAGER_ROLE, client, Limits())
    try:
        async with asyncio.timeout(5.0):
            await ca_pb2_grpc.CAStub(channel).Renew(ca_pb2.RenewRequest(), timeout=3.0)
    except aio.AioRpcError as error:
        # Nothing is served there, so this answer came through an encrypted connection.
        if error.code().name != "UNIMPLEMENTED":
            raise
    finally:
        await channel.close(None)
        await listening.stop(None)


@pytest.mark.parametrize("kind", ["made", "RSA"])
async def test_any_two_stages_of_a_rotation_talk(store, join, kind):
    """Before, told, renewed, after: all of them with each other, except those that never meet.

    A node from before, which trusts only the old root and shows it, never meets one that has
    dropped it: the old root is dropped when there is no such node left.
    """
    before = (await join("manager")).source()
    (cluster,) = store.view().clusters
    own = rsa_root() if kind == "RSA" else NewRoot()
    changing = begin_rotation(cluster, time.time(), own)
    await store.update(lambda tx: tx.update(changing))
    told = replace(before, roots_pem=root_certificates_pem(changing).encode())
    renewed = (await join("manager")).source()
    new_only = changing.root_rotation.certificate_pem.encode()
    after = replace(renewed, roots_pem=new_only)
    # The newest have no certificate of the old root appended.
    leaf = x509.load_pem_x509_certificates(renewed.certificate_pem)[0]
    late = replace(after, certificate_pem=leaf.public_bytes(serialization.Encoding.PEM))
    stages = {"before": before, "told": told, "renewed": renewed, "after": after, "late": late}
    meetings = [
        *[(a, b) for a in ("before", "told", "renewed") for b in ("before", "told", "renewed")],
        *[(a, b) for a in ("renewed", "after", "late") for b in ("renewed", "after", "late")],
    ]
    for client, server in dict.fromkeys(meetings):
        shake_hands(stages[client], stages[server])
        await call(stages[client], stages[server])
    for client, server in (("before", "after"), ("after", "before"), ("late", "before")):
        with pytest.raises(ssl.SSLError):
            shake_hands(stages[client], stages[server])
        with pytest.raises(aio.AioRpcError):
            await call(stages[client], stages[server])


class Port:
    """A leader's node port with the authority on it."""

    def __init__(self, authority, credentials):
        self.authority = authority
        self.credentials = credentials
        self.server = None
        self.port = 0
        self.name = full_name(credentials.identity.node_id, MANAGER_ROLE, "cluster1")

    async def start(self):
        """Serve with the credentials of now; a server keeps those that it was made with."""
        if self.server is not None:
            await self.server.stop(0)
        self.server = secure_server(Limits())
        ca_pb2_grpc.add_CAServicer_to_server(CAService(self.authority, SystemClock()), self.server)
        self.port = self.server.add_secure_port(
            "127.0.0.1:0", server_credentials(self.credentials.source())
        )
        await self.server.start()

    async def renew(self, credentials, text):
        """Call as a node."""
        await self.start()
        channel = secure_channel(
            f"127.0.0.1:{self.port}", self.name, credentials.source(), Limits()
        )
        try:
            reply = await ca_pb2_grpc.CAStub(channel).Renew(
                ca_pb2.RenewRequest(csr_pem=text), timeout=5.0
            )
        finally:
            await channel.close(None)
        return reply.certificate_pem, reply.roots_pem

    def renewer(self, credentials):
        """Make the renewer of a node."""
        return Renewer(
            credentials,
            lambda text: self.renew(credentials, text),
            clock=SystemClock(),
            rng=random.Random(1),
        )


async def test_a_whole_rotation_over_grpc(store, join, authority):
    """Three nodes and a manager renew without a restart; the old root goes; all still talk."""
    leader = await join("manager")
    nodes = [leader, *[await join() for _ in range(3)]]
    told = Counter()
    for node in nodes:
        node.subscribe(lambda node=node: told.update([node.identity.node_id]))
    port = Port(authority, leader)
    await port.start()
    rotator = RootRotator(store, SystemClock())
    running = asyncio.create_task(rotator.run())
    (cluster,) = store.view().clusters
    await store.update(lambda tx: tx.update(begin_rotation(cluster, time.time())))
    old_roots = cluster.root_ca_certificate_pem.encode()
    try:
        for count, node in enumerate(nodes[::-1], 1):
            await port.renewer(node).renew_now()
            assert (progress(store.view())[0] == count) or count == len(nodes)
        async with asyncio.timeout(5.0):
            while next(iter(store.view().clusters)).root_rotation:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        (after,) = store.view().clusters
        for node in nodes:
            node.set_roots(after.root_ca_certificate_pem.encode())
        await port.renewer(nodes[1]).renew_now()
        assert all(told[node.identity.node_id] >= 2 for node in nodes)
        assert after.root_ca_certificate_pem.encode() != old_roots
    finally:
        running.cancel()
        await asyncio.wait([running])
        await port.server.stop(None)


async def test_errors_come_back_as_ours(store, join, authority):
    """A node that was removed hears so, by class and sentence."""
    leader, node = await join("manager"), await join()
    port = Port(authority, leader)
    await port.start()
    try:
        await port.renew(node, new_key_and_csr()[1])
        await store.update(lambda tx: tx.delete(Node, node.identity.node_id))
        with pytest.raises(aio.AioRpcError) as caught:
            await port.renew(node, new_key_and_csr()[1])
    finally:
        await port.server.stop(None)
    error = error_of_call(caught.value)
    assert isinstance(error, DeniedError)
    assert "is not, or no longer, in this cluster" in error.message

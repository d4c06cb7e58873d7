"""A cluster on a store in memory and in real time, nodes with certificates, and an authority."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from types import SimpleNamespace

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from manager.ca.authority import CertificateAuthority
from manager.ca.credentials import NodeCredentials
from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import create_root
from manager.ca.rootchange import cross_sign
from manager.ca.tls import load_identity
from manager.ca.tokens import new_join_token
from manager.store import Store
from proto.clock import SystemClock
from proto.ids import ClusterID, NodeID
from proto.objects import Cluster, JoinTokens, NodeAvailability
from raft.transport.identity import Credentials


class MemoryLog:
    """A log that commits in the next turn of the loop."""

    def __init__(self):
        self.last_index = 0
        self.snapshot_index = 0

    def propose(self, _data):
        """Commit soon."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.last_index += 1
        loop.call_soon(future.set_result, self.last_index)
        return future

    def restore(self):
        """Give nothing."""
        return iter(()), iter(())

    def attach(self, listener):
        """Lead."""
        listener.lead(1)


def issue(root, node_id, role, *, names_by=None, intermediates="", csr_pem=None):
    """Issue a certificate by hand; return key and chain."""
    key_pem, own = new_key_and_csr()
    chain = issue_certificate(
        root.certificate_pem,
        root.key_pem,
        csr_pem or own,
        node_id=NodeID(node_id),
        role=role,
        cluster_id=ClusterID(names_by or "cluster1"),
        expiry_seconds=7_200.0,
        now=time.time(),
        intermediates_pem=intermediates,
    )
    return key_pem, chain


@pytest.fixture
def tools():
    """Give the helpers."""
    return SimpleNamespace(issue=issue, new_root=lambda: create_root(time.time()))


@pytest.fixture
def root():
    """Give the cluster's root."""
    return create_root(time.time())


@pytest.fixture
async def store(root):
    """Give a store that holds the cluster."""
    rng = random.Random(1)
    store = Store.open(MemoryLog(), SystemClock())
    cluster = Cluster(
        id=ClusterID("cluster1"),
        root_ca_certificate_pem=root.certificate_pem,
        root_ca_key_pem=root.key_pem,
        join_tokens=JoinTokens(
            worker=new_join_token(root.certificate_pem, rng),
            manager=new_join_token(root.certificate_pem, rng),
        ),
    )
    await store.update(lambda tx: tx.create(cluster))
    return store


@pytest.fixture
def manager(root):
    """Give the credentials of the manager that leads."""
    key_pem, chain = issue(root, "manager1", "swarm-manager")
    return Credentials(
        certificate_pem=chain, key_pem=key_pem, roots_pem=root.certificate_pem.encode()
    )


@pytest.fixture
def authority(store, manager):
    """Give the leader's authority."""
    return CertificateAuthority(
        store, SystemClock(), random.SystemRandom(), credentials=lambda: manager
    )


@pytest.fixture
def join(store, authority, tmp_path):
    """Give a way to let nodes in, which returns their credentials on disk."""

    async def enter(role="worker"):
        (cluster,) = store.view().clusters
        key_pem, csr_pem = new_key_and_csr()
        joined = await authority.issue_for_join(
            getattr(cluster.join_tokens, role),
            csr_pem,
            hostname="host",
            availability=NodeAvailability.ACTIVE,
            address="127.0.0.1",
        )
        return NodeCredentials.save_new(
            tmp_path / joined.node_id,
            certificate_pem=joined.certificate_pem,
            key_pem=key_pem,
            roots_pem=joined.roots_pem,
            kek=None,
        )

    return enter


class Cfssl:
    """An authority outside, which speaks CFSSL's protocol over mutual TLS.

    Attributes:
        root: what it signs with.
        requests: the bodies that came, with the callers' common names.
        lie: changes what it is about to do; for tests of distrust.
    """

    def __init__(self, root, trusted):
        self.root = root
        self.trusted = trusted
        self.requests = []
        self.lie = None
        self.silence = None
        self.port = 0
        self.runner = None

    @property
    def url(self):
        """Where it is asked."""
        return f"https://localhost:{self.port}/api/v1/cfssl/sign"

    async def start(self):
        """Listen."""
        key_pem, csr_pem = new_key_and_csr()
        # A web server's certificate, for localhost.
        chain = _server_certificate(self.root, csr_pem)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self.trusted)
        context.verify_mode = ssl.CERT_REQUIRED
        load_identity(context, Credentials(certificate_pem=chain, key_pem=key_pem, roots_pem=b""))
        app = web.Application()
        app.router.add_post("/api/v1/cfssl/sign", self._sign)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "localhost", 0, ssl_context=context)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self):
        """Stop listening."""
        await self.runner.cleanup()

    async def _sign(self, request):
        peer = request.transport.get_extra_info("peercert")
        caller = dict(pair for part in peer["subject"] for pair in part)["commonName"]
        body = msgspec.json.decode(await request.read())
        self.requests.append((caller, body))
        if self.silence is not None:
            await self.silence.wait()
        answer = self.lie(body) if self.lie is not None else None
        if isinstance(answer, web.Response):
            return answer
        if answer is None:
            answer = self.signed(body)
        return web.json_response(
            {"success": True, "result": {"certificate": answer}, "errors": [], "messages": []}
        )

    def signed(self, body, **changes):
        """Do what was asked for, but for the changes."""
        csr_pem = body["certificate_request"].encode()
        if body.get("profile") == "CA":
            return _signed_authority(self.root, csr_pem)
        (names,) = body["subject"]["names"]
        values = {"node_id": body["subject"]["CN"], "role": names["OU"], "cluster": names["O"]}
        values |= changes
        _, chain = issue(
            values.get("root", self.root),
            values["node_id"],
            values["role"],
            names_by=values["cluster"],
            csr_pem=values.get("csr_pem", csr_pem),
        )
        return chain.decode()


def _signed_authority(root, csr_pem):
    """Sign an authority's request, as CFSSL's profile of that name does."""
    csr = x509.load_pem_x509_csr(csr_pem)
    own = x509.load_pem_x509_certificate(root.certificate_pem.encode())
    # `cross_sign` takes name and key from a certificate, so make one that holds them.
    holder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(csr.subject)
        .public_key(csr.public_key())
        .serial_number(1)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .sign(_key_of(root), SHA256())
    )
    return cross_sign(root.certificate_pem, root.key_pem, _pem(holder), time.time())


def _server_certificate(root, csr_pem):
    csr = x509.load_pem_x509_csr(csr_pem)
    own = x509.load_pem_x509_certificate(root.certificate_pem.encode())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(own.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key()), critical=False
        )
        .sign(_key_of(root), SHA256())
    )
    return _pem(certificate).encode()


def _key_of(root):
    return load_pem_private_key(root.key_pem.encode(), None)


def _pem(certificate):
    return certificate.public_bytes(Encoding.PEM).decode()


@pytest.fixture
async def cfssl(root):
    """Give an authority outside that has the cluster's root."""
    server = Cfssl(root, root.certificate_pem)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def more_cfssl():
    """Give a way to start further ones."""
    started = []

    async def start(root, trusted):
        server = Cfssl(root, trusted)
        await server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        await server.stop()

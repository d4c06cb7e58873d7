"""An authority, certificates of every kind, and members on loopback with real gRPC."""

import asyncio
import datetime as dt
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager.ca.root import create_root
from proto.clock import SystemClock
from raft.transport.identity import MANAGER_ROLE, Credentials, subject_alternative_names
from raft.transport.limits import Lane, Limits
from raft.transport.transport import Transport

CLUSTER = "cluster1"


class Authority:
    """A root that signs what it is told to."""

    def __init__(self):
        self.root = create_root(time.time())
        self.certificate = x509.load_pem_x509_certificate(self.root.certificate_pem.encode())
        self.key = serialization.load_pem_private_key(self.root.key_pem.encode(), None)

    def issue(
        self,
        node_id,
        *,
        role=MANAGER_ROLE,
        cluster=CLUSTER,
        valid_seconds=3600.0,
        names=None,
        roots=None,
    ):
        """Sign a certificate; `names` and `roots` are given only to lie."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, node_id),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            ]
        )
        names = subject_alternative_names(node_id, role, cluster) if names is None else names
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(seconds=valid_seconds))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
            .add_extension(
                # With two roots of the same name, only this tells which one signed.
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return Credentials(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            roots_pem=roots or self.root.certificate_pem.encode(),
        )


class Member:
    """A transport and what it received."""

    def __init__(self, node_id, credentials, *, cluster=CLUSTER, limits=None):
        self.node_id = node_id
        self.credentials = credentials
        self.members = {"a", "b", "c"}
        self.received = []
        self.snapshots = []
        self.unreachable = []
        self.port = 0
        self.on_message = None
        self.transport = Transport(
            node_id,
            cluster,
            lambda: self.credentials,
            on_messages=self._on_messages,
            on_snapshot=self._on_snapshot,
            on_unreachable=self.unreachable.append,
            is_allowed=lambda node_id: node_id in self.members,
            clock=SystemClock(),
            rng=random.Random(node_id),
            limits=limits or Limits(),
        )

    @property
    def address(self):
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(self, port=0):
        """Listen."""
        self.port = await self.transport.start(f"127.0.0.1:{port}")
        return self

    async def show(self, credentials):
        """Change the credentials, for those who dial this member as well."""
        self.credentials = credentials
        self.transport.refresh_credentials()
        await self.transport.renewed()

    def from_peer(self, node_id):
        """Return the messages of one sender."""
        return [message for sender, message in self.received if sender == node_id]

    def _on_messages(self, node_id, messages):
        self.received.extend((node_id, message) for message in messages)
        if self.on_message is not None:
            return self.on_message(node_id, messages)
        return None

    async def _on_snapshot(self, node_id, header, chunks):
        size = 0
        async for chunk in chunks:
            size += len(chunk)
        self.snapshots.append((node_id, header, size))


async def eventually(condition, *, within=5.0, what=""):
    """Wait for a condition; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, what or "it did not come true in time"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


@pytest.fixture(name="eventually")
def _eventually():
    return eventually


@pytest.fixture(scope="session")
def authority():
    """Give the cluster's authority."""
    return Authority()


@pytest.fixture(scope="session")
def new_authority():
    """Give the way to make another."""
    return Authority


@pytest.fixture
async def member(authority):
    """Start members; they end with the test."""
    started = []

    async def start(node_id, credentials=None, *, port=0, **options):
        credentials = credentials or authority.issue(node_id)
        made = Member(node_id, credentials, **options)
        started.append(made)
        return await made.start(port)

    yield start
    for made in started:
        await made.transport.close()


@pytest.fixture
async def pair(member):
    """Members a and b that are connected in both directions."""
    a, b = await member("a"), await member("b")
    a.transport.set_peer("b", b.address)
    b.transport.set_peer("a", a.address)
    await eventually(lambda: a.transport.reachable("b") and b.transport.reachable("a"))
    return a, b


class Process:
    """A member in a process of its own, that answers each message with its first 8 bytes."""

    def __init__(self, directory, node_id, credentials, peer, port):
        config = {
            "node_id": node_id,
            "cluster": CLUSTER,
            "certificate": credentials.certificate_pem.decode(),
            "key": credentials.key_pem.decode(),
            "roots": credentials.roots_pem.decode(),
            "peer_id": peer.node_id,
            "peer_port": peer.port,
            "port": port,
        }
        path = directory / f"{node_id}.json"
        path.write_text(json.dumps(config))
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("echo.py"), path],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._process.stdout.readline())

    def signal(self, number):
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self):
        """End it, even if it is stopped."""
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture
def process(tmp_path, authority):
    """Start echoing members as processes."""
    started = []

    def start(node_id, peer, port=0):
        made = Process(tmp_path, node_id, authority.issue(node_id), peer, port)
        started.append(made)
        return made

    yield start
    for made in started:
        made.kill()


@pytest.fixture
def lanes():
    """Give the lanes: for control, for entries."""
    return Lane.CONTROL, Lane.ENTRIES


@pytest.fixture
def records():
    """Collect the log's lines."""
    import structlog  # noqa: PLC0415 -- only here

    with structlog.testing.capture_logs() as lines:
        yield lines

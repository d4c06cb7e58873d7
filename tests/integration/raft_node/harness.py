"""A cluster of member processes on loopback, over real gRPC and real disks."""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager.ca.root import create_root
from raft.transport.identity import MANAGER_ROLE, subject_alternative_names

CLUSTER = "cluster1"
MEMBER = Path(__file__).with_name("member.py")


class Failed(Exception):  # noqa: N818 -- an answer
    """A member refused; `kind` is the error's class."""

    def __init__(self, answer):
        super().__init__(answer["message"])
        self.kind = answer["error"]


def free_port():
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Authority:
    """Signs members' certificates."""

    def __init__(self):
        self.root = create_root(time.time())
        self.certificate = x509.load_pem_x509_certificate(self.root.certificate_pem.encode())
        self.key = serialization.load_pem_private_key(self.root.key_pem.encode(), None)

    def issue(self, node_id):
        """Return certificate and key, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        attributes = (
            (NameOID.COMMON_NAME, node_id),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, MANAGER_ROLE),
            (NameOID.ORGANIZATION_NAME, CLUSTER),
        )
        names = subject_alternative_names(node_id, MANAGER_ROLE, CLUSTER)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(*each) for each in attributes]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
            .sign(self.key, hashes.SHA256())
        )
        return (
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
        )


class Node:
    """One member and its process, if it runs."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.port = free_port()
        self.directory = cluster.root / name
        self.certificate, self.key = cluster.authority.issue(name)
        self.how = "open"
        self.member_id = 0
        self.peers = []
        self.process = None
        self.started = {}
        self._ids = itertools.count(1)
        self._answers = {}
        self._reader = None

    @property
    def address(self):
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(self, how="open"):
        """Start the process and wait until it is open."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        path = self.cluster.root / f"{self.name}.json"
        config = {
            "node_id": self.name,
            "cluster": CLUSTER,
            "certificate": self.certificate,
            "key": self.key,
            "roots": self.cluster.authority.root.certificate_pem,
            "directory": str(self.directory),
            "port": self.port,
            "address": self.address,
            "tick_seconds": self.cluster.tick_seconds,
            "has_lease_reads": self.cluster.has_lease_reads,
            "how": how,
            "member_id": self.member_id,
            "peers": self.peers,
            "log_bytes_max": self.cluster.log_bytes_max,
        }
        path.write_text(json.dumps(config))
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(MEMBER),
            str(path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        opened = self._expect(0)
        self._reader = asyncio.create_task(self._read(self.process))
        async with asyncio.timeout(60):
            self.started = await opened
        return self.started

    def _expect(self, number):
        future = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        return future

    async def _read(self, process):
        while line := await process.stdout.readline():
            answer = json.loads(line)
            self._answers.pop(answer.pop("id")).set_result(answer)
        for future in self._answers.values():
            if not future.done():
                future.cancel()
        self._answers.clear()

    async def ask(self, do, within=30.0, **arguments):
        """Send a command; return its answer."""
        number = next(self._ids)
        future = self._expect(number)
        request = {"id": number, "do": do, "with": arguments}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(within):
            answer = await future
        if "error" in answer:
            raise Failed(answer)
        return answer

    async def kill(self, with_signal=signal.SIGKILL):
        """End the process at once."""
        if self.process is not None and self.process.returncode is None:
            os.kill(self.process.pid, with_signal)
            await self.process.wait()
            await self._reader
        self.process = None

    def pause(self):
        """Stop the process where it is."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    async def stop(self):
        """End the process in an orderly way."""
        await self.ask("stop")
        await self.process.wait()
        await self._reader
        self.process = None


class Cluster:
    """Members by name; the first one begins, the others join."""

    def __init__(
        self, root, names="abc", tick_seconds=0.1, log_bytes_max=0, *, has_lease_reads=False
    ):
        self.root = Path(root)
        self.tick_seconds = tick_seconds
        self.log_bytes_max = log_bytes_max
        self.has_lease_reads = has_lease_reads
        self.authority = Authority()
        self.nodes = {name: Node(self, name) for name in names}

    def __getitem__(self, name):
        return self.nodes[name]

    async def __aenter__(self):
        first, *others = self.nodes.values()
        await first.start("create")
        for node in others:
            await self.join(node)
        return self

    async def __aexit__(self, *error):
        for node in self.nodes.values():
            with contextlib.suppress(ProcessLookupError):
                await node.kill()

    async def join(self, node):
        """Let a node join and wait until it is a voter."""
        leader = await self.leader()
        answer = await leader.ask("add", node_id=node.name, address=node.address)
        node.member_id, node.peers = answer["member_id"], answer["peers"]
        await node.start("join")
        await self.until(lambda: self._is_voter(leader, node))

    @staticmethod
    async def _is_voter(leader, node):
        members = (await leader.ask("status"))["members"]
        return any(m["node_id"] == node.name and m["is_voter"] for m in members)

    @property
    def running(self):
        """Those with a process."""
        return [node for node in self.nodes.values() if node.process is not None]

    async def leader(self, within=20.0, among=None):
        """Wait for the leader of the newest term."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            best = None
            for node in among or self.running:
                status = await node.ask("status")
                if status["is_leader"] and (best is None or status["term"] > best[0]):
                    best = (status["term"], node)
            if best is not None:
                return best[1]
            await asyncio.sleep(0.02)
        raise AssertionError("no leader in time")

    @staticmethod
    async def until(condition, within=20.0):
        """Wait for an asynchronous condition."""
        deadline = time.monotonic() + within
        while not (value := await condition()):
            assert time.monotonic() < deadline, "it did not come true in time"
            await asyncio.sleep(0.02)
        return value

    async def agree(self, within=20.0, nodes=None):
        """Wait until all have applied the same; return the digest."""

        async def same():
            digests = [await node.ask("digest") for node in nodes or self.running]
            first = (digests[0]["count"], digests[0]["sha256"])
            alike = all((d["count"], d["sha256"]) == first for d in digests)
            return digests[0] if alike else None

        return await self.until(same, within)

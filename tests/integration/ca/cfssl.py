"""An authority outside a cluster, which speaks CFSSL's protocol over mutual TLS.

As a program it serves hosts of a lab: `cfssl.py ROOT_PEM KEY_PEM TRUSTED_PEM ADDRESS PORT`. For
each request it prints who asked and for whom.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import sys
import time
from pathlib import Path

import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import RootCA
from manager.ca.rootchange import cross_sign
from manager.ca.tls import load_identity
from proto.ids import ClusterID, NodeID
from raft.transport.identity import Credentials


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


class Cfssl:
    """An authority outside.

    Attributes:
        root: what it signs with.
        requests: the bodies that came, with the callers' common names.
        lie: changes what it is about to do; for tests of distrust.
    """

    def __init__(self, root, trusted, address="localhost"):
        self.root = root
        self.trusted = trusted
        self.address = address
        self.is_telling = False
        self.requests = []
        self.lie = None
        self.silence = None
        self.port = 0
        self.runner = None

    @property
    def url(self):
        """Where it is asked."""
        return f"https://{self.address}:{self.port}/api/v1/cfssl/sign"

    async def start(self, port=0):
        """Listen."""
        key_pem, csr_pem = new_key_and_csr()
        chain = _server_certificate(self.root, csr_pem, self.address)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self.trusted)
        context.verify_mode = ssl.CERT_REQUIRED
        load_identity(context, Credentials(certificate_pem=chain, key_pem=key_pem, roots_pem=b""))
        app = web.Application()
        app.router.add_post("/api/v1/cfssl/sign", self._sign)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, self.address, port, ssl_context=context)
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
        if self.is_telling:
            print(caller, body["subject"]["CN"], flush=True)
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


def _server_certificate(root, csr_pem, address):
    """Issue a web server's certificate."""
    try:
        name = x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        name = x509.DNSName(address)
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
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
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


async def main(root_pem, key_pem, trusted_pem, address, port):
    """Serve until the process ends."""
    root = RootCA(Path(root_pem).read_text(), Path(key_pem).read_text())
    server = Cfssl(root, Path(trusted_pem).read_text(), address)
    server.is_telling = True
    await server.start(int(port))
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

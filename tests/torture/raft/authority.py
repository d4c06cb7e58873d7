"""Certificates for the members: a root and one certificate for each, made by the harness."""

from __future__ import annotations

import datetime as dt
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager.ca.root import create_root
from raft.transport.identity import MANAGER_ROLE, Credentials, subject_alternative_names

CLUSTER = "torture"
HOURS = 24


class Authority:
    """Signs managers' certificates."""

    def __init__(self) -> None:
        self._root = create_root(time.time())
        self._certificate = x509.load_pem_x509_certificate(self._root.certificate_pem.encode())
        self._key = serialization.load_pem_private_key(self._root.key_pem.encode(), None)

    def issue(self, node_id: str) -> Credentials:
        """Return a manager's credentials."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        names = [
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, MANAGER_ROLE),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, CLUSTER),
        ]
        alternatives = subject_alternative_names(node_id, MANAGER_ROLE, CLUSTER)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(names))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=HOURS))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in alternatives]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            roots_pem=self._root.certificate_pem.encode(),
        )

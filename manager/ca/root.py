"""The cluster's root certificate authority, made once when a cluster begins."""

from __future__ import annotations

import datetime as dt

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import override

COMMON_NAME = "swarm-ca"
# Source: swarmkit ca/certificates.go (RootCAExpiration, CertBackdate).
VALIDITY_SECONDS = 630_720_000
BACKDATE_SECONDS = 3_600


class RootCA(msgspec.Struct, frozen=True):
    """A root certificate and its private key (PKCS #8), both in PEM."""

    certificate_pem: str
    key_pem: str

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return "RootCA(hidden)"


def key_usage(*, is_authority: bool) -> x509.KeyUsage:
    """Say what a key is for: an authority's signs certificates, a node's signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def create_root(now: float) -> RootCA:
    """Make a self-signed ECDSA P-256 authority that is valid for 20 years.

    It is valid from an hour ago, because clocks of nodes differ. The key comes from the system's
    random source: no generator is passed, so that none but the best can be.

    Args:
        now: seconds since the epoch.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, COMMON_NAME)])
    moment = dt.datetime.fromtimestamp(int(now), tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - dt.timedelta(seconds=BACKDATE_SECONDS))
        .not_valid_after(moment + dt.timedelta(seconds=VALIDITY_SECONDS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    return RootCA(certificate_pem.decode("ascii"), key_pem.decode("ascii"))

"""The root authority: what it says of itself, and that it can sign."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manager.ca.root import create_root

NOW = 1_800_000_000.5


def test_the_root_is_what_swarm_makes():
    """Self-signed ECDSA P-256, CN swarm-ca, 20 years, an authority that signs certificates."""
    root = create_root(NOW)
    certificate = x509.load_pem_x509_certificate(root.certificate_pem.encode())
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=swarm-ca"
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    moment = dt.datetime.fromtimestamp(int(NOW), tz=dt.UTC)
    assert certificate.not_valid_before_utc == moment - dt.timedelta(hours=1)
    assert certificate.not_valid_after_utc == moment + dt.timedelta(seconds=630_720_000)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, True)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign) == (True, True)
    assert not usage.value.digital_signature


def test_the_key_is_the_certificates():
    """The PEM is an unencrypted PKCS #8 key of the same pair."""
    root = create_root(NOW)
    key = serialization.load_pem_private_key(root.key_pem.encode(), None)
    certificate = x509.load_pem_x509_certificate(root.certificate_pem.encode())
    assert root.key_pem.startswith("-----BEGIN PRIVATE KEY-----")
    assert key.public_key() == certificate.public_key()


def test_no_two_roots_are_alike():
    """Keys and serial numbers differ."""
    first, second = create_root(NOW), create_root(NOW)
    assert first.key_pem != second.key_pem
    assert first.certificate_pem != second.certificate_pem


def test_the_key_is_not_shown():
    """Whatever prints the object shows no key."""
    root = create_root(NOW)
    assert "PRIVATE" not in f"{root!r} {root}"

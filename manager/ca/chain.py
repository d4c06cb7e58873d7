"""Certificates as texts: reading them, following a chain to a root, fitting a key to one. Pure.

Names and signatures are checked here, dates are not: whether a certificate is valid *now* is the
handshake's question, and `clocks` says what is wrong when it is not. Two roots may bear the same
name, so an issuer is whoever's key made the signature, never who merely has the name.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from proto.errors import InvalidError

# A node's certificate, the new root signed by the old one, the old root.
CHAIN_LENGTH_MAX = 4
# The longest text of certificates that anybody has to give us.
PEM_BYTES_MAX = 64 * 1024

# Source: swarmkit ca/certificates.go (validateSignatureAlgorithm and the RSA minimum).
RSA_BITS_MIN = 2_048

E = TypeVar("E", bound=x509.ExtensionType)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_Pem = serialization.Encoding.PEM
_Der = serialization.Encoding.DER


def load_certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """Read all certificates of a text, of which there is at least one.

    Args:
        pem: the text.
        what: names it in the error ("the root certificate").

    Raises:
        InvalidError: it is none, or longer than any that is meant.
    """
    if len(pem) > PEM_BYTES_MAX:
        raise InvalidError(f"{what} is longer than {PEM_BYTES_MAX} bytes")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidError(f"{what} is not a certificate in PEM: {error}") from error


def to_pem(certificate: x509.Certificate) -> str:
    """Write a certificate in the one form that digests are made of."""
    return certificate.public_bytes(_Pem).decode("ascii")


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether the issuer's name is named and its key made the signature."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def find_issuer(
    certificate: x509.Certificate, candidates: Iterable[x509.Certificate]
) -> x509.Certificate | None:
    """Return the first of the candidates that issued the certificate."""
    for candidate in candidates:
        if is_issued_by(certificate, candidate):
            return candidate
    return None


def extension_of(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Return an extension of a certificate; None if it has none of the kind.

    Raises:
        InvalidError: the certificate's extensions cannot be read.
    """
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise InvalidError(f"the extensions of a certificate cannot be read: {error}") from error


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may sign others."""
    constraints = extension_of(certificate, x509.BasicConstraints)
    usage = extension_of(certificate, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def leads_to_root(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> bool:
    """Tell whether the first certificate leads to one of the roots, by way of the others."""
    current, others = chain[0], list(chain[1:])
    for _ in range(CHAIN_LENGTH_MAX):
        if find_issuer(current, roots) is not None:
            return True
        issuer = find_issuer(current, others)
        if issuer is None or not is_authority(issuer):
            return False
        others.remove(issuer)
        current = issuer
    return False


def check_chain(certificate_pem: bytes, roots_pem: bytes, what: str) -> None:
    """Refuse a certificate that the roots do not vouch for.

    Raises:
        InvalidError: no chain leads to a root, or a text cannot be read.
    """
    chain = load_certificates(certificate_pem, what)
    roots = load_certificates(roots_pem, "the root certificates to trust")
    if not leads_to_root(chain, roots):
        raise InvalidError(
            f"{what} was not issued by a root certificate that is trusted here: "
            f"its issuer is {chain[0].issuer.rfc4514_string()}"
        )


def load_signing_key(key_pem: bytes, what: str) -> SigningKey:
    """Read an authority's private key: ECDSA, or RSA of 2048 bits at least; never repeated.

    Raises:
        InvalidError: it is none.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        raise InvalidError(f"{what} is not an unencrypted private key in PEM") from None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= RSA_BITS_MIN:
        return key
    raise InvalidError(f"{what} is neither an ECDSA key nor an RSA key of {RSA_BITS_MIN} bits")


def check_key(certificate: x509.Certificate, key_pem: bytes, what: str) -> None:
    """Refuse a key that is not the certificate's.

    Raises:
        InvalidError: it is another's, or none.
    """
    key = load_signing_key(key_pem, f"the key of {what}")
    if public_key_der(key.public_key()) != public_key_der(certificate.public_key()):
        raise InvalidError(f"the private key does not belong to {what}")


def public_key_der(key: object) -> bytes:
    """Write a public key of any kind as SubjectPublicKeyInfo in DER."""
    assert hasattr(key, "public_bytes")
    written = key.public_bytes(_Der, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(written, bytes)
    return written


def subject_base64(certificate: x509.Certificate) -> str:
    """Return the subject's name, DER in base 64."""
    return base64.b64encode(certificate.subject.public_bytes()).decode("ascii")


def public_key_base64(certificate: x509.Certificate) -> str:
    """Return the subject's public key, DER in base 64."""
    return base64.b64encode(public_key_der(certificate.public_key())).decode("ascii")

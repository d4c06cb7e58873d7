"""What is issued, by whom, and what it says. Pure, but for keys, which come from the system.

A node's certificate has CN node ID, OU role, O cluster ID and the names of
`raft.transport.identity`. It begins an hour before it is issued, since clocks differ, and ends
when its issuer does at the latest. The issuer is the root, or during a rotation the new root,
whose certificate signed by the old root is appended, so that nodes which trust only the old one
accept it.
"""

from __future__ import annotations

import base64
import datetime as dt

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import override

from manager.ca.chain import (
    extension_of,
    find_issuer,
    load_certificates,
    load_signing_key,
    public_key_base64,
    subject_base64,
)
from manager.ca.root import BACKDATE_SECONDS, key_usage
from manager.ca.tokens import root_digest
from proto.errors import InvalidError
from proto.ids import ClusterID, NodeID
from proto.objects import Cluster, NodeRole, TLSInfo
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, subject_alternative_names

# Source: swarmkit ca/certificates.go (MinNodeCertExpiration).
EXPIRY_SECONDS_MIN = 3_600.0
CSR_BYTES_MAX = 16 * 1024


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """Who issues certificates now; `key_pem` is "" when only an authority outside has the key."""

    certificate_pem: str
    key_pem: str
    intermediates_pem: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return "Signer(hidden)"


def signer_of(cluster: Cluster) -> Signer:
    """Return who issues certificates: the new root while one is coming in."""
    rotation = cluster.root_rotation
    if rotation is None:
        return Signer(
            certificate_pem=cluster.root_ca_certificate_pem, key_pem=cluster.root_ca_key_pem
        )
    return Signer(
        certificate_pem=rotation.certificate_pem,
        key_pem=rotation.key_pem,
        intermediates_pem=rotation.cross_signed_pem,
    )


def role_name(role: NodeRole) -> str:
    """Return the role as certificates say it."""
    return MANAGER_ROLE if role is NodeRole.MANAGER else WORKER_ROLE


def new_key_and_csr(common_name: str = "") -> tuple[bytes, bytes]:
    """Make a key (ECDSA P-256; PKCS #8 in PEM, clear) and a request for a certificate (PEM).

    What the request says of its subject is only for people: the authority decides what is issued.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(names))
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return key_pem, csr.public_bytes(serialization.Encoding.PEM)


def load_csr(csr_pem: bytes) -> x509.CertificateSigningRequest:
    """Read a request that its own key signed, an ECDSA key on P-256.

    Raises:
        InvalidError: it is none.
    """
    if len(csr_pem) > CSR_BYTES_MAX:
        raise InvalidError(f"the certificate request is longer than {CSR_BYTES_MAX} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        is_own = csr.is_signature_valid
        key = csr.public_key()
    except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion) as error:
        raise InvalidError(f"the certificate request cannot be read: {error}") from error
    if not is_own:
        raise InvalidError("the certificate request was not signed by the key that it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidError("the certificate request names a key that is not ECDSA on P-256")
    return csr


def issue_certificate(
    issuer_certificate_pem: str,
    issuer_key_pem: str,
    csr_pem: bytes,
    *,
    node_id: NodeID,
    role: str,
    cluster_id: ClusterID,
    expiry_seconds: float,
    now: float,
    intermediates_pem: str = "",
) -> bytes:
    """Issue a node's certificate; return it in PEM, the intermediate ones after it.

    Args:
        issuer_certificate_pem: the authority's certificate.
        issuer_key_pem: its key.
        csr_pem: the request; only its key is taken.
        node_id: the common name.
        role: the organizational unit, as `role_name` writes it.
        cluster_id: the organization.
        expiry_seconds: how long it is valid from now on; an hour at least.
        now: seconds since the epoch.
        intermediates_pem: appended.

    Raises:
        InvalidError: the request is none, the expiry too short, or the authority's own
            certificate has ended.
    """
    if expiry_seconds < EXPIRY_SECONDS_MIN:
        raise InvalidError(
            f"certificate expiry is {expiry_seconds:g} s: minimum certificate expiry time is 1h"
        )
    csr = load_csr(csr_pem)
    (issuer,) = load_certificates(issuer_certificate_pem.encode(), "the root certificate")
    if now >= issuer.not_valid_after_utc.timestamp():
        raise InvalidError(
            f"the cluster's root certificate ended on {issuer.not_valid_after_utc:%Y-%m-%d}: "
            "nothing can be issued by it; replace it with: swarm ca --rotate"
        )
    moment = dt.datetime.fromtimestamp(int(now), tz=dt.UTC)
    until = min(moment + dt.timedelta(seconds=int(expiry_seconds)), issuer.not_valid_after_utc)
    names = subject_alternative_names(node_id, role, cluster_id)
    certificate = (
        _node_certificate(csr, names)
        .subject_name(_subject(node_id, role, cluster_id))
        .issuer_name(issuer.subject)
        .not_valid_before(moment - dt.timedelta(seconds=BACKDATE_SECONDS))
        .not_valid_after(until)
        .add_extension(authority_key_identifier(issuer), critical=False)
        .sign(load_signing_key(issuer_key_pem.encode(), "the cluster's root key"), hashes.SHA256())
    )
    text = certificate.public_bytes(serialization.Encoding.PEM)
    return text + intermediates_pem.encode()


def _subject(node_id: NodeID, role: str, cluster_id: ClusterID) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
        ]
    )


def _node_certificate(
    csr: x509.CertificateSigningRequest, names: tuple[str, ...]
) -> x509.CertificateBuilder:
    """Begin a certificate for both ends of a connection, which may sign no other."""
    key = csr.public_key()
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(is_authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Name the issuer's key: with two roots of the same name only this tells which one signed."""
    own = extension_of(issuer, x509.SubjectKeyIdentifier)
    if own is None:
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def tls_info_of(certificate_pem: bytes, roots_pem: bytes) -> TLSInfo:
    """Tell who issued a node's certificate, and what the node trusts.

    Raises:
        InvalidError: the issuer is neither among the roots nor appended to the certificate.
    """
    chain = load_certificates(certificate_pem, "the node's certificate")
    roots = load_certificates(roots_pem, "the root certificates to trust")
    issuer = find_issuer(chain[0], [*chain[1:], *roots])
    if issuer is None:
        raise InvalidError("the node's certificate was issued by nobody that is trusted here")
    return TLSInfo(
        trust_root_digest=root_digest(roots_pem.decode("ascii", "replace")),
        issuer_subject=base64.b64encode(chain[0].issuer.public_bytes()).decode("ascii"),
        issuer_public_key=public_key_base64(issuer),
    )


def issuer_names(root_certificate_pem: str) -> tuple[str, str]:
    """Return subject and key of a root, as `TLSInfo` has them of an issuer."""
    (root,) = load_certificates(root_certificate_pem.encode(), "the root certificate")
    return subject_base64(root), public_key_base64(root)


def is_issuer_named(info: TLSInfo | None, names: tuple[str, str]) -> bool:
    """Tell whether what a node shows was issued by the root of these `issuer_names`."""
    return info is not None and (info.issuer_subject, info.issuer_public_key) == names


def _line(pem: str) -> str:
    return pem if pem.endswith("\n") else pem + "\n"

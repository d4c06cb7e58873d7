"""What node certificates say, and which requests are refused."""

from __future__ import annotations

import base64
import datetime as dt

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from manager.ca.chain import check_chain, leads_to_root, load_certificates
from manager.ca.issue import (
    is_issuer_named,
    issue_certificate,
    issuer_names,
    new_key_and_csr,
    signer_of,
    tls_info_of,
)
from manager.ca.root import RootCA, create_root
from manager.ca.tokens import root_digest
from proto.errors import InvalidError
from proto.ids import ClusterID, NodeID
from proto.objects import RootRotation, root_certificates_pem
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Identity, read_identity

NOW = 1_800_000_000.0
MOMENT = dt.datetime.fromtimestamp(NOW, tz=dt.UTC)


def leaf_of(credentials):
    """Read the certificate."""
    return load_certificates(credentials.certificate_pem, "it")[0]


def test_a_certificate_says_who_its_holder_is(issue, constants):
    """CN, OU and O are node, role and cluster; the names are those that handshakes ask for."""
    made = issue("node1", role=MANAGER_ROLE)
    until = NOW + constants.days_90
    assert read_identity(made.certificate_pem) == Identity(
        NodeID("node1"), MANAGER_ROLE, ClusterID("cluster1"), until
    )
    names = leaf_of(made).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "swarm-manager",
        "cluster1",
        "node1.swarm-manager.cluster1",
    ]


def test_it_is_back_dated_by_an_hour_and_ends_as_asked(issue):
    """It begins an hour before it was issued."""
    leaf = leaf_of(issue(expiry=7_200.0))
    assert leaf.not_valid_before_utc == MOMENT - dt.timedelta(hours=1)
    assert leaf.not_valid_after_utc == MOMENT + dt.timedelta(hours=2)


def test_it_never_outlives_its_issuer(issue):
    """A certificate ends with the root's at the latest."""
    old = create_root(NOW - 630_720_000 + 86_400)
    leaf = leaf_of(issue(by=old))
    assert leaf.not_valid_after_utc == MOMENT + dt.timedelta(days=1)


def test_an_ended_root_issues_nothing(issue):
    """The error names the date and the way out."""
    with pytest.raises(InvalidError, match=r"ended on .*swarm ca --rotate"):
        issue(by=create_root(NOW - 630_720_000))


def test_less_than_an_hour_is_refused(issue):
    """An hour is the least."""
    with pytest.raises(InvalidError, match="minimum certificate expiry time is 1h"):
        issue(expiry=3_599.0)


def test_it_names_its_issuers_key_and_signs_nobody(issue, root):
    """The authority key identifier is the root's; a node's certificate is no authority."""
    leaf = leaf_of(issue())
    (root_certificate,) = load_certificates(root.certificate_pem.encode(), "it")
    named = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = root_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert named.key_identifier == own.key_identifier
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_root_of_the_same_name_does_not_vouch(issue, other_root):
    """Signatures count, not names."""
    made = issue()
    check_chain(made.certificate_pem, made.roots_pem, "it")
    with pytest.raises(InvalidError, match="not issued by a root certificate that is trusted"):
        check_chain(made.certificate_pem, other_root.certificate_pem.encode(), "it")


def test_a_node_cannot_issue_for_another(issue):
    """A certificate signed by a node's key leads to no root."""
    node = issue()
    forged = issue("node2", by=RootCA(node.certificate_pem.decode(), node.key_pem.decode()))
    chain = [leaf_of(forged), leaf_of(node)]
    assert not leads_to_root(chain, load_certificates(node.roots_pem, "it"))


def test_requests_are_checked(root):
    """Another kind of key, a foreign signature and garbage are refused."""

    def sign(csr_pem):
        return issue_certificate(
            root.certificate_pem,
            root.key_pem,
            csr_pem,
            node_id=NodeID("n"),
            role=WORKER_ROLE,
            cluster_id=ClusterID("c"),
            expiry_seconds=7_200.0,
            now=NOW,
        )

    def request(key):
        built = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return built.sign(key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    for key in (rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(InvalidError, match="not ECDSA on P-256"):
            sign(request(key).public_bytes(pem))
    for garbage in (b"", b"x", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"):
        with pytest.raises(InvalidError, match="cannot be read"):
            sign(garbage)
    with pytest.raises(InvalidError, match="longer than"):
        sign(b"x" * 20_000)
    first, second = (
        request(ec.generate_private_key(ec.SECP256R1())).public_bytes(serialization.Encoding.DER)
        for _ in range(2)
    )
    forged = first.replace(first[-64:], second[-64:])
    text = base64.encodebytes(forged).decode()
    body = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(InvalidError):
        sign(body.encode())


def test_tls_info_names_issuer_and_trust(issue, root, other_root):
    """By it one sees which root issued what a node shows."""
    made = issue()
    info = tls_info_of(made.certificate_pem, made.roots_pem)
    (certificate,) = load_certificates(root.certificate_pem.encode(), "it")
    assert info.trust_root_digest == root_digest(root.certificate_pem)
    assert base64.b64decode(info.issuer_subject) == certificate.subject.public_bytes()
    assert base64.b64decode(info.issuer_public_key) == certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert is_issuer_named(info, issuer_names(root.certificate_pem))
    assert not is_issuer_named(info, issuer_names(other_root.certificate_pem))
    assert not is_issuer_named(None, issuer_names(root.certificate_pem))


def test_two_roots_are_trusted_while_the_root_changes(cluster, root, other_root):
    """The signer is then the new root; before, the old."""
    assert root_certificates_pem(cluster) == root.certificate_pem
    assert signer_of(cluster).key_pem == root.key_pem
    rotation = RootRotation(
        certificate_pem=other_root.certificate_pem,
        key_pem=other_root.key_pem,
        cross_signed_pem="cross",
    )
    changing = msgspec.structs.replace(cluster, root_rotation=rotation)
    assert root_certificates_pem(changing) == root.certificate_pem + other_root.certificate_pem
    signer = signer_of(changing)
    assert (signer.certificate_pem, signer.intermediates_pem) == (
        other_root.certificate_pem,
        "cross",
    )
    assert "PRIVATE" not in repr(signer)


def test_keys_are_p256_and_clear():
    """A key is PKCS #8 in PEM, and no two are alike."""
    key_pem, csr_pem = new_key_and_csr("node1")
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert x509.load_pem_x509_csr(csr_pem).public_key() == key.public_key()
    assert new_key_and_csr()[0] != key_pem

"""What a certificate must say, and who is refused."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proto.errors import DeniedError
from raft.transport.identity import (
    Identity,
    check_manager,
    full_name,
    read_identity,
    subject_alternative_names,
)

UNTIL = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def certificate(*attributes):
    """Make a self-signed certificate with these attributes in its subject."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(UNTIL - dt.timedelta(days=1))
        .not_valid_after(UNTIL)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


CN = (NameOID.COMMON_NAME, "node1")
OU = (NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager")
O = (NameOID.ORGANIZATION_NAME, "cluster1")  # noqa: E741 -- its name in X.509


def test_a_certificate_is_read():
    """Node, role, cluster and the end of validity."""
    expected = Identity("node1", "swarm-manager", "cluster1", UNTIL.timestamp())
    assert expected == read_identity(certificate(CN, OU, O))


@pytest.mark.parametrize(
    ("attributes", "missing"),
    [
        ((OU, O), "common name"),
        ((CN, O), "organizational unit"),
        ((CN, OU), "organization "),
        ((CN, CN, OU, O), "common name"),
    ],
)
def test_an_ambiguous_certificate_is_refused(attributes, missing):
    """Each of the three has to be there exactly once."""
    with pytest.raises(DeniedError, match=f"exactly one {missing}"):
        read_identity(certificate(*attributes))


def test_what_is_no_certificate_is_refused():
    """Any bytes may come from outside."""
    with pytest.raises(DeniedError, match="cannot be read"):
        read_identity(b"garbage")


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (Identity("n", "swarm-manager", "other", 10.0), "belongs to cluster other"),
        (Identity("n", "swarm-worker", "c", 10.0), "has the role swarm-worker"),
        (Identity("n", "swarm-manager", "c", 5.0), "has expired"),
    ],
)
def test_who_is_refused(identity, reason):
    """Another cluster, another role, or too late."""
    with pytest.raises(DeniedError, match=reason):
        check_manager(identity, "c", 5.0)


def test_a_manager_of_the_cluster_is_not():
    """The one that may speak."""
    check_manager(Identity("n", "swarm-manager", "c", 10.0), "c", 5.0)


def test_the_full_name_is_one_of_the_names():
    """The authority writes what the handshake asks for."""
    names = subject_alternative_names("n", "swarm-manager", "c")
    assert names == ("swarm-manager", "c", "n.swarm-manager.c")
    assert full_name("n", "swarm-manager", "c") in names

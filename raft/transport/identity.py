"""Who a certificate says its holder is, and whether that holder may speak. Pure.

A node's certificate has the common name (CN) node ID, the organizational unit (OU) role and the
organization (O) cluster ID. Its subject alternative names (SANs) repeat them for the handshake:
the role alone (what clients that look for any manager ask for), the cluster ID, and the *full
name* `<node ID>.<role>.<cluster ID>`. A member that dials another asks for the full name, so the
handshake itself proves that the right node answers, with the right role, in the right cluster:
grpc's Python client has no other way to look at the server's certificate.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID
from typing_extensions import override

from proto.errors import DeniedError
from proto.ids import ClusterID, NodeID

MANAGER_ROLE = "swarm-manager"
WORKER_ROLE = "swarm-worker"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a node shows and whom it trusts, all in PEM.

    Attributes:
        certificate_pem: the node's certificate, then intermediate ones if there are.
        key_pem: its private key, not sealed.
        roots_pem: the authorities to trust; two of them while the root is being changed.
    """

    certificate_pem: bytes
    key_pem: bytes
    roots_pem: bytes

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return "Credentials(hidden)"


CredentialsSource = Callable[[], Credentials]
"""Returns the credentials of now. Called at every handshake, from any thread: must be quick."""


class Identity(msgspec.Struct, frozen=True):
    """What a certificate says; `valid_until` is in seconds since the epoch."""

    node_id: NodeID
    role: str
    cluster_id: ClusterID
    valid_until: float


def full_name(node_id: NodeID, role: str, cluster_id: ClusterID) -> str:
    """Return the name that a handshake asks for to reach this very node."""
    return f"{node_id}.{role}.{cluster_id}"


def subject_alternative_names(
    node_id: NodeID, role: str, cluster_id: ClusterID
) -> tuple[str, str, str]:
    """Return the DNS names that the authority has to write into a node's certificate."""
    return (role, cluster_id, full_name(node_id, role, cluster_id))


def read_identity(certificate_pem: bytes) -> Identity:
    """Read the first certificate of a PEM text.

    Raises:
        DeniedError: it is none, or does not say what it must.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError as error:
        raise DeniedError(f"the certificate cannot be read: {error}") from error
    found: list[str] = []
    for oid, what in (
        (NameOID.COMMON_NAME, "common name (node ID)"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "organizational unit (role)"),
        (NameOID.ORGANIZATION_NAME, "organization (cluster ID)"),
    ):
        values = certificate.subject.get_attributes_for_oid(oid)
        if len(values) != 1 or not isinstance(values[0].value, str) or not values[0].value:
            raise DeniedError(f"the certificate does not have exactly one {what}")
        found.append(values[0].value)
    node_id, role, cluster_id = found
    return Identity(
        NodeID(node_id),
        role,
        ClusterID(cluster_id),
        certificate.not_valid_after_utc.timestamp(),
    )


def check_manager(identity: Identity, cluster_id: ClusterID, now: float) -> None:
    """Refuse anybody but a manager of this cluster with a certificate that is still valid.

    The handshake checked the dates already, but a stream outlives its handshake.

    Args:
        identity: what the peer's certificate says, whose chain was verified.
        cluster_id: this cluster.
        now: seconds since the epoch.

    Raises:
        DeniedError: with the reason.
    """
    node_id = identity.node_id
    if identity.cluster_id != cluster_id:
        raise DeniedError(
            f"node {node_id} belongs to cluster {identity.cluster_id}, this is {cluster_id}"
        )
    if identity.role != MANAGER_ROLE:
        raise DeniedError(
            f"node {node_id} has the role {identity.role}, only a {MANAGER_ROLE} may do this"
        )
    if now >= identity.valid_until:
        raise DeniedError(f"the certificate of node {node_id} has expired; it must renew it")

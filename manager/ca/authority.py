"""The leader's certificate authority: who gets a certificate, and what the store keeps of it.

Whatever is issued is in the store before the node gets it, and a node is refused only upon what is
committed, by a manager that is proven to lead, since it may draw its conclusions for good. A
certificate that was signed by who is no longer the signer when it is written is thrown away and
issued anew, since signing outside takes its time. On a manager that does not lead, everything is
refused by the store, with the leader's address.

While the root is being changed, a node's `tls_info` is not what was issued but what the node says
it has: between the two it is unknown (`None`), unless both have the same issuer. The old root is
dropped when all nodes have shown a certificate of the new one, so an answer that got lost must not
count as one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import msgspec

from manager.ca.chain import check_chain
from manager.ca.external import sign_externally
from manager.ca.issue import Signer, issue_certificate, load_csr, role_name, signer_of, tls_info_of
from manager.ca.tokens import is_same_token, parse_join_token, root_digest
from manager.nodeport.claims import checked_hostname, node_address
from manager.store import Store, Transaction, View
from proto.clock import Clock
from proto.errors import ConflictError, DeniedError, UnavailableError
from proto.ids import ClusterID, NodeID, new_id
from proto.objects import (
    NANOSECONDS,
    Cluster,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    TLSInfo,
    root_certificates_pem,
)
from raft.transport.identity import CredentialsSource, read_identity

R = TypeVar("R")

# How long a certificate lasts that a manager issues for itself.
ITSELF_SECONDS_MAX = 24 * 3_600
# How often a certificate is signed anew because the signer changed meanwhile.
_ATTEMPTS_MAX = 5
_CERTIFICATE_MARK = b"-----BEGIN CERTIFICATE-----"


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """What a node that joins gets; `role` is as certificates say it."""

    node_id: NodeID
    cluster_id: ClusterID
    role: str
    certificate_pem: bytes
    roots_pem: bytes


class CertificateAuthority:
    """Issues certificates while this manager leads."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rng: random.Random,
        *,
        credentials: CredentialsSource | None = None,
    ) -> None:
        """Work on `store`; `rng` draws node IDs.

        `credentials` are this manager's own, shown to an authority outside the cluster.
        """
        self._store = store
        self._clock = clock
        self._rng = rng
        self._credentials = credentials

    async def issue_for_join(
        self,
        token: str,
        csr_pem: bytes,
        *,
        hostname: str,
        availability: NodeAvailability,
        address: str,
    ) -> Joined:
        """Let a node in: make its row, with the role that the token is for, and its certificate.

        Args:
            token: the join token, as the user gave it.
            csr_pem: the request.
            hostname: what the node calls itself.
            availability: what its operator asked for.
            address: where it is reached, with or without a port.

        Raises:
            NotLeaderError: another manager leads.
            InvalidError: the token or the request is malformed.
            DeniedError: the token is not, or no longer, one of this cluster.
            UnavailableError: an authority outside the cluster did not sign.
        """
        cluster = cluster_of(await self._store.newest())
        role = role_by_token(cluster, token)
        load_csr(csr_pem)
        checked_hostname(hostname)
        node_id = NodeID(new_id(self._rng))

        def write(tx: Transaction, certificate_pem: bytes) -> Joined:
            now_cluster = cluster_of(tx)
            if role_by_token(now_cluster, token) is not role:
                raise DeniedError(_not_valid(now_cluster))
            roots_pem = root_certificates_pem(now_cluster).encode()
            tx.create(
                Node(
                    id=node_id,
                    spec=NodeSpec(role=role, availability=availability),
                    description=NodeDescription(hostname=hostname),
                    status=NodeStatus(state=NodeState.UNKNOWN, addr=node_address(address, "")),
                    role=role,
                    tls_info=tls_info_of(certificate_pem, roots_pem),
                    certificate_until=read_identity(certificate_pem).valid_until,
                )
            )
            return Joined(
                node_id=node_id,
                cluster_id=now_cluster.id,
                role=role_name(role),
                certificate_pem=certificate_pem,
                roots_pem=roots_pem,
            )

        return await self._issue(node_id, csr_pem, lambda _: role, write)

    async def renew(self, node_id: NodeID, csr_pem: bytes) -> tuple[bytes, bytes]:
        """Issue a node's next certificate, for the role that it is to have now (`Node.role`).

        Args:
            node_id: who asks, as its present certificate says.
            csr_pem: the request; or, after it, the certificate that the node holds from now on,
                of which the store then takes note.

        Returns:
            The certificate with its intermediate ones (b"" to a certificate), and the roots.

        Raises:
            NotLeaderError: another manager leads.
            DeniedError: there is no such node.
            InvalidError: the request is malformed.
            ConflictError: the certificate is not the newest that was issued.
            UnavailableError: an authority outside the cluster did not sign.
        """
        if csr_pem.lstrip().startswith(_CERTIFICATE_MARK):
            return b"", await self._confirm(node_id, csr_pem)
        cluster_of(await self._store.newest())
        load_csr(csr_pem)

        def write(tx: Transaction, certificate_pem: bytes) -> tuple[bytes, bytes]:
            cluster, node = cluster_of(tx), _node_of(tx, node_id)
            roots_pem = root_certificates_pem(cluster).encode()
            info: TLSInfo | None = tls_info_of(certificate_pem, roots_pem)
            if cluster.root_rotation is not None and not _has_same_issuer(info, node.tls_info):
                info = None
            tx.update(
                msgspec.structs.replace(
                    node,
                    tls_info=info,
                    certificate_until=read_identity(certificate_pem).valid_until,
                )
            )
            return certificate_pem, roots_pem

        return await self._issue(node_id, csr_pem, lambda view: _node_of(view, node_id).role, write)

    async def issue_for_itself(self, node_id: NodeID, csr_pem: bytes) -> tuple[bytes, bytes]:
        """Issue a certificate for the manager that this is, by what its own store says.

        For a manager whose certificate has ended while it was switched off, perhaps with all
        others: without one it cannot ask anybody, and without the managers there is no leader. It
        gives nobody what they did not have: whoever runs this holds the key of the root. That it
        still is a manager is not taken from the certificate by those to whom it is shown, but from
        their store. It is valid for a day at most, and nothing of it is stored: as soon as there is
        a leader the node gets a certificate from it.

        Args:
            node_id: this node.
            csr_pem: the request.

        Returns:
            The certificate with its intermediate ones, and the roots.

        Raises:
            DeniedError: this node is no manager, as far as its store knows.
            UnavailableError: an authority outside the cluster has the key, and did not sign.
        """
        view = self._store.view()
        cluster, node = cluster_of(view), _node_of(view, node_id)
        if node.role is not NodeRole.MANAGER:
            raise DeniedError(f"node {node_id} is no manager any more")
        expiry_ns = min(cluster.spec.node_cert_expiry_ns, ITSELF_SECONDS_MAX * NANOSECONDS)
        spec = msgspec.structs.replace(cluster.spec, node_cert_expiry_ns=expiry_ns)
        certificate_pem = await self._sign(
            msgspec.structs.replace(cluster, spec=spec),
            signer_of(cluster),
            csr_pem,
            node_id,
            NodeRole.MANAGER,
        )
        return certificate_pem, root_certificates_pem(cluster).encode()

    async def _confirm(self, node_id: NodeID, certificate_pem: bytes) -> bytes:
        """Note that a node holds its newest certificate; return the roots."""
        identity = read_identity(certificate_pem)

        def write(tx: Transaction) -> bytes:
            cluster, node = cluster_of(tx), _node_of(tx, node_id)
            roots_pem = root_certificates_pem(cluster).encode()
            if (identity.node_id, identity.cluster_id) != (node_id, cluster.id):
                raise DeniedError(f"node {node_id} showed the certificate of another node")
            check_chain(certificate_pem, roots_pem, f"the certificate of node {node_id}")
            if identity.valid_until != node.certificate_until:
                raise ConflictError(
                    f"a newer certificate was issued to node {node_id}: it has to renew again"
                )
            tx.update(
                msgspec.structs.replace(node, tls_info=tls_info_of(certificate_pem, roots_pem))
            )
            return roots_pem

        return await self._store.update(write)

    async def _issue(
        self,
        node_id: NodeID,
        csr_pem: bytes,
        role_in: Callable[[View], NodeRole],
        write: Callable[[Transaction, bytes], R],
    ) -> R:
        """Sign, and write what was signed, unless role or signer are others by then."""
        for _ in range(_ATTEMPTS_MAX):
            view = await self._store.newest()
            cluster, role = cluster_of(view), role_in(view)
            signer = signer_of(cluster)
            certificate_pem = await self._sign(cluster, signer, csr_pem, node_id, role)

            def attempt(
                tx: Transaction,
                signer: Signer = signer,
                role: NodeRole = role,
                certificate_pem: bytes = certificate_pem,
            ) -> tuple[R] | None:
                if signer_of(cluster_of(tx)) != signer or role_in(tx) is not role:
                    return None
                return (write(tx, certificate_pem),)

            result = await self._store.update(attempt)
            if result is not None:
                return result[0]
        raise UnavailableError(
            f"the cluster's root certificate kept changing while that of node {node_id} was "
            "signed; try again"
        )

    async def _sign(
        self, cluster: Cluster, signer: Signer, csr_pem: bytes, node_id: NodeID, role: NodeRole
    ) -> bytes:
        outside = await sign_externally(
            cluster,
            signer,
            csr_pem,
            node_id=node_id,
            role=role_name(role),
            credentials=self._credentials() if self._credentials is not None else None,
            now=self._clock.wall(),
        )
        if outside is not None:
            return outside
        if not signer.key_pem:
            raise UnavailableError(
                "the cluster does not hold the key of its root certificate and no external "
                "authority is set for it; set one with: swarm ca --external-ca"
            )
        return issue_certificate(
            signer.certificate_pem,
            signer.key_pem,
            csr_pem,
            node_id=node_id,
            role=role_name(role),
            cluster_id=cluster.id,
            expiry_seconds=cluster.spec.node_cert_expiry_ns / NANOSECONDS,
            now=self._clock.wall(),
            intermediates_pem=signer.intermediates_pem,
        )


def role_by_token(cluster: Cluster, token: str) -> NodeRole:
    """Return the role that a token gives. Both are always compared, in constant time. Pure.

    Raises:
        InvalidError: it is malformed.
        DeniedError: it is none of this cluster, or no longer.
    """
    parsed = parse_join_token(token)
    is_worker = is_same_token(token, cluster.join_tokens.worker)
    is_manager = is_same_token(token, cluster.join_tokens.manager)
    if is_manager:
        return NodeRole.MANAGER
    if is_worker:
        return NodeRole.WORKER
    if parsed.digest != root_digest(cluster.root_ca_certificate_pem):
        raise DeniedError(
            "the join token names another root certificate than this cluster's: it is of another "
            "cluster, or from before the root certificate was rotated; ask a manager of the "
            "cluster for the present one with: swarm join-token worker"
        )
    raise DeniedError(_not_valid(cluster))


def _not_valid(cluster: Cluster) -> str:
    return (
        f"the join token is not valid for cluster {cluster.id}, perhaps not any more, if it was "
        "rotated; ask a manager for the present one with: swarm join-token worker"
    )


def cluster_of(view: View) -> Cluster:
    """Return the cluster's row.

    Raises:
        UnavailableError: there is none yet.
    """
    for cluster in view.clusters:
        return cluster
    raise UnavailableError("this manager holds no cluster yet; begin one with: swarm init")


def _node_of(view: View, node_id: NodeID) -> Node:
    node = view.nodes.get(node_id)
    if node is None:
        raise DeniedError(f"node {node_id} is not, or no longer, in this cluster; it must join")
    return node


def _has_same_issuer(first: TLSInfo | None, second: TLSInfo | None) -> bool:
    return (first is not None and second is not None) and (
        (first.issuer_subject, first.issuer_public_key)
        == (second.issuer_subject, second.issuer_public_key)
    )


__all__ = ["CertificateAuthority", "Joined", "cluster_of", "role_by_token"]

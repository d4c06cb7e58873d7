"""How the root certificate is replaced: what is allowed, who is asked to renew, when it is over.

Pure, but for keys, which come from the system. The steps:

1. `begin_rotation`: the new root is put beside the old one, together with a certificate of its key
   signed by the old root. From now on certificates are issued by the new root, with that one
   appended, and nodes are told to trust both.
2. Nodes renew, in batches (`Batches`), and show what they got.
3. When all have shown a certificate of the new root, `finish_rotation` drops the old root and draws
   new join tokens, since a token names the root.

Why two nodes can always talk: until the end everybody trusts the old root, to which every
certificate leads, whichever root issued it. At the end everybody holds a certificate of the new
root and was told of it together with that. A node that is down holds up the end, since it would be
cut off; one that was removed does not. A rotation that takes the place of one in progress begins
from the old root again, to which all that was issued in between leads too.

Source of rules and limits: swarmkit ca/reconciler.go, manager/controlapi/ca_rotation.go.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable, Sequence

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from typing_extensions import override

from manager.ca.chain import (
    check_key,
    extension_of,
    is_authority,
    is_issued_by,
    load_certificates,
    load_signing_key,
    public_key_der,
    to_pem,
)
from manager.ca.external_rules import authorities_for
from manager.ca.issue import (
    authority_key_identifier,
    is_issuer_named,
    issuer_names,
    signer_of,
)
from manager.ca.root import BACKDATE_SECONDS, create_root, key_usage
from manager.ca.tokens import new_join_token
from manager.store.tables import View
from proto.errors import InvalidError
from proto.ids import NodeID
from proto.objects import Cluster, ClusterSpec, JoinTokens, Node, NodeState, RootRotation

# Source: swarmkit ca/reconciler.go (IssuanceStateRotateMaxBatchSize, the retry of a batch).
BATCH_NODES_MAX = 30
RETRY_SECONDS = 3.0
# A node that was told and does not renew gives its place to the others after this.
BATCH_SECONDS = 30.0
# Source: swarmkit manager/controlapi/ca_rotation.go (minRootExpiration).
ROOT_SECONDS_LEFT_MIN = 365 * 86_400.0

_GIVEN = "the new root certificate"


class NewRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The root that is wanted; all empty: one that is made for the purpose.

    Attributes:
        certificate_pem: the certificate.
        key_pem: its key; "" if only an external authority has it.
        cross_signed_pem: the same key signed by the present root, if that could only be done
            outside (`rotation.prepare_rotation`).
    """

    certificate_pem: str = ""
    key_pem: str = ""
    cross_signed_pem: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return "NewRoot(hidden)"


def begin_rotation(cluster: Cluster, now: float, new: NewRoot = NewRoot()) -> Cluster:  # noqa: B008 -- frozen
    """Return the cluster with another root coming in; its `spec` has to be the new one already.

    Naming the present root gives up a rotation in progress, and stores its key or forgets it;
    naming the root that is coming in only changes where its key is. Anything else takes the place
    of what is in progress.

    Args:
        cluster: the row.
        now: seconds since the epoch.
        new: the wanted root.

    Raises:
        InvalidError: the new root cannot be one, or nobody could sign with it or for it.
    """
    if new.key_pem and not new.certificate_pem:
        raise InvalidError(
            "if a signing CA key is given, the signing CA certificate has to be given as well"
        )
    spec = cluster.spec
    cluster = msgspec.structs.replace(cluster, last_forced_rotation=spec.ca_force_rotate)
    if not new.certificate_pem:
        made = create_root(now)
        new = NewRoot(certificate_pem=made.certificate_pem, key_pem=made.key_pem)
    else:
        certificate = check_root(new.certificate_pem, now)
        new = msgspec.structs.replace(new, certificate_pem=to_pem(certificate))
        if new.key_pem:
            check_key(certificate, new.key_pem.encode(), _GIVEN)
    present, rotation = cluster.root_ca_certificate_pem, cluster.root_rotation
    if _is_same(new.certificate_pem, present):
        cluster = msgspec.structs.replace(cluster, root_rotation=None, root_ca_key_pem=new.key_pem)
    elif rotation is not None and _is_same(new.certificate_pem, rotation.certificate_pem):
        rotation = msgspec.structs.replace(rotation, key_pem=new.key_pem)
        cluster = msgspec.structs.replace(cluster, root_rotation=rotation)
    else:
        rotation = RootRotation(
            certificate_pem=new.certificate_pem,
            key_pem=new.key_pem,
            cross_signed_pem=_cross_signed(cluster, new, now),
        )
        cluster = msgspec.structs.replace(
            cluster, spec=_authorities_named(cluster), root_rotation=rotation
        )
    check_can_sign(cluster)
    return cluster


def is_rotation_wanted(cluster: Cluster, new: NewRoot = NewRoot()) -> bool:  # noqa: B008 -- frozen
    """Tell whether an update with this spec (in the row already) asks for a rotation.

    Naming the root that is there or coming in is none, unless it changes where the key is.
    """
    if cluster.spec.ca_force_rotate != cluster.last_forced_rotation:
        return True
    return bool(new.certificate_pem or new.key_pem)


def check_can_sign(cluster: Cluster) -> None:
    """Refuse a cluster in which nobody could issue certificates.

    Raises:
        InvalidError: the key is not here, and no external authority has it.
    """
    signer = signer_of(cluster)
    if not signer.key_pem and not authorities_for(cluster, signer.certificate_pem):
        raise InvalidError(
            "there is no key for the root certificate, and no external authority that has it: "
            "give the key as well (--ca-key), or an authority with the same certificate "
            "(--external-ca protocol=cfssl,url=...,cacert=...)"
        )


def check_root(certificate_pem: str, now: float) -> x509.Certificate:
    """Refuse a certificate that cannot be the root of a cluster.

    Raises:
        InvalidError: with the reason.
    """
    found = load_certificates(certificate_pem.encode(), _GIVEN)
    if len(found) != 1:
        raise InvalidError(f"{_GIVEN} has to be one certificate, these are {len(found)}")
    (certificate,) = found
    if not is_authority(certificate):
        raise InvalidError(f"{_GIVEN} is not one of an authority: it may not sign certificates")
    if not is_issued_by(certificate, certificate):
        raise InvalidError(
            f"{_GIVEN} is not signed by its own key: only a root can be trusted by itself"
        )
    if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InvalidError(f"{_GIVEN} has neither an ECDSA nor an RSA key")
    constraints = extension_of(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.path_length == 0:
        raise InvalidError(
            f"{_GIVEN} has path length 0: it could not sign the root that will follow it"
        )
    if certificate.not_valid_before_utc.timestamp() > now:
        raise InvalidError(f"{_GIVEN} is not valid yet")
    if certificate.not_valid_after_utc.timestamp() < now + ROOT_SECONDS_LEFT_MIN:
        raise InvalidError(
            f"{_GIVEN} ends on {certificate.not_valid_after_utc:%Y-%m-%d}: it has to be valid "
            "for a year at least"
        )
    return certificate


def cross_sign(old_certificate_pem: str, old_key_pem: str, new_pem: str, now: float) -> str:
    """Sign a new root's name and key by the old root; valid as long as both are."""
    (old,) = load_certificates(old_certificate_pem.encode(), "the present root certificate")
    (new,) = load_certificates(new_pem.encode(), _GIVEN)
    moment = dt.datetime.fromtimestamp(int(now), tz=dt.UTC)
    key = new.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    identifier = extension_of(new, x509.SubjectKeyIdentifier)
    if identifier is None:
        identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    signed = (
        x509.CertificateBuilder()
        .subject_name(new.subject)
        .issuer_name(old.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - dt.timedelta(seconds=BACKDATE_SECONDS))
        .not_valid_after(min(new.not_valid_after_utc, old.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(is_authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(authority_key_identifier(old), critical=False)
        .sign(load_signing_key(old_key_pem.encode(), "the present root's key"), hashes.SHA256())
    )
    return to_pem(signed)


def issued_by_new(cluster: Cluster) -> tuple[str, str] | None:
    """Return the names of the issuer that all nodes have to show; None without a rotation."""
    rotation = cluster.root_rotation
    return None if rotation is None else issuer_names(rotation.certificate_pem)


def pending_nodes(cluster: Cluster, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that have not shown a certificate of the new root, in order of their IDs."""
    names = issued_by_new(cluster)
    if names is None:
        return []
    left = [node for node in nodes if not is_issuer_named(node.tls_info, names)]
    return sorted(left, key=lambda node: node.id)


def progress(view: View) -> tuple[int, int]:
    """Return how many nodes are done, and how many there are; all are, without a rotation."""
    total = len(view.nodes)
    for cluster in view.clusters:
        return total - len(pending_nodes(cluster, view.nodes)), total
    return total, total


def is_finished(cluster: Cluster, nodes: Iterable[Node]) -> bool:
    """Tell whether a rotation is in progress and no node holds it up."""
    return cluster.root_rotation is not None and not pending_nodes(cluster, nodes)


def finish_rotation(cluster: Cluster, rng: random.Random) -> Cluster:
    """Return the cluster with the new root alone, and join tokens that name it."""
    rotation = cluster.root_rotation
    assert rotation is not None, "no rotation to finish"
    return msgspec.structs.replace(
        cluster,
        root_ca_certificate_pem=rotation.certificate_pem,
        root_ca_key_pem=rotation.key_pem,
        root_rotation=None,
        join_tokens=JoinTokens(
            worker=new_join_token(rotation.certificate_pem, rng),
            manager=new_join_token(rotation.certificate_pem, rng),
        ),
    )


class Batches:
    """Who is told to renew now: 30 nodes at a time, so that the leader is not flooded. Pure.

    Nodes that are up come first, and whoever was told and did not renew within `BATCH_SECONDS`
    gives way to those that wait: a few nodes that cannot renew do not keep the others from it.
    """

    def __init__(self) -> None:
        """Begin with nobody told."""
        self._told_at: dict[NodeID, float] = {}
        self._batch: tuple[NodeID, ...] = ()

    def choose(self, pending: Sequence[Node], now: float) -> tuple[NodeID, ...]:
        """Return who is to renew now, given who has not yet; `now` is in monotonic seconds."""
        waiting = {node.id: node for node in pending}
        kept = [
            node_id
            for node_id in self._batch
            if node_id in waiting and now - self._told_at[node_id] < BATCH_SECONDS
        ]
        others = [node for node in pending if node.id not in kept]
        others.sort(key=lambda node: (not _is_up(node), self._told_at.get(node.id, -1.0), node.id))
        added = [node.id for node in others[: BATCH_NODES_MAX - len(kept)]]
        told = {node_id: at for node_id, at in self._told_at.items() if node_id in waiting}
        self._told_at = told | dict.fromkeys(added, now)
        self._batch = tuple(sorted([*kept, *added]))
        return self._batch

    def check(self) -> None:
        """Verify the limits."""
        assert len(self._batch) <= BATCH_NODES_MAX
        assert set(self._batch) <= set(self._told_at)


def _is_up(node: Node) -> bool:
    return node.status.state is NodeState.READY


def _authorities_named(cluster: Cluster) -> ClusterSpec:
    """Let authorities that name no root name the present one, which is what they meant."""
    return msgspec.structs.replace(
        cluster.spec,
        external_cas=tuple(
            authority
            if authority.ca_cert
            else msgspec.structs.replace(authority, ca_cert=cluster.root_ca_certificate_pem)
            for authority in cluster.spec.external_cas
        ),
    )


def _is_same(first_pem: str, second_pem: str) -> bool:
    (first,) = load_certificates(first_pem.encode(), _GIVEN)
    (second,) = load_certificates(second_pem.encode(), "the root certificate")
    return first == second


def _cross_signed(cluster: Cluster, new: NewRoot, now: float) -> str:
    if cluster.root_ca_key_pem:
        return cross_sign(
            cluster.root_ca_certificate_pem, cluster.root_ca_key_pem, new.certificate_pem, now
        )
    if not new.cross_signed_pem:
        raise InvalidError(
            "the cluster does not hold the key of its present root certificate, so the new one "
            "has to be signed by the external authority first"
        )
    (old,) = load_certificates(cluster.root_ca_certificate_pem.encode(), "the root certificate")
    (root,) = load_certificates(new.certificate_pem.encode(), _GIVEN)
    (signed,) = load_certificates(new.cross_signed_pem.encode(), "the cross-signed certificate")
    if not is_issued_by(signed, old) or (signed.subject, public_key_der(signed.public_key())) != (
        root.subject,
        public_key_der(root.public_key()),
    ):
        raise InvalidError(
            "the cross-signed certificate is not that of the new root signed by the present one; "
            "the present one may have changed meanwhile: try again"
        )
    return to_pem(signed)

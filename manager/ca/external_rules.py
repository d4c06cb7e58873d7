"""Which authorities outside the cluster may be named, and which of them sign for a root. Pure."""

from __future__ import annotations

from manager.ca.chain import load_certificates
from proto.errors import InvalidError
from proto.objects import Cluster, ClusterSpec, ExternalCA

AUTHORITIES_MAX = 16
PROTOCOL = "cfssl"


def check_external_cas(spec: ClusterSpec) -> None:
    """Refuse external authorities that could not be used. Pure.

    Raises:
        InvalidError: with what is wrong with the first bad one.
    """
    if len(spec.external_cas) > AUTHORITIES_MAX:
        raise InvalidError(f"there can be at most {AUTHORITIES_MAX} external authorities")
    for authority in spec.external_cas:
        if authority.protocol != PROTOCOL:
            raise InvalidError(
                f"the protocol of an external authority is {authority.protocol!r}: only "
                f"{PROTOCOL} is spoken"
            )
        if not authority.url.startswith("https://"):
            raise InvalidError(
                f"the address of an external authority is {authority.url!r}: it has to begin "
                "with https://"
            )
        if authority.ca_cert:
            what = f"the root certificate of the external authority {authority.url}"
            found = load_certificates(authority.ca_cert.encode(), what)
            if len(found) != 1:
                raise InvalidError(f"{what} is not one certificate but {len(found)}")


def authorities_for(cluster: Cluster, root_certificate_pem: str) -> tuple[ExternalCA, ...]:
    """Return those that sign for a root: it is theirs, or they name none and it is the cluster's.

    Pure.
    """
    (root,) = load_certificates(root_certificate_pem.encode(), "the root certificate")
    is_clusters = root_certificate_pem == cluster.root_ca_certificate_pem
    chosen = []
    for authority in cluster.spec.external_cas:
        if authority.protocol != PROTOCOL:
            continue
        if not authority.ca_cert:
            if is_clusters:
                chosen.append(authority)
            continue
        own = load_certificates(authority.ca_cert.encode(), "the external authority's certificate")
        if own[0] == root:
            chosen.append(authority)
    return tuple(chosen)

"""NodeSpec and Node: Engine JSON to domain and back. Pure."""

from __future__ import annotations

from typing import Any

from manager.ca.tokens import root_digest
from manager.httpapi.convert.common import Json, compact, member_of, meta, word_of
from manager.httpapi.convert.service import resources_to_json
from manager.httpapi.convert.wire import WireNodeSpec, decoded
from proto.objects import (
    Cluster,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    Platform,
    TLSInfo,
    root_certificates_pem,
)
from proto.text import printable


def node_spec_of(value: Any) -> NodeSpec:
    """Read the spec of a node from decoded JSON.

    Raises:
        InvalidError: it has a wrong type, or a word that is not known.
    """
    wire = decoded(value, WireNodeSpec)
    return NodeSpec(
        name=wire.name,
        labels=dict(wire.labels),
        role=member_of(NodeRole, wire.role, NodeRole.WORKER, "node role"),
        availability=availability_of(wire.availability),
    )


def availability_of(word: str) -> NodeAvailability:
    """Read an availability; "" is active."""
    return member_of(NodeAvailability, word, NodeAvailability.ACTIVE, "node availability")


def node_spec_to_json(spec: NodeSpec) -> Json:
    """Write the spec of a node."""
    members: Json = compact({"Name": spec.name})
    members["Labels"] = dict(spec.labels)
    members["Role"] = word_of(spec.role)
    members["Availability"] = word_of(spec.availability)
    return members


def node_to_json(node: Node, cluster: Cluster | None = None) -> Json:
    """Write a node. `Spec.Role` is the wanted role, as in the Engine.

    Args:
        node: the row.
        cluster: has the certificates of which the row keeps a digest.
    """
    members: Json = {"ID": node.id}
    members.update(meta(node.version, node.created_at, node.updated_at))
    members["Spec"] = node_spec_to_json(node.spec)
    members["Description"] = _description_to_json(node.description)
    members["Description"]["TLSInfo"] = _tls_info_to_json(node.tls_info, cluster)
    members["Status"] = compact(
        {
            "State": word_of(node.status.state),
            "Message": printable(node.status.message),
            "Addr": printable(node.status.addr),
        }
    )
    if node.manager_status is not None:
        members["ManagerStatus"] = compact(
            {
                "Leader": node.manager_status.is_leader,
                "Reachability": word_of(node.manager_status.reachability),
                "Addr": printable(node.manager_status.addr),
            }
        )
    return members


def platform_to_json(platform: Platform) -> Json:
    """Write a platform, both members always."""
    return {"Architecture": printable(platform.architecture), "OS": printable(platform.os)}


def _description_to_json(description: NodeDescription) -> Json:
    engine = description.engine
    return {
        "Hostname": printable(description.hostname),
        "Platform": platform_to_json(description.platform),
        "Resources": resources_to_json(description.resources),
        "Engine": compact(
            {
                "EngineVersion": printable(engine.version),
                "Labels": {printable(k): printable(v) for k, v in engine.labels.items()},
                "Plugins": [
                    {"Type": printable(kind), "Name": printable(name)}
                    for kind, name in engine.plugins
                ],
            }
        ),
    }


def _tls_info_to_json(info: TLSInfo | None, cluster: Cluster | None) -> Json:
    """Write who issued what a node shows, and whom it trusts if the cluster still knows those."""
    if info is None:
        return {}
    trusted = ""
    if cluster is not None:
        for roots in (cluster.root_ca_certificate_pem, root_certificates_pem(cluster)):
            if info.trust_root_digest == root_digest(roots):
                trusted = roots
    return compact(
        {
            "TrustRoot": trusted,
            "CertIssuerSubject": info.issuer_subject,
            "CertIssuerPublicKey": info.issuer_public_key,
        }
    )

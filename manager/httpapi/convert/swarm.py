"""ClusterSpec and Cluster: Engine JSON to domain and back. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from manager.ca.issue import issuer_names, signer_of
from manager.ca.rootchange import NewRoot
from manager.httpapi.convert.common import Json, compact, driver_of, driver_to_json, meta
from manager.httpapi.convert.wire import WireCA, WireCluster, decoded
from proto.errors import InvalidError
from proto.objects import Cluster, ClusterSpec, ExternalCA


def cluster_spec_of(value: Any, base: ClusterSpec) -> ClusterSpec:
    """Read the cluster's spec from decoded JSON.

    Args:
        value: decoded JSON.
        base: what stays where a member is absent or 0: the defaults at init, the present spec at
            an update, as the Engine merges it.

    Raises:
        InvalidError: it has a wrong type.
    """
    return cluster_spec_from(decoded(value, WireCluster), base)


def cluster_spec_from(wire: WireCluster, base: ClusterSpec) -> ClusterSpec:
    """Merge a typed spec into `base`; see `cluster_spec_of`."""
    raft, orchestration = wire.raft, wire.orchestration
    authorities = wire.ca_config.external_cas
    locks = wire.encryption_config.auto_lock_managers
    keep = raft.keep_old_snapshots
    history = orchestration.task_history_retention_limit
    return msgspec.structs.replace(
        base,
        name=wire.name or base.name,
        labels=base.labels if wire.labels is None else dict(wire.labels),
        task_history_retention_limit=base.task_history_retention_limit
        if history is None
        else history,
        raft_snapshot_interval=raft.snapshot_interval or base.raft_snapshot_interval,
        raft_keep_old_snapshots=base.raft_keep_old_snapshots if keep is None else keep,
        raft_log_entries_for_slow_followers=raft.log_entries_for_slow_followers
        or base.raft_log_entries_for_slow_followers,
        raft_election_tick=raft.election_tick or base.raft_election_tick,
        raft_heartbeat_tick=raft.heartbeat_tick or base.raft_heartbeat_tick,
        dispatcher_heartbeat_ns=wire.dispatcher.heartbeat_period or base.dispatcher_heartbeat_ns,
        node_cert_expiry_ns=wire.ca_config.node_cert_expiry or base.node_cert_expiry_ns,
        external_cas=base.external_cas
        if authorities is None
        else tuple(
            ExternalCA(
                protocol=authority.protocol,
                url=authority.url,
                options=dict(authority.options),
                ca_cert=authority.ca_cert,
            )
            for authority in authorities
        ),
        ca_force_rotate=wire.ca_config.force_rotate or base.ca_force_rotate,
        auto_lock_managers=base.auto_lock_managers if locks is None else locks,
        task_log_driver=base.task_log_driver
        if wire.task_defaults.log_driver is None
        else driver_of(wire.task_defaults.log_driver),
    )


def new_root_from(wire: WireCA) -> NewRoot:
    """Read the root certificate that an update names, if it does."""
    return NewRoot(certificate_pem=wire.signing_ca_cert, key_pem=wire.signing_ca_key)


def refuse_rotation(wire: WireCA) -> None:
    """Refuse a root certificate in the spec of a cluster that is only to begin.

    Raises:
        InvalidError: it names one, or wants another than the first.
    """
    if wire.signing_ca_cert or wire.signing_ca_key or wire.force_rotate:
        raise InvalidError(
            "a new cluster makes its own root certificate: leave SigningCACert, SigningCAKey and "
            "ForceRotate out, and change it afterwards with: swarm ca --rotate"
        )


def cluster_spec_to_json(spec: ClusterSpec) -> Json:
    """Write the cluster's spec."""
    authority: Json = {"NodeCertExpiry": spec.node_cert_expiry_ns}
    if spec.external_cas:
        authority["ExternalCAs"] = [_authority_to_json(one) for one in spec.external_cas]
    authority.update(compact({"ForceRotate": spec.ca_force_rotate}))
    defaults: Json = {}
    if spec.task_log_driver is not None:
        defaults["LogDriver"] = driver_to_json(spec.task_log_driver)
    return {
        "Name": spec.name,
        "Labels": dict(spec.labels),
        "Orchestration": {"TaskHistoryRetentionLimit": spec.task_history_retention_limit},
        "Raft": {
            "SnapshotInterval": spec.raft_snapshot_interval,
            "KeepOldSnapshots": spec.raft_keep_old_snapshots,
            "LogEntriesForSlowFollowers": spec.raft_log_entries_for_slow_followers,
            "ElectionTick": spec.raft_election_tick,
            "HeartbeatTick": spec.raft_heartbeat_tick,
        },
        "Dispatcher": {"HeartbeatPeriod": spec.dispatcher_heartbeat_ns},
        "CAConfig": authority,
        "TaskDefaults": defaults,
        "EncryptionConfig": {"AutoLockManagers": spec.auto_lock_managers},
    }


def _authority_to_json(authority: ExternalCA) -> Json:
    members: Json = {"Protocol": authority.protocol, "URL": authority.url}
    members.update(compact({"Options": dict(authority.options)}))
    members["CACert"] = authority.ca_cert
    return members


def cluster_to_json(cluster: Cluster) -> Json:
    """Write the cluster without its tokens, as /info shows it."""
    members: Json = {"ID": cluster.id}
    members.update(meta(cluster.version, cluster.created_at, cluster.updated_at))
    members["Spec"] = cluster_spec_to_json(cluster.spec)
    members["TLSInfo"] = _tls_info_to_json(cluster)
    members["RootRotationInProgress"] = cluster.root_rotation is not None
    members["DefaultAddrPool"] = list(cluster.default_address_pool)
    members["SubnetSize"] = cluster.subnet_size
    members["DataPathPort"] = cluster.data_path_port
    return members


def _tls_info_to_json(cluster: Cluster) -> Json:
    """Write the root that all trust, and who has to have issued what nodes show.

    During a rotation the issuer is the new root, by which clients count who has renewed.
    """
    members = compact({"TrustRoot": cluster.root_ca_certificate_pem})
    issuer = signer_of(cluster).certificate_pem
    if issuer:
        subject, key = issuer_names(issuer)
        members["CertIssuerSubject"] = subject
        members["CertIssuerPublicKey"] = key
    return members


def swarm_to_json(cluster: Cluster) -> Json:
    """Write the cluster with its join tokens, as GET /swarm does; never log the result."""
    members = cluster_to_json(cluster)
    members["JoinTokens"] = {
        "Worker": cluster.join_tokens.worker,
        "Manager": cluster.join_tokens.manager,
    }
    return members

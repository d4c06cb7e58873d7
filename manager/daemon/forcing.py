"""What may be asked for beside `swarm init --force-new-cluster`. Pure.

The new cluster is the old one as this manager has stored it. What belongs to this node (its
addresses), the autolock, and the port of the data path may be given anew. What else `swarm init`
takes is stored already and is changed by `swarm update` and `swarm node update`: it is refused by
name, not ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from manager.daemon.addresses import (
    LISTEN_DEFAULT,
    InterfaceAddress,
    join_port,
    resolve_advertise,
    resolve_data_path,
    resolve_listen,
    split_port,
)
from manager.daemon.identity import Identity
from manager.daemon.moving import is_own
from manager.httpapi.backend import InitRequest
from proto.errors import InvalidError
from proto.objects import ClusterSpec, NodeAvailability

# What clients send when nothing was asked for.
_SUBNET_SIZES_UNSAID = frozenset({0, 24})
_FLAGS = {
    "name": "the name of the cluster",
    "labels": "labels of the cluster",
    "task_history_retention_limit": "--task-history-limit",
    "raft_snapshot_interval": "--snapshot-interval",
    "raft_keep_old_snapshots": "--max-snapshots",
    "dispatcher_heartbeat_ns": "--dispatcher-heartbeat",
    "node_cert_expiry_ns": "--cert-expiry",
    "external_cas": "--external-ca",
}


def refuse_beside_force(request: InitRequest) -> None:
    """Refuse what a forced new cluster does not take.

    Raises:
        InvalidError: it names the options, and what to use instead.
    """
    refused = []
    if request.default_addr_pool:
        refused.append("--default-addr-pool")
    if request.subnet_size not in _SUBNET_SIZES_UNSAID:
        refused.append("--default-addr-pool-mask-length")
    if request.availability is not NodeAvailability.ACTIVE:
        refused.append("--availability")
    unsaid = ClusterSpec()
    refused += [
        _FLAGS.get(name, name)
        for name in ClusterSpec.__struct_fields__
        if name != "auto_lock_managers" and getattr(request.spec, name) != getattr(unsaid, name)
    ]
    if refused:
        raise InvalidError(
            f"--force-new-cluster keeps what is stored, so it does not take {', '.join(refused)}: "
            "leave out what is named, and change it afterwards (swarm update, swarm node update)"
        )


def forced_identity(
    identity: Identity, request: InitRequest, machine: Sequence[InterfaceAddress]
) -> Identity:
    """Return who this node is in the new cluster: as before, but for the addresses that are given.

    The default listen address is what clients send when none was given, so it changes nothing.

    Raises:
        InvalidError: an address is none.
    """
    listen = identity.listen_addr
    if request.listen_addr not in {"", LISTEN_DEFAULT}:
        listen = resolve_listen(request.listen_addr, machine)
    advertise = identity.advertise_addr
    if request.advertise_addr:
        advertise = resolve_advertise(request.advertise_addr, listen, machine)
    elif listen != identity.listen_addr:
        host, port = split_port(listen, "listen address")
        if host in {"0.0.0.0", "::"}:  # noqa: S104 -- read only
            host = split_port(advertise, "advertise address")[0]
        advertise = join_port(host, port)
    return msgspec.structs.replace(
        identity,
        listen_addr=listen,
        advertise_addr=advertise,
        data_path_addr=resolve_data_path(request.data_path_addr, machine)
        or identity.data_path_addr,
        is_own_address=is_own(advertise, machine),
        is_forced=True,
    )

"""Channels from a node to a manager.

A channel is made for one session or call and closed with it, so that gRPC's own waiting between
attempts plays no part, and a renewed certificate counts from the next one on. The handshake asks
for the manager's full name when its node ID is known, else for any manager of this cluster's
authority: the right one answers, or none.
"""

from __future__ import annotations

import msgspec
from grpc import aio

from manager.nodeport.remotes import ManagerPeer
from proto.ids import ClusterID
from raft.transport.channels import secure_channel
from raft.transport.identity import MANAGER_ROLE, Credentials, full_name
from raft.transport.limits import MIB, Limits


class ChannelLimits(msgspec.Struct, frozen=True):
    """What a node's channel to a manager is bounded by.

    Attributes:
        silence_seconds: when nothing has come for so long, a sign of life is asked for.
        answer_seconds: which must come within this; the same for data that is not acknowledged.
        message_bytes_max: the largest message that is taken: all of a node's assignments.
    """

    silence_seconds: float = 1.0
    answer_seconds: float = 1.5
    message_bytes_max: int = 64 * MIB


def open_channel(
    peer: ManagerPeer,
    cluster_id: ClusterID,
    credentials: Credentials,
    limits: ChannelLimits = ChannelLimits(),  # noqa: B008 -- frozen
) -> aio.Channel:
    """Make a channel to a manager; it connects with its first call."""
    name = full_name(peer.node_id, MANAGER_ROLE, cluster_id) if peer.node_id else MANAGER_ROLE
    return secure_channel(
        peer.address,
        name,
        credentials,
        Limits(
            keepalive_seconds=limits.silence_seconds,
            keepalive_answer_seconds=limits.answer_seconds,
            message_bytes_max=limits.message_bytes_max,
        ),
    )

"""The consensus of one member as a pure state machine; `README.md` is its manual."""

from raft.core.config import Config
from raft.core.membership import (
    AddLearner,
    Change,
    Demote,
    Promote,
    Readdress,
    Remove,
    bootstrap,
    decode_membership,
    encode_membership,
    force_new_cluster,
)
from raft.core.messages import Message, decode, encode
from raft.core.node import Core
from raft.core.ready import Ready
from raft.core.values import (
    NOBODY,
    Accepted,
    Entries,
    HardState,
    InFavour,
    Member,
    Membership,
    NotLeader,
    RaftID,
    ReadState,
    RefusalCode,
    Refused,
    Role,
    Snapshot,
)

__all__ = [
    "NOBODY",
    "Accepted",
    "AddLearner",
    "Change",
    "Config",
    "Core",
    "Demote",
    "Entries",
    "HardState",
    "InFavour",
    "Member",
    "Membership",
    "Message",
    "NotLeader",
    "Promote",
    "RaftID",
    "ReadState",
    "Readdress",
    "Ready",
    "RefusalCode",
    "Refused",
    "Remove",
    "Role",
    "Snapshot",
    "bootstrap",
    "decode",
    "decode_membership",
    "encode",
    "encode_membership",
    "force_new_cluster",
]

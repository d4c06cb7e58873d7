"""Who this node is: a small file that is written last when joining and removed first when leaving.

It holds nothing secret. A node without it is in no swarm, whatever else a crash left in the
directories; so a half-made or half-left membership is simply made or cleared again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from disk.replace import replace_file, sync_directory
from proto.errors import CorruptError
from proto.ids import ClusterID, NodeID
from raft.files import disk_error


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """This node's place in a cluster. Addresses are host:port.

    `is_own_address`: the advertised one was an address of this machine when it was chosen.
    `is_forced`: it is to be the only manager of its cluster, and the others are not forgotten yet.
    `is_leaving`: it is to be in no cluster, and what it had of this one is not all gone yet.
    """

    format: int = 1
    node_id: NodeID
    cluster_id: ClusterID
    role: Literal["manager", "worker"]
    advertise_addr: str
    listen_addr: str
    data_path_addr: str = ""
    is_own_address: bool = False
    is_forced: bool = False
    is_leaving: bool = False


def read_identity(path: Path) -> Identity | None:
    """Return what the file says, or None when this node is in no swarm.

    Raises:
        CorruptError: there is a file, but it is not readable as an identity.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Identity)
    except msgspec.DecodeError as error:
        raise CorruptError(str(path), 0, f"not a node's identity ({error})") from error


def write_identity(path: Path, identity: Identity) -> None:
    """Write the file whole or not at all, durable on return.

    Raises:
        ResourceExhaustedError, UnavailableError: the disk failed.
    """
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(identity)))
    except OSError as error:
        raise disk_error(path, error) from error


def remove_identity(path: Path) -> None:
    """Remove the file, durably; nothing if there is none."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)

"""What nodes say of themselves, written to their rows."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from manager.nodeport.claims import checked_description
from manager.store.transaction import Transaction
from proto.errors import InvalidError, RemovedError
from proto.ids import NodeID
from proto.objects import Node, NodeDescription, NodeState, NodeStatus

DESCRIPTION_BYTES_MAX = 64 * 1024


def accepted(node_id: NodeID, description: NodeDescription) -> NodeDescription:
    """Return a description as it may be stored: checked, and of a size that every copy can bear.

    Raises:
        InvalidError: it is too large, or one of its numbers is out of range.
    """
    if len(msgspec.msgpack.encode(description)) > DESCRIPTION_BYTES_MAX:
        raise InvalidError(
            f"the description of node {node_id} takes more than {DESCRIPTION_BYTES_MAX} bytes"
        )
    return checked_description(description)


def registration(
    node_id: NodeID, description: NodeDescription, address: str
) -> Callable[[Transaction], Node]:
    """Return the write that makes a node READY; it raises `RemovedError` if there is none."""

    def write(tx: Transaction) -> Node:
        node = tx.nodes.get(node_id)
        if node is None:
            raise RemovedError(node_id)
        status = NodeStatus(
            state=NodeState.READY,
            message=description.trouble,
            addr=address or node.status.addr,
        )
        return tx.update(
            msgspec.structs.replace(node, description=description, status=status, down_since=0.0)
        )

    return write


def redescription(node_id: NodeID, description: NodeDescription) -> Callable[[Transaction], None]:
    """Return the write of a changed description, which a removed node no longer has."""

    def write(tx: Transaction) -> None:
        node = tx.nodes.get(node_id)
        if node is None:
            return
        status = node.status
        if status.state is NodeState.READY:
            message = description.trouble
            status = msgspec.structs.replace(status, message=message)
        tx.update(msgspec.structs.replace(node, description=description, status=status))

    return write

"""What a pass asks of the nodes, worked out once for each state of them.

Of a node that is DOWN, or was removed, nobody will tell what became of its tasks: they are not
waited for. One whose session has just ended (UNKNOWN, DISCONNECTED) keeps all: it may be back in a
second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proto.ids import NodeID
from proto.objects import Node, NodeAvailability, NodeState


class Nodes:
    """All nodes of one view.

    Attributes:
        all: every node, in the order of their IDs.
        by_id: the same, by ID.
        keeping: the nodes on which tasks may stay: neither DOWN nor drained.
        answering: the nodes that tell, or will tell, what became of their tasks.
        taking: the nodes that a task may be given now: READY and active.
    """

    __slots__ = ("all", "answering", "by_id", "keeping", "taking")

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Sort the nodes."""
        self.all = tuple(sorted(nodes, key=lambda node: node.id))
        self.by_id: Mapping[NodeID, Node] = {node.id: node for node in self.all}
        self.answering = frozenset(
            node.id for node in self.all if node.status.state is not NodeState.DOWN
        )
        self.keeping = frozenset(
            node.id
            for node in self.all
            if node.id in self.answering and node.spec.availability is not NodeAvailability.DRAIN
        )
        self.taking = frozenset(
            node.id
            for node in self.all
            if node.status.state is NodeState.READY
            and node.spec.availability is NodeAvailability.ACTIVE
        )

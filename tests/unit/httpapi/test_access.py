"""Who may call on the API port."""

from __future__ import annotations

import pytest

from manager.httpapi.access import check_caller
from proto.errors import DeniedError
from proto.ids import ClusterID, NodeID
from proto.objects import Cluster, Node, NodeRole, RemovedNode
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Identity

NOW = 1_000.0
CLUSTER = Cluster(id=ClusterID("c1"), removed_nodes=(RemovedNode(NodeID("gone"), 5_000.0),))
MANAGER = Node(id=NodeID("m1"), role=NodeRole.MANAGER)


def identity(
    node_id: str = "m1", role: str = MANAGER_ROLE, cluster_id: str = "c1", until: float = NOW + 1
) -> Identity:
    """Say who somebody is by a certificate."""
    return Identity(NodeID(node_id), role, ClusterID(cluster_id), until)


def test_a_manager_may_call() -> None:
    """With its certificate, while it is one."""
    check_caller(identity(), CLUSTER, MANAGER, NOW)


@pytest.mark.parametrize(
    ("caller", "node", "sentence"),
    [
        (identity(role=WORKER_ROLE), MANAGER, "node m1 has the role swarm-worker"),
        (identity(cluster_id="c2"), MANAGER, "node m1 belongs to cluster c2, this is c1"),
        (identity(until=NOW), MANAGER, "the certificate of node m1 has expired"),
        (identity("gone"), None, "node gone was removed from this cluster"),
        (identity("never"), None, "node never is not in this cluster"),
        (identity(), Node(id=NodeID("m1")), "node m1 is no manager any more"),
    ],
)
def test_everybody_else_is_refused_with_the_reason(
    caller: Identity, node: Node | None, sentence: str
) -> None:
    """A certificate that was good once is not enough."""
    with pytest.raises(DeniedError, match=sentence):
        check_caller(caller, CLUSTER, node, NOW)

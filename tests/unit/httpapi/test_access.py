"""Who may call on the API port."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manager.httpapi.access import _check_proven, check_caller
from manager.httpapi.requests import BACKEND, CLOCK
from proto.errors import DeniedError, NotFoundError, NotLeaderError
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


class Backend:
    """A manager that is told of another one only by a barrier."""

    def __init__(self, *, fails: bool = False, comes: bool = True) -> None:
        self.nodes: dict[str, Node] = {}
        self.barriers = 0
        self._fails = fails
        self._comes = comes

    def control(self) -> Any:
        """Be it."""
        return self

    def cluster(self) -> Cluster:
        """Find."""
        return CLUSTER

    def node(self, ref: str) -> Node:
        """Find."""
        if ref not in self.nodes:
            raise NotFoundError("node", ref)
        return self.nodes[ref]

    async def read_barrier(self) -> None:
        """Learn what was committed."""
        self.barriers += 1
        if self._fails:
            raise NotLeaderError
        if self._comes:
            self.nodes["m1"] = MANAGER


@pytest.mark.parametrize(
    ("backend", "caller", "error", "barriers"),
    [
        (Backend(), identity(), None, 1),
        (Backend(comes=False), identity(), DeniedError, 1),
        (Backend(fails=True), identity(), NotLeaderError, 1),
        # Nothing that was committed could help these.
        (Backend(), identity(role=WORKER_ROLE), DeniedError, 0),
        (Backend(), identity(until=NOW), DeniedError, 0),
    ],
)
async def test_a_manager_is_refused_only_by_the_newest_state(
    backend: Backend, caller: Identity, error: type[Exception] | None, barriers: int
) -> None:
    """Whoever was cut off has not been told of one that the others let in."""
    clock = SimpleNamespace(wall=lambda: NOW)
    request: Any = SimpleNamespace(app={BACKEND: backend, CLOCK: clock})
    if error is None:
        await _check_proven(request, caller)
    else:
        with pytest.raises(error):
            await _check_proven(request, caller)
    assert backend.barriers == barriers

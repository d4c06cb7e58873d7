"""What the role manager decides."""

from __future__ import annotations

from manager.daemon.roles import Admit, Expel, SetRole, plan
from proto.ids import NodeID
from proto.objects import Node, NodeRole, NodeSpec
from raft.core import RaftID
from raft.node import MemberStatus


def node(name: str, wanted: NodeRole, role: NodeRole) -> Node:
    """Make a node whose wanted role and role in effect may differ."""
    return Node(id=NodeID(name), spec=NodeSpec(role=wanted), role=role)


def member(name: str, *, is_voter: bool = True) -> MemberStatus:
    """Make a member of the group."""
    return MemberStatus(
        member_id=RaftID(len(name)),
        node_id=name,
        address=f"{name}:2378",
        is_voter=is_voter,
        is_leader=False,
        is_reachable=True,
    )


MANAGER, WORKER = NodeRole.MANAGER, NodeRole.WORKER


def test_settled_cluster_has_nothing_to_do() -> None:
    """Managers that vote and workers that do not are left alone."""
    nodes = [node("m", MANAGER, MANAGER), node("w", WORKER, WORKER)]
    assert plan(nodes, [member("m")]) == []


def test_promotion_gives_the_certificate_first() -> None:
    """A node that shall be a manager gets the role at once, and joins the group by itself."""
    nodes = [node("m", MANAGER, MANAGER), node("w", MANAGER, WORKER)]
    assert plan(nodes, [member("m")]) == [SetRole(NodeID("w"), MANAGER)]


def test_demotion_leaves_the_group_first() -> None:
    """A member keeps its certificate until it is out of the group."""
    nodes = [node("a", MANAGER, MANAGER), node("b", WORKER, MANAGER)]
    assert plan(nodes, [member("a"), member("b")]) == [Expel(NodeID("b"))]
    assert plan(nodes, [member("a")]) == [SetRole(NodeID("b"), WORKER)]


def test_learner_is_admitted() -> None:
    """A learner's promotion is asked for, since the leader that promised it may be gone."""
    nodes = [node("a", MANAGER, MANAGER), node("b", MANAGER, MANAGER)]
    assert plan(nodes, [member("a"), member("b", is_voter=False)]) == [Admit(NodeID("b"), "b:2378")]


def test_member_without_node_is_expelled() -> None:
    """Nobody votes who is not in the cluster."""
    assert plan([node("a", MANAGER, MANAGER)], [member("a"), member("gone")]) == [
        Expel(NodeID("gone"))
    ]


def test_promoted_again_before_it_left() -> None:
    """A demotion that was taken back changes nothing."""
    nodes = [node("a", MANAGER, MANAGER), node("b", MANAGER, MANAGER)]
    assert plan(nodes, [member("a"), member("b")]) == []

"""Who is let into the managers' group, by whom."""

import random
from types import SimpleNamespace

import msgspec
import pytest

from manager.daemon.manager import Manager
from manager.daemon.membership import NodeControl
from manager.store import Store
from proto.clock import SystemClock
from proto.errors import ConflictError, DeniedError, NotLeaderError, RemovedError, UnavailableError
from proto.objects import Cluster, Node, NodeRole, NodeSpec, NodeState
from raft.keys import KeyRing
from raft.node import RaftNode

MANAGER, WORKER = NodeRole.MANAGER, NodeRole.WORKER


@pytest.fixture
async def leader(tmp_path):
    """Give a lone leader's log and store, with nodes of every kind."""
    clock, rng = SystemClock(), random.Random(1)
    keys = KeyRing.create(tmp_path / "raft", rng.randbytes, None)
    raft = await RaftNode.create(
        tmp_path / "raft", keys, node_id="me", address="10.0.0.1:2378", clock=clock, rng=rng
    )
    store = Store.open(raft, clock)
    await store.role_changed(0)

    def fill(tx):
        tx.create(Cluster(id="c1", unlock_key="secret"))
        for name, wanted, role in (
            ("me", MANAGER, MANAGER),
            ("new", MANAGER, MANAGER),
            ("demoted", WORKER, WORKER),
            ("leaving", WORKER, MANAGER),
        ):
            tx.create(Node(id=name, spec=NodeSpec(role=wanted), role=role))

    await store.update(fill)
    yield SimpleNamespace(store=store, raft=raft, leader_node_port=lambda: "10.0.0.9:2378")
    await store.close()
    await raft.close()
    keys.close()


def is_member(leader, node_id):
    """Tell whether a node is a member of the log's group."""
    return any(member.node_id == node_id for member in leader.raft.membership.members)


async def admit(leader, node_id):
    """Let a node in at an address of its own."""
    return await Manager.admit(leader, node_id, "10.0.0.4:2378", "10.0.0.4:2377")


async def test_a_follower_that_was_not_told_of_the_node_yet_names_the_leader():
    """It has not heard of a node that was made a moment ago; the leader has."""
    follower = SimpleNamespace(
        store=SimpleNamespace(term=0), leader_node_port=lambda: "10.0.0.9:2378"
    )
    with pytest.raises(NotLeaderError) as caught:
        await admit(follower, "new")
    assert caught.value.leader_address == "10.0.0.9:2378"


async def test_a_manager_is_let_in_and_told_the_key(leader):
    """It becomes a learner, and gets what opens its keys."""
    admission = await admit(leader, "new")
    assert admission.unlock_key == "secret"
    assert is_member(leader, "new")


async def test_the_leader_knows_all_nodes(leader):
    """What it has not, is not there."""
    with pytest.raises(RemovedError, match="stranger is not in this cluster"):
        await admit(leader, "stranger")
    assert not is_member(leader, "stranger")


@pytest.mark.parametrize("node_id", ["demoted", "leaving"])
async def test_who_was_demoted_is_not_let_in_again(leader, node_id):
    """By its old certificate it would get the key, the snapshot, and a vote."""
    with pytest.raises(DeniedError, match=node_id):
        await admit(leader, node_id)
    assert not is_member(leader, node_id)
    assert leader.store.view().nodes.get(node_id).manager_status is None


async def test_a_demotion_while_a_manager_is_let_in_comes_first(leader, monkeypatch):
    """What has its place in the log before the new member counts, committed or not."""
    add_learner = leader.raft.add_learner

    async def slow(*args, **kwargs):
        node = leader.store.view().nodes.get("new")
        spec = msgspec.structs.replace(node.spec, role=WORKER)
        _ = leader.store.update(
            lambda tx: tx.update(msgspec.structs.replace(node, spec=spec, role=WORKER))
        )
        return await add_learner(*args, **kwargs)

    monkeypatch.setattr(leader.raft, "add_learner", slow)
    with pytest.raises(UnavailableError, match="new is no manager of this cluster"):
        await admit(leader, "new")
    assert not is_member(leader, "new")


async def test_who_was_demoted_does_not_send_others_away(leader):
    """Only a manager leaves the group on its own word."""
    with pytest.raises(DeniedError, match="demoted is no manager"):
        await Manager.dismiss(leader, "demoted")


@pytest.mark.parametrize("state", [NodeState.DOWN, NodeState.READY])
async def test_who_has_left_the_group_is_removed_without_a_demotion(leader, state):
    """`leave --force` and `node rm` go by the same membership; who is up may be on its way in."""
    control = NodeControl(
        leader,
        random.Random(1),
        SystemClock(),
        seal=lambda: None,
        manager_statuses=dict,
        credentials=lambda: None,
    )
    left = leader.store.view().nodes.get("new")
    status = msgspec.structs.replace(left.status, state=state)
    await leader.store.update(lambda tx: tx.update(msgspec.structs.replace(left, status=status)))
    if state is NodeState.READY:
        with pytest.raises(ConflictError, match="must be demoted"):
            await control.remove_node("new", force=True)
        return
    with pytest.raises(ConflictError, match="must be demoted"):
        await control.remove_node("me", force=True)
    await control.remove_node("new", force=False)
    assert "new" not in leader.store.view().nodes


@pytest.mark.parametrize("is_member_already", [True, False])
async def test_a_join_that_failed_is_taken_back(leader, is_member_already):
    """Neither a row nor a place in the group is left; whoever works cannot be forgotten so."""
    if is_member_already:
        await admit(leader, "new")
    await Manager.withdraw(leader, "new")
    assert not is_member(leader, "new")
    assert "new" not in leader.store.view().nodes
    removed = next(iter(leader.store.view().clusters)).removed_nodes
    assert [one.id for one in removed] == ["new"]
    await Manager.withdraw(leader, "new")  # the answer to the first was lost
    works = leader.store.view().nodes.get("leaving")
    status = msgspec.structs.replace(works.status, state=NodeState.READY)
    await leader.store.update(lambda tx: tx.update(msgspec.structs.replace(works, status=status)))
    with pytest.raises(ConflictError, match="leaving works in the swarm"):
        await Manager.withdraw(leader, "leaving")

"""What the role manager decides."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from manager.daemon import roles
from manager.daemon.roles import Admit, Expel, RoleManager, SetRole, plan
from manager.store import Store, Transaction
from proto.clock import SystemClock
from proto.errors import ConflictError
from proto.ids import NodeID
from proto.objects import ManagerStatus, Node, NodeRole, NodeSpec
from raft.core import RaftID
from raft.keys import KeyRing
from raft.node import MemberStatus, RaftNode


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


def test_what_was_noted_of_a_worker_as_a_manager_goes() -> None:
    """Else it would be told to others as one of the managers."""
    left = msgspec.structs.replace(
        node("b", WORKER, WORKER), manager_status=ManagerStatus(addr="b:2377")
    )
    nodes = [node("a", MANAGER, MANAGER), left]
    assert plan(nodes, [member("a")]) == [SetRole(NodeID("b"), WORKER)]
    assert plan(nodes, [member("a"), member("b")]) == [Expel(NodeID("b"))]


class Group:
    """The managers' group as the role manager sees it."""

    def __init__(self, *names: str) -> None:
        """Begin with these."""
        self.names = list(names)
        self.stubborn: set[str] = set()

    @property
    def membership(self) -> Any:
        """Return who is a member."""
        return SimpleNamespace(members=self.status())

    def status(self) -> list[MemberStatus]:
        """Return who is a member."""
        return [member(name) for name in self.names]

    async def remove(self, name: str) -> None:
        """Take a member out."""
        if name in self.stubborn:
            raise ConflictError(f"{name} is needed for a quorum")
        self.names.remove(name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Give the store of a lone leader."""
    clock, rng = SystemClock(), random.Random(1)
    keys = KeyRing.create(tmp_path / "raft", rng.randbytes, None)
    raft = await RaftNode.create(
        tmp_path / "raft", keys, node_id="a", address="a:2378", clock=clock, rng=rng
    )
    store = Store.open(raft, clock)
    await store.role_changed(0)
    yield store
    await store.close()
    await raft.close()
    keys.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110 -- several things change
            await asyncio.sleep(0.001)


@pytest.fixture
async def working(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Group]:
    """Give the group of a role manager at work on a settled cluster of one manager."""
    monkeypatch.setattr(roles, "RECONCILE_SECONDS", 0.01)
    group = Group("a")
    await store.update(lambda tx: tx.create(node("a", MANAGER, MANAGER)))
    await store.update(lambda tx: tx.create(node("b", WORKER, WORKER)))
    role_manager = RoleManager(store, cast("RaftNode", group), SystemClock())
    task = asyncio.create_task(role_manager.run())
    await asyncio.sleep(0.05)
    yield group
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_who_comes_in_without_any_change_of_a_node_is_expelled(working: Group) -> None:
    """All seemed settled, and no row changed since."""
    working.names.append("b")
    await eventually(lambda: working.names == ["a"])


async def test_one_that_cannot_go_keeps_no_other(working: Group, store: Store) -> None:
    """Each is done by itself; what failed is tried again."""
    await store.update(lambda tx: tx.create(node("c", MANAGER, WORKER)))
    working.stubborn.add("b")
    working.names += ["b", "d"]
    await eventually(lambda: working.names == ["a", "b"])
    working.stubborn.clear()
    await eventually(lambda: working.names == ["a"])


async def test_a_member_never_has_the_role_of_a_worker(working: Group, store: Store) -> None:
    """Whoever is a member when the role is written keeps it until it has left again."""

    def demote(tx: Transaction) -> None:
        tx.create(node("c", WORKER, MANAGER))
        working.names.append("c")

    working.stubborn.add("c")
    await store.update(demote)
    await asyncio.sleep(0.1)
    found = store.view().nodes.get(NodeID("c"))
    assert found is not None
    assert found.role is MANAGER
    working.stubborn.clear()

    def is_worker() -> bool:
        found = store.view().nodes.get(NodeID("c"))
        return found is not None and found.role is WORKER

    await eventually(is_worker)
    assert working.names == ["a"]

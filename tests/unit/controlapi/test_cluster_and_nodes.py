"""The cluster's settings and secrets; nodes changed and removed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from manager.controlapi import Control
from manager.store import Store
from proto.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    NotImplementedYetError,
    SequenceConflictError,
    UnavailableError,
)
from proto.ids import NodeID
from proto.objects import (
    Cluster,
    ClusterSpec,
    Driver,
    ExternalCA,
    ManagerStatus,
    NodeAvailability,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    RemovedNode,
)

replace = msgspec.structs.replace
HOUR_NS = 3600 * 10**9


async def test_settings_change_and_secrets_stay(control: Control):
    """Without rotation, tokens stay as they are."""
    old = control.cluster()
    spec = replace(old.spec, task_history_retention_limit=1)
    await control.update_cluster(old.version, spec)
    new = control.cluster()
    assert new.spec == spec
    assert new.join_tokens == old.join_tokens
    with pytest.raises(SequenceConflictError, match="update out of sequence: cluster cluster1"):
        await control.update_cluster(old.version, spec)


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_one_token_is_rotated_at_a_time(control: Control, role: str):
    """The rotated token is new and of the same cluster; the other stays."""
    old = control.cluster()
    other = "manager" if role == "worker" else "worker"
    flag: Any = {f"rotate_{role}_token": True}
    await control.update_cluster(old.version, old.spec, **flag)
    new = control.cluster()
    assert getattr(new.join_tokens, role) != getattr(old.join_tokens, role)
    assert getattr(new.join_tokens, role)[:59] == getattr(old.join_tokens, role)[:59]
    assert getattr(new.join_tokens, other) == getattr(old.join_tokens, other)


async def test_the_unlock_key_comes_and_goes_with_autolock(control: Control):
    """Turning autolock on draws a key, rotating draws another, turning it off drops it."""

    async def change(*, autolock: bool, rotate: bool) -> str:
        cluster = control.cluster()
        spec = replace(cluster.spec, auto_lock_managers=autolock)
        await control.update_cluster(cluster.version, spec, rotate_unlock_key=rotate)
        return control.cluster().unlock_key

    first = await change(autolock=True, rotate=False)
    assert first.startswith("SWMKEY-1-")
    assert len(first) == len("SWMKEY-1-") + 43
    assert await change(autolock=True, rotate=False) == first
    assert await change(autolock=True, rotate=True) not in {first, ""}
    assert await change(autolock=False, rotate=True) == ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "other"}, "the cluster's name is default: it cannot change"),
        ({"task_history_retention_limit": -1}, "task history limit is -1: it cannot be negative"),
        ({"raft_snapshot_interval": 0}, "snapshot interval is 0: it must be at least 1 log entry"),
        ({"raft_keep_old_snapshots": -1}, "number of old snapshots is -1"),
        ({"raft_log_entries_for_slow_followers": -1}, "slow followers is -1"),
        ({"raft_election_tick": 1}, "election tick is 1, heartbeat tick 1: the first must be"),
        ({"raft_heartbeat_tick": 0}, "the second at least 1"),
        ({"dispatcher_heartbeat_ns": 0}, r"heartbeat period is 0 s: it must be at least 0\.1 s"),
        (
            {"node_cert_expiry_ns": HOUR_NS - 1},
            r"certificate expiry is 3600 s: minimum certificate expiry time is 1h",
        ),
        ({"external_cas": (ExternalCA(url="http://ca"),)}, "it has to begin with https://"),
    ],
)
async def test_settings_that_are_refused(control: Control, changes: dict[str, Any], sentence: str):
    """Each sentence names the setting, its value and what it must be."""
    old = control.cluster()
    with pytest.raises(InvalidError, match=sentence):
        await control.update_cluster(old.version, replace(old.spec, **changes))
    assert control.cluster() == old


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_log_driver": Driver(name="syslog")}, "a log driver for all tasks"),
    ],
)
async def test_settings_that_cannot_be_served_yet(
    control: Control, changes: dict[str, Any], sentence: str
):
    """They are refused, never ignored."""
    old = control.cluster()
    with pytest.raises(NotImplementedYetError, match=sentence):
        await control.update_cluster(old.version, replace(old.spec, **changes))


async def test_the_least_settings_are_good(control: Control):
    """Each bound itself is allowed."""
    old = control.cluster()
    spec = replace(
        old.spec,
        task_history_retention_limit=0,
        raft_snapshot_interval=1,
        raft_log_entries_for_slow_followers=0,
        raft_election_tick=2,
        dispatcher_heartbeat_ns=100_000_000,
        node_cert_expiry_ns=HOUR_NS,
    )
    await control.update_cluster(old.version, spec)
    assert control.cluster().spec == spec


async def test_a_store_without_a_cluster_says_so(control: Control, store: Store):
    """Before a cluster begins there is nothing to show."""
    await store.update(lambda tx: tx.delete(Cluster, "cluster1"))
    with pytest.raises(UnavailableError, match="begin one with: swarm init"):
        control.cluster()
    with pytest.raises(UnavailableError):
        await control.update_cluster(1, ClusterSpec())


async def test_nodes_change(control: Control):
    """Labels, availability and a name; the version must match."""
    old = control.node("node1a")
    spec = replace(old.spec, name="one", labels={"zone": "a"}, availability=NodeAvailability.DRAIN)
    await control.update_node("node1a", old.version, spec)
    assert control.node("one").spec == spec
    assert [node.id for node in control.nodes()] == ["node1a", "node1b", "node2"]
    with pytest.raises(SequenceConflictError, match="update out of sequence: node node1a"):
        await control.update_node("one", old.version, spec)
    with pytest.raises(InvalidError, match="invalid node name 'a b'"):
        await control.update_node("one", old.version + 1, replace(spec, name="a b"))
    with pytest.raises(NotFoundError, match="node none not found"):
        await control.update_node("none", 1, spec)


async def test_a_change_of_role_is_a_wish(control: Control):
    """The wanted role changes at once; the role in effect is left to the role manager."""
    node = control.node("node2")
    wanted = replace(node.spec, role=NodeRole.MANAGER)
    await control.update_node("node2", node.version, wanted)
    node = control.node("node2")
    assert (node.spec.role, node.role) == (NodeRole.MANAGER, NodeRole.WORKER)


async def test_the_last_manager_is_not_demoted(control: Control, store: Store):
    """Of two managers one may go, though both still act; another setting of the last may change."""
    for ref in ("node1a", "node2"):
        node = control.node(ref)
        manager = replace(node.spec, role=NodeRole.MANAGER)
        await store.update(
            lambda tx, node=node, spec=manager: tx.update(
                replace(node, spec=spec, role=NodeRole.MANAGER)
            )
        )
    node = control.node("node2")
    await control.update_node("node2", node.version, replace(node.spec, role=NodeRole.WORKER))
    assert control.node("node2").role is NodeRole.MANAGER
    last = control.node("node1a")
    with pytest.raises(ConflictError, match="attempting to demote the last manager of the swarm"):
        await control.update_node("node1a", last.version, replace(last.spec, role=NodeRole.WORKER))
    await control.update_node("node1a", last.version, replace(last.spec, labels={"a": "b"}))
    assert control.node("node1a").spec.role is NodeRole.MANAGER


async def test_removed_nodes_are_remembered(control: Control, store: Store):
    """As long as their certificates last; the ones that ended are dropped."""
    now = 1_000_000.0
    await store.update(
        lambda tx: tx.update(
            replace(
                control.cluster(),
                removed_nodes=(
                    RemovedNode(id=NodeID("ended"), certificate_until=now),
                    RemovedNode(id=NodeID("lasts"), certificate_until=now + 1),
                ),
            )
        )
    )
    node = replace(control.node("node2"), certificate_until=now + 50)
    await store.update(lambda tx: tx.update(node))
    await control.remove_node("node2", force=True)
    await control.remove_node("node1b", force=True)
    expiry = control.cluster().spec.node_cert_expiry_ns / 1e9
    assert control.cluster().removed_nodes == (
        RemovedNode(id=NodeID("lasts"), certificate_until=now + 1),
        RemovedNode(id=NodeID("node2"), certificate_until=now + 50),
        RemovedNode(id=NodeID("node1b"), certificate_until=now + expiry),
    )


async def test_a_node_that_is_up_is_removed_only_by_force(control: Control, store: Store):
    """A node that is down goes; one that is up needs force."""
    with pytest.raises(ConflictError, match="node node2 is not down and can't be removed"):
        await control.remove_node("db", force=False)
    await control.remove_node("db", force=True)
    down = replace(control.node("node1b"), status=NodeStatus(state=NodeState.DOWN))
    await store.update(lambda tx: tx.update(down))
    await control.remove_node("node1b", force=False)
    assert [node.id for node in control.nodes()] == ["node1a"]
    with pytest.raises(NotFoundError):
        await control.remove_node("node2", force=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"role": NodeRole.MANAGER},
        {"spec": NodeSpec(role=NodeRole.MANAGER)},
    ],
)
async def test_a_manager_is_not_removed(control: Control, store: Store, changes: dict[str, Any]):
    """Not even by force."""
    node = replace(control.node("node2"), **changes)
    await store.update(lambda tx: tx.update(node))
    with pytest.raises(ConflictError, match="It must be demoted to worker before removal"):
        await control.remove_node("node2", force=True)


async def test_a_worker_that_was_a_manager_is_removed(control: Control, store: Store):
    """What was noted of it as a manager does not keep it."""
    node = replace(control.node("node2"), manager_status=ManagerStatus(addr="a:2377"))
    await store.update(lambda tx: tx.update(node))
    await control.remove_node("node2", force=True)
    with pytest.raises(NotFoundError):
        control.node("node2")

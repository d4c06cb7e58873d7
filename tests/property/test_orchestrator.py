"""Properties of the orchestrator over random histories of services, tasks and nodes.

Each step of the world is made twice, thoroughly and with the shortcut, and has to come to the same
plan.
"""

import importlib.util
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.orchestrator import draft as draft_module
from manager.orchestrator import replicated as replicated_module
from manager.orchestrator import step as step_module
from manager.orchestrator.nodes import Nodes
from proto.objects import (
    NodeAvailability,
    NodeState,
    Platform,
    RestartCondition,
    RestartPolicy,
    UpdateConfig,
)
from proto.states import TaskState
from scheduler import eligible

_path = Path(__file__).parents[1] / "unit" / "orchestrator" / "conftest.py"
_spec = importlib.util.spec_from_file_location("orchestrator_world", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
World = _module.World

NODES = 3
CONSTRAINTS = ((), ("node.labels.disk==ssd",), ("node.hostname!=host0",))
PLATFORMS = ((), (Platform(os="linux", architecture="amd64"),), (Platform(architecture="arm"),))
POLICIES = (
    RestartPolicy(),
    RestartPolicy(delay_ns=0),
    RestartPolicy(condition=RestartCondition.ON_FAILURE, max_attempts=2),
    RestartPolicy(condition=RestartCondition.NONE),
)
UPDATES = (
    UpdateConfig(),
    UpdateConfig(parallelism=0, failure_action="continue"),
    UpdateConfig(parallelism=2, delay_ns=10**9, failure_action="rollback"),
)

_service_actions = (
    st.tuples(st.just("scale"), st.integers(0, 6)),
    st.tuples(st.just("image"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("complete"), st.integers(0, 5)),
    st.tuples(st.just("reject"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.integers(1, 90)),
    st.tuples(st.just("obey"), st.just(0)),
)
_node = st.integers(0, NODES - 1)
_node_actions = (
    st.tuples(st.sampled_from(["drain", "active", "pause"]), _node),
    st.tuples(st.sampled_from(["DOWN", "READY", "UNKNOWN", "DISCONNECTED"]), _node),
    st.tuples(st.sampled_from(["remove", "add", "label", "orphan"]), _node),
)
_spec_actions = (
    st.tuples(st.just("constraints"), st.sampled_from(CONSTRAINTS)),
    st.tuples(st.just("platforms"), st.sampled_from(PLATFORMS)),
    st.tuples(st.just("restart"), st.sampled_from(POLICIES)),
    st.tuples(st.just("update"), st.sampled_from(UPDATES)),
    st.tuples(st.just("history"), st.integers(-1, 3)),
)
_quiet_nodes = st.lists(
    st.one_of(*_service_actions, st.tuples(st.sampled_from(["drain", "active"]), _node)),
    max_size=25,
)
_everything = st.lists(st.one_of(*_service_actions, *_node_actions, *_spec_actions), max_size=30)
_start_first = st.just(("update", UpdateConfig(order="start-first", parallelism=2)))
_overlapping = st.lists(
    st.one_of(*_service_actions, *_node_actions, *_spec_actions, _start_first), max_size=30
)


def _act(world, kind, value):
    match kind:
        case "scale" if not world.is_global:
            world.scale(value)
        case "image" | "constraints" | "platforms" | "restart" | "update":
            world.change(**{kind: value})
        case "history":
            world.history_limit = value
        case "wait":
            world.now += value
        case "obey":
            world.obey()
        case "fail" | "complete" | "reject":
            _report(world, kind, value)
        case "scale":
            pass
        case _:
            _act_on_node(world, kind, value)


def _report(world, kind, value):
    if kind == "reject":
        begun = [t for t in world.wanted() if t.status.state is TaskState.ASSIGNED]
        if begun:
            world.report(begun[value % len(begun)], TaskState.REJECTED, err="no")
        return
    running = [task for task in world.running() if world.reachable(task)]
    if running:
        state = TaskState.FAILED if kind == "fail" else TaskState.COMPLETE
        world.report(running[value % len(running)], state)


def _act_on_node(world, kind, value):
    if kind == "add":
        world.add_node(f"node{next(world.numbers)}")
        return
    if not world.nodes:
        return
    index = value % len(world.nodes)
    node = world.nodes[index]
    match kind:
        case "remove":
            world.remove_node(index)
        case "label":
            world.set_node(index, labels={} if node.spec.labels else {"disk": "ssd"})
        case "orphan":
            if node.status.state is NodeState.DOWN:
                for task in list(world.tasks.values()):
                    is_there = TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING
                    if task.node_id == node.id and is_there:
                        world.report(task, TaskState.ORPHANED)
        case "drain" | "active" | "pause":
            world.drain(index, availability=kind)
        case _:
            world.set_node(index, state=NodeState[kind])


def _slots(tasks):
    return Counter((task.slot, "" if task.slot else task.node_id) for task in tasks)


def _check_step(world, plan, *, wanted_max=1):
    """See what has to hold after any step."""
    wanted = world.wanted()
    assert max(_slots(wanted).values(), default=0) <= wanted_max
    keeping = Nodes(world.nodes).keeping
    assert [task for task in wanted if task.node_id and task.node_id not in keeping] == []
    for task in plan.created:
        node = next((n for n in world.nodes if n.id == task.node_id), None)
        if task.status.state is TaskState.ASSIGNED:
            assert node is not None
            assert node.status.state is NodeState.READY
            assert node.spec.availability is NodeAvailability.ACTIVE


def _repair(world):
    """Let every node work, and every service be able to."""
    for node in range(len(world.nodes)):
        world.set_node(node, state=NodeState.READY, labels={"disk": "ssd"})
        world.drain(node, availability="active")
    world.add_node(f"node{next(world.numbers)}")
    world.now += 1
    world.change(
        restart=POLICIES[1],
        update=UPDATES[1],
        constraints=CONSTRAINTS[0],
        platforms=PLATFORMS[0],
        image="z",
    )


def _check_end(world):
    """See that a repaired and settled service is as it was asked for."""
    running = world.running()
    assert len(_slots(running)) == len(running)
    if world.is_global:
        spec = world.service.spec.task
        nodes = eligible(spec, Nodes(world.nodes).all)
        assert sorted(nodes) == sorted(task.node_id for task in running)
    else:
        assert world.service.spec.mode.replicas == len(running)
    present = world.service.spec.task
    assert all(world.specs[t.spec_version].task == present for t in running)
    assert world.wanted() == running
    assert world.step().is_empty


@settings(max_examples=100, deadline=None)
@given(actions=_quiet_nodes, seed=st.integers(0, 2**32), replicas=st.integers(0, 5))
def test_any_history_converges_and_is_then_idempotent(actions, seed, replicas):
    """Whatever happened: with good agents the number asked for runs, of the present template."""
    world = World(replicas=replicas, nodes=2, seed=seed)
    for kind, value in actions:
        _act(world, kind, value)
        _check_step(world, world.step())
        alive = [t for t in world.tasks.values() if t.status.state is TaskState.RUNNING]
        assert max(_slots(alive).values(), default=0) <= 1

    for node in range(len(world.nodes)):
        world.drain(node, availability="active")
    world.settle(rounds=400)

    wanted = world.service.spec.mode.replicas
    running = world.running()
    assert wanted == len(running)
    assert len({t.slot for t in running}) == wanted
    present = world.service.spec.task
    is_paused = world.service.update_status and world.service.update_status.state == "paused"
    assert is_paused or all(world.specs[t.spec_version].task == present for t in running)
    assert world.step().is_empty


@pytest.mark.parametrize("is_global", [False, True])
@settings(max_examples=150, deadline=None)
@given(actions=_everything, seed=st.integers(0, 2**32), replicas=st.integers(0, 6))
def test_whatever_nodes_do_no_wanted_task_is_left_where_it_cannot_run(
    is_global, actions, seed, replicas
):
    """One wanted task a slot, none on a node that may keep none; in the end it converges."""
    world = World(replicas=replicas, nodes=NODES, seed=seed, is_global=is_global)
    for kind, value in actions:
        _act(world, kind, value)
        _check_step(world, world.step())
    _repair(world)
    world.settle(rounds=400)
    _check_end(world)


@pytest.mark.parametrize("is_global", [False, True])
@settings(max_examples=100, deadline=None)
@given(actions=_overlapping, seed=st.integers(0, 2**32), replicas=st.integers(0, 6))
def test_start_first_keeps_to_two_tasks_a_slot(is_global, actions, seed, replicas):
    """An old and a new one, never more, whatever nodes do meanwhile."""
    world = World(replicas=replicas, nodes=NODES, seed=seed, is_global=is_global)
    for kind, value in actions:
        _act(world, kind, value)
        _check_step(world, world.step(), wanted_max=2)
    _repair(world)
    world.settle(rounds=400)
    _check_end(world)


@pytest.mark.parametrize("is_global", [False, True])
@settings(max_examples=60, deadline=None)
@given(actions=_everything, seed=st.integers(0, 2**32), room=st.integers(1, 3))
def test_passes_that_may_do_little_come_to_the_same_end(is_global, actions, seed, room):
    """A pass that reached its limit says that there is more; more passes do the rest."""
    limits = ((draft_module, "CREATED_MAX"), (step_module, "PLACED_MAX"))
    limits = (*limits, (replicated_module, "REMOVED_MAX"))
    with ExitStack() as stack:
        for module, name in limits:
            stack.enter_context(mock.patch.object(module, name, room))
        world = World(replicas=5, nodes=NODES, seed=seed, is_global=is_global)
        for kind, value in actions:
            _act(world, kind, value)
            plan = world.step()
            assert len(plan.created) <= room
            _check_step(world, plan)
        _repair(world)
        world.settle(rounds=400)
        _check_end(world)


@settings(max_examples=60, deadline=None)
@given(replicas=st.integers(0, 30), nodes=st.integers(1, 8), down=st.integers(0, 7))
def test_fresh_tasks_are_spread_evenly(replicas, nodes, down):
    """Over equal nodes no two differ by more than one task, also with the tasks of a dead node."""
    world = World(replicas=replicas, nodes=nodes)
    world.settle()
    counts = Counter(task.node_id for task in world.running())
    numbers = [counts[node.id] for node in world.nodes]
    assert max(numbers) - min(numbers) <= 1

    world.set_node(down % nodes, state=NodeState.DOWN)
    world.step()
    counts = Counter(task.node_id for task in world.wanted() if task.node_id)
    numbers = [counts[n.id] for n in world.nodes if n.status.state is NodeState.READY]
    assert not numbers or max(numbers) - min(numbers) <= 1


@settings(max_examples=60, deadline=None)
@given(before=st.integers(0, 20), after=st.integers(0, 20), nodes=st.integers(1, 5))
def test_scaling_down_leaves_tasks_spread(before, after, nodes):
    """Whatever the slots' numbers, what stays is even."""
    world = World(replicas=before, nodes=nodes)
    world.settle()
    world.scale(after)
    world.settle()

    counts = Counter(task.node_id for task in world.running())
    numbers = [counts[node.id] for node in world.nodes]
    assert sum(numbers) == after
    assert max(numbers) - min(numbers) <= 1


@pytest.mark.parametrize("is_global", [False, True])
@settings(max_examples=60, deadline=None)
@given(actions=_everything, limit=st.integers(0, 4))
def test_history_never_grows_beyond_its_limit(is_global, actions, limit):
    """A settled slot has at most the limit of rows, or the one that runs."""
    world = World(replicas=2, nodes=NODES, is_global=is_global)
    for kind, value in actions:
        _act(world, kind, value)
        world.step()
    world.history_limit = limit
    _repair(world)
    world.settle(rounds=400)

    assert max(_slots(world.tasks.values()).values(), default=0) <= max(limit, 1)

"""Properties of the replicated orchestrator over random histories."""

import importlib.util
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from proto.objects import RestartCondition, RestartPolicy
from proto.states import TaskState

_path = Path(__file__).parents[1] / "unit" / "orchestrator" / "conftest.py"
_spec = importlib.util.spec_from_file_location("orchestrator_world", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
World = _module.World

_actions = st.lists(
    st.one_of(
        st.tuples(st.just("scale"), st.integers(0, 6)),
        st.tuples(st.just("image"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("complete"), st.integers(0, 5)),
        st.tuples(st.just("reject"), st.integers(0, 5)),
        st.tuples(st.sampled_from(["drain", "active"]), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.integers(1, 90)),
        st.tuples(st.just("obey"), st.just(0)),
    ),
    max_size=25,
)


def _act(world, kind, value):
    match kind:
        case "scale":
            world.scale(value)
        case "image":
            world.change(image=value)
        case "fail" | "complete":
            running = world.running()
            if running:
                state = TaskState.FAILED if kind == "fail" else TaskState.COMPLETE
                world.report(running[value % len(running)], state)
        case "reject":
            begun = [t for t in world.wanted() if t.status.state is TaskState.ASSIGNED]
            if begun:
                world.report(begun[value % len(begun)], TaskState.REJECTED, err="no")
        case "drain" | "active":
            world.drain(value % len(world.nodes), availability=kind)
        case "wait":
            world.now += value
        case "obey":
            world.obey()


@settings(max_examples=150, deadline=None)
@given(actions=_actions, seed=st.integers(0, 2**32), replicas=st.integers(0, 5))
def test_any_history_converges_and_is_then_idempotent(actions, seed, replicas):
    """Whatever happened: with good agents the number asked for runs, of the present template."""
    world = World(replicas=replicas, nodes=2, seed=seed)
    for kind, value in actions:
        _act(world, kind, value)
        world.step()
        for tasks in _by_slot(world).values():
            assert sum(t.status.state is TaskState.RUNNING for t in tasks) <= 1

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


@settings(max_examples=100, deadline=None)
@given(actions=_actions, limit=st.integers(0, 4))
def test_history_never_grows_beyond_its_limit(actions, limit):
    """A settled slot has at most the limit of rows, or the one that runs."""
    world = World(replicas=2)
    world.history_limit = limit
    world.change(restart=RestartPolicy(condition=RestartCondition.ANY))
    for kind, value in actions:
        _act(world, kind, value)
        world.step()
    for node in range(len(world.nodes)):
        world.drain(node, availability="active")
    world.settle(rounds=400)

    for tasks in _by_slot(world).values():
        assert len(tasks) <= max(limit, 1)


def _by_slot(world):
    slots = {}
    for task in world.tasks.values():
        slots.setdefault(task.slot, []).append(task)
    return slots

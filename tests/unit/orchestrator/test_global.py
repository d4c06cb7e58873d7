"""A global service: one task on each eligible node."""

import pytest

from proto.objects import (
    NANOSECONDS,
    NodeState,
    Platform,
    Resources,
    RestartCondition,
    RestartPolicy,
    UpdateConfig,
)
from proto.states import TaskState


@pytest.fixture
def settled(make_world):
    """A global service that runs on three nodes."""
    world = make_world(nodes=3, is_global=True)
    world.settle()
    return world


def nodes_of(tasks):
    """Return the nodes of tasks, sorted."""
    return sorted(task.node_id for task in tasks)


def test_each_node_gets_a_task_in_slot_0(make_world):
    """One step, one ASSIGNED task for each node, and then nothing more."""
    world = make_world(nodes=3, is_global=True)

    plan = world.step()

    assert nodes_of(plan.created) == ["node0", "node1", "node2"]
    assert {(0, TaskState.ASSIGNED, TaskState.RUNNING)} == {
        (task.slot, task.status.state, task.desired_state) for task in plan.created
    }
    world.settle()
    assert world.step().is_empty


def test_a_new_node_gets_its_task_at_once(settled):
    """Nobody else's task is touched."""
    settled.add_node("node9")

    plan = settled.step()

    assert nodes_of(plan.created) == ["node9"]
    assert plan.updated == ()


@pytest.mark.parametrize("state", [NodeState.UNKNOWN, NodeState.DISCONNECTED])
def test_a_lost_session_changes_nothing(settled, state):
    """A node that is merely not heard keeps its task."""
    settled.set_node(1, state=state)

    assert settled.step().is_empty


def test_a_node_that_is_down_has_no_wanted_task_until_it_is_back(settled):
    """Its task is wanted SHUTDOWN and nothing follows; back again, it gets one at once."""
    (old,) = [task for task in settled.running() if task.node_id == "node1"]
    settled.set_node(1, state=NodeState.DOWN)

    plan = settled.step()

    assert plan.created == ()
    assert nodes_of(settled.wanted()) == ["node0", "node2"]
    assert settled.tasks[old.id].status == old.status

    settled.set_node(1, state=NodeState.READY)
    (new,) = settled.step().created
    assert (new.node_id, new.not_before, new.desired_state) == ("node1", 0.0, TaskState.READY)
    settled.report(old, TaskState.SHUTDOWN)
    settled.step()
    assert settled.tasks[new.id].desired_state is TaskState.RUNNING


def test_drain_stops_and_active_starts_again(settled):
    """A drained node has no task, an active one has."""
    settled.drain(2)
    settled.settle()
    assert nodes_of(settled.running()) == ["node0", "node1"]

    settled.drain(2, availability="active")
    settled.settle()

    assert nodes_of(settled.running()) == ["node0", "node1", "node2"]


def test_pause_keeps_the_task_and_follows_none(settled):
    """What runs stays; what ends is followed when the node is active again."""
    settled.drain(0, availability="pause")
    assert settled.step().is_empty
    (task,) = [task for task in settled.running() if task.node_id == "node0"]
    settled.report(task, TaskState.FAILED)
    settled.settle()
    assert nodes_of(settled.wanted()) == ["node1", "node2"]

    settled.now += 60
    settled.drain(0, availability="active")
    settled.settle()

    assert nodes_of(settled.running()) == ["node0", "node1", "node2"]


def test_a_paused_new_node_gets_nothing(settled):
    """Pause takes nothing new."""
    settled.add_node("node9")
    settled.drain(3, availability="pause")

    assert settled.step().is_empty


def test_a_removed_node_leaves_nothing(settled):
    """Its task has no history where nothing will follow."""
    settled.remove_node(1)

    plan = settled.step()

    assert nodes_of(plan.deleted) == ["node1"]
    assert plan.created == ()
    assert settled.step().is_empty


def test_constraints_choose_the_nodes(settled):
    """Changed on the service: tasks on other nodes go at once, those on the right ones stay."""
    before = {task.node_id: task.id for task in settled.running()}

    settled.change(constraints=("node.hostname!=host1",))
    settled.settle()

    assert {n: i for n, i in before.items() if n != "node1"} == {
        task.node_id: task.id for task in settled.running()
    }
    settled.change(constraints=())
    settled.settle()
    assert nodes_of(settled.running()) == ["node0", "node1", "node2"]


def test_labels_of_a_node_choose_too(settled):
    """Changed on the node: it loses or gets the task."""
    settled.change(constraints=("node.labels.edge==yes",))
    settled.settle()
    assert settled.wanted() == []

    settled.set_node(1, labels={"edge": "yes"})
    settled.settle()
    assert nodes_of(settled.running()) == ["node1"]

    settled.set_node(1, labels={})
    settled.settle()
    assert settled.wanted() == []


def test_another_platform_gets_no_task(make_world):
    """A node whose platform the service does not have is not eligible."""
    world = make_world(nodes=3, is_global=True)
    world.change(platforms=(Platform(os="linux", architecture="amd64"),))
    world.settle()

    assert nodes_of(world.running()) == ["node0", "node1"]


def test_an_image_for_other_platforms_leaves_the_nodes_that_are_not(make_world):
    """Updated to it, the service has no task there, and none that waits for ever."""
    world = make_world(nodes=3, is_global=True)
    world.settle()
    assert nodes_of(world.running()) == ["node0", "node1", "node2"]

    world.change(platforms=(Platform(os="linux", architecture="arm64"),), image="web:2")
    world.settle()

    assert [(t.node_id, t.spec_version) for t in world.running()] == [("node2", 2)]
    assert world.wanted() == world.running()
    assert world.service.update_status.state == "completed"


def test_a_task_without_room_waits_on_its_node_and_says_why(make_world):
    """It is PENDING for its node only, takes nothing, and goes when the node does."""
    world = make_world(nodes=2, is_global=True)
    world.change(resources=Resources(nano_cpus=8 * NANOSECONDS))

    plan = world.step()

    assert plan.is_short
    assert {(TaskState.PENDING, "no suitable node (insufficient resources on 1 node)")} == {
        (task.status.state, task.status.err) for task in world.wanted()
    }
    assert nodes_of(world.wanted()) == ["node0", "node1"]
    assert world.step().is_empty

    world.set_node(0, state=NodeState.DOWN)
    world.step()
    assert nodes_of(world.tasks.values()) == ["node1"]

    world.change(resources=Resources(nano_cpus=NANOSECONDS))
    world.settle()
    assert nodes_of(world.running()) == ["node1"]


def test_a_failed_task_is_restarted_on_its_node_after_its_delay(settled):
    """The restart policy counts for each node."""
    (task,) = [task for task in settled.running() if task.node_id == "node1"]
    settled.now += 1
    settled.report(task, TaskState.FAILED)

    (successor,) = settled.step().created

    assert successor.node_id == "node1"
    assert successor.not_before == settled.now + 5
    assert successor.desired_state is TaskState.READY


def test_attempts_are_counted_for_each_node(make_world):
    """A node that used up its attempts is left, the others are not."""
    world = make_world(nodes=2, is_global=True)
    world.change(restart=RestartPolicy(max_attempts=1, delay_ns=0))
    world.settle()
    for _ in range(3):
        for task in [t for t in world.running() if t.node_id == "node0"]:
            world.report(task, TaskState.FAILED)
        world.settle()

    assert nodes_of(world.running()) == ["node1"]
    assert nodes_of(world.tasks.values()) == ["node0", "node0", "node1"]


def test_a_task_that_is_never_restarted_stays_away(make_world):
    """Condition none: drained and active again, the node has had its task."""
    world = make_world(nodes=1, is_global=True)
    world.change(restart=RestartPolicy(condition=RestartCondition.NONE))
    world.settle()
    world.drain(0)
    world.settle()
    world.drain(0, availability="active")
    world.settle()

    assert world.wanted() == []


def test_history_is_kept_for_each_node(settled):
    """Five rows a node, the running one included."""
    for _ in range(9):
        for task in settled.running():
            settled.report(task, TaskState.FAILED)
        settled.now += 1000
        settled.settle()

    rows = nodes_of(settled.tasks.values())
    assert rows == sorted(["node0", "node1", "node2"] * 5)


def test_an_update_goes_over_the_nodes_one_at_a_time(settled):
    """Parallelism 1: at most one node is without its task."""
    settled.change(image="web:2")
    least = 3
    for _ in range(40):
        plan = settled.step()
        assert len(plan.created) <= 1
        settled.obey()
        least = min(least, len(settled.running()))
        if plan.wake_at:
            settled.now = plan.wake_at

    assert least == 2
    assert {2} == {task.spec_version for task in settled.running()}
    assert settled.service.update_status.state == "completed"


def test_an_update_leaves_a_paused_node_until_it_is_active(settled):
    """Its task could not be replaced, hence it is not stopped; later it is."""
    settled.drain(0, availability="pause")
    settled.change(image="web:2", update=UpdateConfig(parallelism=0))
    settled.settle()

    assert {task.node_id: task.spec_version for task in settled.running()} == {
        "node0": 1,
        "node1": 2,
        "node2": 2,
    }
    assert settled.service.update_status.state == "completed"

    settled.drain(0, availability="active")
    settled.settle()
    assert {2} == {task.spec_version for task in settled.running()}


def test_a_node_that_dies_does_not_block_an_update(settled):
    """Its new task is not waited for."""
    settled.change(image="web:2")
    settled.step()
    (new,) = [task for task in settled.wanted() if task.spec_version == 2]

    settled.set_node(int(new.node_id[-1]), state=NodeState.DOWN)
    settled.settle()

    assert {2} == {task.spec_version for task in settled.wanted()}
    assert len(settled.wanted()) == 2
    assert settled.service.update_status.state == "completed"


def test_a_failing_update_pauses(settled):
    """Failures are counted over the nodes."""
    settled.change(image="bad")
    settled.step()
    settled.obey()
    settled.step()
    (new,) = [task for task in settled.wanted() if task.spec_version == 2]
    settled.report(new, TaskState.FAILED)
    settled.step()

    assert settled.service.update_status.state == "paused"
    assert len([task for task in settled.running() if task.spec_version == 1]) == 2


def test_start_first_overlaps_on_the_node(settled):
    """The old task of a node stops only when its new one runs."""
    settled.change(image="web:2", update=UpdateConfig(order="start-first", parallelism=0))
    for _ in range(20):
        plan = settled.step()
        assert len({task.node_id for task in settled.running()}) == 3
        settled.obey()
        if plan.wake_at:
            settled.now = plan.wake_at

    assert [task.spec_version for task in settled.running()] == [2, 2, 2]


def test_a_removed_global_service_leaves_nothing(settled):
    """All tasks go; that of a dead node when the node is back or removed."""
    settled.set_node(1, state=NodeState.DOWN)
    settled.service = None
    settled.settle()
    assert nodes_of(settled.tasks.values()) == ["node1"]

    settled.set_node(1, state=NodeState.READY)
    settled.settle()

    assert settled.tasks == {}

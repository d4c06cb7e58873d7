"""What becomes of a replicated service when its nodes go down, pause, drain, leave or come back."""

import msgspec
import pytest

from manager.orchestrator.retire import CONSTRAINTS_BROKEN, NODE_REMOVED
from proto.objects import (
    NANOSECONDS,
    NodeState,
    Resources,
    RestartCondition,
    RestartPolicy,
    UpdateConfig,
)
from proto.states import TaskState


def on_node(world, name):
    """Return the wanted tasks of a node."""
    return [task for task in world.wanted() if task.node_id == name]


def test_tasks_spread_over_ready_nodes(make_world):
    """Seven replicas on three nodes: no node has more than one above another."""
    world = make_world(replicas=7, nodes=3)
    world.settle()

    counts = sorted(len(on_node(world, node.id)) for node in world.nodes)
    assert counts == [2, 2, 3]


@pytest.mark.parametrize("state", [NodeState.UNKNOWN, NodeState.DISCONNECTED])
def test_a_lost_session_moves_nothing(make_world, state):
    """A node that is merely not heard keeps its tasks."""
    world = make_world(replicas=4, nodes=2)
    world.settle()

    world.set_node(0, state=state)

    assert world.step().is_empty


def test_tasks_of_a_dead_node_start_elsewhere_at_once(make_world):
    """One step: the old ones are wanted SHUTDOWN, as observed before; the new ones may run."""
    world = make_world(replicas=4, nodes=2)
    world.settle()
    lost = on_node(world, "node0")

    world.set_node(0, state=NodeState.DOWN)
    plan = world.step()

    assert sorted(task.slot for task in plan.created) == sorted(task.slot for task in lost)
    assert {(TaskState.RUNNING, 0.0, "node1")} == {
        (task.desired_state, task.not_before, task.node_id) for task in plan.created
    }
    for task in lost:
        after = world.tasks[task.id]
        assert (after.desired_state, after.status) == (TaskState.SHUTDOWN, task.status)


def test_tasks_do_not_move_back(make_world):
    """A node that comes back is told to stop what it had, and gets nothing by itself."""
    world = make_world(replicas=4, nodes=2)
    world.settle()
    world.set_node(0, state=NodeState.DOWN)
    world.settle()
    old = [task for task in world.running() if task.node_id == "node0"]
    assert len(old) == 2

    world.set_node(0, state=NodeState.READY)
    world.settle()

    assert {TaskState.SHUTDOWN} == {world.tasks[task.id].status.state for task in old}
    assert {"node1"} == {task.node_id for task in world.running()}
    world.scale(6)
    world.settle()
    assert len(on_node(world, "node0")) == 2


def test_a_task_that_waited_on_a_dead_node_waits_on_elsewhere(make_world):
    """The restart delay of a crashing task is not forgotten because its node dies."""
    world = make_world(replicas=1, nodes=2)
    world.settle()
    (task,) = world.running()
    world.now += 1
    world.report(task, TaskState.FAILED)
    (waiting,) = world.step().created
    world.report(waiting, TaskState.READY)

    world.set_node(int(waiting.node_id[-1]), state=NodeState.DOWN)
    (successor,) = world.step().created

    assert successor.not_before == waiting.not_before > world.now
    assert successor.node_id != waiting.node_id
    assert successor.desired_state is TaskState.READY


def test_a_task_that_is_never_restarted_is_not_begun_elsewhere(make_world):
    """Restart condition none: its node dies, and its slot is finished."""
    world = make_world(replicas=1, nodes=2)
    world.change(restart=RestartPolicy(condition=RestartCondition.NONE))
    world.settle()

    world.set_node(int(world.running()[0].node_id[-1]), state=NodeState.DOWN)

    assert world.step().created == ()
    assert world.wanted() == []


def test_with_every_node_down_tasks_wait_and_start_when_one_appears(make_world):
    """They are PENDING and say why; the first node that is READY gets them, whichever it is."""
    world = make_world(replicas=2, nodes=2)
    world.settle()
    world.set_node(0, state=NodeState.DOWN)
    world.set_node(1, state=NodeState.DOWN)

    plan = world.step()

    assert plan.is_short
    assert {"no suitable node (2 nodes are not available for new tasks)"} == {
        task.status.err for task in world.wanted()
    }
    world.set_node(1, state=NodeState.READY)
    world.settle()
    assert {"node1"} == {task.node_id for task in world.wanted()}
    assert {""} == {task.status.err for task in world.wanted()}


def test_a_removed_node_s_tasks_are_orphaned_and_replaced(make_world):
    """Nobody will ever report on them: they have ended, and history drops them in time."""
    world = make_world(replicas=2, nodes=2)
    world.settle()
    (lost,) = on_node(world, "node0")

    world.remove_node(0)
    plan = world.step()

    after = world.tasks[lost.id]
    assert after.status.state is TaskState.ORPHANED
    assert after.status.message == NODE_REMOVED
    assert after.status.running_at == lost.status.running_at
    assert after.desired_state is TaskState.SHUTDOWN
    assert [(t.slot, t.node_id, t.desired_state, t.not_before) for t in plan.created] == [
        (lost.slot, "node1", TaskState.RUNNING, 0.0)
    ]
    world.history_limit = 1
    world.settle()
    assert lost.id not in world.tasks


def test_a_removed_service_s_tasks_go_with_their_node(make_world):
    """The node is down, so its task stays listed; with the node removed the row goes."""
    world = make_world(replicas=1)
    world.settle()
    world.set_node(0, state=NodeState.DOWN)
    world.service = None
    world.step()
    assert len(world.tasks) == 1

    world.remove_node(0)
    world.step()

    assert world.tasks == {}


def test_an_orphaned_task_has_ended(make_world):
    """Written by the dispatcher after a day: the row goes as that of any task that ended."""
    world = make_world(replicas=2, nodes=2)
    world.settle()
    (lost,) = on_node(world, "node0")
    world.set_node(0, state=NodeState.DOWN)
    world.settle()
    world.history_limit = 1
    world.step()
    assert lost.id in world.tasks

    world.report(lost, TaskState.ORPHANED)
    plan = world.step()

    assert plan.created == ()
    assert lost.id not in world.tasks


def test_a_slot_that_is_needed_again_does_not_wait_for_a_dead_node(make_world):
    """A task that is being removed on a node that is down holds up no successor."""
    world = make_world(replicas=2, nodes=2)
    world.settle()
    victim = next(task for task in world.running() if task.slot == 2)
    world.set_node(int(victim.node_id[-1]), state=NodeState.DOWN)
    world.scale(1)
    world.settle()
    assert world.tasks[victim.id].status.state is TaskState.RUNNING

    world.scale(2)
    world.settle()

    assert [task.slot for task in world.wanted()] == [1, 2]
    assert {TaskState.RUNNING} == {task.desired_state for task in world.wanted()}


def test_scaling_down_takes_from_the_fullest_node(make_world):
    """What stays is spread, whatever the slots' numbers."""
    world = make_world(replicas=6, nodes=3)
    world.set_node(1, state=NodeState.DOWN)
    world.set_node(2, state=NodeState.DOWN)
    world.scale(4)
    world.settle()
    world.set_node(1, state=NodeState.READY)
    world.set_node(2, state=NodeState.READY)
    world.scale(6)
    world.settle()
    assert [len(on_node(world, f"node{i}")) for i in range(3)] == [4, 1, 1]

    world.scale(3)
    world.settle()

    assert [len(on_node(world, f"node{i}")) for i in range(3)] == [1, 1, 1]


def test_scaling_down_takes_what_does_not_run_first(make_world):
    """A task that hangs goes before one of the fullest node."""
    world = make_world(replicas=3, nodes=2)
    world.step()
    hanging = on_node(world, "node1")
    for task in world.wanted():
        world.report(task, TaskState.PREPARING if task in hanging else TaskState.RUNNING)

    world.scale(2)
    plan = world.step()

    assert [new.id for _, new in plan.updated] == [task.id for task in hanging]


def test_tasks_that_are_being_stopped_do_not_count_in_the_spread(make_world):
    """A node that comes back with tasks it is to stop is empty as far as new ones go."""
    world = make_world(replicas=4, nodes=2)
    world.settle()
    world.set_node(0, state=NodeState.DOWN)
    world.settle()
    world.set_node(0, state=NodeState.READY)
    world.scale(8)
    world.step()

    assert [len(on_node(world, f"node{i}")) for i in range(2)] == [4, 4]


def test_what_a_stopping_task_reserves_is_not_given_away(make_world):
    """It does not count in the spread, but holds its cores until it has ended."""
    world = make_world(replicas=1, nodes=1)
    world.change(resources=Resources(nano_cpus=3 * NANOSECONDS))
    world.settle()
    world.change(image="web:2")
    world.step()
    (new,) = world.wanted()

    assert new.status.state is TaskState.PENDING
    assert "insufficient resources" in new.status.err


def test_a_node_that_loses_a_label_loses_the_tasks_that_need_it(make_world):
    """They are wanted no more, say why, and are replaced where the constraint holds."""
    world = make_world(replicas=2, nodes=3)
    for node in range(2):
        world.set_node(node, labels={"disk": "ssd"})
    world.change(constraints=("node.labels.disk==ssd",))
    world.settle()
    (task,) = on_node(world, "node0")

    world.set_node(0, labels={})
    plan = world.step()

    after = world.tasks[task.id]
    assert after.desired_state is TaskState.SHUTDOWN
    assert after.status.state is TaskState.RUNNING
    assert after.status.err == CONSTRAINTS_BROKEN
    assert [(t.slot, t.node_id, t.desired_state) for t in plan.created] == [
        (task.slot, "node1", TaskState.READY)
    ]
    world.settle()
    assert [t.node_id for t in world.running()] == ["node1", "node1"]


def test_a_paused_node_keeps_tasks_whose_constraints_no_longer_hold(make_world):
    """Nothing moves on a paused node; made active again, it loses them."""
    world = make_world(replicas=1, nodes=2)
    world.set_node(0, labels={"disk": "ssd"})
    world.change(constraints=("node.labels.disk==ssd",))
    world.settle()
    world.drain(0, availability="pause")

    world.set_node(0, labels={})

    assert world.step().is_empty
    world.drain(0, availability="active")
    world.step()
    assert on_node(world, "node0") == []


def test_new_constraints_leave_tasks_whose_nodes_meet_them(make_world):
    """Only the task on the wrong node is replaced, by the update's rules."""
    world = make_world(replicas=2, nodes=2)
    world.settle()
    (kept,) = on_node(world, "node0")

    world.change(constraints=("node.hostname==host0",))
    world.settle()

    assert kept.id in {task.id for task in world.running()}
    assert {"node0"} == {task.node_id for task in world.running()}
    assert world.service.update_status.state == "completed"


def test_a_kept_task_of_an_older_spec_follows_the_present_constraints(make_world):
    """A constraint that the service no longer has moves nobody."""
    world = make_world(replicas=1, nodes=1)
    world.set_node(0, labels={"disk": "ssd"})
    world.change(constraints=("node.labels.disk==ssd",))
    world.settle()
    (task,) = world.running()
    world.change(constraints=())
    world.settle()

    world.set_node(0, labels={})

    assert world.step().is_empty
    assert [task.id] == [t.id for t in world.running()]


def test_a_waiting_task_gets_the_present_constraints(make_world):
    """A task that found no node is made anew when only its constraints change."""
    world = make_world(replicas=1, nodes=1)
    world.change(constraints=("node.labels.disk==ssd",))
    world.step()
    assert world.wanted()[0].status.state is TaskState.PENDING

    world.change(constraints=("node.labels.disk!=ssd",))
    world.settle()

    assert [t.node_id for t in world.running()] == ["node0"]


def test_a_drained_node_is_left_stop_first_or_start_first(make_world):
    """The successor waits for the old task's end, unless the service starts first."""
    for order, desired in (("stop-first", TaskState.READY), ("start-first", TaskState.RUNNING)):
        world = make_world(replicas=1, nodes=2)
        world.change(update=UpdateConfig(order=order))
        world.settle()
        (old,) = world.running()

        world.drain(int(old.node_id[-1]))
        (new,) = world.step().created

        assert world.tasks[old.id].desired_state is TaskState.SHUTDOWN
        assert new.desired_state is desired
        assert new.node_id != old.node_id


def test_a_drained_node_that_dies_is_not_waited_for(make_world):
    """The successor that waited for the old task's end may run once nobody will tell of it."""
    world = make_world(replicas=1, nodes=2)
    world.settle()
    (old,) = world.running()
    index = int(old.node_id[-1])
    world.drain(index)
    (new,) = world.step().created
    assert new.desired_state is TaskState.READY

    world.set_node(index, state=NodeState.DOWN)
    world.step()

    assert world.tasks[new.id].desired_state is TaskState.RUNNING


def test_an_ended_task_s_status_is_otherwise_kept(make_world):
    """What a removed node had said of a task stays to be read."""
    world = make_world(replicas=1)
    world.settle()
    (task,) = world.running()
    status = msgspec.structs.replace(task.status, container_id="abc", pid=7)
    world.tasks[task.id] = msgspec.structs.replace(task, status=status)

    world.remove_node(0)
    world.step()

    assert world.tasks[task.id].status.container_id == "abc"

"""The replicated orchestrator's pass, as scenarios."""

import msgspec

from proto.objects import (
    NANOSECONDS,
    NodeState,
    NodeStatus,
    Resources,
    RestartCondition,
    RestartPolicy,
    UpdateConfig,
)
from proto.states import TaskState


def test_missing_slots_are_made_assigned_in_one_step(make_world):
    """Three replicas on an empty cluster: one step creates three ASSIGNED tasks in slots 1-3."""
    world = make_world(replicas=3)

    plan = world.step()

    assert sorted(t.slot for t in plan.created) == [1, 2, 3]
    assert {TaskState.ASSIGNED} == {t.status.state for t in plan.created}
    assert {"node0"} == {t.node_id for t in plan.created}
    assert {TaskState.RUNNING} == {t.desired_state for t in plan.created}


def test_a_settled_service_needs_nothing(make_world):
    """A step on a settled service is empty: events may wake it as often as they like."""
    world = make_world(replicas=3)
    world.settle()

    assert world.step().is_empty


def test_scaling_up_keeps_what_runs(make_world):
    """From 3 to 7: slots 4-7 are added, nobody else is touched."""
    world = make_world(replicas=3)
    world.settle()
    before = {t.id for t in world.running()}

    world.scale(7)
    plan = world.step()

    assert sorted(t.slot for t in plan.created) == [4, 5, 6, 7]
    assert plan.updated == ()
    world.settle()
    assert before < {t.id for t in world.running()}


def test_scaling_down_removes_the_highest_slots_and_their_rows(make_world):
    """From 7 to 5: slots 6 and 7 are wanted gone, and their rows go once they ended."""
    world = make_world(replicas=7)
    world.settle()

    world.scale(5)
    plan = world.step()

    assert sorted(new.slot for _, new in plan.updated) == [6, 7]
    assert {TaskState.REMOVE} == {new.desired_state for _, new in plan.updated}
    world.settle()
    assert sorted(t.slot for t in world.tasks.values()) == [1, 2, 3, 4, 5]


def test_scaling_down_prefers_slots_that_do_not_run(make_world):
    """A slot that hangs in PREPARING goes before one with a higher number that runs."""
    world = make_world(replicas=3)
    world.step()
    for task in world.wanted():
        world.report(task, TaskState.PREPARING if task.slot == 1 else TaskState.RUNNING)

    world.scale(2)
    plan = world.step()

    assert [new.slot for _, new in plan.updated] == [1]


def test_scale_to_zero_and_back(make_world):
    """Zero replicas leave no row; the service comes back from slot 1."""
    world = make_world(replicas=3)
    world.settle()
    world.scale(0)
    world.settle()

    assert world.tasks == {}
    world.scale(2)
    world.settle()
    assert [t.slot for t in world.running()] == [1, 2]


def test_a_slot_that_is_needed_again_waits_for_its_removed_task(make_world):
    """Scaled down and up at once: the slot's former task still runs, its new one waits for it."""
    world = make_world(replicas=2)
    world.settle()
    old = world.running()[1]

    world.scale(1)
    world.step()
    world.scale(2)
    plan = world.step()

    (new,) = plan.created
    assert (new.slot, new.desired_state) == (2, TaskState.READY)
    world.report(old, TaskState.SHUTDOWN)
    world.step()
    assert world.tasks[new.id].desired_state is TaskState.RUNNING
    assert old.id not in world.tasks


def test_a_failed_task_is_replaced_after_its_delay(make_world):
    """The successor is prepared at once but held READY until the restart delay is over."""
    world = make_world(replicas=1)
    world.settle()
    (task,) = world.running()
    world.now += 100
    world.report(task, TaskState.FAILED)

    plan = world.step()

    (successor,) = plan.created
    assert successor.desired_state == TaskState.READY
    assert world.now + 5 == successor.not_before == plan.wake_at
    assert world.tasks[task.id].desired_state == TaskState.SHUTDOWN
    world.obey()
    assert world.running() == []
    world.now += 5
    world.step()
    world.obey()
    assert [successor.id] == [t.id for t in world.running()]


def test_a_crashing_task_waits_longer_each_time(make_world):
    """Failures in a row double the delay, with at most a tenth of jitter, up to a minute."""
    world = make_world(replicas=1)
    world.step()
    delays = []
    for _ in range(7):
        (task,) = world.wanted()
        world.report(task, TaskState.RUNNING)
        world.now += 1
        world.report(task, TaskState.FAILED)
        plan = world.step()
        delays.append(plan.created[0].not_before - world.now)
        world.now += delays[-1]
        world.step()

    for delay, plain in zip(delays, [5, 10, 20, 40, 60, 60, 60], strict=True):
        assert 0.9 * plain <= delay <= 1.1 * plain


def test_a_restart_without_delay_starts_at_once(make_world):
    """A delay of 0 lets the successor go in the pass after it was made."""
    world = make_world(replicas=1)
    world.change(restart=RestartPolicy(delay_ns=0))
    world.settle()
    (task,) = world.running()
    world.report(task, TaskState.FAILED)

    world.step()
    world.step()

    assert [t.desired_state for t in world.wanted()] == [TaskState.RUNNING]


def test_condition_none_leaves_a_finished_slot(make_world):
    """With condition none an ended task is not followed, and its slot still counts."""
    world = make_world(replicas=2)
    world.change(restart=RestartPolicy(condition=RestartCondition.NONE))
    world.settle()
    world.report(world.running()[0], TaskState.FAILED)

    world.settle()

    assert [t.slot for t in world.running()] == [2]
    assert len(world.tasks) == 2


def test_condition_on_failure_follows_failures_only(make_world):
    """COMPLETE stays; FAILED is replaced."""
    world = make_world(replicas=2)
    world.change(restart=RestartPolicy(condition=RestartCondition.ON_FAILURE))
    world.settle()
    first, second = world.running()
    world.report(first, TaskState.COMPLETE)
    world.report(second, TaskState.FAILED)

    world.settle()

    assert [t.slot for t in world.running()] == [2]


def test_max_attempts_counts_restarts_in_the_store(make_world):
    """Three attempts are three restarts, though the history limit is lower."""
    world = make_world(replicas=1)
    world.history_limit = 1
    world.change(restart=RestartPolicy(max_attempts=3, delay_ns=0))
    attempts = 0
    for _ in range(20):
        world.step()
        for task in world.wanted():
            if task.desired_state is TaskState.RUNNING:
                attempts += 1
                world.report(task, TaskState.RUNNING)
                world.report(task, TaskState.FAILED)

    assert attempts == 4
    assert len(world.tasks) == 4


def test_history_keeps_the_newest_tasks_of_a_slot(make_world):
    """Five rows a slot, the running one included, as Docker's `--task-history-limit` has it."""
    world = make_world(replicas=1)
    world.settle()
    for _ in range(9):
        world.report(world.running()[0], TaskState.FAILED)
        world.now += 1000
        world.settle()

    assert len(world.tasks) == 5
    assert len(world.running()) == 1


def test_a_removed_service_leaves_nothing(make_world):
    """All tasks are wanted gone, and no row is left when they have ended."""
    world = make_world(replicas=3)
    world.settle()
    world.service = None

    plan = world.step()

    assert {TaskState.REMOVE} == {new.desired_state for _, new in plan.updated}
    world.settle()
    assert world.tasks == {}


def test_a_task_without_a_node_says_why_and_is_placed_later(make_world):
    """PENDING with the reason, and ASSIGNED as soon as a node fits."""
    world = make_world(replicas=1)
    world.change(resources=Resources(nano_cpus=64 * NANOSECONDS))
    world.step()
    (task,) = world.wanted()

    assert task.status.state == TaskState.PENDING
    assert task.status.err == "no suitable node (insufficient resources on 1 node)"
    assert world.step().is_empty
    world.change(resources=Resources(nano_cpus=NANOSECONDS))
    world.settle()
    assert len(world.running()) == 1


def test_removing_a_pending_task_needs_no_agent(make_world):
    """A task that never reached a node is dropped at once."""
    world = make_world(replicas=2, nodes=0)
    world.step()
    assert len(world.tasks) == 2

    world.scale(0)
    world.step()

    assert world.tasks == {}


def test_an_update_replaces_one_at_a_time_stop_first(make_world):
    """Parallelism 1: one slot is down at most, and the new task waits for the old to end."""
    world = make_world(replicas=3)
    world.settle()
    world.change(image="web:2")
    least = 3
    for _ in range(40):
        plan = world.step()
        assert len(plan.created) <= 1
        least = min(least, len(world.running()))
        for slot in range(1, 4):
            alive = [
                t
                for t in world.tasks.values()
                if t.slot == slot and t.status.state is TaskState.RUNNING
            ]
            assert len(alive) <= 1
        world.obey()
        least = min(least, len(world.running()))
        if plan.wake_at:
            world.now = plan.wake_at

    assert least == 2
    assert {"web:2"} == {world.specs[t.spec_version].task.container.image for t in world.running()}
    assert world.service.update_status.state == "completed"


def test_an_update_start_first_never_goes_below(make_world):
    """With start-first the old task stops only when the new one runs."""
    world = make_world(replicas=2)
    world.settle()
    world.change(image="web:2", update=UpdateConfig(order="start-first", parallelism=0))
    for _ in range(20):
        plan = world.step()
        assert len(world.running()) >= 2
        world.obey()
        if plan.wake_at:
            world.now = plan.wake_at

    assert {2} == {t.spec_version for t in world.running()}
    assert world.service.update_status.state == "completed"


def test_two_versions_that_wait_do_not_get_the_same_cores(make_world):
    """Tasks of an old and of a new spec are placed in one step, each beside the other's."""
    world = make_world(replicas=1)
    world.nodes[0] = msgspec.structs.replace(
        world.nodes[0], status=NodeStatus(state=NodeState.DOWN)
    )
    world.change(resources=Resources(nano_cpus=3 * NANOSECONDS))
    world.step()
    update = UpdateConfig(order="start-first")
    world.change(resources=Resources(nano_cpus=2 * NANOSECONDS), update=update)
    world.step()
    assert sorted(task.spec_version for task in world.wanted()) == [2, 3]

    world.nodes[0] = msgspec.structs.replace(
        world.nodes[0], status=NodeStatus(state=NodeState.READY)
    )
    world.step()

    assert sum(bool(task.node_id) for task in world.wanted()) == 1


def test_a_failing_start_first_update_waits_as_the_restart_policy_says(make_world):
    """A new task that never ran leaves the old one, and is not followed by another at once."""
    world = make_world(replicas=1)
    world.history_limit = 0
    world.settle()
    old = world.running()[0]
    world.change(
        image="web:2",
        restart=RestartPolicy(delay_ns=5 * NANOSECONDS),
        update=UpdateConfig(order="start-first", failure_action="continue"),
    )
    (first,) = world.step().created

    world.report(first, TaskState.REJECTED)
    plan = world.step()

    assert plan.created == ()
    assert plan.wake_at == world.now + 5
    assert world.step().is_empty
    world.now += 5
    (second,) = world.step().created
    assert world.running() == [old]
    world.report(second, TaskState.RUNNING)
    world.settle()
    assert [second.id] == [task.id for task in world.running()]


def test_a_start_first_update_passes_a_slot_whose_policy_wants_no_other_task(make_world):
    """With `none` a slot whose new task failed keeps its old one; the next slot has its turn."""
    world = make_world(replicas=2)
    world.settle()
    world.change(
        image="web:2",
        restart=RestartPolicy(condition=RestartCondition.NONE),
        update=UpdateConfig(order="start-first", failure_action="continue", monitor_ns=0),
    )
    (first,) = world.step().created
    world.report(first, TaskState.FAILED)

    (second,) = world.step().created

    assert {first.slot, second.slot} == {1, 2}
    world.settle()
    assert [task.slot for task in world.running()] == [1, 2]
    assert world.step().is_empty


def test_a_new_task_that_ran_briefly_takes_its_slot_start_first(make_world):
    """It is over before a pass saw it run: the old task goes all the same."""
    world = make_world(replicas=1)
    world.settle()
    old = world.running()[0]
    world.change(
        image="web:2",
        restart=RestartPolicy(condition=RestartCondition.NONE),
        update=UpdateConfig(order="start-first", failure_action="continue"),
    )
    (new,) = world.step().created
    world.report(new, TaskState.RUNNING)
    world.report(new, TaskState.COMPLETE)

    plan = world.step()

    assert plan.created == ()
    assert world.tasks[old.id].desired_state is TaskState.SHUTDOWN


def test_a_failing_update_pauses_and_names_the_task(make_world):
    """The default action: one failure of a new task pauses, the other slots keep the old spec."""
    world = make_world(replicas=3)
    world.settle()
    world.change(image="broken")
    world.step()
    world.obey()
    world.step()
    (new,) = [t for t in world.wanted() if t.spec_version == 2]
    world.report(new, TaskState.REJECTED, err="No such image: broken")

    world.step()

    assert world.service.update_status.state == "paused"
    assert new.id in world.service.update_status.message
    assert [t.spec_version for t in world.running()] == [1, 1]


def test_a_failing_update_rolls_back_when_asked(make_world):
    """With action rollback the previous spec is the present one again, for all slots."""
    world = make_world(replicas=3)
    world.settle()
    world.change(image="broken", update=UpdateConfig(failure_action="rollback"))
    world.step()
    world.obey()
    world.step()
    (new,) = [t for t in world.wanted() if t.spec_version == 2]
    world.report(new, TaskState.FAILED)

    world.settle(rounds=100)

    assert world.service.spec_version == 1
    assert world.service.update_status.state == "rollback_completed"
    assert [t.spec_version for t in world.running()] == [1, 1, 1]


def test_a_new_version_with_the_same_template_moves_nothing(make_world):
    """Only what differs in the task template or ports makes a task dirty."""
    world = make_world(replicas=3)
    world.settle()
    before = [t.id for t in world.running()]

    world.change()
    world.settle()

    assert before == [t.id for t in world.running()]


def test_a_rejected_task_gets_no_successor_before_its_delay_is_over(make_world):
    """What cannot be prepared is not prepared again at once, and again: nothing is made for 5 s."""
    world = make_world(replicas=1)
    world.step()
    (task,) = world.wanted()
    world.report(task, TaskState.REJECTED, err="no such subpath")

    plan = world.step()

    assert plan.created == ()
    assert world.now + 5 == plan.wake_at
    assert world.step().is_empty
    world.now += 5
    (successor,) = world.step().created
    assert successor.desired_state in {TaskState.READY, TaskState.RUNNING}


def test_an_update_does_not_complete_while_a_slot_waits_for_its_next_attempt(make_world):
    """With failure action continue, a rejected task of the new spec keeps the update going."""
    world = make_world(replicas=1)
    world.settle()
    config = UpdateConfig(failure_action="continue", monitor_ns=NANOSECONDS)
    world.now += 1
    world.change(image="bad", update=config)
    world.step()
    world.obey()
    world.step()
    (task,) = world.wanted()
    world.report(task, TaskState.REJECTED, err="no such image")

    world.step()

    assert world.wanted() == []
    assert world.service.update_status.state == "updating"


def test_draining_the_only_node_leaves_tasks_pending_with_the_reason(make_world):
    """Every task is stopped, its slot waits and says why; made active again, the node runs all."""
    world = make_world(replicas=3)
    world.settle()
    before = {t.id for t in world.running()}

    world.drain(0)
    world.settle()

    assert world.running() == []
    waiting = world.wanted()
    assert [t.slot for t in waiting] == [1, 2, 3]
    reason = "no suitable node (1 node is not available for new tasks)"
    assert {(TaskState.PENDING, reason)} == {(t.status.state, t.status.err) for t in waiting}
    world.drain(0, availability="active")
    world.settle()
    assert [t.slot for t in world.running()] == [1, 2, 3]
    assert before.isdisjoint(t.id for t in world.running())


def test_a_drained_node_s_tasks_move_and_stay_where_they_went(make_world):
    """With another node the tasks run there, also after the first one is active again."""
    world = make_world(replicas=4, nodes=2)
    world.settle()

    world.drain(0)
    world.settle()

    assert {"node1"} == {t.node_id for t in world.running()}
    world.drain(0, availability="active")
    world.settle()
    assert {"node1"} == {t.node_id for t in world.running()}


def test_a_task_that_is_never_restarted_is_not_moved(make_world):
    """Restart condition none: a drained task is stopped and its slot is finished."""
    world = make_world(replicas=1)
    world.change(restart=RestartPolicy(condition=RestartCondition.NONE))
    world.settle()

    world.drain(0)
    world.settle()

    assert world.running() == world.wanted() == []


def test_pause_keeps_what_runs_and_takes_nothing_new(make_world):
    """A paused node keeps its tasks; an added replica waits."""
    world = make_world(replicas=1)
    world.settle()
    world.drain(0, availability="pause")
    world.scale(2)

    world.settle()

    assert [t.slot for t in world.running()] == [1]
    assert [t.slot for t in world.wanted()] == [1, 2]


def test_a_step_says_that_a_task_found_no_node(make_world):
    """Such a service is looked at again when a node becomes freer."""
    world = make_world(replicas=1)
    assert not world.step().is_short

    world.change(resources=Resources(nano_cpus=100 * 10**9))
    world.settle()

    assert world.step().is_short

"""Placement: filters, spread, and the sentence of a refusal."""

import msgspec
import pytest

from proto.errors import InvalidError
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import (
    EndpointSpec,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Placement,
    Platform,
    PortConfig,
    PortMode,
    ResourceRequirements,
    Resources,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from proto.states import TaskState
from scheduler import (
    Needs,
    Refusal,
    TaskGroup,
    Usage,
    confirm,
    eligible,
    meets_constraints,
    needs_of,
    parse_constraint,
    place,
)
from scheduler import (
    Placement as Placed,
)


def node(name, *, cpus=4, availability=NodeAvailability.ACTIVE, state=NodeState.READY, labels=None):
    """Make a node."""
    return Node(
        id=NodeID(name),
        spec=NodeSpec(availability=availability, labels=labels or {}),
        description=NodeDescription(
            hostname=f"host-{name}",
            platform=Platform(os="linux", architecture="x86_64"),
            resources=Resources(nano_cpus=cpus * 10**9, memory_bytes=2**32),
        ),
        status=NodeStatus(state=state, addr="10.1.2.3"),
        role=NodeRole.MANAGER,
    )


def group(count, spec=None):
    """Make waiting tasks."""
    ids = tuple(TaskID(f"t{i}") for i in range(count))
    return TaskGroup(ServiceID("svc"), spec or TaskSpec(), ids)


def running(name, node_id, service="svc"):
    """Make a task that runs on a node."""
    return Task(
        id=TaskID(name),
        service_id=ServiceID(service),
        node_id=NodeID(node_id),
        status=TaskStatus(state=TaskState.RUNNING),
    )


def usage(*tasks, resources=None):
    """Count tasks that all reserve the same."""
    return Usage(tasks, lambda _task: Needs(resources or Resources()))


def test_tasks_spread_over_nodes():
    """Six tasks on three empty nodes: two each."""
    decisions = place(group(6), [node("a"), node("b"), node("c")], usage())

    assert [d.node_id for d in decisions] == ["a", "b", "c", "a", "b", "c"]


def test_fewest_of_the_service_come_before_fewest_of_all():
    """A node full of other services is better than one with a task of this service."""
    taken = usage(running("x", "a"), *(running(f"o{i}", "b", "other") for i in range(5)))

    (decision,) = place(group(1), [node("a"), node("b")], taken)

    assert decision.node_id == "b"


def test_reservations_fill_nodes_and_the_rest_is_refused():
    """Two 3-CPU tasks fit on two 4-CPU nodes, the third is told why it does not."""
    spec = TaskSpec(resources=ResourceRequirements(reservations=Resources(nano_cpus=3 * 10**9)))

    decisions = place(group(3, spec), [node("a"), node("b")], usage())

    assert [d.node_id for d in decisions[:2]] == ["a", "b"]
    assert (
        Refusal(TaskID("t2"), "no suitable node (insufficient resources on 2 nodes)")
        == (decisions[2])
    )


def test_a_refusal_counts_its_reasons():
    """Every filter that refused is named, with the number of nodes."""
    spec = TaskSpec(placement=Placement(constraints=("node.labels.zone==east",)))
    nodes = [
        node("a", labels={"zone": "west"}),
        node("b", availability=NodeAvailability.DRAIN),
        node("c", state=NodeState.DOWN),
    ]

    (decision,) = place(group(1, spec), nodes, usage())

    expected = (
        "no suitable node (2 nodes are not available for new tasks; "
        "scheduling constraints not satisfied on 1 node)"
    )
    assert expected == decision.reason


def test_max_replicas_per_node_holds_within_a_group():
    """One per node: the third of three tasks finds no node of two."""
    spec = TaskSpec(placement=Placement(max_replicas_per_node=1))

    decisions = place(group(3, spec), [node("a"), node("b")], usage())

    assert decisions[2].reason == "no suitable node (max replicas per node limit exceed on 2 nodes)"


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("node.hostname==HOST-a", True),
        ("node.hostname!=host-a", False),
        ("node.role==manager", True),
        ("node.ip==10.1.0.0/16", True),
        ("node.ip!=10.1.2.3", False),
        ("node.labels.disk==ssd", True),
        ("node.labels.Disk==ssd", False),
        ("node.platform.os==linux", True),
        ("node.colour==red", False),
        ("node.colour!=red", False),
    ],
)
def test_constraints_match_as_docker_swarm_does(text, matches):
    """Keys and values without case, label names with it, unknown keys never."""
    assert matches is parse_constraint(text).matches(node("a", labels={"disk": "SSD"}))


@pytest.mark.parametrize("text", ["node.role", "node.role=manager", "==x", "a b==c", "node.id=="])
def test_malformed_constraints_are_refused(text):
    """No operator, or a key or value that cannot be one."""
    with pytest.raises(InvalidError, match="constraint"):
        parse_constraint(text)


def test_usage_follows_changes_like_a_full_count():
    """Created, ended and deleted tasks leave the sums that counting anew gives."""
    kept, gone = running("kept", "a"), running("gone", "a")
    sums = usage(kept, gone, resources=Resources(nano_cpus=5))
    ended = msgspec.structs.replace(gone, status=TaskStatus(state=TaskState.FAILED))

    sums.apply(gone, ended)
    sums.apply(ended, None)

    assert (sums.of(NodeID("a")).tasks, sums.of(NodeID("a")).nano_cpus) == (1, 5)
    sums.check([kept])


def test_a_host_port_is_taken_once_per_node():
    """Of three tasks with one port of the node, two nodes take one each; a taken port counts."""
    ports = (("tcp", 8080),)
    taken = Usage([running("x", "c", "other")], lambda _task: Needs(host_ports=ports))
    waiting = msgspec.structs.replace(group(3), host_ports=ports)

    decisions = place(waiting, [node("a"), node("b"), node("c")], taken)

    assert [d.node_id for d in decisions[:2]] == ["a", "b"]
    assert decisions[2].reason == "no suitable node (host-mode port already in use on 3 nodes)"


def test_needs_name_the_ports_of_the_node_only():
    """A port of the mesh is no port of the node, nor is one that is chosen later."""
    ports = (
        PortConfig(target_port=80, published_port=80),
        PortConfig(target_port=81, published_port=81, publish_mode=PortMode.HOST, protocol="udp"),
        PortConfig(target_port=82, publish_mode=PortMode.HOST),
    )

    needs = needs_of(ServiceSpec(name="web", endpoint=EndpointSpec(ports=ports)))

    assert needs == Needs(host_ports=(("udp", 81),))


def test_usage_says_when_something_became_free():
    """Only the end or removal of a counted task frees something."""
    task = running("x", "a")
    sums = usage(task)
    ended = msgspec.structs.replace(task, status=TaskStatus(state=TaskState.FAILED))

    assert not sums.apply(None, running("y", "a"))
    assert sums.apply(task, ended)
    assert not sums.apply(ended, None)


def test_tasks_that_are_to_stop_hold_resources_but_do_not_count():
    """A node with two tasks that go is emptier than one with a task that stays."""
    going = [
        msgspec.structs.replace(running(f"g{i}", "a"), desired_state=TaskState.SHUTDOWN)
        for i in range(2)
    ]
    sums = usage(*going, running("x", "b"), resources=Resources(nano_cpus=5))

    (decision,) = place(group(1), [node("a"), node("b")], sums)

    assert decision.node_id == "a"
    assert (sums.of(NodeID("a")).tasks, sums.of(NodeID("a")).nano_cpus) == (0, 10)


def test_a_task_that_has_a_node_but_was_not_given_to_it_takes_nothing():
    """A global task that waits for room on its node."""
    waiting = msgspec.structs.replace(running("x", "a"), status=TaskStatus(state=TaskState.PENDING))

    assert usage(waiting, resources=Resources(nano_cpus=5)).nodes() == {}


def test_a_trial_leaves_the_usage_as_it_was():
    """Also of tasks that were not counted before, and if it fails."""
    kept = running("kept", "a")
    sums = usage(kept, resources=Resources(nano_cpus=5))
    unseen = running("unseen", "b")
    stopped = msgspec.structs.replace(unseen, desired_state=TaskState.SHUTDOWN)

    with sums.trial():
        sums.apply(unseen, stopped)
        sums.apply(kept, None)
        sums.apply(None, running("new", "a"))
        assert sums.of(NodeID("b")).nano_cpus == 5

    def fail():
        with sums.trial():
            sums.apply(None, running("more", "c"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    sums.check([kept])


def test_a_waiting_task_with_a_node_goes_there_or_waits_on():
    """Each has one node; the sentence counts that one."""
    spec = TaskSpec(resources=ResourceRequirements(reservations=Resources(nano_cpus=3 * 10**9)))
    nodes = [node("a"), node("b", cpus=2), node("c", state=NodeState.DOWN)]
    wanted = [NodeID("a"), NodeID("b"), NodeID("c"), NodeID("gone")]

    decisions = confirm(group(4, spec), wanted, {n.id: n for n in nodes}, usage())

    assert decisions == [
        Placed(TaskID("t0"), NodeID("a")),
        Refusal(TaskID("t1"), "no suitable node (insufficient resources on 1 node)"),
        Refusal(TaskID("t2"), "no suitable node (1 node is not available for new tasks)"),
        Refusal(TaskID("t3"), "no suitable node (1 node is not available for new tasks)"),
    ]


def test_eligible_nodes_are_up_active_and_as_the_spec_asks():
    """Room does not matter; a constraint that cannot be read excludes all."""
    arm = Platform(os="linux", architecture="arm64")
    nodes = [
        node("full", cpus=0, labels={"zone": "east"}),
        node("west", labels={"zone": "west"}),
        node("drained", availability=NodeAvailability.DRAIN, labels={"zone": "east"}),
        node("down", state=NodeState.DOWN, labels={"zone": "east"}),
    ]
    east = Placement(constraints=("node.labels.zone==east",))

    assert eligible(TaskSpec(placement=east), nodes) == ["full"]
    assert eligible(TaskSpec(placement=Placement(platforms=(arm,))), nodes) == []
    assert eligible(TaskSpec(placement=Placement(constraints=("zone",))), nodes) == []
    assert meets_constraints(TaskSpec(placement=east), nodes[3])
    assert not meets_constraints(TaskSpec(placement=east), nodes[1])
    assert not meets_constraints(TaskSpec(placement=Placement(constraints=("zone",))), nodes[0])

"""Services: created, updated, rolled back, removed, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from manager.controlapi import Control, ServiceStatus
from manager.store import Store
from proto.errors import (
    ConflictError,
    InUseError,
    InvalidError,
    NameConflictError,
    NotFoundError,
    NotImplementedYetError,
    SequenceConflictError,
)
from proto.ids import NodeID, ServiceID, TaskID
from proto.objects import (
    EndpointSpec,
    GlobalJobMode,
    GlobalMode,
    NodeState,
    NodeStatus,
    PortConfig,
    PortMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceSpec,
    Task,
    TaskStatus,
    spec_version_id,
)
from proto.states import TaskState

replace = msgspec.structs.replace


def port(target: int, published: int = 0, **more: Any) -> PortConfig:
    """Make a published port."""
    return PortConfig(target_port=target, published_port=published, **more)


def with_ports(spec: ServiceSpec, *ports: PortConfig) -> ServiceSpec:
    """Publish other ports."""
    return replace(spec, endpoint=EndpointSpec(ports=ports))


async def test_create_writes_the_service_and_its_spec_version(
    control: Control, store: Store, make_spec: Any
):
    """Both rows come in one transaction, and the service names the row."""
    before = store.view().version
    service_id = await control.create_service(make_spec("web"))
    service = control.service("web")
    assert store.view().version == before + 1
    assert service.id == service_id
    assert len(service_id) == 25
    assert service.spec_version == service.version == before + 1
    row = store.view().spec_versions.get(spec_version_id(service_id, service.spec_version))
    assert (row.service_id, row.spec_version, row.spec) == (
        service_id,
        service.spec_version,
        service.spec,
    )


async def test_a_name_is_unique(control: Control, make_spec: Any):
    """A second service with the name is refused."""
    await control.create_service(make_spec("web"))
    with pytest.raises(NameConflictError, match="service web already exists"):
        await control.create_service(make_spec("web"))
    assert len(control.services()) == 1


async def test_ports_without_a_number_get_the_lowest_free(control: Control, make_spec: Any):
    """From 30000 on, each protocol for itself; ports of mode host stay open."""
    await control.create_service(
        make_spec("a", ports=(port(80), port(81), port(53, protocol="udp"), port(82, 30002)))
    )
    host = port(80, publish_mode=PortMode.HOST)
    await control.create_service(make_spec("b", ports=(host, port(80))))
    published = [p.published_port for p in control.service("a").endpoint.ports]
    assert published == [30000, 30001, 30000, 30002]
    assert [p.published_port for p in control.service("b").endpoint.ports] == [0, 30003]
    assert control.service("a").spec.endpoint.ports[0].published_port == 0
    await control.remove_service("a")
    await control.create_service(make_spec("c", ports=(port(80),)))
    assert control.service("c").endpoint.ports[0].published_port == 30000


async def test_an_ingress_port_belongs_to_one_service(control: Control, make_spec: Any):
    """The refusal names the port, the service and its ID, as Docker does."""
    owner = await control.create_service(make_spec("web", ports=(port(80, 8080),)))
    sentence = rf"^port '8080' is already in use by service 'web' \({owner}\) as an ingress port$"
    for mode in PortMode:
        with pytest.raises(InUseError, match=sentence):
            await control.create_service(
                make_spec("other", ports=(port(90, 8080, publish_mode=mode),))
            )
    await control.create_service(make_spec("udp", ports=(port(80, 8080, protocol="udp"),)))


async def test_host_ports_may_be_shared_but_not_with_ingress(control: Control, make_spec: Any):
    """Two services may have one host port (on different nodes); an ingress port takes it all."""
    host = port(80, 8080, publish_mode=PortMode.HOST)
    await control.create_service(make_spec("a", ports=(host,)))
    await control.create_service(make_spec("b", ports=(host,)))
    with pytest.raises(InUseError, match="as a host-published port"):
        await control.create_service(make_spec("c", ports=(port(80, 8080),)))


async def test_an_allocated_port_is_taken_too(control: Control, make_spec: Any):
    """A number that was chosen for one service cannot be named by another."""
    await control.create_service(make_spec("a", ports=(port(80),)))
    with pytest.raises(InUseError, match="port '30000' is already in use by service 'a'"):
        await control.create_service(make_spec("b", ports=(port(80, 30000),)))


async def update(control: Control, name: str, **changes: Any) -> None:
    """Change fields of a service's spec."""
    service = control.service(name)
    await control.update_service(name, service.version, replace(service.spec, **changes))


async def test_an_update_keeps_the_previous_spec(control: Control, store: Store, make_spec: Any):
    """A new template gets a new spec version and row; the old row stays for its tasks."""
    await control.create_service(make_spec("web"))
    old = control.service("web")
    await update(control, "web", task=make_spec("web", image="nginx:1.28").task)
    new = control.service("web")
    assert new.spec.task.container.image == "nginx:1.28"
    assert (new.previous_spec, new.previous_spec_version) == (old.spec, old.spec_version)
    assert new.spec_version == new.version > old.spec_version
    assert len(store.view().spec_versions) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": ReplicatedMode(replicas=9)},
        {"labels": {"a": "b"}},
        {"endpoint": EndpointSpec(ports=(port(80, 8080), port(81)))},
    ],
)
async def test_a_change_that_spares_the_tasks_keeps_the_spec_version(
    control: Control, store: Store, make_spec: Any, changes: dict[str, Any]
):
    """Scaling, labels and the same ports in another order do not make tasks dirty."""
    await control.create_service(make_spec("web", ports=(port(81), port(80, 8080))))
    old = control.service("web")
    await update(control, "web", **changes)
    new = control.service("web")
    assert new.version > old.version
    assert new.spec != old.spec
    assert new.spec_version == new.previous_spec_version == old.spec_version
    assert set(new.endpoint.ports) == set(old.endpoint.ports)
    assert len(store.view().spec_versions) == 1


async def test_other_ports_make_a_new_spec_version(control: Control, make_spec: Any):
    """A port more is a new version; ports that stay keep their numbers."""
    await control.create_service(make_spec("web", ports=(port(80), port(81))))
    old = control.service("web")
    await update(control, "web", endpoint=EndpointSpec(ports=(port(82), port(81))))
    new = control.service("web")
    assert new.spec_version == new.version
    published = {p.target_port: p.published_port for p in new.endpoint.ports}
    assert published == {81: 30001, 82: 30000}
    assert old.endpoint.ports[1] == new.endpoint.ports[1]


async def test_a_named_number_is_not_kept_for_an_open_port(control: Control, make_spec: Any):
    """Naming the number that an open port had moves the open one."""
    await control.create_service(make_spec("web", ports=(port(80),)))
    await update(control, "web", endpoint=EndpointSpec(ports=(port(80), port(81, 30000))))
    ports = control.service("web").endpoint.ports
    assert [p.published_port for p in ports] == [30001, 30000]


async def test_updates_that_are_refused(control: Control, make_spec: Any):
    """No rename, no change of mode, no old version; nothing changes."""
    await control.create_service(make_spec("web"))
    service = control.service("web")
    for changed, error, sentence in (
        (make_spec("web2"), NotImplementedYetError, "renaming services is not supported"),
        (
            replace(service.spec, mode=GlobalMode()),
            NotImplementedYetError,
            "service mode change is not allowed",
        ),
        (make_spec("web", image=""), InvalidError, "image reference must be provided"),
    ):
        with pytest.raises(error, match=sentence):
            await control.update_service("web", service.version, changed)
    with pytest.raises(SequenceConflictError, match="update out of sequence"):
        await control.update_service("web", service.version - 1, service.spec)
    with pytest.raises(NotFoundError, match="service nothing not found"):
        await control.update_service("nothing", 1, service.spec)
    assert control.service("web") == service


async def test_rollback_swaps_the_two_specs(control: Control, store: Store, make_spec: Any):
    """Back and forth: spec, spec version and ports; the state says that a person asked for it."""
    await control.create_service(make_spec("web", ports=(port(80),)))
    first = control.service("web")
    with pytest.raises(ConflictError, match="service web does not have a previous spec"):
        await control.update_service("web", first.version, ServiceSpec(), rollback="previous")
    await update(control, "web", task=make_spec("web", image="nginx:1.28").task)
    second = control.service("web")
    await store.update(
        lambda tx: tx.delete("spec_versions", spec_version_id(first.id, first.spec_version))
    )
    await control.update_service("web", second.version, ServiceSpec(), rollback="previous")
    back = control.service("web")
    assert (back.spec, back.spec_version) == (first.spec, first.spec_version)
    assert (back.previous_spec, back.previous_spec_version) == (second.spec, second.spec_version)
    assert back.endpoint == first.endpoint
    assert back.update_status.state == "rollback_started"
    assert back.update_status.message == "manually requested rollback"
    # The row was pruned meanwhile, and is there again for the new tasks.
    row = store.view().spec_versions.get(spec_version_id(back.id, back.spec_version))
    assert row.spec == back.spec
    await control.update_service("web", back.version, ServiceSpec(), rollback=True)
    assert control.service("web").spec == second.spec


async def test_a_rollback_needs_the_version_and_a_known_word(control: Control, make_spec: Any):
    """An old version is refused, as is anything but "previous"."""
    await control.create_service(make_spec("web"))
    await update(control, "web", labels={"a": "b"})
    version = control.service("web").version
    with pytest.raises(SequenceConflictError):
        await control.update_service("web", version - 1, ServiceSpec(), rollback="previous")
    word: Any = "first"
    with pytest.raises(InvalidError, match="unrecognized rollback option 'first'"):
        await control.update_service("web", version, ServiceSpec(), rollback=word)


async def test_an_update_clears_the_state_of_the_last_one(control: Control, make_spec: Any):
    """After a rollback, a new spec starts afresh."""
    await control.create_service(make_spec("web"))
    await update(control, "web", task=make_spec("web", image="a").task)
    service = control.service("web")
    await control.update_service("web", service.version, ServiceSpec(), rollback="previous")
    await update(control, "web", task=make_spec("web", image="b").task)
    assert control.service("web").update_status is None


async def test_remove_takes_only_the_service(control: Control, store: Store, make_spec: Any):
    """Its tasks and spec versions are for the orchestrator to take down and prune."""
    service_id = await control.create_service(make_spec("web"))
    await store.update(lambda tx: tx.create(Task(id=TaskID("t1"), service_id=service_id)))
    await control.remove_service("web")
    assert control.services() == []
    assert len(store.view().tasks) == len(store.view().spec_versions) == 1
    with pytest.raises(NotFoundError, match="service web not found"):
        await control.remove_service("web")


async def test_references_in_their_order(control: Control, make_spec: Any):
    """A full ID wins over a name, a name over the beginning of an ID, in any case."""
    first = await control.create_service(make_spec("web"))
    second = await control.create_service(make_spec("db"))
    assert control.service(first).id == control.service("web").id == control.service("WEB").id
    assert control.service(second[:10]).id == second
    await control.create_service(make_spec(second[:10]))
    assert control.service(second[:10]).spec.name == second[:10]
    await control.create_service(make_spec(first))
    assert control.service(first).spec.name == "web"
    with pytest.raises(InvalidError, match="no service is named"):
        control.service("")
    with pytest.raises(NotFoundError, match=r"^service zz not found$"):
        control.service("zz")


async def test_an_ambiguous_beginning_is_refused(control: Control, store: Store):
    """Nodes and tasks alike."""
    assert control.node("node1a").id == "node1a"
    assert control.node("db").id == "node2"
    assert control.node("HOST-node1b").id == "node1b"
    assert control.node("node2").id == "node2"
    with pytest.raises(InvalidError, match=r"^node node1 is ambiguous \(2 matches found\)$"):
        control.node("node1")
    with pytest.raises(NotFoundError, match="node host-node2 not found"):
        control.node("host-node2")
    for task_id in ("task1", "task2"):
        await store.update(lambda tx, t=task_id: tx.create(Task(id=TaskID(t))))
    with pytest.raises(InvalidError, match=r"task task is ambiguous \(2 matches found\)"):
        control.task("task")
    assert control.task("task1").id == "task1"


async def test_tasks_have_names_and_specs(control: Control, store: Store, make_spec: Any):
    """Found by slot while there is one task in it; the spec is that of the task's version."""
    service_id = await control.create_service(make_spec("web"))
    version = control.service("web").spec_version
    for task_id, slot in (("t1", 1), ("t2", 2), ("t3", 2)):
        task = Task(id=TaskID(task_id), service_id=service_id, slot=slot, spec_version=version)
        await store.update(lambda tx, task=task: tx.create(task))
    first = control.task("web.1")
    assert first.id == "t1"
    assert control.task("web.2.t3").id == "t3"
    with pytest.raises(InvalidError, match=r"task web\.2 is ambiguous \(2 matches found\)"):
        control.task("web.2")
    await update(control, "web", task=make_spec("web", image="nginx:2").task)
    assert control.spec_of(first).task.container.image == "nginx:1.27"
    assert control.task_name(first) == "web.1.t1"
    await control.remove_service("web")
    assert control.task_name(first) == "web.1.t1"
    await store.update(lambda tx: tx.delete("spec_versions", spec_version_id(service_id, version)))
    assert control.task_name(first) == f"{service_id}.1.t1"
    with pytest.raises(NotFoundError, match="spec version"):
        control.spec_of(first)
    assert [task.id for task in control.tasks()] == ["t1", "t2", "t3"]


async def test_status_counts_what_runs_and_is_wanted(
    control: Control, store: Store, make_spec: Any
):
    """Tasks that are to stop, or whose node is down or gone, do not count as running."""
    service_id = await control.create_service(
        replace(make_spec("web"), mode=ReplicatedMode(replicas=3))
    )
    running = TaskStatus(state=TaskState.RUNNING)
    down = replace(control.node("node2"), status=NodeStatus(state=NodeState.DOWN))
    await store.update(lambda tx: tx.update(down))
    for task_id, node_id, state, desired in (
        ("t1", "node1a", TaskState.RUNNING, TaskState.RUNNING),
        ("t2", "node1a", TaskState.RUNNING, TaskState.SHUTDOWN),
        ("t3", "node2", TaskState.RUNNING, TaskState.RUNNING),
        ("t4", "gone", TaskState.RUNNING, TaskState.RUNNING),
        ("t5", "node1b", TaskState.STARTING, TaskState.RUNNING),
    ):
        task = Task(
            id=TaskID(task_id),
            service_id=service_id,
            node_id=NodeID(node_id),
            desired_state=desired,
            status=replace(running, state=state),
        )
        await store.update(lambda tx, task=task: tx.create(task))
    status = control.service_status(control.service("web"))
    assert status == ServiceStatus(running_tasks=1, desired_tasks=3, completed_tasks=0)


async def test_status_of_the_other_modes(control: Control, store: Store, make_spec: Any):
    """Global services want what is desired, jobs count what is complete."""
    states = (
        (TaskState.COMPLETE, TaskState.COMPLETE),
        (TaskState.RUNNING, TaskState.COMPLETE),
        (TaskState.RUNNING, TaskState.RUNNING),
    )
    for i, (state, desired) in enumerate(states):
        task = Task(
            id=TaskID(f"t{i}"),
            service_id=ServiceID("s1"),
            node_id=NodeID("node1a"),
            desired_state=desired,
            status=TaskStatus(state=state),
        )
        await store.update(lambda tx, task=task: tx.create(task))
    await control.create_service(make_spec("web"))
    for mode, desired_count, completed in (
        (GlobalMode(), 1, 0),
        (ReplicatedJobMode(total_completions=4, max_concurrent=2), 2, 1),
        (ReplicatedJobMode(total_completions=1, max_concurrent=2), 0, 1),
        (GlobalJobMode(), 2, 1),
    ):
        spec = replace(make_spec("web"), mode=mode)
        service = replace(control.service("web"), id=ServiceID("s1"), spec=spec)
        assert control.service_status(service) == ServiceStatus(
            running_tasks=2, desired_tasks=desired_count, completed_tasks=completed
        )


async def test_a_second_attempt_finds_the_service_of_the_first(
    control: Control, store: Store, make_spec: Callable[..., ServiceSpec]
):
    """With the same ID it is made once; while the first is on its way, the second one waits."""
    first = asyncio.ensure_future(control.create_service(make_spec(), service_id="chosen"))
    await asyncio.sleep(0)
    assert "chosen" in store.head().services
    assert "chosen" not in store.view().services
    assert await control.create_service(make_spec(), service_id="chosen") == "chosen"
    assert "chosen" in store.view().services
    assert await first == "chosen"
    version = store.view().version
    assert await control.create_service(make_spec(), service_id="chosen") == "chosen"
    assert store.view().version == version

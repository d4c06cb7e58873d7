"""Whatever a node says: a refusal, or something that can be stored and shown."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher import wire
from manager.dispatcher.descriptions import accepted
from manager.dispatcher.statuses import write_status
from manager.httpapi.convert.container_summary import summary_to_json
from manager.httpapi.convert.node import node_to_json
from manager.httpapi.convert.task import task_to_json
from manager.httpapi.timestamps import rfc3339_fixed
from manager.nodeport.claims import node_address
from manager.nodeport.logs import lines_of
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.assignments import StatusUpdate
from proto.errors import InvalidError
from proto.objects import (
    EngineDescription,
    GenericResource,
    Node,
    NodeDescription,
    NodeStatus,
    Platform,
    PortConfig,
    Resources,
    ServiceSpec,
    Task,
    TaskStatus,
)
from proto.states import TaskState
from proto.v1 import logs_pb2

INT64_MAX = 2**63 - 1
NOW = 1_800_000_000.0

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["\x1b[2J", "a\nb", "\u202e", "\x00", "9" * 5_000]),
)
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64 - 1])
)
floats = st.one_of(st.floats(), st.sampled_from([0.0, 1e300, -1e300, NOW, NOW + 1e6]))
generics = st.lists(
    st.builds(GenericResource, kind=texts, value=texts, is_named=st.booleans()), max_size=2
).map(tuple)
resources = st.builds(
    Resources, nano_cpus=numbers, memory_bytes=numbers, pids=numbers, generic=generics
)
descriptions = st.builds(
    NodeDescription,
    hostname=texts,
    platform=st.builds(Platform, os=texts, architecture=texts),
    resources=resources,
    engine=st.builds(
        EngineDescription,
        version=texts,
        labels=st.dictionaries(texts, texts, max_size=2),
        plugins=st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    ),
    generic=generics,
)
ports = st.builds(PortConfig, name=texts, target_port=numbers, published_port=numbers)
statuses = st.builds(
    TaskStatus,
    state=st.sampled_from(TaskState),
    timestamp=floats,
    message=texts,
    err=texts,
    container_id=texts,
    pid=numbers,
    exit_code=st.none() | numbers,
    host_ports=st.lists(ports, max_size=2).map(tuple),
    running_at=floats,
)


def check_shown(value: Any) -> None:
    """Check that clients can read all of it, and that a terminal obeys nothing of it."""
    match value:
        case dict():
            for key, item in value.items():
                check_shown(key)
                check_shown(item)
        case list():
            for item in value:
                check_shown(item)
        case str():
            assert value.isprintable()
        case int():
            assert -INT64_MAX <= value <= INT64_MAX


@given(descriptions)
def test_a_description_is_refused_or_can_be_shown(description):
    """What is stored comes out again as it was, printable and within 64 bits."""
    with contextlib.suppress(InvalidError):
        stored = accepted("n1", wire.description_of(msgspec.msgpack.encode(description)))
        tx = Transaction(View.empty(), NOW)
        tx.create(Node(id="n1", description=stored))
        check_shown(node_to_json(tx.nodes.get("n1")))
        assert stored == accepted("n1", stored)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_refusal(data):
    """Whatever cannot be read is refused with a sentence, and nothing else is raised."""
    for read in (wire.description_of, wire.updates_of):
        with contextlib.suppress(InvalidError):
            read(data)
    with contextlib.suppress(InvalidError):
        for record in lines_of(logs_pb2.LogLines(records=data)):
            rfc3339_fixed(record.time_ns)


@given(
    st.lists(
        st.builds(
            StatusUpdate, task_id=st.sampled_from(["mine", "theirs", "none"]), status=statuses
        ),
        max_size=5,
    )
)
def test_a_report_changes_tasks_of_its_node_within_bounds(updates):
    """None fails the others; no other node's task moves; times lie between creation and now."""
    first = Transaction(View.empty(), NOW - 100)
    for name, node in (("mine", "n1"), ("theirs", "n2")):
        first.create(Task(id=name, node_id=node, status=TaskStatus(state=TaskState.ASSIGNED)))
    before = first.to_view()
    tx = Transaction(before, NOW)
    for update in wire.updates_of(msgspec.msgpack.encode(updates)):
        write_status(tx, "n1", update)

    assert before.tasks.get("theirs") == tx.tasks.get("theirs")
    mine = tx.tasks.get("mine").status
    if before.tasks.get("mine").status != mine:
        assert NOW - 100 <= mine.timestamp <= NOW
        assert mine.running_at == 0.0 or NOW - 100 <= mine.running_at <= NOW
    check_shown(task_to_json(tx.tasks.get("mine"), ServiceSpec())["Status"])


@given(statuses, descriptions, texts)
def test_a_damaged_row_is_shown_all_the_same(status, description, address):
    """One row that was stored before it was looked at breaks no list."""
    task = Task(id="t", created_at=NOW, updated_at=NOW, status=status)
    node = Node(id="n1", description=description, status=NodeStatus(addr=address))

    check_shown(task_to_json(task, ServiceSpec())["Status"]["Timestamp"])
    check_shown(task_to_json(task, ServiceSpec())["Status"].get("ContainerStatus", {}))
    check_shown(node_to_json(node)["Description"]["Hostname"])
    check_shown(node_to_json(node)["Status"])
    for shown in (
        task_to_json(task, ServiceSpec()),
        node_to_json(node),
        summary_to_json(task, ServiceSpec(), "web.1", now=NOW),
    ):
        msgspec.json.encode(shown)


@given(texts | st.ip_addresses().map(str), texts | st.ip_addresses().map(str))
def test_an_address_is_one_or_nothing(claimed, peer):
    """And it is written as Python writes addresses, so it is short and printable."""
    address = node_address(claimed, peer)
    assert address.isprintable()
    assert len(address) <= 64

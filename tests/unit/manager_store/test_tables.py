"""Tables: immutable, found by each declared index, checked against their rows."""

from __future__ import annotations

from typing import Any

import immutables
import msgspec
import pytest

from manager.store.tables import NODES, SERVICES, TABLES, TASKS, TableView
from proto.errors import InvariantViolationError
from proto.ids import NodeID
from proto.objects import Endpoint, Node, NodeDescription, NodeSpec, PortConfig, spec_version_id

replace = msgspec.structs.replace


def ids(rows: Any) -> list[str]:
    """Sort the IDs of rows."""
    return sorted(row.id for row in rows)


def test_numbers_in_the_log_are_unique_and_fit_a_byte():
    """Each table has a number of its own; with the operation it is at most 127."""
    numbers = [spec.number for spec in TABLES]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number * 4 + 3 <= 127 for number in numbers)


def test_tasks_are_found_by_each_index(make_task: Any):
    """By service, node, slot and spec version; a change moves them, a deletion takes them out."""
    table = TableView.load(TASKS, {})
    for i in range(30):
        table = table.with_row(make_task(f"t{i:02}", f"s{i % 2}", i, f"n{i % 3}" if i else ""))
    assert len(ids(table.find("service_id", "s1"))) == table.count("service_id", "s1") == 15
    assert ids(table.find("node_id", "")) == ["t00"]
    assert ids(table.find("slot", ("s1", 7))) == ["t07"]
    assert len(ids(table.find("spec_version", spec_version_id("s0", 0)))) == 15
    moved = table.with_row(replace(table.get("t07"), node_id=NodeID("n9"), spec_version=4))
    assert ids(moved.find("node_id", "n9")) == ["t07"]
    assert ids(moved.find("spec_version", "s1.4")) == ["t07"]
    for i in range(30):
        moved = moved.without_row(f"t{i:02}")
        moved.check()
    assert moved.count("service_id", "s1") == 0
    assert len(table) == 30
    table.check()


def test_a_loaded_table_equals_one_built_row_by_row(make_task: Any):
    """Bulk loading gives the same rows and indexes."""
    tasks = [make_task(f"t{i:02}", f"s{i % 2}", i % 7) for i in range(40)]
    built = TableView.load(TASKS, {})
    for task in tasks:
        built = built.with_row(task)
    loaded = TableView.load(TASKS, {task.id: task for task in tasks})
    loaded.check()
    for slot in range(7):
        assert ids(loaded.find("slot", ("s1", slot))) == ids(built.find("slot", ("s1", slot)))


def test_names_are_found_in_any_case(make_service: Any):
    """Names are host names: their case does not matter."""
    services = TableView.load(SERVICES, {}).with_row(make_service("s1", "Web"))
    assert ids(services.find("name", "wEB")) == ["s1"]
    node = Node(
        id=NodeID("n1"),
        spec=NodeSpec(name="Db"),
        description=NodeDescription(hostname="HOST-1"),
    )
    nodes = TableView.load(NODES, {}).with_row(node)
    assert ids(nodes.find("name", "db")) == ids(nodes.find("hostname", "host-1")) == ["n1"]
    assert ids(nodes.find("name", "")) == []


def test_services_are_found_by_published_port(make_service: Any):
    """The key is the protocol and the number, whatever the mode."""
    ports = (PortConfig(target_port=80, published_port=8080), PortConfig(target_port=81))
    service = replace(make_service("s1"), endpoint=Endpoint(ports=ports))
    table = TableView.load(SERVICES, {}).with_row(service)
    assert ids(table.find("published_port", ("tcp", 8080))) == ["s1"]
    assert ids(table.find("published_port", ("udp", 8080))) == []
    assert ids(table.find("published_port", ("tcp", 0))) == []


def test_an_unknown_index_is_a_bug():
    """A misspelt index raises at once, not when iterated."""
    with pytest.raises(InvariantViolationError, match="no index 'nodeid'"):
        TableView.load(TASKS, {}).find("nodeid", "n1")


def test_check_finds_what_is_wrong(make_service: Any):
    """A missing entry, a stray one, a row under a wrong ID and a double name are all found."""
    one, two = make_service("s1", "a"), make_service("s2", "b")
    good = TableView.load(SERVICES, {"s1": one, "s2": two})
    good.check()
    _, ports = good._indexes
    empty: Any = immutables.Map()
    for broken in (
        TableView(SERVICES, good._rows, (empty, ports)),
        TableView(SERVICES, good._rows.delete("s2"), good._indexes),
        TableView.load(SERVICES, {"s3": one}),
        TableView.load(SERVICES, {"s1": one, "s2": replace(two, spec=one.spec)}),
    ):
        with pytest.raises(InvariantViolationError, match="services: "):
            broken.check()

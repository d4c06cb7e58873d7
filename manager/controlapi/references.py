"""Finding an object by what a user typed: its ID, its name, or the beginning of its ID. Pure.

In this order: a full ID wins over a name, a name over a beginning. What fits several objects is
refused with Docker's sentence. Source: moby daemon/cluster/helpers.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from manager.store import TableView, View
from proto.errors import InvalidError, NotFoundError
from proto.objects import GlobalJobMode, GlobalMode, Node, Object, Service, Task, spec_version_id

T = TypeVar("T", bound=Object)


def find_service(view: View, ref: str) -> Service:
    """Return the service with this ID, name or beginning of an ID.

    Raises:
        NotFoundError: there is none.
        InvalidError: there are several.
    """
    named = tuple(view.services.find("name", ref))
    return _one("service", view.services, ref, named)


def find_node(view: View, ref: str) -> Node:
    """Return the node with this ID, name, host name or beginning of an ID; raises likewise."""
    named = {node.id: node for node in view.nodes.find("name", ref)}
    named |= {node.id: node for node in view.nodes.find("hostname", ref) if not node.spec.name}
    return _one("node", view.nodes, ref, tuple(named.values()))


def find_task(view: View, ref: str) -> Task:
    """Return the task with this ID, name (`web.1` or `web.1.<id>`) or beginning of an ID.

    Raises likewise; the name of a slot fits each of the slot's tasks.
    """
    return _one("task", view.tasks, ref, tuple(_tasks_named(view, ref)))


def task_name(view: View, task: Task) -> str:
    """Return `<service>.<slot>.<task id>`; in place of the slot the node's ID for a global one."""
    row = view.spec_versions.get(spec_version_id(task.service_id, task.spec_version))
    service = view.services.get(task.service_id)
    spec = row.spec if row is not None else service.spec if service is not None else None
    if spec is None:
        return f"{task.service_id}.{task.slot}.{task.id}"
    is_global = isinstance(spec.mode, GlobalMode | GlobalJobMode)
    return f"{spec.name}.{task.node_id if is_global else task.slot}.{task.id}"


def _tasks_named(view: View, ref: str) -> Iterable[Task]:
    service_name, _, rest = ref.partition(".")
    slot, _, task_id = rest.partition(".")
    if not (slot.isascii() and slot.isdigit()):
        return
    for service in view.services.find("name", service_name):
        for task in view.tasks.find("slot", (service.id, int(slot))):
            if task_id in {"", task.id}:
                yield task


def _one(noun: str, table: TableView[T], ref: str, named: Sequence[T]) -> T:
    if not ref:
        raise InvalidError(f"no {noun} is named: give a name or an ID")
    exact = table.get(ref)
    if exact is not None:
        return exact
    matches = named or [row for row in table if row.id.startswith(ref)]
    if not matches:
        raise NotFoundError(noun, ref)
    if len(matches) > 1:
        raise InvalidError(f"{noun} {ref} is ambiguous ({len(matches)} matches found)")
    return matches[0]

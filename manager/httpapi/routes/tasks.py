"""/tasks, but for their logs; and /containers/json, which shows this node's tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import web

from manager.httpapi.backend import Control
from manager.httpapi.convert.common import Json
from manager.httpapi.convert.container_summary import (
    is_up,
    summary_to_json,
)
from manager.httpapi.convert.task import task_to_json
from manager.httpapi.filters import (
    CONTAINER_FILTERS,
    TASK_FILTERS,
    Filters,
    TaskFacts,
    is_up_to_date,
    parse_filters,
    select_containers,
    select_tasks,
)
from manager.httpapi.requests import CLOCK, backend_of, flag, json_response
from proto.errors import NotFoundError, UnavailableError
from proto.objects import Task


def task_facts(control: Control, filters: Filters) -> TaskFacts:
    """Look up what the filters of tasks need.

    Raises:
        NotFoundError: a service or node that was asked for does not exist.
    """

    def labels_of(task: Task) -> Mapping[str, str]:
        return control.spec_of(task).task.container.labels

    def is_current(task: Task) -> bool:
        try:
            service = control.service(task.service_id)
        except NotFoundError:
            return False
        return is_up_to_date(task, control.spec_of(task), service)

    return TaskFacts(
        name_of=control.task_name,
        labels_of=labels_of,
        is_up_to_date=is_current,
        service_ids=frozenset(control.service(ref).id for ref in filters.get("service", ())),
        node_ids=frozenset(control.node(ref).id for ref in filters.get("node", ())),
    )


async def list_all(request: web.Request) -> web.StreamResponse:
    """List tasks."""
    control = backend_of(request).control()
    filters = parse_filters(request.query.get("filters", ""), TASK_FILTERS)
    facts = task_facts(control, filters)
    candidates: Iterable[Task]
    if "service" in filters:
        # Clients that watch a service converge ask this many times a second.
        candidates = (task for one in sorted(facts.service_ids) for task in control.tasks_of(one))
    else:
        candidates = control.tasks()
    tasks = select_tasks(candidates, filters, facts)
    return json_response([task_to_json(task, control.spec_of(task)) for task in tasks])


async def inspect(request: web.Request) -> web.StreamResponse:
    """Describe a task."""
    control = backend_of(request).control()
    task = control.task(request.match_info["id"])
    return json_response(task_to_json(task, control.spec_of(task)))


async def list_containers(request: web.Request) -> web.StreamResponse:
    """List the containers of this node's tasks; those that ended only with `all`."""
    filters = parse_filters(request.query.get("filters", ""), CONTAINER_FILTERS)
    show_all = flag(request, "all") or "status" in filters
    return json_response(
        select_containers(container_summaries(request, show_all=show_all), filters)
    )


def container_summaries(request: web.Request, *, show_all: bool) -> list[Json]:
    """Describe the containers of this node's tasks, the newest first."""
    backend = backend_of(request)
    try:
        control = backend.control()
    except UnavailableError:
        return []
    node_id = backend.facts().node_id
    mine = [
        task
        for task in control.tasks()
        if task.node_id == node_id and task.status.container_id and (show_all or is_up(task))
    ]
    mine.sort(key=lambda task: (-task.created_at, task.id))
    now = request.app[CLOCK].wall()
    return [
        summary_to_json(task, control.spec_of(task), control.task_name(task), now=now)
        for task in mine
    ]


ROUTES = (
    ("GET", "/tasks", list_all),
    ("GET", "/tasks/{id}", inspect),
    ("GET", "/containers/json", list_containers),
)

"""/services/{id}/logs and /tasks/{id}/logs.

Each line may carry its origin (`details`), which is how `docker service logs` knows what to print
before it. A service that is followed includes tasks that are made later.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec
import structlog
from aiohttp import web

from manager.httpapi.backend import Backend
from manager.httpapi.frames import MULTIPLEXED_TYPE, RAW_TYPE, details_of, frame, log_line
from manager.httpapi.requests import STREAMS, backend_of, flag, whole_number
from manager.httpapi.streams import closed, merged
from manager.httpapi.timestamps import parse_moment
from manager.store.watch import Created, Deleted, Resync
from proto.errors import InvalidError, SwarmError
from proto.ids import ServiceID, TaskID
from proto.logs import LogOptions, LogRecord
from proto.objects import Service, ServiceSpec, Task

Lines = AsyncIterator[tuple[Task, LogRecord]]

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


def options_of(request: web.Request) -> LogOptions:
    """Read which lines are wanted.

    Raises:
        InvalidError: neither stream was chosen, or a number or time is none.
    """
    stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
    if not (stdout or stderr):
        raise InvalidError("Bad parameters: you must choose at least one stream")
    tail = request.query.get("tail", "all")
    line_count = -1 if tail in {"", "all"} else whole_number(tail)
    if line_count is None:
        raise InvalidError(f'invalid value {tail!r} for tail: give a number of lines or "all"')
    return LogOptions(
        follow=flag(request, "follow"),
        tail=line_count,
        since_ns=parse_moment(request.query.get("since", ""), "since"),
        until_ns=parse_moment(request.query.get("until", ""), "until"),
        stdout=stdout,
        stderr=stderr,
    )


async def of_service(request: web.Request) -> web.StreamResponse:
    """Stream the output of a service's tasks."""
    backend = backend_of(request)
    control = backend.control()
    service = control.service(request.match_info["id"])
    options = options_of(request)
    ids = [task.id for task in control.tasks_of(service.id)]
    lines = backend.task_logs(sorted(ids), options)
    if options.follow:
        later = msgspec.structs.replace(options, tail=-1)
        lines = merged(lines, _later_tasks(backend, service.id, ids, later))
    return await _send(request, lines, service.spec)


async def of_task(request: web.Request) -> web.StreamResponse:
    """Stream the output of one task."""
    backend = backend_of(request)
    control = backend.control()
    task = control.task(request.match_info["id"])
    lines = backend.task_logs((task.id,), options_of(request))
    return await _send(request, lines, control.spec_of(task))


async def _later_tasks(
    backend: Backend, service_id: ServiceID, known: Sequence[TaskID], options: LogOptions
) -> AsyncGenerator[Lines]:
    """Yield the output of each task that the service gets from now on; ends with the service."""
    seen = set(known)
    async with backend.watch(Task, Service) as watch:
        # Tasks made between the caller's look and the beginning of the watch.
        tasks = [task for task in watch.view.tasks if task.service_id == service_id]
        while True:
            for task in tasks:
                if task.id not in seen:
                    seen.add(task.id)
                    yield backend.task_logs((task.id,), options)
            try:
                events = await anext(watch)
            except StopAsyncIteration:
                return
            tasks = []
            for event in events:
                match event:
                    case Created(new=Task() as task) if task.service_id == service_id:
                        tasks.append(task)
                    case Deleted(old=Service() as service) if service.id == service_id:
                        return
                    case Resync(view=view):
                        tasks += [t for t in view.tasks if t.service_id == service_id]
                    case _:
                        pass


async def _send(request: web.Request, lines: Lines, spec: ServiceSpec) -> web.StreamResponse:
    is_multiplexed = not spec.task.container.tty
    response = web.StreamResponse()
    response.content_type = MULTIPLEXED_TYPE if is_multiplexed else RAW_TYPE
    chunks = _rendered(
        lines,
        timestamps=flag(request, "timestamps"),
        with_details=flag(request, "details"),
        is_multiplexed=is_multiplexed,
    )
    return await request.app[STREAMS].send(request, response, chunks)


async def _rendered(
    lines: Lines, *, timestamps: bool, with_details: bool, is_multiplexed: bool
) -> AsyncGenerator[bytes]:
    try:
        async for task, record in lines:
            yield log_line(
                record,
                timestamps=timestamps,
                details=_origin(task.node_id, task.service_id, task.id) if with_details else None,
                is_multiplexed=is_multiplexed,
            )
    except SwarmError as error:
        # The response has begun: the stream of the system's own errors is the place that is left.
        log.warning("log_stream_failed", error=error.message)
        text = f"the logs are not complete: {error.message}\n".encode()
        yield frame("systemerr", text) if is_multiplexed else text
    finally:
        await closed(lines)


@functools.lru_cache(maxsize=1024)
def _origin(node_id: str, service_id: str, task_id: str) -> bytes:
    """Say where a line comes from; the same for all lines of a task, of which there are many."""
    return details_of(
        {
            "com.docker.swarm.node.id": node_id,
            "com.docker.swarm.service.id": service_id,
            "com.docker.swarm.task.id": task_id,
        }
    )


ROUTES = (
    ("GET", "/services/{id}/logs", of_service),
    ("GET", "/tasks/{id}/logs", of_task),
)

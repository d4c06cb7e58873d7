"""A task's container as a line of `docker ps`. Pure."""

from __future__ import annotations

import shlex

from manager.httpapi.convert.common import Json
from manager.httpapi.timestamps import elapsed_seconds
from proto.objects import ServiceSpec, Task
from proto.states import TaskState

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

# Below so many seconds: count units of so many seconds. A text with a capital is the whole answer.
_SPANS: tuple[tuple[int | None, int, str], ...] = (
    (1, 1, "Less than a second"),
    (_MINUTE, 1, "second"),
    (2 * _MINUTE, 1, "About a minute"),
    (_HOUR, _MINUTE, "minute"),
    (2 * _HOUR, 1, "About an hour"),
    (2 * _DAY, _HOUR, "hour"),
    (14 * _DAY, _DAY, "day"),
    (60 * _DAY, 7 * _DAY, "week"),
    (730 * _DAY, 30 * _DAY, "month"),
    (None, 365 * _DAY, "year"),
)


def is_up(task: Task) -> bool:
    """Tell whether the container runs."""
    return task.status.state in {TaskState.STARTING, TaskState.RUNNING}


def state_of(task: Task) -> str:
    """Name the container's state in Docker's words."""
    if is_up(task):
        return "running"
    return "exited" if task.status.state.is_terminal else "created"


def summary_to_json(task: Task, spec: ServiceSpec, name: str, *, now: float) -> Json:
    """Write a container; `now` is seconds since the epoch."""
    container = spec.task.container
    labels = {
        **container.labels,
        "com.docker.swarm.node.id": task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": spec.name,
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": task.id,
        "com.docker.swarm.task.name": name,
    }
    return {
        "Id": task.status.container_id,
        "Names": [f"/{name}"],
        "Image": container.image,
        "ImageID": "",
        "Command": shlex.join([*container.command, *container.args]),
        "Created": int(task.created_at),
        "Ports": [],
        "Labels": labels,
        "State": state_of(task),
        "Status": _status_text(task, now),
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": {}},
        "Mounts": [],
    }


def _status_text(task: Task, now: float) -> str:
    age = span_text(elapsed_seconds(task.status.timestamp, now))
    match state_of(task):
        case "running":
            return f"Up {age}"
        case "exited":
            return f"Exited ({task.status.exit_code or 0}) {age} ago"
        case _:
            return "Created"


def span_text(seconds: int) -> str:
    """Say a length of time in one unit, as people read it (`About a minute`, `3 hours`)."""
    for limit, unit_seconds, text in _SPANS:
        if limit is None or seconds < limit:
            count = seconds // unit_seconds
            return text if text[0].isupper() else f"{count} {text}{'' if count == 1 else 's'}"
    raise AssertionError("the last span has no limit")

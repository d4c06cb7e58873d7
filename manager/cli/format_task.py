"""Tasks as `service ps` and `node ps` show them. Pure: Engine JSON in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manager.cli.durations import human_duration, parse_instant
from manager.cli.format_service import ID_WIDTH, natural_key
from manager.cli.references import shown_image
from manager.cli.tables import capitalised, ellipsis
from manager.cli.views import Row, View

ERROR_WIDTH = 30
EARLIER = r" \_ "
"""Marks an earlier task of the same slot."""

VIEW = View(
    headers={
        "ID": "ID",
        "Name": "NAME",
        "_Name": "NAME",
        "Image": "IMAGE",
        "Node": "NODE",
        "DesiredState": "DESIRED STATE",
        "CurrentState": "CURRENT STATE",
        "Error": "ERROR",
        "Ports": "PORTS",
    },
    columns=(*("ID", "_Name", "Image", "Node", "DesiredState", "CurrentState", "Error", "Ports"),),
    raw=(
        ("id", "ID"),
        ("name", "Name"),
        ("image", "Image"),
        ("node", "Node"),
        ("desired_state", "DesiredState"),
        ("current_state", "CurrentState"),
        ("error", "Error"),
        ("ports", "Ports"),
    ),
)


def task_rows(
    tasks: Iterable[Mapping[str, Any]],
    services: Mapping[str, str],
    nodes: Mapping[str, str],
    *,
    now: float,
    truncate: bool = True,
    is_table: bool = True,
) -> list[Row]:
    """Make the rows, by name, the latest task of a slot first and earlier ones indented.

    Args:
        tasks: Engine JSON.
        services: names by ID; an ID that is not there is shown itself.
        nodes: host names by ID, likewise.
        now: seconds since 1970.
        truncate: shorten IDs, images and errors.
        is_table: indent earlier tasks.
    """
    named = [(task_name(task, services), task) for task in tasks]
    # Two sorts: by creation, latest first, then by name, which keeps that order within a name.
    named.sort(key=lambda pair: pair[1].get("CreatedAt", ""), reverse=True)
    named.sort(key=lambda pair: natural_key(pair[0]))
    rows: list[Row] = []
    previous = ""
    for name, task in named:
        shown = EARLIER + name if name == previous and is_table else name
        node_id = task.get("NodeID", "")
        rows.append(
            {
                "ID": task["ID"][:ID_WIDTH] if truncate else task["ID"],
                "Name": shown,
                "_Name": shown,
                "Image": _image(task, truncate=truncate),
                "Node": nodes.get(node_id, node_id),
                "DesiredState": capitalised(task.get("DesiredState", "")),
                "CurrentState": _state(task["Status"], now),
                "Error": _error(task["Status"], truncate=truncate),
                "Ports": _ports(task["Status"]),
            }
        )
        previous = name
    return rows


def task_name(task: Mapping[str, Any], services: Mapping[str, str]) -> str:
    """Name a task after its service and slot, or node for a global service."""
    service = task.get("ServiceID", "")
    return f"{services.get(service, service)}.{task.get('Slot') or task.get('NodeID', '')}"


def _image(task: Mapping[str, Any], *, truncate: bool) -> str:
    image = str((task["Spec"].get("ContainerSpec") or {}).get("Image", ""))
    return shown_image(image) if truncate else image


def _state(status: Mapping[str, Any], now: float) -> str:
    since = parse_instant(status.get("Timestamp", ""))
    age = human_duration(now - since).lower() if since is not None else "some time"
    return f"{capitalised(status.get('State', ''))} {age} ago"


def _error(status: Mapping[str, Any], *, truncate: bool) -> str:
    # Docker prints line breaks as they are and so breaks the table.
    error = " ".join(status.get("Err", "").split("\n"))
    if truncate:
        error = ellipsis(error, ERROR_WIDTH)
    return f'"{error}"' if error else ""


def _ports(status: Mapping[str, Any]) -> str:
    ports = (status.get("PortStatus") or {}).get("Ports") or []
    return ",".join(
        f"*:{port.get('PublishedPort', 0)}->{port['TargetPort']}/{port['Protocol']}"
        for port in ports
    )

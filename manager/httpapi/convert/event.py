"""Changes of the store as the Engine's events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from manager.httpapi.convert.common import Json, word_of
from manager.httpapi.filters import Filters, matches_labels
from manager.httpapi.timestamps import nanoseconds
from manager.store.watch import Change, Created, Updated
from proto.objects import NANOSECONDS, Node, ReplicatedMode, Service
from proto.text import printable


def event_of(change: Change, *, now: float) -> Json | None:
    """Write a change as an event.

    Args:
        change: of a service or node; others give None.
        now: the time of a removal (seconds since the epoch), which no object holds.
    """
    subject = change.old if change.new is None else change.new
    before = change.old if isinstance(change, Updated) else None
    if isinstance(change, Created):
        action, moment = "create", subject.created_at
    elif isinstance(change, Updated):
        action, moment = "update", subject.updated_at
    else:
        action, moment = "remove", now
    match subject:
        case Service():
            attributes = {"name": subject.spec.name}
            if isinstance(before, Service):
                attributes |= _service_changes(before, subject)
            return _event("service", action, subject.id, attributes, moment)
        case Node():
            attributes = {"name": subject.spec.name or printable(subject.description.hostname)}
            if isinstance(before, Node):
                attributes |= _node_changes(before, subject)
            return _event("node", action, subject.id, attributes, moment)
        case _:
            return None


def _event(
    kind: str, action: str, actor_id: str, attributes: Mapping[str, str], moment: float
) -> Json:
    time_ns = nanoseconds(moment)
    return {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": actor_id, "Attributes": dict(attributes)},
        "scope": "swarm",
        "time": time_ns // NANOSECONDS,
        "timeNano": time_ns,
    }


def _changed(pairs: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for name, old, new in pairs:
        if old != new:
            attributes[f"{name}.old"] = old
            attributes[f"{name}.new"] = new
    return attributes


def _replicas(service: Service) -> str:
    mode = service.spec.mode
    return str(mode.replicas) if isinstance(mode, ReplicatedMode) else ""


def _update_state(service: Service) -> str:
    return service.update_status.state if service.update_status is not None else ""


def _service_changes(old: Service, new: Service) -> dict[str, str]:
    old_image, new_image = old.spec.task.container.image, new.spec.task.container.image
    return _changed(
        [
            ("image", old_image, new_image),
            ("replicas", _replicas(old), _replicas(new)),
            ("updatestate", _update_state(old), _update_state(new)),
        ]
    )


def _reachability(node: Node) -> str:
    return "" if node.manager_status is None else word_of(node.manager_status.reachability)


def _node_changes(old: Node, new: Node) -> dict[str, str]:
    return _changed(
        [
            ("state", word_of(old.status.state), word_of(new.status.state)),
            ("availability", word_of(old.spec.availability), word_of(new.spec.availability)),
            ("role", word_of(old.role), word_of(new.role)),
            ("reachability", _reachability(old), _reachability(new)),
        ]
    )


def matches_event(event: Json, filters: Filters) -> bool:
    """Tell whether an event passes the filters of /events."""
    kind, actor = str(event["Type"]), event["Actor"]
    names = {actor["ID"], actor["Attributes"].get("name", "")}
    for name, wanted in filters.items():
        match name:
            case "type":
                is_wanted = kind in wanted
            case "event":
                is_wanted = event["Action"] in wanted
            case "scope":
                is_wanted = event["scope"] in wanted
            case "label":
                is_wanted = matches_labels(actor["Attributes"], wanted)
            case _:  # a kind of object: its ID or name
                is_wanted = name == kind and not names.isdisjoint(wanted)
        if not is_wanted:
            return False
    return True

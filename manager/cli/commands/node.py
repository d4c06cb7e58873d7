"""`swarm node …`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manager.cli.commands import common
from manager.cli.errors import CommandError, joined
from manager.cli.flags import Flag, Flags
from manager.cli.keyvalues import as_mapping, label
from manager.cli.program import Console, Spec
from manager.cli.transport import quoted
from proto.errors import SwarmError


def _list(console: Console, flags: Flags, _arguments: list[str]) -> None:
    from manager.cli.format_node import VIEW, node_rows  # noqa: PLC0415 -- only here
    from manager.cli.views import render  # noqa: PLC0415 -- only here

    nodes = console.engine.get("/nodes", {"filters": common.filters_of(flags)})
    # Which node is this one is asked for only when there is something to mark.
    needs_self = nodes and not flags.is_on("quiet")
    swarm = (console.engine.get("/info").get("Swarm") or {}) if needs_self else {}
    if (swarm.get("Cluster") or {}).get("RootRotationInProgress"):
        from manager.cli.rootprogress import missing  # noqa: PLC0415 -- only then

        names = missing(swarm["Cluster"], nodes)
        console.warn(
            f"the root certificate is being rotated; it waits for: {names or 'nobody'}. A node "
            "that does not come back keeps the old root until it is removed (swarm node rm)"
        )
    rows = node_rows(nodes, swarm)
    console.write(render(VIEW, rows, flags.text("format"), quiet=flags.is_on("quiet")))


def _fetch(console: Console, reference: str) -> Any:
    return console.engine.get(f"/nodes/{quoted(common.own_node(console, reference))}")


def _inspect(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.shapes import NODE  # noqa: PLC0415 -- only here

    common.check_pretty(flags)
    if not flags.is_on("pretty"):
        common.inspect_all(console, flags, arguments, lambda name: _fetch(console, name), NODE)
        return
    from manager.cli.format_node import pretty_node  # noqa: PLC0415 -- only here

    common.each(arguments, lambda name: console.write(pretty_node(_fetch(console, name))))


def _tasks(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.format_task import VIEW, task_rows  # noqa: PLC0415 -- only here
    from manager.cli.views import render  # noqa: PLC0415 -- only here

    tasks: list[Any] = []
    errors: list[SwarmError] = []
    for reference in arguments or ["self"]:
        try:
            node = _fetch(console, reference)
            wanted = common.filters_of(flags, node=[node["ID"]])
            tasks += console.engine.get("/tasks", {"filters": wanted})
        except SwarmError as error:
            errors.append(error)
    if tasks or not errors:
        resolve = not flags.is_on("no-resolve") and not flags.is_on("quiet")
        form = flags.text("format")
        rows = task_rows(
            tasks,
            common.service_names(console, resolve=resolve),
            common.node_names(console, resolve=resolve),
            now=console.now,
            truncate=not flags.is_on("no-trunc"),
            is_table=form.startswith("table") or not form,
        )
        console.write(render(VIEW, rows, form, quiet=flags.is_on("quiet")))
    if errors:
        raise joined(errors)


def _change(
    console: Console,
    references: list[str],
    merge: Callable[[Any], bool],
    report: Callable[[str], str],
) -> None:
    """Read, change and write back each node; `merge` tells whether there is anything to write."""
    for reference in references:
        node = _fetch(console, reference)
        if merge(node):
            query = {"version": str(node["Version"]["Index"])}
            console.engine.post(f"/nodes/{node['ID']}/update", node["Spec"], query=query)
            console.line(report(reference))


def _update(console: Console, flags: Flags, arguments: list[str]) -> None:
    def merge(node: Any) -> bool:
        spec = node["Spec"]
        for name, field in (("role", "Role"), ("availability", "Availability")):
            if name in flags:
                spec[field] = flags[name]
        labels = (spec.get("Labels") or {}) | as_mapping(flags.many("label-add"))
        for key in flags.many("label-rm"):
            if key not in labels:
                raise CommandError(f"key {key} doesn't exist in node's labels")
            del labels[key]
        spec["Labels"] = labels
        return True

    _change(console, arguments, merge, lambda reference: reference)


def _set_role(
    role: str, console: Console, arguments: list[str], report: Callable[[str], str]
) -> None:
    def merge(node: Any) -> bool:
        if node["Spec"].get("Role") == role:
            console.line(f"Node {node['ID']} is already a {role}.")
            return False
        node["Spec"]["Role"] = role
        return True

    _change(console, arguments, merge, report)


def _promote(console: Console, _flags: Flags, arguments: list[str]) -> None:
    _set_role("manager", console, arguments, "Node {} promoted to a manager in the swarm.".format)


_OLD_KEYS = (
    "Its certificate of a manager does not count from the moment it is a worker (MANAGER STATUS of "
    "`swarm node ls` is empty then). Its disk had the key of the cluster's root, the join tokens "
    "and the unlock key: if somebody may have read it, revoke them with `swarm ca --rotate`, "
    "`swarm join-token --rotate worker`, `swarm join-token --rotate manager` and `swarm unlock-key "
    "--rotate`."
)


def _demote(console: Console, _flags: Flags, arguments: list[str]) -> None:
    demoted: list[str] = []

    def report(reference: str) -> str:
        demoted.append(reference)
        return f"Manager {reference} demoted in the swarm."

    try:
        _set_role("worker", console, arguments, report)
    finally:
        # For a person; scripts get what Docker prints.
        if demoted and console.is_terminal:
            console.warn(_OLD_KEYS)


def _remove(console: Console, flags: Flags, arguments: list[str]) -> None:
    query = {"force": "1"} if flags.is_on("force") else {}

    def remove(reference: str) -> None:
        console.engine.delete(f"/nodes/{quoted(common.own_node(console, reference))}", query)
        console.line(reference)

    common.each(arguments, remove)


LIST = Spec(_list, (common.FILTER, common.FORMAT, common.QUIET_IDS), "[OPTIONS]")
INSPECT = Spec(
    _inspect,
    (common.INSPECT_FORMAT, common.PRETTY),
    "[OPTIONS] self|NODE [NODE...]",
    least=1,
    most=None,
)
TASKS = Spec(
    _tasks,
    (
        common.FILTER,
        common.FORMAT,
        common.NO_RESOLVE,
        common.NO_TRUNC,
        Flag("quiet", "", "Only display task IDs", "q"),
    ),
    "[OPTIONS] [NODE...]",
    most=None,
)
UPDATE = Spec(
    _update,
    (
        Flag("availability", "string", 'Availability of the node ("active", "pause", "drain")'),
        Flag("label-add", "list", 'Add or update a node label ("key=value")', "", label, many=True),
        Flag("label-rm", "list", "Remove a node label if exists", many=True),
        Flag("role", "string", 'Role of the node ("worker", "manager")'),
    ),
    "[OPTIONS] NODE",
    least=1,
    most=1,
)
PROMOTE = Spec(_promote, (), "NODE [NODE...]", least=1, most=None)
DEMOTE = Spec(_demote, (), "NODE [NODE...]", least=1, most=None)
REMOVE = Spec(
    _remove,
    (Flag("force", "", "Force remove a node from the swarm", "f"),),
    "[OPTIONS] NODE [NODE...]",
    least=1,
    most=None,
)

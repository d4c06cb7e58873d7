"""`swarm service ls|ps|inspect|scale|rollback|rm`."""

from __future__ import annotations

from typing import Any

from manager.cli.commands import common
from manager.cli.errors import CommandError, DaemonError, joined
from manager.cli.flags import Flag, Flags, unsigned
from manager.cli.program import Console, Spec
from manager.cli.transport import filters, quoted
from proto.errors import InvalidError, SwarmError


def _list(console: Console, flags: Flags, _arguments: list[str]) -> None:
    from manager.cli.format_service import VIEW, service_rows  # noqa: PLC0415 -- only here
    from manager.cli.views import render  # noqa: PLC0415 -- only here

    query = {"status": "true", "filters": common.filters_of(flags)}
    rows = service_rows(console.engine.get("/services", query))
    console.write(render(VIEW, rows, flags.text("format"), quiet=flags.is_on("quiet")))


def fetch(console: Console, reference: str) -> Any:
    """Get a service, with Docker's words when there is none."""
    try:
        return console.engine.get(f"/services/{quoted(reference)}")
    except DaemonError as error:
        if error.is_not_found:
            raise DaemonError(error.status, f"service {reference} not found") from error
        raise


def _inspect(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.shapes import SERVICE  # noqa: PLC0415 -- only here

    common.check_pretty(flags)
    if not flags.is_on("pretty"):
        common.inspect_all(console, flags, arguments, lambda name: fetch(console, name), SERVICE)
        return
    from manager.cli.format_service import pretty_service  # noqa: PLC0415 -- only here

    def show(reference: str) -> None:
        service = fetch(console, reference)
        networks = service["Spec"]["TaskTemplate"].get("Networks") or []
        names = {item["Target"]: _network_name(console, item["Target"]) for item in networks}
        console.write(pretty_service(service, names, console.now))

    common.each(arguments, show)


def _network_name(console: Console, identifier: str) -> str:
    try:
        return str(console.engine.get(f"/networks/{quoted(identifier)}")["Name"])
    except DaemonError:
        return identifier  # As Docker: the ID stands for a network that is gone.


def find_services(console: Console, references: list[str]) -> tuple[dict[str, str], list[str]]:
    """Find services by ID, name or start of an ID.

    Returns:
        The names of those found by ID, and the references that were not found.

    Raises:
        CommandError: the start of an ID fits several.
    """
    by_id = console.engine.get("/services", {"filters": filters({"id": references})})
    by_name = console.engine.get("/services", {"filters": filters({"name": references})})
    found: dict[str, str] = {}
    missing: list[str] = []
    for reference in references:
        exact = [service for service in by_id if service["ID"] == reference]
        exact += [service for service in by_name if service["Spec"].get("Name") == reference]
        fits = exact[:1] or [service for service in by_id if service["ID"].startswith(reference)]
        if len(fits) > 1:
            raise CommandError(f"multiple services found with provided prefix: {reference}")
        if fits:
            found[fits[0]["ID"]] = fits[0]["Spec"].get("Name", "")
        else:
            missing.append(f"no such service: {reference}")
    return found, missing


def _tasks(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.format_task import VIEW, task_rows  # noqa: PLC0415 -- only here
    from manager.cli.views import render  # noqa: PLC0415 -- only here

    services, missing = find_services(console, arguments)
    if not services:
        raise CommandError("\n".join(missing))
    given = dict(flags)
    given["filter"] = [
        (key, common.own_node(console, value) if key == "node" else value)
        for key, value in flags.many("filter")
    ]
    wanted = common.filters_of(Flags(given), service=list(services))
    tasks = console.engine.get("/tasks", {"filters": wanted})
    resolve = not flags.is_on("no-resolve")
    form = flags.text("format")
    rows = task_rows(
        tasks,
        services if resolve else {},
        common.node_names(console, resolve=resolve and not flags.is_on("quiet")),
        now=console.now,
        truncate=not flags.is_on("no-trunc") and not flags.is_on("quiet"),
        is_table=form.startswith("table") or not form,
    )
    console.write(render(VIEW, rows, form, quiet=flags.is_on("quiet")))
    if missing:
        raise CommandError("\n".join(missing))


def _scale_one(console: Console, reference: str, text: str) -> int:
    try:
        replicas = unsigned(text)
    except InvalidError as error:
        raise CommandError(f"invalid replicas value {text}: {error.message}") from error
    service = fetch(console, reference)
    mode = service["Spec"].get("Mode") or {}
    if mode.get("Replicated") is not None:
        mode["Replicated"]["Replicas"] = replicas
    elif mode.get("ReplicatedJob") is not None:
        mode["ReplicatedJob"]["TotalCompletions"] = replicas
    else:
        raise CommandError("scale can only be used with replicated or replicated-job mode")
    common.print_warnings(console, put_service(console, service, service["Spec"]))
    return replicas


def put_service(
    console: Console,
    service: Any,
    spec: Any,
    *,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """Write a service's spec against the version that was read."""
    version = {"version": str(service["Version"]["Index"])}
    return console.engine.post(
        f"/services/{service['ID']}/update",
        spec,
        query={**version, **(query or {})},
        headers=headers or {},
    )


def _scale(console: Console, flags: Flags, arguments: list[str]) -> None:
    for argument in arguments:
        reference, _, count = argument.partition("=")
        if not reference or not count:
            raise CommandError(
                f"invalid scale specifier '{argument}'.\nSee 'swarm service scale --help'.\n\n"
                "Usage:  swarm service scale SERVICE=REPLICAS [SERVICE=REPLICAS...]\n\n"
                "Scale one or multiple replicated services"
            )
    errors: list[SwarmError] = []
    scaled: list[str] = []
    for argument in arguments:
        reference, _, count = argument.partition("=")
        try:
            replicas = _scale_one(console, reference, count)
        except SwarmError as error:
            errors.append(SwarmError(f"{reference}: {error.message}"))
            continue
        console.line(f"{reference} scaled to {replicas}")
        scaled.append(reference)
    for reference in scaled if not flags.is_on("detach") else ():
        try:
            common.wait_for(console, reference)
        except SwarmError as error:
            errors.append(SwarmError(f"{reference}: {error.message}"))
    if errors:
        raise joined(errors)


def roll_back(console: Console, flags: Flags, reference: str) -> None:
    """Return a service to its previous spec, and wait unless told otherwise."""
    service = fetch(console, reference)
    answer = put_service(console, service, service["Spec"], query={"rollback": "previous"})
    common.print_warnings(console, answer)
    console.line(reference)
    if not flags.is_on("detach"):
        common.wait_for(console, reference, quiet=flags.is_on("quiet"))


def _rollback(console: Console, flags: Flags, arguments: list[str]) -> None:
    roll_back(console, flags, arguments[0])


def _remove(console: Console, _flags: Flags, arguments: list[str]) -> None:
    def remove(reference: str) -> None:
        console.engine.delete(f"/services/{quoted(reference)}")
        console.line(reference)

    common.each(arguments, remove)


LIST = Spec(_list, (common.FILTER, common.FORMAT, common.QUIET_IDS), "[OPTIONS]")
INSPECT = Spec(
    _inspect,
    (common.INSPECT_FORMAT, common.PRETTY),
    "[OPTIONS] SERVICE [SERVICE...]",
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
    "[OPTIONS] SERVICE [SERVICE...]",
    least=1,
    most=None,
)
SCALE = Spec(_scale, (common.DETACH,), "SERVICE=REPLICAS [SERVICE=REPLICAS...]", least=1, most=None)
ROLLBACK = Spec(
    _rollback, (common.DETACH, common.QUIET_PROGRESS), "[OPTIONS] SERVICE", least=1, most=1
)
REMOVE = Spec(_remove, (), "SERVICE [SERVICE...]", least=1, most=None)

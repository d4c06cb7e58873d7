"""What several commands share: resolving names, filters, repeated requests, watching a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from manager.cli.errors import CommandError, DaemonError, joined
from manager.cli.flags import Flag, Flags, filter_pair, grouped
from manager.cli.program import Console
from manager.cli.transport import filters, quoted
from proto.errors import SwarmError

POLL_SECONDS = 0.2
FORMAT_HELP = "Format output: 'table', 'table TEMPLATE', 'json', or a Go template for each line"

FILTER = Flag(
    "filter", "filter", "Filter output based on conditions provided", "f", filter_pair, many=True
)
FORMAT = Flag("format", "string", FORMAT_HELP)
INSPECT_FORMAT = Flag("format", "string", "Format output: 'json' or a Go template", "f")
PRETTY = Flag("pretty", "", "Print the information in a human friendly format")
QUIET_IDS = Flag("quiet", "", "Only display IDs", "q")
NO_TRUNC = Flag("no-trunc", "", "Do not truncate output")
NO_RESOLVE = Flag("no-resolve", "", "Do not map IDs to Names")
DETACH = Flag("detach", "", "Exit immediately instead of waiting for the service to converge", "d")
QUIET_PROGRESS = Flag("quiet", "", "Suppress progress output", "q")


def filters_of(flags: Flags, **more: Sequence[str]) -> str | None:
    """Encode the filters that the user gave, and more."""
    found = grouped(flags.many("filter"))
    for key, values in more.items():
        found.setdefault(key, []).extend(values)
    return filters(found)


def each(references: Iterable[str], act: Callable[[str], object]) -> None:
    """Do something for each reference; report the failures together at the end.

    Raises:
        CommandError: one or more failed.
    """
    errors: list[SwarmError] = []
    for reference in references:
        try:
            act(reference)
        except DaemonError as error:
            errors.append(error)
    if errors:
        raise joined(errors)


def inspect_all(
    console: Console,
    flags: Flags,
    references: Sequence[str],
    fetch: Callable[[str], Any],
    shape: Mapping[str, object],
) -> None:
    """Write objects as JSON or by a template; those that were found come out in any case.

    Raises:
        CommandError: one or more were not found.
    """
    from manager.cli.views import inspect  # noqa: PLC0415 -- only this command needs it

    found: list[Any] = []
    errors: list[SwarmError] = []
    for reference in references:
        try:
            found.append(fetch(reference))
        except DaemonError as error:
            errors.append(error)
    console.write(inspect(found, flags.text("format"), shape))
    if errors:
        raise joined(errors)


def check_pretty(flags: Flags) -> None:
    """Refuse --pretty with --format."""
    if flags.is_on("pretty") and flags.text("format"):
        raise CommandError("--format is incompatible with human friendly format")


def node_names(console: Console, *, resolve: bool = True) -> dict[str, str]:
    """Give the host names of all nodes by ID; none when names are not wanted or not to be had."""
    if not resolve:
        return {}
    try:
        nodes = console.engine.get("/nodes")
    except DaemonError:
        # As Docker: names are for convenience, and the IDs are shown without them.
        return {}
    return {
        node["ID"]: node["Spec"].get("Name") or node.get("Description", {}).get("Hostname", "")
        for node in nodes
    }


def service_names(console: Console, *, resolve: bool = True) -> dict[str, str]:
    """Give the names of all services by ID, likewise."""
    if not resolve:
        return {}
    try:
        services = console.engine.get("/services")
    except DaemonError:
        return {}
    return {service["ID"]: service["Spec"].get("Name", "") for service in services}


def own_node(console: Console, reference: str) -> str:
    """Give the ID of this node for `self`, anything else as it is.

    Raises:
        CommandError: this node is in no swarm.
    """
    if reference != "self":
        return reference
    swarm = console.engine.get("/info").get("Swarm") or {}
    if not swarm.get("NodeID"):
        # Asking for the nodes makes the daemon say why there is none.
        console.engine.get("/nodes")
        raise CommandError("node ID not found in /info")
    return str(swarm["NodeID"])


def print_warnings(console: Console, answer: Any) -> None:
    """Show the warnings of an answer."""
    for warning in (answer or {}).get("Warnings") or []:
        console.warn(warning)


def wait_for(console: Console, reference: str, *, quiet: bool = False) -> None:
    """Watch a service until it has converged; an interrupt ends the watch, not the service.

    Raises:
        SwarmError: the update stopped, or the daemon is gone.
    """
    from manager.cli.convergence import Convergence  # noqa: PLC0415 -- only when attached
    from manager.cli.progress import ProgressDisplay  # noqa: PLC0415 -- likewise

    watch = Convergence(reference)
    display = ProgressDisplay(is_terminal=console.is_terminal)
    try:
        while True:
            step = watch.observe(_look(console, reference), console.monotonic)
            if not quiet:
                console.control("".join(map(display.show, step.lines)))
                console.flush()
            if step.is_done:
                return
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        if not watch.is_converged and not quiet:
            console.line("Operation continuing in background.")
            console.line(f"Use `swarm service ps {reference}` to check progress.")


def _look(console: Console, reference: str) -> Any:
    from manager.cli.convergence import View  # noqa: PLC0415 -- only when attached

    service = console.engine.get(f"/services/{quoted(reference)}")
    wanted = {"service": [service["ID"]], "_up-to-date": ["true"]}
    tasks = console.engine.get("/tasks", {"filters": filters(wanted)})
    nodes = console.engine.get("/nodes")
    active = (node["ID"] for node in nodes if node["Status"].get("State") != "down")
    return View(service, tasks, frozenset(active))

"""`swarm service logs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from manager.cli.commands import common
from manager.cli.durations import since_to_instant
from manager.cli.errors import CommandError, DaemonError
from manager.cli.flags import Flag, Flags
from manager.cli.logstream import FrameReader, Origin, format_line, parse_line, task_prefix
from manager.cli.program import Console, Spec
from manager.cli.transport import quoted


def _logs(console: Console, flags: Flags, arguments: list[str]) -> None:
    reference = arguments[0]
    path, spec, padding = _target(console, reference)
    is_tty = bool((spec.get("ContainerSpec") or {}).get("TTY"))
    raw = flags.is_on("raw")
    if is_tty and not raw:
        raise CommandError("tty service logs only supported with --raw")
    query = {
        "stdout": "1",
        "stderr": "1",
        "tail": flags.get("tail", "all"),
        "since": since_to_instant(flags.text("since"), console.now) or None,
        "timestamps": "1" if flags.is_on("timestamps") else None,
        "follow": "1" if flags.is_on("follow") else None,
        # Which task wrote a line is in its details, which the neat form needs.
        "details": "1" if flags.is_on("details") or not raw else None,
    }
    stream = console.engine.stream("GET", path, query)
    if is_tty:
        _copy(stream)
        return
    names = _Names(console, flags, padding)
    reader = FrameReader()
    for data in stream:
        for is_error, message in reader.feed(data):
            output = sys.stderr.buffer if is_error else sys.stdout.buffer
            output.write(message if raw else names.format(message))
        # What arrived is shown before the next is waited for.
        sys.stdout.buffer.flush()
        sys.stderr.buffer.flush()


def _copy(stream: Iterator[bytes]) -> None:
    for data in stream:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _target(console: Console, reference: str) -> tuple[str, Any, int]:
    """Find the service or task: where its logs are, its task spec, digits of its widest slot."""
    path = f"/services/{quoted(reference)}"
    try:
        service = console.engine.get(path)
    except DaemonError as error:
        if not error.is_not_found:
            raise
    else:
        replicated = (service["Spec"].get("Mode") or {}).get("Replicated") or {}
        width = len(str(replicated.get("Replicas", "")))
        return f"{path}/logs", service["Spec"]["TaskTemplate"], max(width, 1)
    path = f"/tasks/{quoted(reference)}"
    try:
        task = console.engine.get(path)
    except DaemonError as error:
        if error.is_not_found:
            raise CommandError(f"no such task or service: {reference}") from error
        raise
    return f"{path}/logs", task["Spec"], len(str(task.get("Slot", 0)))


class _Names:
    """Formats messages; asks once for the names behind each origin."""

    def __init__(self, console: Console, flags: Flags, padding: int) -> None:
        self._console = console
        self._flags = flags
        self._padding = padding
        self._prefixes: dict[Origin, str] = {}
        self._nodes: dict[str, str] | None = None
        self._services: dict[str, str] = {}

    def format(self, message: bytes) -> bytes:
        line = parse_line(message, with_timestamp=self._flags.is_on("timestamps"))
        prefix = self._prefixes.get(line.origin)
        if prefix is None:
            prefix = self._prefixes[line.origin] = self._prefix(line.origin)
        return format_line(line, prefix, with_details=self._flags.is_on("details"))

    def _prefix(self, origin: Origin) -> str:
        resolve = not self._flags.is_on("no-resolve")
        if self._nodes is None or origin.node not in self._nodes:
            self._nodes = common.node_names(self._console, resolve=resolve)
        if resolve and origin.service not in self._services:
            self._services |= common.service_names(self._console)
        return task_prefix(
            self._services.get(origin.service, origin.service),
            self._slot(origin.task),
            "" if self._flags.is_on("no-task-ids") else origin.task,
            self._nodes.get(origin.node, origin.node),
            padding=self._padding,
            truncate=not self._flags.is_on("no-trunc"),
        )

    def _slot(self, task: str) -> int:
        try:
            return int(self._console.engine.get(f"/tasks/{quoted(task)}").get("Slot", 0))
        except DaemonError as error:
            if error.is_not_found:
                return 0  # The task has gone since it wrote the line.
            raise


LOGS = Spec(
    _logs,
    (
        Flag("details", "", "Show extra details provided to logs"),
        Flag("follow", "", "Follow log output", "f"),
        Flag("no-resolve", "", "Do not map IDs to Names in output"),
        Flag("no-task-ids", "", "Do not include task IDs in output"),
        Flag("no-trunc", "", "Do not truncate output"),
        Flag("raw", "", "Do not neatly format logs"),
        Flag(
            "since",
            "string",
            'Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" '
            "for 42 minutes)",
        ),
        Flag(
            "tail",
            "string",
            'Number of lines to show from the end of the logs (default "all")',
            "n",
        ),
        Flag("timestamps", "", "Show timestamps", "t"),
    ),
    "[OPTIONS] SERVICE|TASK",
    least=1,
    most=1,
)

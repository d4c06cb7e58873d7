"""What happened, line by line: the product's log and, marked `*`, the world's doings."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import structlog

from .loop import VirtualLoop

# What supervisors log when they met a bug.
BUGS = frozenset(
    {
        "agent_crashed_again",
        "component_failed",
        "instruction_crashed",
        "session_crashed",
        "task_abandoned",
        "task_work_crashed",
    }
)


class SimulationError(AssertionError):
    """Something that must hold did not; the text has the seed and the end of the trace."""


class Trace:
    """Takes down what happens, and what must not.

    Attributes:
        violations: what must never happen, but did.
    """

    def __init__(self, loop: VirtualLoop, root: Path) -> None:
        self.loop = loop
        self.root = root
        self.trace: list[tuple[float, str, dict[str, Any]]] = []
        self.violations: list[str] = []

    def note(self, event: str, **fields: Any) -> None:
        """Write what the world does into the trace."""
        self.trace.append((self.loop.time(), "* " + event, fields))

    def log(self, _logger: Any, method: str, event: dict[str, Any]) -> Any:
        """Take what the product logs into the trace."""
        if self.loop.is_dead():
            raise structlog.DropEvent
        name = event.pop("event")
        if event.get("exc_info"):
            error = event.pop("exc_info")
            error = error if isinstance(error, BaseException) else sys.exc_info()[1]
            event["error"] = "".join(traceback.format_exception(error))
        if name in BUGS:
            self.violate(f"{name}: {_shown(event)}")
        self.trace.append((self.loop.time(), f"{method[0]} {name}", event))
        raise structlog.DropEvent

    def lines(self, count: int | None = None) -> list[str]:
        """Render the trace, or its last lines."""
        chosen = self.trace if count is None else self.trace[-count:]
        root = str(self.root)
        return [f"{t:10.4f} {name} {_shown(f)}".replace(root, "<root>") for t, name, f in chosen]

    def violate(self, what: str) -> None:
        """Note what must not happen; the next check ends the run."""
        self.note("VIOLATION", what=what)
        self.violations.append(what)

    def story_of(self, seed: int, error: BaseException, count: int) -> str:
        """Tell what went wrong, with the last lines of the trace."""
        what = str(error)
        if not isinstance(error, SimulationError):
            what = "".join(traceback.format_exception(error))
        return "\n".join((f"seed {seed}: {what}", *self.lines(count)))

    def raise_violations(self) -> None:
        """End the run if something was found."""
        if self.violations:
            raise SimulationError("; ".join(self.violations))


def _shown(fields: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in fields.items())

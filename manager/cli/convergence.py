"""Decides what `service create`, `update`, `scale` and `rollback` show while tasks start.

Pure: `Convergence.observe` takes what the manager says now and gives the lines to show, and whether
to go on watching. A service has converged when all its tasks run, and the watch ends when they have
run for the update's monitoring period; a paused update ends it with an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from proto.errors import SwarmError

SECOND = 1_000_000_000
MONITOR_SECONDS_DEFAULT = 5.0
BARS_MAX = 20
"""With more tasks only the overall line is shown."""

ERROR_WIDTH = 75
STATES = (
    *("new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting"),
    *("running", "complete", "shutdown", "failed", "rejected"),
)
_NUMBERS = {state: number for number, state in enumerate(STATES, 1)}
_RUNNING = _NUMBERS["running"]
_COMPLETE = _NUMBERS["complete"]
_BAR_WIDTH = 50
_STATE_WIDTH = max(len(state) for state in STATES[:_COMPLETE])


class Line(NamedTuple):
    """One line of progress; a later line with the same name replaces it on a terminal."""

    name: str
    text: str
    is_bar: bool = False


class View(NamedTuple):
    """What the manager says at one moment, in Engine JSON.

    Attributes:
        service: as `GET /services/{id}`.
        tasks: of the present spec of the service.
        active_nodes: the IDs of nodes that are not down.
    """

    service: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]
    active_nodes: frozenset[str]


class Step(NamedTuple):
    """What to show, and whether the watch is over."""

    lines: list[Line]
    is_done: bool = False


class UpdateStoppedError(SwarmError):
    """The update paused; somebody must decide."""


class Convergence:
    """One watch of one service."""

    def __init__(self, reference: str) -> None:
        """Start; `reference` is the service as the user named it."""
        self._reference = reference
        self._converged_at: float | None = None
        self._rolling_back = False
        self._final = ""
        self._slots: dict[int, int] = {}
        self._is_settled = False
        self._started = False

    @property
    def is_converged(self) -> bool:
        """Tell whether all tasks ran at the last look."""
        return self._converged_at is not None

    def observe(self, view: View, now: float) -> Step:
        """Take one look.

        Args:
            view: what the manager says.
            now: seconds, monotonic.

        Raises:
            UpdateStoppedError: the update or rollback paused.
        """
        lines: list[Line] = []
        update = view.service.get("UpdateStatus") or {}
        if self._follow_update(update, lines):
            return Step(lines, is_done=True)
        monitor = self._monitor(view.service)
        if self._converged_at is not None and now - self._converged_at >= monitor:
            lines.append(Line("verify", f"Service {self._reference} converged"))
            lines += [Line("rollback", self._final)] if self._final else []
            return Step(lines, is_done=True)
        converged = self._look(view, lines)
        if not converged:
            if self._converged_at is not None:
                lines.append(Line("verify", "Detected task failure"))
            self._converged_at = None
            return Step(lines)
        if view.service.get("JobStatus") is not None:
            return Step([*lines, Line("", "job complete")], is_done=True)
        if self._converged_at is None:
            self._converged_at = now
        left = monitor - (now - self._converged_at)
        if left >= 0:
            wait = f"Waiting {int(left) + 1} seconds to verify that tasks are stable..."
            lines.append(Line("verify", wait))
        return Step(lines)

    def _follow_update(self, update: Mapping[str, Any], lines: list[Line]) -> bool:
        """Read the update's state; tell whether the watch is over."""
        message = update.get("Message", "")
        match update.get("State", ""):
            case "updating":
                self._rolling_back = False
            case "completed":
                return self._converged_at is None and self._started
            case "paused":
                raise UpdateStoppedError(f"service update paused: {message}")
            case "rollback_paused":
                raise UpdateStoppedError(f"service rollback paused: {message}")
            case "rollback_started":
                if not self._rolling_back and message:
                    lines.append(Line("rollback", message))
                self._rolling_back = True
            case "rollback_completed":
                if self._converged_at is None:
                    self._final = message
                self._rolling_back = True
            case _:
                pass
        return False

    def _monitor(self, service: Mapping[str, Any]) -> float:
        policy = "RollbackConfig" if self._rolling_back else "UpdateConfig"
        nanoseconds = (service["Spec"].get(policy) or {}).get("Monitor", 0)
        return nanoseconds / SECOND if nanoseconds else MONITOR_SECONDS_DEFAULT

    def _look(self, view: View, lines: list[Line]) -> bool:
        self._started = True
        modes = view.service["Spec"].get("Mode") or {}
        if modes.get("Replicated") is not None:
            wanted = modes["Replicated"].get("Replicas", 1)
            return self._by_slot(view, wanted, _RUNNING, lines)
        if modes.get("ReplicatedJob") is not None:
            wanted = modes["ReplicatedJob"].get("TotalCompletions", 1)
            return self._by_slot(view, wanted, _COMPLETE, lines)
        goal = _RUNNING if modes.get("Global") is not None else _COMPLETE
        return self._by_node(view, goal, lines)

    def _by_slot(self, view: View, wanted: int, goal: int, lines: list[Line]) -> bool:
        tasks = latest_by(view.tasks, "Slot", view.active_nodes, goal)
        for slot in tasks:
            self._slots.setdefault(slot, len(self._slots) + 1)
        done = sum(_counts(task, goal) for task in tasks.values())
        lines.append(self._overall(done, wanted, "job progress" if goal == _COMPLETE else ""))
        if wanted <= BARS_MAX and not self._is_settled:
            named = {self._slots[slot]: task for slot, task in tasks.items()}
            lines += [
                _task_line(f"{number}/{wanted}", named.get(number), goal)
                for number in range(1, wanted + 1)
            ]
        self._is_settled = done == wanted
        return done == wanted

    def _by_node(self, view: View, goal: int, lines: list[Line]) -> bool:
        tasks = latest_by(view.tasks, "NodeID", None, goal)
        if not tasks:
            # Either the tasks are still to be made or no node is eligible: both look the same.
            lines.append(Line("overall progress", "waiting for new tasks"))
            return False
        active = {node: task for node, task in tasks.items() if node in view.active_nodes}
        done = sum(_counts(task, goal) for task in active.values())
        lines.append(self._overall(done, len(tasks), ""))
        if len(tasks) <= BARS_MAX and not self._is_settled:
            lines += [_task_line(node[:12], task, goal) for node, task in sorted(active.items())]
        self._is_settled = done == len(tasks)
        return done == len(tasks)

    def _overall(self, done: int, wanted: int, name: str) -> Line:
        prefix = "rolling back update: " if self._rolling_back else ""
        return Line(name or "overall progress", f"{prefix}{done} out of {wanted} tasks")


def latest_by(
    tasks: Iterable[Mapping[str, Any]], key: str, active: frozenset[str] | None, goal: int
) -> dict[Any, Mapping[str, Any]]:
    """Choose one task for each slot or node.

    Of several, the one that is least on its way out counts, then the one that is least far: it is
    the one that is still being waited for. A job's finished task counts before all.
    """
    chosen: dict[Any, Mapping[str, Any]] = {}
    for task in sorted(tasks, key=lambda task: str(task["ID"])):
        state = _number(task["Status"].get("State"))
        if not state or not _number(task.get("DesiredState")):
            continue
        node = task.get("NodeID", "")
        if active is not None and node and node not in active and state <= _RUNNING:
            continue
        place = task.get(key, 0)
        other = chosen.get(place)
        if other is None or _rank(task, goal) < _rank(other, goal):
            chosen[place] = task
    return dict(sorted(chosen.items()))


def _number(state: object) -> int:
    return _NUMBERS.get(str(state), 0)


def _rank(task: Mapping[str, Any], goal: int) -> tuple[bool, int, int]:
    state = _number(task["Status"].get("State"))
    finished_job = goal == _COMPLETE and state == _COMPLETE
    return (not finished_job, _number(task.get("DesiredState")), state)


def _counts(task: Mapping[str, Any], goal: int) -> bool:
    state = _number(task["Status"].get("State"))
    if goal == _COMPLETE:
        return state == _COMPLETE
    return state == _RUNNING and _number(task.get("DesiredState")) <= _RUNNING


def _task_line(name: str, task: Mapping[str, Any] | None, goal: int) -> Line:
    if task is None:
        return Line(name, " ")
    error = task["Status"].get("Err", "")
    if error:
        flat = error.replace("\n", " ")
        return Line(name, flat if len(flat) <= ERROR_WIDTH else flat[: ERROR_WIDTH - 1] + "…")
    state = str(task["Status"].get("State", ""))
    number = min(_number(state), goal)
    filled = round(number / goal * _BAR_WIDTH)
    bar = ("=" * (filled - 1) + ">").ljust(_BAR_WIDTH)
    return Line(name, f"{state.ljust(_STATE_WIDTH)} [{bar}] ", is_bar=True)

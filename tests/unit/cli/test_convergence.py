"""What a watched service shows, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from manager.cli.convergence import Convergence, Line, UpdateStoppedError, View, latest_by
from manager.cli.progress import ProgressDisplay

NODES = frozenset({"n1", "n2"})


def service(mode: dict[str, Any], update: dict[str, Any] | None = None, **more: Any) -> Any:
    """Make a service."""
    return {"ID": "s", "Spec": {"Mode": mode}, "UpdateStatus": update, **more}


def task(slot: int, state: str, desired: str = "running", **more: Any) -> Any:
    """Make a task."""
    status = {"State": state, "Err": more.pop("error", "")}
    base = {"ID": f"t{slot}{state}", "Slot": slot, "NodeID": "n1", "DesiredState": desired}
    return {**base, "Status": status, **more}


def texts(lines: list[Line]) -> list[str]:
    """Write lines as they are shown."""
    return [f"{line.name}: {line.text}".strip() for line in lines]


def test_replicas_start_and_are_watched_for_the_monitoring_period() -> None:
    """A replicated service converges when its tasks have run for five seconds."""
    watch = Convergence("web")
    asked = service({"Replicated": {"Replicas": 2}})
    step = watch.observe(View(asked, [], NODES), 0)
    assert texts(step.lines) == ["overall progress: 0 out of 2 tasks", "1/2:", "2/2:"]
    one = [task(1, "running"), task(2, "preparing")]
    step = watch.observe(View(asked, one, NODES), 1)
    assert step.lines[0].text == "1 out of 2 tasks"
    assert step.lines[2].text.startswith("preparing [")
    both = [task(1, "running"), task(2, "running")]
    step = watch.observe(View(asked, both, NODES), 2)
    assert step.lines[-1].text == "Waiting 6 seconds to verify that tasks are stable..."
    assert not watch.observe(View(asked, both, NODES), 6.9).is_done
    step = watch.observe(View(asked, both, NODES), 7)
    assert step.is_done
    assert texts(step.lines) == ["verify: Service web converged"]


def test_a_failure_while_verifying_starts_the_wait_again() -> None:
    """The monitoring period counts from the last time that all tasks ran."""
    watch = Convergence("web")
    asked = service({"Replicated": {"Replicas": 1}})
    watch.observe(View(asked, [task(1, "running")], NODES), 0)
    failed = [task(1, "failed", "shutdown"), task(1, "preparing")]
    step = watch.observe(View(asked, failed, NODES), 4)
    assert "verify: Detected task failure" in texts(step.lines)
    assert not watch.is_converged
    watch.observe(View(asked, [task(1, "running")], NODES), 5)
    assert not watch.observe(View(asked, [task(1, "running")], NODES), 9.9).is_done
    assert watch.observe(View(asked, [task(1, "running")], NODES), 10).is_done


def test_errors_of_tasks_are_shown() -> None:
    """A task that cannot be placed says why on its line."""
    watch = Convergence("web")
    pending = task(1, "pending", error="no suitable node\n(x)" + "y" * 80)
    asked = service({"Replicated": {"Replicas": 1}})
    line = watch.observe(View(asked, [pending], NODES), 0).lines[1]
    assert line.text.startswith("no suitable node (x)")
    assert line.text.endswith("…")
    assert len(line.text) == 75


def test_many_replicas_show_one_line() -> None:
    """Above twenty tasks there are no lines of their own."""
    watch = Convergence("web")
    asked = service({"Replicated": {"Replicas": 21}})
    assert len(watch.observe(View(asked, [], NODES), 0).lines) == 1


def test_a_global_service_waits_for_its_tasks() -> None:
    """How many nodes are eligible is known from the tasks alone."""
    watch = Convergence("g")
    asked = service({"Global": {}})
    step = watch.observe(View(asked, [], NODES), 0)
    assert texts(step.lines) == ["overall progress: waiting for new tasks"]
    tasks = [task(0, "running", NodeID="n1"), task(0, "starting", NodeID="n2", ID="b")]
    step = watch.observe(View(asked, tasks, NODES), 1)
    assert step.lines[0].text == "1 out of 2 tasks"


def test_a_job_ends_when_all_is_done() -> None:
    """A job's watch needs no monitoring."""
    watch = Convergence("job")
    asked = service({"ReplicatedJob": {"TotalCompletions": 2}}, JobStatus={})
    done = [task(1, "complete", "complete"), task(2, "complete", "complete")]
    step = watch.observe(View(asked, done[:1], NODES), 0)
    assert step.lines[0].text == "1 out of 2 tasks"
    step = watch.observe(View(asked, done, NODES), 1)
    assert step.is_done
    assert step.lines[-1] == Line("", "job complete")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("paused", "service update paused: why"),
        ("rollback_paused", "service rollback paused: why"),
    ],
)
def test_a_paused_update_ends_the_watch(state: str, message: str) -> None:
    """Somebody must decide, so the command fails."""
    watch = Convergence("web")
    asked = service({"Replicated": {"Replicas": 1}}, {"State": state, "Message": "why"})
    with pytest.raises(UpdateStoppedError, match=message):
        watch.observe(View(asked, [], NODES), 0)


def test_a_rollback_is_told() -> None:
    """While rolling back the overall line says so, and the end says why."""
    watch = Convergence("web")
    mode = {"Replicated": {"Replicas": 1}}
    started = service(mode, {"State": "rollback_started", "Message": "update failed"})
    step = watch.observe(View(started, [], NODES), 0)
    assert texts(step.lines)[:2] == [
        "rollback: update failed",
        "overall progress: rolling back update: 0 out of 1 tasks",
    ]
    ended = service(mode, {"State": "rollback_completed", "Message": "rollback completed"})
    running = [task(1, "running")]
    watch.observe(View(ended, running, NODES), 1)
    step = watch.observe(View(ended, running, NODES), 6)
    assert texts(step.lines) == ["verify: Service web converged", "rollback: rollback completed"]


def test_tasks_on_dead_nodes_do_not_count() -> None:
    """A task that runs on a node that is down is waited for elsewhere."""
    tasks = [task(1, "running", NodeID="dead"), task(1, "preparing")]
    chosen = latest_by(tasks, "Slot", NODES, 9)
    assert chosen[1]["Status"]["State"] == "preparing"


def test_lines_replace_each_other_on_a_terminal() -> None:
    """The cursor goes up to a line's place and back."""
    display = ProgressDisplay(is_terminal=True)
    assert display.show(Line("a", "1")) == "\x1b[2K\ra: 1\n"
    assert display.show(Line("b", "1")) == "\x1b[2K\rb: 1\n"
    assert display.show(Line("a", "2")) == "\x1b[2A\x1b[2K\ra: 2\x1b[2B\r"


def test_a_log_file_gets_each_line_once() -> None:
    """Elsewhere than on a terminal nothing is repeated and no bar is drawn."""
    display = ProgressDisplay(is_terminal=False)
    shown = [Line("a", "1"), Line("a", "1"), Line("a", "2"), Line("b", "[=>]", is_bar=True)]
    shown += [Line("c", " "), Line("", "end")]
    assert "".join(map(display.show, shown)) == "a: 1\na: 2\nend\n"

"""What a terminal would obey never gets to one, whoever sent it."""

from __future__ import annotations

import io
import json

import pytest

from manager.cli.convergence import Line
from manager.cli.format_node import VIEW, node_rows
from manager.cli.logstream import task_prefix
from manager.cli.main import run
from manager.cli.program import Console
from manager.cli.progress import ProgressDisplay
from manager.cli.views import inspect, render

ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e"


class Terminal(io.StringIO):
    """A terminal that keeps what it gets."""

    def isatty(self) -> bool:
        """Say that a person watches."""
        return True


def is_harmless(text: str) -> bool:
    """Tell whether a terminal obeys nothing of a text but ends of lines."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("form", ["", "json", "{{.Hostname}}", "{{json .Hostname}}", "{{json .}}"])
def test_a_list(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nodes, in every form that `--format` knows."""
    node = {
        "ID": "x",
        "Description": {"Hostname": ESCAPE},
        "Status": {"State": ESCAPE},
        "Spec": {"Availability": "active"},
    }
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    Console().write(render(VIEW, node_rows([node], {}), form))

    assert is_harmless(terminal.getvalue())
    assert "owned" in terminal.getvalue()


@pytest.mark.parametrize("form", ["", "json", "{{.Message}}", "{{json .}}"])
def test_an_inspection(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON stays JSON of the same value."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    Console().write(inspect([{"Message": ESCAPE}], form, {"Message": ""}))

    shown = terminal.getvalue()
    assert is_harmless(shown)
    if not form:
        assert json.loads(shown) == [{"Message": ESCAPE}]


def test_errors_warnings_progress_and_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences of the daemon, names of nodes before lines of output."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    Console().warn(f"one\n{ESCAPE}")
    assert run(["no-such-command" + ESCAPE]) != 0
    assert is_harmless(terminal.getvalue())
    assert is_harmless(task_prefix("web", 1, "t", ESCAPE, padding=1))
    assert is_harmless(ProgressDisplay(is_terminal=False).show(Line(ESCAPE, ESCAPE)))

"""Tables, templates over rows, shapes."""

from __future__ import annotations

import pytest

from manager.cli import shapes
from manager.cli.format_service import natural_key, published
from manager.cli.tables import capitalised, ellipsis, layout
from manager.cli.views import View, inspect, render
from proto.errors import InvalidError

VIEW = View({"ID": "ID", "Name": "NAME", "_Hidden": "X"}, ("ID", "Name"), (("id", "ID"),))
ROWS = [{"ID": "a", "Name": "<one>", "_Hidden": "h"}]


def test_columns_are_at_least_ten_wide_and_three_apart() -> None:
    """Docker's layout; the last column is not padded."""
    assert layout([["ID", "NAME"], ["123456789", "x"]]) == "ID          NAME\n123456789   x\n"
    assert layout([["a", "b"]]) == "a         b\n"
    assert layout([["日本語日本語", "b"], ["abc", "b"]]).splitlines()[1] == "abc            b"


def test_ellipsis_counts_columns() -> None:
    """A cut text has at most the width, the mark included."""
    assert ellipsis("short", 5) == "short"
    assert ellipsis("longer", 5) == "long…"
    assert ellipsis("日本語", 5) == "日本…"


def test_states_are_capitalised() -> None:
    """As Docker shows them."""
    assert capitalised("rEADY") == "Ready"
    assert capitalised("") == ""


def test_natural_order() -> None:
    """Numbers in names count as numbers."""
    names = ["web10", "web2", "1a", "web", "a1b2", "a1b10"]
    assert sorted(names, key=natural_key) == ["1a", "a1b2", "a1b10", "web", "web2", "web10"]


def port(outer: int, inner: int, protocol: str = "tcp", mode: str = "ingress") -> dict[str, object]:
    """Make a port."""
    return {
        "PublishedPort": outer,
        "TargetPort": inner,
        "Protocol": protocol,
        "PublishMode": mode,
    }


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([], ""),
        ([port(80, 80)], "*:80->80/tcp"),
        ([port(81, 81), port(80, 80)], "*:80-81->80-81/tcp"),
        ([port(80, 80), port(81, 80)], "*:80-81->80/tcp"),
        ([port(80, 80), port(81, 81), port(82, 80)], "*:80-81->80-81/tcp, *:82->80/tcp"),
        ([port(80, 80), port(82, 82)], "*:80->80/tcp, *:82->82/tcp"),
        ([port(80, 80), port(80, 80, "udp")], "*:80->80/tcp, *:80->80/udp"),
        ([port(80, 80, mode="host")], ""),
    ],
)
def test_neighbouring_ports_are_joined(ports: list[dict[str, object]], expected: str) -> None:
    """Ranges on both sides, or many to one."""
    assert expected == published(ports)


def test_rows_by_format() -> None:
    """Every form of --format."""
    assert render(VIEW, ROWS) == "ID        NAME\na         <one>\n"
    assert render(VIEW, ROWS, quiet=True) == "a\n"
    assert render(VIEW, ROWS, "json") == '{"ID":"a","Name":"\\u003cone\\u003e"}\n'
    assert render(VIEW, ROWS, "raw") == "id: a\n\n"
    assert render(VIEW, ROWS, "{{.Name}}", quiet=True) == "<one>\n"
    assert render(VIEW, ROWS, "{{json .Name}}") == '"<one>"\n'
    assert render(VIEW, ROWS, r"table {{.Name}}\t{{upper .ID}}") == "NAME      ID\n<one>     A\n"
    for wrong in ("{{._Hidden}}", "{{.Nope}}", "{{"):
        with pytest.raises(InvalidError, match="template parsing error"):
            render(VIEW, ROWS, wrong)


def test_shapes_give_zero_values() -> None:
    """Fields that the Engine leaves out are there for templates, and only for them."""
    service = {"ID": "s", "Spec": {"Name": "web", "TaskTemplate": {}}}

    def shown(template: str) -> str:
        return inspect([service], template, shapes.SERVICE)

    assert shown("{{.Spec.Labels}}") == "map[]\n"
    assert shown("{{range .Endpoint.Ports}}x{{end}}") == "\n"
    assert shown("{{if .UpdateStatus}}yes{{else}}no{{end}}") == "no\n"
    assert shown("{{json .Spec}}") == '{"Name":"web","TaskTemplate":{}}\n'
    assert shown("{{json .Endpoint.Ports}}") == "null\n"
    assert shown('{{index .Spec.Labels "x"}}') == "\n"
    with pytest.raises(InvalidError, match="nil pointer evaluating"):
        shown("{{.Spec.TaskTemplate.ContainerSpec.Image}}")


def test_inspect_forms() -> None:
    """JSON indented by four, compact, and nothing found."""
    assert inspect([{"a": 1}], "", {}) == '[\n    {\n        "a": 1\n    }\n]\n'
    assert inspect([{"a": 1}], "json", {}) == '[{"a":1}]\n'
    assert inspect([], "", {}) == "[]\n"

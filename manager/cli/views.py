"""Lists of objects as a table, JSON, or by a Go template (`--format`).

Pure. A `View` names the columns; rows are mappings from a field to its text. The default table
needs no template engine, which is imported only when a template was given: it costs more time than
the rest of a list command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from manager.cli.tables import layout
from proto.errors import InvalidError
from proto.text import printable_json

if TYPE_CHECKING:
    from proto.gotemplate import Template

Row: TypeAlias = Mapping[str, object]


class View(NamedTuple):
    """How a kind of object is listed.

    Attributes:
        headers: each field's column header; a field that starts with `_` is for the default table
            only, and neither in JSON nor for templates.
        columns: the fields of the default table.
        raw: the lines of `--format raw`, as (label, field).
        raw_quiet: the label of `--format raw -q`.
    """

    headers: Mapping[str, str]
    columns: tuple[str, ...]
    raw: tuple[tuple[str, str], ...] = ()
    raw_quiet: str = "id"


def render(view: View, rows: Sequence[Row], form: str = "", *, quiet: bool = False) -> str:
    """Write rows as `--format` asks.

    Args:
        view: the columns.
        rows: in the order in which they are shown.
        form: "", "table", "json", "raw", "table TEMPLATE" or a template.
        quiet: only the IDs, when no other form was asked for.

    Raises:
        InvalidError: the template is wrong.
    """
    if form in {"", "table"}:
        if quiet:
            return "".join(f"{row['ID']}\n" for row in rows)
        lines = [[view.headers[field] for field in view.columns]]
        lines += [[str(row[field]) for field in view.columns] for row in rows]
        return layout(lines)
    if form == "json":
        return "".join(row_json(row) + "\n" for row in rows)
    if form == "raw" and view.raw:
        if quiet:
            return "".join(f"{view.raw_quiet}: {row['ID']}\n" for row in rows)
        return "".join(
            "".join(f"{label}: {row[field]}\n" for label, field in view.raw) + "\n" for row in rows
        )
    return _by_template(view, rows, form)


def row_json(row: Row) -> str:
    """Write a row as Docker does: fields sorted, `<`, `>` and `&` escaped."""
    import json  # noqa: PLC0415 -- already loaded by the transport, but not by every command

    shown = {field: row[field] for field in sorted(row) if not field.startswith("_")}
    text = printable_json(json.dumps(shown, ensure_ascii=False, separators=(",", ":")))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _by_template(view: View, rows: Sequence[Row], form: str) -> str:
    from proto.gotemplate import Function, Struct  # noqa: PLC0415 -- only with --format

    is_table = form.startswith("table")
    source = form.removeprefix("table") if is_table else form
    source = source.strip(" ").replace("\\t", "\t").replace("\\n", "\n")
    functions = {"json": Function(_json_in_row, 1, 1)}
    template = parse_template(source, functions)
    lines = [_apply(template, Struct(_public(row))) for row in rows]
    if not is_table:
        return "".join(line + "\n" for line in lines)
    same = {
        name: Function(lambda value, *_rest: value, 1, None)
        for name in ("json", "lower", "upper", "title", "split", "join", "truncate", "pad")
    }
    header = _apply(parse_template(source, same), Struct(_public(view.headers)))
    return layout([line.split("\t") for text in [header, *lines] for line in text.split("\n")])


def _json_in_row(value: object) -> str:
    """Write the row itself with Docker's escapes, a field of it without."""
    return row_json(value) if isinstance(value, Mapping) else json_of(value)


def json_of(value: object) -> str:
    """Write one value as the `json` function does."""
    from proto.goformat import format_json  # noqa: PLC0415 -- only with --format

    return printable_json(format_json(value))


def _public(row: Row) -> Iterable[tuple[str, object]]:
    return ((field, value) for field, value in row.items() if not field.startswith("_"))


def parse_template(source: str, functions: Mapping[str, object] | None = None) -> Template:
    """Parse a template, with Docker's words when it is wrong."""
    from proto.gotemplate import TemplateError, parse  # noqa: PLC0415 -- only with --format

    try:
        return parse(source, functions=functions)  # type: ignore[arg-type] # made above or None
    except TemplateError as error:
        raise InvalidError(f"template parsing error: {error.message}") from error


def _apply(template: Template, data: object) -> str:
    from proto.gotemplate import TemplateError  # noqa: PLC0415 -- only with --format

    try:
        return template.render(data)
    except TemplateError as error:
        raise InvalidError(f"template parsing error: {error.message}") from error


def inspect(objects: Sequence[object], form: str, shape: Mapping[str, object]) -> str:
    """Write objects as `inspect` does: indented JSON, or each by a template.

    Args:
        objects: as the Engine gave them.
        form: "", "json" or a template.
        shape: the fields that a template finds even where the Engine left them out, see
            `manager.cli.shapes`.

    Raises:
        InvalidError: the template is wrong.
    """
    import json  # noqa: PLC0415 -- see row_json

    if form == "json":
        text = json.dumps(objects, ensure_ascii=False, separators=(",", ":"))
        return printable_json(text) + "\n"
    if not form:
        text = json.dumps(objects, ensure_ascii=False, indent=4) if objects else "[]"
        return printable_json(text) + "\n"
    from manager.cli.shapes import original, shaped  # noqa: PLC0415 -- only with --format
    from proto.gotemplate import Function  # noqa: PLC0415 -- only with --format

    functions = {"json": Function(lambda value: json_of(original(value)), 1, 1)}
    template = parse_template(form, functions)
    return "".join(_apply(template, shaped(item, shape)) + "\n" for item in objects) or "\n"

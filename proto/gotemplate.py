"""Go text/template, the part that Docker's users type.

What `--format '{{.Name}}'` and the templates of services (`{{.Task.Slot}}`) and configs need: field
chains, variables, pipelines, `if`/`with`/`range` with `else`, `break`, `continue`, comments, trim
markers, Go's comparison and printing functions and Docker's (`json`, `split`, `join`, `title`,
`upper`, `lower`, `pad`, `truncate`). Not `define`, `template`, `block`, nor methods.

Pure, and safe on a template from a stranger: it reads only mappings, sequences and what the
caller's `lookup` gives out, never Python attributes; output, the size of any string in between,
steps and nesting are bounded. Everything that goes wrong is a `TemplateError` with line and column.

    parse("{{.Service.Name}}.{{.Task.Slot}}").render({"Service": {...}, "Task": {...}})

One departure from Go: integers and floats compare with each other, because JSON does not tell them
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from proto import gotemplate_syntax as syntax
from proto.goformat import Struct, format_value, type_name
from proto.gotemplate_functions import (
    BUILTINS,
    CHARACTERS_MAX,
    MISSING,
    ArgumentError,
    Function,
    is_true,
)
from proto.gotemplate_syntax import TemplateError

__all__ = [
    "BUILTINS",
    "MISSING",
    "SERVICE_STEPS_MAX",
    "ArgumentError",
    "Budget",
    "Function",
    "Struct",
    "Template",
    "TemplateError",
    "expand",
    "parse",
]

STEPS_MAX = 200_000
"""Of one rendering, if nothing else is said: about a second."""

SERVICE_STEPS_MAX = 20_000
"""For all templates of one service together: they are expanded where others wait."""

_CHARACTERS_PER_STEP = 32
"""How much of strings a function takes in or makes in the time of a step."""


Lookup: TypeAlias = Callable[[object, str], object]
"""Answers a field of an object that is neither mapping nor sequence, or `MISSING`."""


class Budget:
    """What renderings may cost, in steps, however many of them share it."""

    def __init__(self, steps_max: int = STEPS_MAX) -> None:
        """Have all of it."""
        self.steps_max = steps_max
        self._left = steps_max

    def spend(self, steps: int) -> bool:
        """Take steps; tell whether there were so many left."""
        self._left -= steps
        return self._left >= 0


class Template:
    """A parsed template; make it with `parse`."""

    def __init__(
        self,
        source: str,
        name: str,
        nodes: tuple[syntax.Node, ...],
        functions: Mapping[str, Function],
    ) -> None:
        self._source = source
        self._name = name
        self._nodes = nodes
        self._functions = functions

    def render(
        self,
        data: object,
        *,
        lookup: Lookup | None = None,
        missing_is_error: bool = True,
        output_max: int = CHARACTERS_MAX,
        budget: Budget | None = None,
    ) -> str:
        """Evaluate with `data` as dot.

        Args:
            data: the values; a `Struct` is a mapping with fixed fields.
            lookup: answers the fields of other objects.
            missing_is_error: a mapping's missing key is an error; else it prints `<no value>`.
            output_max: the longest output, in characters.
            budget: what this may cost; None gives it one of its own.

        Raises:
            TemplateError: with line and column.
        """
        run = _Run(self._source, self._name, self._functions, lookup, output_max)
        if budget is not None:
            run.budget = budget
        run.missing_is_error = missing_is_error
        run.variables[""] = [data]
        try:
            run.nodes(self._nodes, data)
        except RecursionError:
            raise run.error("data is nested too deeply", 0, 0) from None
        return "".join(run.output)


def expand(source: str, data: object, budget: Budget) -> str:
    """Expand a value of a service; a missing key prints `<no value>`.

    Args:
        source: the value; one without an action is returned as it is.
        data: as for `Template.render`.
        budget: what it may cost, shared with the other values of the service. Reading an action
            costs a step for each of its characters.

    Raises:
        TemplateError: it is no template, names a field that there is not, or costs too much.
    """
    if "{{" not in source:
        return source
    actions = sum(len(part.partition("}}")[0]) for part in source.split("{{")[1:])
    if not budget.spend(actions):
        raise TemplateError(
            f"the templates of one service may take {budget.steps_max} steps together, "
            "and reading them takes more",
            1,
            1,
        )
    return parse(source).render(data, missing_is_error=False, budget=budget)


def parse(
    source: str, *, name: str = "", functions: Mapping[str, Function] | None = None
) -> Template:
    """Parse a template.

    Args:
        source: its text.
        name: appears in errors.
        functions: more functions, or others in place of `BUILTINS`' ones.

    Raises:
        TemplateError: with the line.
    """
    known = {**BUILTINS, **(functions or {})}
    return Template(source, name, syntax.parse_tree(source, name, known), known)


class _BreakSignal(Exception):  # noqa: N818 -- control flow, not an error
    """`{{break}}`."""


class _ContinueSignal(Exception):  # noqa: N818 -- control flow, not an error
    """`{{continue}}`."""


class _Run:
    """One evaluation: its output, variables and remaining steps."""

    def __init__(
        self,
        source: str,
        name: str,
        functions: Mapping[str, Function],
        lookup: Lookup | None,
        output_max: int,
    ) -> None:
        self._source = source
        self._name = name
        self._functions = functions
        self._lookup = lookup
        self._room = output_max
        self._characters_max = output_max
        self.budget = Budget()
        self.missing_is_error = True
        self.output: list[str] = []
        # Each name has a stack: an inner declaration hides the outer one until its block ends.
        self.variables: dict[str, list[object]] = {}

    def error(self, message: str, at: int, end: int, pointer: int | None = None) -> TemplateError:
        line, column = syntax.position(self._source, at if pointer is None else pointer)
        snippet = self._source[at:end] or "template"
        where = f'template: {self._name}:{line}:{column}: executing "{self._name}" at <{snippet}>'
        return TemplateError(f"{where}: {message}", line, column)

    def _step(self, at: int, steps: int = 1) -> None:
        if not self.budget.spend(steps):
            raise self.error(f"it takes more than {self.budget.steps_max} steps", at, at)

    def _write(self, text: str, at: int) -> None:
        self._room -= len(text)
        if self._room < 0:
            raise self.error(f"the output exceeds {self._characters_max} characters", at, at)
        self.output.append(text)

    def nodes(self, nodes: Sequence[syntax.Node], dot: object) -> None:
        declared: list[str] = []
        try:
            for node in nodes:
                self._node(node, dot, declared)
        finally:
            for name in declared:
                self.variables[name].pop()

    def _node(self, node: syntax.Node, dot: object, declared: list[str]) -> None:
        match node:
            case syntax.Text(text):
                self._step(0)
                self._write(text, 0)
            case syntax.Action(pipeline):
                value = self._pipeline(pipeline, dot)
                if pipeline.variables:
                    self._bind(pipeline, [value], declared)
                else:
                    none = value is None or value is MISSING
                    self._write("<no value>" if none else format_value(value), pipeline.at)
            case syntax.Branch("range"):
                self._range(node, dot)
            case syntax.Branch():
                self._branch(node, dot)
            case syntax.Jump("break"):
                raise _BreakSignal
            case syntax.Jump():
                raise _ContinueSignal

    def _bind(self, pipeline: syntax.Pipeline, values: list[object], declared: list[str]) -> None:
        for name, value in zip(pipeline.variables, values, strict=True):
            stack = self.variables.setdefault(name, [])
            if pipeline.is_declaration:
                stack.append(value)
                declared.append(name)
            else:
                stack[-1] = value

    def _branch(self, node: syntax.Branch, dot: object) -> None:
        declared: list[str] = []
        value = self._pipeline(node.pipeline, dot)
        if node.pipeline.variables:
            self._bind(node.pipeline, [value], declared)
        try:
            if is_true(value):
                self.nodes(node.body, value if node.keyword == "with" else dot)
            else:
                self.nodes(node.otherwise, dot)
        finally:
            for name in declared:
                self.variables[name].pop()

    def _range(self, node: syntax.Branch, dot: object) -> None:
        value = self._pipeline(node.pipeline, dot)
        empty = True
        for key, item in self._items(value, node.pipeline):
            empty = False
            self._step(node.pipeline.at)
            declared: list[str] = []
            if node.pipeline.variables:
                pair = [key, item] if len(node.pipeline.variables) > 1 else [item]
                self._bind(node.pipeline, pair, declared)
            try:
                self.nodes(node.body, item)
            except _ContinueSignal:
                continue
            except _BreakSignal:
                break
            finally:
                for name in declared:
                    self.variables[name].pop()
        if empty:
            self.nodes(node.otherwise, dot)

    def _items(self, value: object, pipeline: syntax.Pipeline) -> Iterator[tuple[object, object]]:
        if isinstance(value, Mapping) and not isinstance(value, Struct):
            yield from sorted(value.items(), key=lambda pair: str(pair[0]))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from enumerate(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield from ((number, number) for number in range(value))
        elif value is not None and value is not MISSING:
            end = self._source.find("}}", pipeline.at)
            message = f"range can't iterate over {format_value(value)}"
            raise self.error(message, pipeline.at, end)

    def _pipeline(self, pipeline: syntax.Pipeline, dot: object) -> object:
        value: object = MISSING
        for index, command in enumerate(pipeline.commands):
            value = self._command(command, dot, (value,) if index else ())
        return value

    def _command(self, command: syntax.Command, dot: object, piped: tuple[object, ...]) -> object:
        self._step(command.at)
        first = command.operands[0]
        if isinstance(first, syntax.Function):
            return self._call(first, command.operands[1:], dot, piped)
        if piped:
            raise self.error("can't give argument to non-function", command.at, self._end(first))
        return self._operand(first, dot)

    def _end(self, operand: syntax.Operand) -> int:
        """Find where an operand ends in the source, for the `<...>` of an error."""
        match operand:
            case syntax.Field():
                return self._end(operand.operand) + 1 + len(operand.name)
            case syntax.Dot():
                # The dot of `.Name` is the same character as the one before the name.
                bare = self._source[operand.at + 1 : operand.at + 2]
                return operand.at + (0 if bare.isidentifier() else 1)
            case syntax.Variable(name, at) | syntax.Function(name, at):
                return at + len(name) + isinstance(operand, syntax.Variable)
            case _:
                return self._source.find("}}", operand.at)

    def _operand(self, operand: syntax.Operand, dot: object) -> object:
        match operand:
            case syntax.Literal(value):
                return value
            case syntax.Dot():
                return dot
            case syntax.Variable(name):
                return self.variables[name][-1]
            case syntax.Field():
                return self._field(operand, dot)
            case syntax.Function():
                return self._call(operand, (), dot, ())
            case syntax.Pipeline():
                return self._pipeline(operand, dot)

    def _field(self, node: syntax.Field, dot: object) -> object:
        base = self._operand(node.operand, dot)
        name = node.name
        if isinstance(base, Mapping) and name in base:
            return base[name]
        if isinstance(base, Mapping) and not isinstance(base, Struct):
            if not self.missing_is_error:
                return MISSING
            message = f'map has no entry for key "{name}"'
        elif base is None or base is MISSING:
            message = f"nil pointer evaluating interface {{}}.{name}"
        else:
            found = MISSING if self._lookup is None else self._lookup(base, name)
            if found is not MISSING:
                return found
            message = f"can't evaluate field {name} in type {type_name(base)}"
        raise self.error(message, node.at, self._end(node), self._pointer(node))

    def _pointer(self, node: syntax.Field) -> int:
        """Find the offset that Go names for a chain of fields: its second name, if any."""
        match node.operand:
            case syntax.Field(syntax.Dot() | syntax.Variable()) as first:
                second = isinstance(first.operand, syntax.Dot)
                return self._end(first) if second else node.at
            case syntax.Field() as inner:
                return self._pointer(inner)
            case _:
                return node.at

    def _call(
        self,
        function: syntax.Function,
        operands: tuple[syntax.Operand, ...],
        dot: object,
        piped: tuple[object, ...],
    ) -> object:
        name = function.name
        definition = self._functions[name]
        count = len(operands) + len(piped)
        end = function.at + len(name)
        if count < definition.least or (definition.most is not None and count > definition.most):
            want = definition.least if count < definition.least else definition.most
            bound = "at least " if definition.most is None else ""
            message = f"wrong number of args for {name}: want {bound}{want} got {count}"
            raise self.error(message, function.at, end)
        if name in {"and", "or"} and definition is BUILTINS[name]:
            return self._short_circuit(name, operands, dot, piped)
        arguments = [self._operand(operand, dot) for operand in operands]
        arguments += piped
        self._step(function.at, _cost(arguments))
        try:
            value = definition.call(*(None if item is MISSING else item for item in arguments))
        except ValueError as error:
            raise self.error(f"error calling {name}: {error}", function.at, end) from error
        self._step(function.at, _cost([value]))
        if isinstance(value, str) and len(value) > self._characters_max:
            message = f"{name} makes more than {self._characters_max} characters"
            raise self.error(message, function.at, end)
        return value

    def _short_circuit(
        self,
        name: str,
        operands: tuple[syntax.Operand, ...],
        dot: object,
        piped: tuple[object, ...],
    ) -> object:
        value: object = MISSING
        for operand in operands:
            value = self._operand(operand, dot)
            if is_true(value) == (name == "or"):
                return value
        return piped[0] if piped else value


def _cost(values: Sequence[object]) -> int:
    """Return how many steps it takes to look at values whole: strings, and items of lists."""
    return sum(
        len(value) // _CHARACTERS_PER_STEP
        for value in values
        if isinstance(value, str | Sequence | Mapping)
    )

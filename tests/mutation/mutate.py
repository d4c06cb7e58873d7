"""Makes mutants of a module: its source with one small mistake each. Pure.

A mutant is a change that a person could make by error: another comparison, a number that is one
too large, a condition that always or never holds, a statement left out. If no test fails with it,
either nobody looks at that place, or the mutant means the same as the original.

Left as they are: docstrings and other text, annotations, decorators, assertions (they are checks
themselves), and what an exception says.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(msgspec.Struct, frozen=True):
    """One mistake in a module.

    Attributes:
        key: names the mistake by place and text, so that it keeps its name when lines move:
            "module function: before -> after", with a number where that occurs more than once.
        line: of the original.
        number: its place among all mutants of the module.
    """

    key: str
    line: int
    number: int


class _Point(msgspec.Struct, frozen=True):
    """A place of a tree that can be changed.

    Attributes:
        scope: the names of the classes and functions around it, joined by dots.
        line: of the original.
        shown: the part of the tree that is unparsed to show the change.
        apply: changes the tree, and returns what changes it back.
    """

    scope: str
    line: int
    shown: ast.AST
    apply: Callable[[], Callable[[], None]]


def mutants_of(source: str, module: str) -> list[Mutant]:
    """Return every mutant of a module's source, in the order of the source."""
    made: list[Mutant] = []
    seen: Counter[str] = Counter()
    for number, point in enumerate(list(_points(ast.parse(source)))):
        before = _text(point.shown)
        undo = point.apply()
        key = f"{module} {point.scope}: {before} -> {_text(point.shown)}"
        undo()
        seen[key] += 1
        if seen[key] > 1:
            key = f"{key} #{seen[key]}"
        made.append(Mutant(key, point.line, number))
    return made


def source_of(source: str, number: int) -> str:
    """Return the source with the mistake that has this number."""
    tree = ast.parse(source)
    list(_points(tree))[number].apply()
    return ast.unparse(ast.fix_missing_locations(tree))


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _points(tree: ast.Module) -> Iterator[_Point]:
    yield from _block(tree.body, "")


def _block(body: list[ast.stmt], scope: str) -> Iterator[_Point]:
    for place, statement in enumerate(body):
        yield from _statement(body, place, statement, scope)


def _statement(
    body: list[ast.stmt], place: int, statement: ast.stmt, scope: str
) -> Iterator[_Point]:
    match statement:
        case ast.FunctionDef(name=name, body=inner) | ast.ClassDef(name=name, body=inner):
            yield from _block(inner, f"{scope}.{name}" if scope else name)
            return
        case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Match():
            pass
        case ast.Raise():
            yield _removal(body, place, scope)
        case ast.If() | ast.While():
            yield from _condition(statement, scope)
            yield from _expressions(statement.test, scope, statement.test)
        case ast.For():
            yield from _expressions(statement.iter, scope, statement.iter)
        case _ if scope and not _is_docstring(statement):
            if not _is_definition(statement):
                yield _removal(body, place, scope)
            yield from _expressions(statement, scope, statement)
        case _:
            pass
    for inner in _blocks_in(statement):
        yield from _block(inner, scope)


def _blocks_in(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    if isinstance(statement, ast.Match):
        for case in statement.cases:
            yield case.body
    for name in ("body", "orelse", "finalbody"):
        inner = getattr(statement, name, None)
        if isinstance(inner, list) and inner and isinstance(inner[0], ast.stmt):
            yield inner


def _is_docstring(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.AnnAssign(value=None):
            return True
        case ast.Assign(targets=[ast.Name(id="__slots__")]):
            return True
        case _:
            return False


def _is_definition(statement: ast.stmt) -> bool:
    """Tell whether without this statement a name would be missing, which any test shows."""
    match statement:
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
            return isinstance(target, ast.Name | ast.Tuple)
        case _:
            return False


def _removal(body: list[ast.stmt], place: int, scope: str) -> _Point:
    # What is shown is a holder of the statement, since the statement itself is replaced.
    holder = ast.Module(body=[body[place]], type_ignores=[])

    def put(statement: ast.stmt) -> None:
        body[place] = holder.body[0] = statement

    def apply() -> Callable[[], None]:
        old = body[place]
        put(ast.copy_location(ast.Pass(), old))
        return lambda: put(old)

    return _Point(scope, body[place].lineno, holder, apply)


def _condition(statement: ast.If | ast.While, scope: str) -> Iterator[_Point]:
    for value in (True, False):
        if isinstance(statement, ast.While) and value:
            continue  # never ends

        yield _always(statement, scope, value=value)


def _always(statement: ast.If | ast.While, scope: str, *, value: bool) -> _Point:
    holder = ast.Expr(value=statement.test)

    def put(test: ast.expr) -> None:
        holder.value = statement.test = test

    def apply() -> Callable[[], None]:
        old = statement.test
        put(ast.copy_location(ast.Constant(value), old))
        return lambda: put(old)

    return _Point(scope, statement.lineno, holder, apply)


def _expressions(root: ast.AST, scope: str, shown: ast.AST) -> Iterator[_Point]:
    for node, parent, name, place in list(_walk(root)):
        for replace in _changes(node):
            yield _in_expression(node, (parent, name, place), replace, scope, shown)


def _in_expression(
    node: ast.AST,
    where: tuple[ast.AST | None, str, int | None],
    replace: Callable[[ast.AST], ast.AST],
    scope: str,
    shown: ast.AST,
) -> _Point:
    holder = ast.Expr(value=shown) if isinstance(shown, ast.expr) else shown
    parent, name, place = where

    def put(new: ast.AST) -> None:
        if parent is None:
            # The root itself cannot be exchanged from here, so it takes the other's content.
            _become(node, new)
        elif place is None:
            setattr(parent, name, new)
        else:
            getattr(parent, name)[place] = new

    def apply() -> Callable[[], None]:
        old = copy.copy(node) if parent is None else node
        put(ast.copy_location(replace(old), node))
        return lambda: put(old)

    return _Point(scope, getattr(node, "lineno", 0), holder, apply)


def _become(node: ast.AST, other: ast.AST) -> None:
    fields = dict(other.__dict__)
    node.__class__ = other.__class__
    node.__dict__.clear()
    node.__dict__.update(fields)


def _walk(root: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None, str, int | None]]:
    """Yield the nodes of an expression with where they hang; not what is left as it is."""
    todo: list[tuple[ast.AST, ast.AST | None, str, int | None]] = [(root, None, "", None)]
    while todo:
        node, parent, name, place = todo.pop()
        yield node, parent, name, place
        children: list[tuple[ast.AST, ast.AST | None, str, int | None]] = []
        for field, value in ast.iter_fields(node):
            if field == "annotation":
                continue
            if isinstance(value, ast.expr | ast.comprehension | ast.keyword):
                children.append((value, node, field, None))
            elif isinstance(value, list):
                children.extend(
                    (each, node, field, number)
                    for number, each in enumerate(value)
                    if isinstance(each, ast.expr | ast.comprehension | ast.keyword)
                )
        todo.extend(reversed(children))


def _changes(  # noqa: C901 -- one row a kind of mistake
    node: ast.AST,
) -> Iterator[Callable[[ast.AST], ast.AST]]:
    match node:
        case ast.Compare(ops=operations):
            for place, operation in enumerate(operations):
                yield _with_comparison(place, COMPARISONS[type(operation)])
        case ast.BoolOp(op=operation):
            yield _with_op(ast.Or if isinstance(operation, ast.And) else ast.And)
        case ast.UnaryOp(op=ast.Not()):
            yield lambda old: old.operand  # type: ignore[attr-defined]
        case ast.BinOp(op=operation) | ast.AugAssign(op=operation) if type(operation) in OPERATORS:
            yield _with_op(OPERATORS[type(operation)])
        case ast.Constant(value=bool(value)):
            yield lambda _, value=value: ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield lambda _, value=value: ast.Constant(value + 1)
            if value:
                yield lambda _, value=value: ast.Constant(value - 1)
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            yield _with_function(FUNCTIONS[name])
        case ast.IfExp():
            yield lambda old: old.body  # type: ignore[attr-defined]
            yield lambda old: old.orelse  # type: ignore[attr-defined]
        case _:
            pass


def _with_comparison(place: int, operation: type[ast.cmpop]) -> Callable[[ast.AST], ast.AST]:
    def replace(old: ast.AST) -> ast.AST:
        new = copy.copy(old)
        new.ops = [*old.ops]  # type: ignore[attr-defined]
        new.ops[place] = operation()  # type: ignore[attr-defined]
        return new

    return replace


def _with_op(operation: type[ast.AST]) -> Callable[[ast.AST], ast.AST]:
    def replace(old: ast.AST) -> ast.AST:
        new = copy.copy(old)
        new.op = operation()  # type: ignore[attr-defined]
        return new

    return replace


def _with_function(name: str) -> Callable[[ast.AST], ast.AST]:
    def replace(old: ast.AST) -> ast.AST:
        new = copy.copy(old)
        new.func = ast.copy_location(ast.Name(name, ast.Load()), old.func)  # type: ignore[attr-defined]
        return new

    return replace

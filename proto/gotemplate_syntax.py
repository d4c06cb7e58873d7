"""Lexer, parser and syntax tree for the Go text/template subset of `proto.gotemplate`.

Pure. Turns text into a tree of named tuples or raises `TemplateError` with the line; it never
evaluates. Each node keeps `at`, its offset in the text, for the errors of the evaluator. Nesting is
bounded by `DEPTH_MAX`, so neither the parser nor the evaluator can exhaust the stack.

Source: https://pkg.go.dev/text/template (the language; not `define`, `template`, `block`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container
from typing import NamedTuple, TypeAlias

from proto.errors import InvalidError

DEPTH_MAX = 50
"""How deep blocks and parentheses may nest."""


class TemplateError(InvalidError):
    """A template that cannot be parsed or evaluated.

    Attributes:
        line: the line in the template, from 1.
        column: the column in that line, from 0; None where only the line is known.
    """

    def __init__(self, message: str, line: int, column: int | None = None) -> None:
        """Keep the position beside the sentence."""
        super().__init__(message)
        self.line = line
        self.column = column


class Literal(NamedTuple):
    """A constant: string, number, boolean or nil."""

    value: object
    at: int


class Dot(NamedTuple):
    """The current value, `.`."""

    at: int


class Variable(NamedTuple):
    """A variable; `name` has no `$`, so "" is the root."""

    name: str
    at: int


class Field(NamedTuple):
    """Field access: `operand.name`."""

    operand: Operand
    name: str
    at: int


class Function(NamedTuple):
    """A function's name; a command that starts with one is a call."""

    name: str
    at: int


class Command(NamedTuple):
    """One operand, or a function with its arguments."""

    operands: tuple[Operand, ...]
    at: int


class Pipeline(NamedTuple):
    """Commands, each passing its value to the next, and the variables that keep the last value."""

    variables: tuple[str, ...]
    is_declaration: bool
    commands: tuple[Command, ...]
    at: int


class Text(NamedTuple):
    """Text that is copied."""

    text: str


class Action(NamedTuple):
    """A pipeline whose value is printed, unless it sets a variable."""

    pipeline: Pipeline


class Branch(NamedTuple):
    """`if`, `with` or `range`: `body` when the pipeline's value is not empty, else `otherwise`."""

    keyword: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


class Jump(NamedTuple):
    """`break` or `continue` of the innermost range."""

    keyword: str


Operand: TypeAlias = "Literal | Dot | Variable | Field | Function | Pipeline"
Node: TypeAlias = "Text | Action | Branch | Jump"


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


_TOKEN = re.compile(
    r"""
    (?P<close>\s+-\}\}\s*|\}\})
  | (?P<space>\s+)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<raw>`[^`]*`)
  | (?P<character>'(?:[^'\\\n]|\\.[0-9a-fA-F]*)')
  | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+
               |(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?!\w))
  | (?P<field>\.[^\W\d]\w*)
  | (?P<dot>\.)
  | (?P<variable>\$\w*)
  | (?P<word>[^\W\d]\w*)
  | (?P<punctuation>:=|=|\||,|\(|\))
    """,
    re.VERBOSE,
)
_OPEN = re.compile(r"\{\{(?P<trim>-(?=\s)\s*)?(?P<comment>/\*)?")
_COMMENT_END = re.compile(r"\*/(?P<trim>\s+-\}\}\s*|\}\})")
_CONSTANTS = {"true": True, "false": False, "nil": None}
_UNSUPPORTED = frozenset({"define", "template", "block"})


def position(source: str, at: int) -> tuple[int, int]:
    """Tell the line (from 1) and the column (from 0) of an offset."""
    start = source.rfind("\n", 0, at) + 1
    return source.count("\n", 0, at) + 1, at - start


def parse_tree(source: str, name: str, functions: Container[str]) -> tuple[Node, ...]:
    """Parse a template.

    Args:
        source: the template's text.
        name: appears in errors only.
        functions: the names that may be called.

    Raises:
        TemplateError: with the line of the mistake.
    """
    return _Parser(source, name, functions).whole()


class _Parser:
    """Recursive descent over the pieces of text and actions."""

    def __init__(self, source: str, name: str, functions: Container[str]) -> None:
        self._source = source
        self._name = name
        self._functions = functions
        self._pieces = self._split()
        self._piece = 0
        self._tokens: list[_Token] = []
        self._next = 0
        self._scopes: list[set[str]] = [{""}]
        self._depth = 0
        self._ranges = 0

    def error(self, message: str, at: int) -> TemplateError:
        line, _ = position(self._source, at)
        return TemplateError(f"template: {self._name}:{line}: {message}", line)

    # --- text and actions -------------------------------------------------------------------

    def _split(self) -> list[str | list[_Token]]:
        pieces: list[str | list[_Token]] = []
        at, trim = 0, False
        while (opened := _OPEN.search(self._source, at)) is not None:
            text = self._source[at : opened.start()]
            text = text.lstrip() if trim else text
            pieces.append(text.rstrip() if opened["trim"] is not None else text)
            if opened["comment"] is not None:
                closed = _COMMENT_END.search(self._source, opened.end())
                if closed is None:
                    raise self.error("unclosed comment", opened.start())
                at, trim = closed.end(), "-" in closed["trim"]
            else:
                tokens, at, trim = self._lex(opened.end(), opened.start())
                pieces.append(tokens)
        rest = self._source[at:]
        pieces.append(rest.lstrip() if trim else rest)
        return [piece for piece in pieces if piece != ""]

    def _lex(self, at: int, opened: int) -> tuple[list[_Token], int, bool]:
        tokens: list[_Token] = []
        while True:
            match = _TOKEN.match(self._source, at)
            if match is None:
                if at >= len(self._source):
                    raise self.error("unclosed action", opened)
                unfinished = {'"': "unterminated quoted string", "`": "unterminated raw string"}
                character = self._source[at]
                default = f"unexpected {character!r} in action"
                raise self.error(unfinished.get(character, default), at)
            kind = str(match.lastgroup)
            if kind == "close":
                tokens.append(_Token("end", "}}", at))
                spaced = match.group().lstrip().startswith("-")
                end = match.end() if spaced else match.start() + 2
                return tokens, end, spaced
            if kind != "space":
                tokens.append(_Token(kind, match.group(), at))
            at = match.end()

    def whole(self) -> tuple[Node, ...]:
        nodes, ended = self._block()
        if ended:
            raise self.error(f"unexpected {{{{{ended}}}}}", self._tokens[0].at)
        return nodes

    def _block(self) -> tuple[tuple[Node, ...], str]:
        """Parse nodes up to `else`, `end` or the end of the text; say which it was."""
        nodes: list[Node] = []
        while self._piece < len(self._pieces):
            piece = self._pieces[self._piece]
            self._piece += 1
            if isinstance(piece, str):
                nodes.append(Text(piece))
                continue
            self._tokens, self._next = piece, 0
            word = self._peek().text if self._peek().kind == "word" else ""
            if word in {"else", "end"}:
                self._next = 1
                return tuple(nodes), word
            nodes.append(self._action(word))
        return tuple(nodes), ""

    def _action(self, word: str) -> Node:
        at = self._peek().at
        if word in {"if", "with", "range"}:
            self._next = 1
            return self._branch(word, at)
        if word in {"break", "continue"}:
            if not self._ranges:
                raise self.error(f"{{{{{word}}}}} outside {{{{range}}}}", at)
            self._next = 1
            self._finish(word)
            return Jump(word)
        if word in _UNSUPPORTED:
            raise self.error(f"{{{{{word}}}}} is not supported here", at)
        pipeline = self._pipeline("command")
        self._finish("command")
        return Action(pipeline)

    def _branch(self, keyword: str, at: int) -> Branch:
        self._enter(at)
        self._scopes.append(set())
        pipeline = self._pipeline(keyword)
        self._finish(keyword)
        self._ranges += keyword == "range"
        body, ended = self._block()
        self._ranges -= keyword == "range"
        otherwise: tuple[Node, ...] = ()
        if ended == "else":
            word = self._peek().text
            if word in {"if", "with"} and self._peek().kind == "word" and keyword == word:
                inner_at = self._peek().at
                self._next += 1
                otherwise = (self._branch(word, inner_at),)
                ended = "end"
            else:
                self._finish("else")
                otherwise, ended = self._block()
                if ended == "else":
                    raise self.error("expected end; found {{else}}", self._tokens[0].at)
                self._close_end(ended, at)
        else:
            self._close_end(ended, at)
        self._scopes.pop()
        self._depth -= 1
        return Branch(keyword, pipeline, body, otherwise)

    def _close_end(self, ended: str, at: int) -> None:
        if not ended:
            raise self.error("unexpected EOF: a block has no {{end}}", at)
        self._finish("end")

    def _enter(self, at: int) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self.error(f"nested deeper than {DEPTH_MAX} levels", at)

    # --- pipelines --------------------------------------------------------------------------

    def _peek(self, ahead: int = 0) -> _Token:
        return self._tokens[min(self._next + ahead, len(self._tokens) - 1)]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _finish(self, context: str) -> None:
        token = self._peek()
        if token.kind != "end":
            raise self.error(f'unexpected "{token.text}" in {context}', token.at)

    def _variables(self, context: str) -> tuple[tuple[str, ...], bool]:
        if self._peek().kind != "variable":
            return (), False
        names = [self._peek().text[1:]]
        ahead = 1
        if context == "range" and self._peek(1).text == "," and self._peek(2).kind == "variable":
            names.append(self._peek(2).text[1:])
            ahead = 3
        operator = self._peek(ahead).text
        if operator not in {":=", "="} or self._peek(ahead).kind != "punctuation":
            return (), False
        for name in names:
            if operator == "=":
                self._check_variable(name, self._peek().at)
        self._next += ahead + 1
        return tuple(names), operator == ":="

    def _check_variable(self, name: str, at: int) -> None:
        if not any(name in scope for scope in self._scopes):
            raise self.error(f'undefined variable "${name}"', at)

    def _pipeline(self, context: str) -> Pipeline:
        at = self._peek().at
        variables, is_declaration = self._variables(context)
        commands = [self._command(context)]
        while self._peek().text == "|":
            self._take()
            commands.append(self._command(context))
        if is_declaration:
            self._scopes[-1].update(variables)
        return Pipeline(variables, is_declaration, tuple(commands), at)

    def _command(self, context: str) -> Command:
        at = self._peek().at
        operands: list[Operand] = []
        while (token := self._peek()).kind != "end" and token.text not in {"|", ")"}:
            operands.append(self._operand(context))
        if not operands:
            if self._peek().text == "|":
                raise self.error("unexpected | in operand", at)
            raise self.error(f"missing value for {context}", at)
        if len(operands) > 1 and not isinstance(operands[0], Function):
            what = self._source[operands[0].at : operands[1].at].strip()
            raise self.error(f"can't give argument to non-function {what}", at)
        return Command(tuple(operands), at)

    def _operand(self, context: str) -> Operand:
        token = self._take()
        operand = self._term(token, context)
        end = token.at + len(token.text)
        if token.text == "(":
            end = self._tokens[self._next - 1].at + 1
        while self._peek().kind == "field" and self._peek().at == end:
            if isinstance(operand, (Literal, Function)):
                raise self.error(f"unexpected . after term {token.text}", token.at)
            field = self._take()
            operand = Field(operand, field.text[1:], operand.at)
            end = field.at + len(field.text)
        return operand

    def _term(self, token: _Token, context: str) -> Operand:
        match token.kind:
            case "string" | "raw" | "character" | "number":
                return Literal(self._constant(token), token.at)
            case "field":
                return Field(Dot(token.at), token.text[1:], token.at)
            case "dot":
                return Dot(token.at)
            case "variable":
                self._check_variable(token.text[1:], token.at)
                return Variable(token.text[1:], token.at)
            case "word":
                return self._word(token)
            case _:
                return self._parenthesised(token, context)

    def _word(self, token: _Token) -> Operand:
        if token.text in _CONSTANTS:
            return Literal(_CONSTANTS[token.text], token.at)
        if token.text not in self._functions:
            raise self.error(f'function "{token.text}" not defined', token.at)
        return Function(token.text, token.at)

    def _parenthesised(self, token: _Token, context: str) -> Operand:
        if token.text != "(":
            raise self.error(f'unexpected "{token.text}" in {context}', token.at)
        self._enter(token.at)
        pipeline = self._pipeline("parenthesized pipeline")
        if self._take().text != ")":
            raise self.error("unclosed left paren", token.at)
        self._depth -= 1
        return pipeline

    def _constant(self, token: _Token) -> object:
        if token.kind == "raw":
            return token.text[1:-1]
        try:
            if token.kind == "number":
                text = token.text.replace("_", "")
                sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
                if len(digits) > 1 and digits.isdigit() and digits[0] == "0":
                    return int(sign + "0o" + digits[1:], 0)
                is_float = not digits[:2].lower().startswith("0x") and set(digits) & set(".eE")
                return float(text) if is_float else int(text, 0)
            text = ast.literal_eval(token.text)
        except (ValueError, SyntaxError):
            kind = "number" if token.kind == "number" else "character or string"
            raise self.error(f"bad {kind} syntax: {token.text}", token.at) from None
        return ord(text) if token.kind == "character" else text

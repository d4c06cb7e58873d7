"""Flags as Docker's client takes them.

Pure. `parse` follows GNU long options and clusters of short ones: `--name=value`, `--name value`,
`-pVALUE`, `-dq`, `--detach=false`; `--` ends the flags, and so does the first argument of a command
whose rest belongs to the container (`service create IMAGE COMMAND --flag`). Click's own parser does
not take `--flag=false`, which Docker's users write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from manager.cli.errors import FLAG_EXIT_CODE, CommandError
from proto.errors import InvalidError

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
UINT64_MAX = 2**64 - 1
INT64_MAX = 2**63 - 1


class Flag(NamedTuple):
    """One flag of a command.

    Attributes:
        name: without dashes.
        kind: the word for its value in the help; "" for a flag without value.
        help: one sentence.
        short: its one-letter form, "" for none.
        parse: reads a value; raises `InvalidError`.
        many: it may be given repeatedly, its value is a list.
    """

    name: str
    kind: str
    help: str
    short: str = ""
    parse: Callable[[str], Any] = str
    many: bool = False

    def display(self) -> str:
        """Name it as Docker does in errors."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Flags(dict[str, Any]):
    """The flags that were given, by name; a flag that was not given is absent."""

    def is_on(self, name: str) -> bool:
        """Tell whether a flag without value was given and is true."""
        return bool(self.get(name, False))

    def text(self, name: str) -> str:
        """Give a text, "" when not given."""
        return str(self.get(name, ""))

    def many(self, name: str) -> list[Any]:
        """Give the values of a repeatable flag."""
        return list(self.get(name, ()))

    def has_any(self, *names: str) -> bool:
        """Tell whether at least one was given."""
        return any(name in self for name in names)


def boolean(text: str) -> bool:
    """Read what Go takes for a boolean."""
    if text not in _TRUE | _FALSE:
        raise InvalidError("must be true or false")
    return text in _TRUE


def _integer(text: str, least: int, most: int) -> int:
    digits = text.removeprefix("-").removeprefix("+") if least < 0 else text
    if not (digits.isascii() and digits.isdigit()):
        kind = "a whole number of 0 or more" if least == 0 else "a whole number"
        raise InvalidError(f"must be {kind}")
    if not least <= int(text) <= most:
        raise InvalidError(f"must be a whole number from {least} to {most}")
    return int(text)


def process_count(text: str) -> int:
    """Read a limit of processes. No limit is -1 in a spec, where 0 is the node's own limit."""
    return signed(text) or -1


def unsigned(text: str) -> int:
    """Read a number from 0."""
    return _integer(text, 0, UINT64_MAX)


def signed(text: str) -> int:
    """Read an integer."""
    return _integer(text, -INT64_MAX - 1, INT64_MAX)


def decimal(text: str) -> float | int:
    """Read a floating-point number; a whole one stays an integer in JSON, as Go writes it."""
    try:
        value = float(text)
    except ValueError:
        raise InvalidError("must be a number, such as 0.2") from None
    return int(value) if value.is_integer() else value


def filter_pair(text: str) -> tuple[str, str]:
    """Read `key=value` of a filter."""
    key, separator, value = text.partition("=")
    if not separator:
        raise InvalidError("bad format of filter (expected name=value)")
    return key.strip().lower(), value.strip()


def grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Collect the values of each key."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


class FlagError(CommandError):
    """A flag cannot be understood; the program prints how the command is used."""

    def __init__(self, message: str) -> None:
        """Use Docker's exit code."""
        super().__init__(message, FLAG_EXIT_CODE)


def parse(
    arguments: Sequence[str], flags: Sequence[Flag], *, interspersed: bool = True
) -> tuple[Flags, list[str]]:
    """Split a command line into flags and arguments.

    Args:
        arguments: what follows the command's name.
        flags: those that the command takes.
        interspersed: whether flags may follow the first argument.

    Raises:
        FlagError: with Docker's sentence.
    """
    return _Scan(arguments, flags).run(interspersed=interspersed)


class _Scan:
    def __init__(self, arguments: Sequence[str], flags: Sequence[Flag]) -> None:
        self._waiting = list(reversed(arguments))
        self._long: Mapping[str, Flag] = {flag.name: flag for flag in flags}
        self._short: Mapping[str, Flag] = {flag.short: flag for flag in flags if flag.short}
        self._found = Flags()

    def run(self, *, interspersed: bool) -> tuple[Flags, list[str]]:
        rest: list[str] = []
        while self._waiting:
            argument = self._waiting.pop()
            if argument == "--":
                break
            if argument.startswith("--"):
                self._take_long(argument)
            elif argument.startswith("-") and argument != "-":
                self._take_short(argument)
            else:
                rest.append(argument)
                if not interspersed:
                    break
        return self._found, rest + self._waiting[::-1]

    def _take_long(self, argument: str) -> None:
        name, separator, value = argument[2:].partition("=")
        flag = self._long.get(name)
        if flag is None:
            raise FlagError(f"unknown flag: --{name}")
        if separator:
            self._set(flag, value)
        elif not flag.kind:
            self._set(flag, "true")
        elif not self._waiting:
            raise FlagError(f"flag needs an argument: --{name}")
        else:
            self._set(flag, self._waiting.pop())

    def _take_short(self, argument: str) -> None:
        letters = argument[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = self._short.get(letter)
            if flag is None:
                raise FlagError(f"unknown shorthand flag: '{letter}' in {argument}")
            if not flag.kind and not letters.startswith("="):
                self._set(flag, "true")
                continue
            if letters:
                self._set(flag, letters.removeprefix("="))
            elif self._waiting:
                self._set(flag, self._waiting.pop())
            else:
                raise FlagError(f"flag needs an argument: '{letter}' in {argument}")
            return

    def _set(self, flag: Flag, text: str) -> None:
        try:
            value = flag.parse(text) if flag.kind else boolean(text)
        except InvalidError as error:
            from proto.goformat import quote  # noqa: PLC0415 -- only for this message

            message = f'invalid argument {quote(text)} for "{flag.display()}" flag: {error.message}'
            raise FlagError(message) from error
        if flag.many:
            self._found.setdefault(flag.name, []).append(value)
        else:
            self._found[flag.name] = value

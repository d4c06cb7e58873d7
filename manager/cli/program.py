"""What commands are made of: `Command`, `LazyGroup`, and the `Console` that a command gets.

The table in `manager.cli.main` names each command's module, which is imported only when the command
runs: the start of the program must not pay for commands that are not used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import click
from typing_extensions import override

from manager.cli import flags as flag_parser
from manager.cli.errors import CommandError, OutputClosedError
from manager.cli.flags import Flag, FlagError, Flags
from manager.cli.transport import DEFAULT_HOST, Engine
from proto.clock import SystemClock
from proto.text import printable_lines

HELP_WIDTH = 80
HELP_COLUMN_MAX = 38
HELP_FLAG = Flag("help", "", "Show this message", short="h")


class Console:
    """What a command acts on: the daemon, the two outputs, the time."""

    def __init__(self, host: str = "") -> None:
        """Choose the daemon: the flag, else the environment, else this machine's."""
        chosen = host or os.environ.get("SWARM_HOST") or os.environ.get("DOCKER_HOST")
        self.engine = Engine(chosen or DEFAULT_HOST, self.warn)

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return SystemClock().wall()

    @property
    def monotonic(self) -> float:
        """Seconds for measuring how long something takes."""
        return SystemClock().monotonic()

    @property
    def is_terminal(self) -> bool:
        """Tell whether a person watches the output."""
        return sys.stdout.isatty()

    def write(self, text: str) -> None:
        """Write lines; what a terminal would obey in them is spelt out, since others chose it."""
        sys.stdout.write(printable_lines(text))

    def line(self, text: str = "") -> None:
        """Write a line, likewise."""
        self.write(text + "\n")

    def control(self, text: str) -> None:
        """Write what moves the cursor: only of our own making."""
        sys.stdout.write(text)

    def flush(self) -> None:
        """Show what was written."""
        sys.stdout.flush()

    def warn(self, text: str) -> None:
        """Write a line to standard error."""
        sys.stdout.flush()
        sys.stderr.write(printable_lines(text) + "\n")


Run: TypeAlias = Callable[[Console, Flags, list[str]], None]


class Spec(NamedTuple):
    """A command, as its module declares it.

    Attributes:
        run: does it.
        flags: what it takes.
        usage: what follows its name, such as "[OPTIONS] SERVICE".
        least: how many arguments it needs.
        most: how many it takes; None for any number.
        interspersed: whether flags may follow the first argument.
    """

    run: Run
    flags: tuple[Flag, ...] = ()
    usage: str = ""
    least: int = 0
    most: int | None = 0
    interspersed: bool = True


class Command(click.Command):
    """A command whose flags are parsed as Docker's."""

    def __init__(self, name: str, spec: Spec, summary: str) -> None:
        """Make a click command of a declaration; click sees the flags only for completion."""
        super().__init__(name, help=summary, add_help_option=False)
        self.spec = spec

    @override
    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give the flags to click, which completes them for a shell."""
        return [
            click.Option(
                [f"--{flag.name}", *([f"-{flag.short}"] if flag.short else [])],
                is_flag=not flag.kind,
                help=flag.help,
                multiple=flag.many,
            )
            for flag in self.spec.flags
        ]

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; the result is in `ctx.meta`."""
        if ctx.resilient_parsing:
            return []
        known = (*self.spec.flags, HELP_FLAG)
        if any(flag.short == "h" for flag in self.spec.flags):
            known = (*self.spec.flags, HELP_FLAG._replace(short=""))
        try:
            found, rest = flag_parser.parse(args, known, interspersed=self.spec.interspersed)
        except FlagError as error:
            raise FlagError(f"{error.message}\n\n{self.hint(ctx)}") from error
        if found.is_on("help"):
            click.echo(self.get_help(ctx))
            ctx.exit()
        self._check_count(ctx, rest)
        ctx.meta["arguments"] = (found, rest)
        return []

    def _check_count(self, ctx: click.Context, rest: list[str]) -> None:
        least, most = self.spec.least, self.spec.most
        if least <= len(rest) and (most is None or len(rest) <= most):
            return
        path = ctx.command_path
        if most == 0:
            raise CommandError(f"swarm: '{path}' accepts no arguments\n\n{self.hint(ctx)}")
        bound = "" if least == most else "at least " if len(rest) < least else "at most "
        number = least if len(rest) < least or least == most else most
        wants = f"requires {bound}{number} argument{'' if number == 1 else 's'}"
        usage = f"{self.get_usage(ctx)}\n\nSee '{path} --help' for more information"
        raise CommandError(f"swarm: '{path}' {wants}\n\n{usage}")

    def hint(self, ctx: click.Context) -> str:
        """Say how the command is used, and where to read more."""
        path = ctx.command_path
        return f"{self.get_usage(ctx)}\n\nRun '{path} --help' for more information"

    @override
    def get_usage(self, ctx: click.Context) -> str:
        """Say how the command is used."""
        return f"Usage:  {ctx.command_path} {self.spec.usage}".rstrip()

    @override
    def get_help(self, ctx: click.Context) -> str:
        """Write the help as Docker does."""
        parts = [self.get_usage(ctx), self.help or ""]
        if self.spec.flags:
            parts.append("Options:\n" + "\n".join(_help_lines(self.spec.flags)))
        return "\n\n".join(parts)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        """Run."""
        found, rest = ctx.meta["arguments"]
        console = ctx.find_object(Console)
        assert console is not None
        try:
            self.spec.run(console, found, rest)
            sys.stdout.flush()
        except BrokenPipeError as error:
            # Click would take it for its own and choose an exit code.
            raise OutputClosedError from error


def _help_lines(flags: tuple[Flag, ...]) -> list[str]:
    import textwrap  # noqa: PLC0415 -- only for help

    names = []
    for flag in sorted(flags, key=lambda flag: flag.name):
        short = f"-{flag.short}, " if flag.short else "    "
        names.append((f"  {short}--{flag.name} {flag.kind}".rstrip(), flag.help))
    column = min(HELP_COLUMN_MAX, max(len(name) for name, _ in names) + 3)
    lines = []
    for name, text in names:
        wrapped = textwrap.wrap(text, max(20, HELP_WIDTH - column)) or [""]
        if len(name) + 2 > column:
            lines.append(name)
            name = ""  # noqa: PLW2901 -- the text starts on a line of its own
        lines.append(name.ljust(column) + wrapped[0])
        lines += [" " * column + line for line in wrapped[1:]]
    return lines


class Entry(NamedTuple):
    """Where a command is.

    Attributes:
        module: under `manager.cli`; "" for a group.
        name: of the `Spec` in the module; of the table for a group.
        summary: one sentence.
        hidden: not in the help (an alias).
    """

    module: str
    name: str
    summary: str
    hidden: bool = False


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def __init__(
        self,
        name: str,
        tables: Mapping[str, Mapping[str, Entry]],
        table: str,
        summary: str,
        *,
        params: list[click.Parameter] | None = None,
        callback: Callable[..., object] | None = None,
    ) -> None:
        """Keep the tables; the group's own is `tables[table]`."""
        super().__init__(name, help=summary, params=params, callback=callback)
        self._tables = tables
        self._table = tables[table]

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return [name for name, entry in self._table.items() if not entry.hidden]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        entry = self._table.get(cmd_name)
        if entry is None:
            return None
        if not entry.module:
            return LazyGroup(cmd_name, self._tables, entry.name, entry.summary)
        module = importlib.import_module(f"manager.cli.{entry.module}")
        return Command(cmd_name, getattr(module, entry.name), entry.summary)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, with Docker's words when there is none."""
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            path = ctx.command_path
            usage = f"Usage:  {path}\n\n" if ctx.parent is not None else ""
            raise CommandError(
                f"swarm: unknown command: {path} {args[0]}\n\n{usage}"
                f"Run '{path} --help' for more information"
            )
        return args[0], command, args[1:]

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help when no command was named."""
        if not args and not ctx.resilient_parsing:
            click.echo(self.get_help(ctx))
            ctx.exit()
        return super().parse_args(ctx, args)

    @override
    def get_help(self, ctx: click.Context) -> str:
        """List the commands from the table, without importing them."""
        names = self.list_commands(ctx)
        width = max(map(len, names)) + 2
        lines = [f"  {name.ljust(width)}{self._table[name].summary}" for name in names]
        options = ""
        if ctx.parent is None:
            options = (
                "\n\nGlobal Options:\n  -H, --host string   Daemon socket to connect to "
                "(SWARM_HOST, DOCKER_HOST)\n  -v, --version       Print the version and quit"
            )
        return (
            f"Usage:  {ctx.command_path} COMMAND\n\n{self.help}\n\nCommands:\n"
            + "\n".join(lines)
            + options
            + f"\n\nRun '{ctx.command_path} COMMAND --help' for more information on a command."
        )

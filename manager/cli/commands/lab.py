"""`swarm lab …`: hosts on this machine to try things with. Only this command makes anything here.

The other commands speak to a daemon; this one makes the hosts that daemons run on.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from manager.cli.errors import CommandError
from manager.cli.flags import Flag, Flags, unsigned
from manager.cli.program import Console, Spec
from manager.cli.tables import layout

DEFAULT_NAME = "lab"
NAME = Flag("name", "string", "Name of the lab (default the only one there is)")
_SBIN = "/usr/sbin:/sbin"


def _lab() -> Any:
    """Load what makes hosts: a sibling of this package, so it is found by name as commands are."""
    import importlib  # noqa: PLC0415 -- only here

    # A user's PATH may lack the folders that hold the tools for networks.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    return importlib.import_module("manager.lab.lab")


def _chosen(flags: Flags) -> Any:
    return _lab().choose(flags.text("name"))


def _need_root() -> None:
    if os.geteuid() != 0:
        raise CommandError("only root can enter or change the lab's hosts; run it as root (sudo)")


def _up(console: Console, flags: Flags, _arguments: list[str]) -> None:
    name = flags.text("name") or DEFAULT_NAME
    started = console.monotonic

    def say(line: str) -> None:
        if not flags.is_on("quiet"):
            console.line(f"[{console.monotonic - started:4.1f} s] {line}")
            console.flush()

    _lab().Lab(name).up(
        flags.get("managers", 3),
        flags.get("workers", 2),
        is_formed=not flags.is_on("no-form"),
        say=say,
    )
    if not flags.is_on("quiet"):
        option = "" if name == DEFAULT_NAME else f" --name {name}"
        console.line(f"Lab {name} is up. Look around with: swarm lab shell m1{option}")
        console.line(f"End it with: swarm lab down --name {name}")


def _list(console: Console, flags: Flags, _arguments: list[str]) -> None:
    from importlib import import_module  # noqa: PLC0415 -- as in _lab

    lab = _lab()
    labs = [_chosen(flags)] if flags.text("name") else lab.labs()
    look = import_module("manager.lab.look")
    if flags.is_on("quiet"):
        console.write("".join(f"{host.name}\n" for one in labs for host in one.state.hosts))
        return
    heads = ("LAB", "HOST", "ADDRESS", "ROLE", "STATE", "SWARM", "CUT FROM")
    console.write(layout([heads, *(row for one in labs for row in look.rows(one))]))


def _down(console: Console, flags: Flags, _arguments: list[str]) -> None:
    _need_root()
    lab = _lab()
    if flags.is_on("all"):
        if flags.text("name"):
            raise CommandError("--all and --name cannot be used together")
        names = lab.known_names()
    else:
        names = [lab.choose_any(flags.text("name")).name]
    for name in names:
        lab.Lab(name).down()
        console.line(name)


def _enter(host: Any, command: list[str]) -> None:
    """Become a command inside a host; does not return."""
    where = f"--wdns={_directory()}"
    line = host.enter(command, where)
    sys.stdout.flush()
    os.execvpe(line[0], line, host.environment)  # noqa: S606 -- no shell is meant


def _directory() -> str:
    """Name the directory to be in: ours, unless it is one that a host has for itself."""
    try:
        here = os.getcwd()  # noqa: PTH109 -- a Path would raise for one that was removed, too
    except FileNotFoundError:
        return "/"
    return "/" if here == "/run" or here.startswith(("/run/", "/proc")) else here


def _exec(_console: Console, flags: Flags, arguments: list[str]) -> None:
    _need_root()
    host, *command = arguments
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise CommandError("say what to run: swarm lab exec HOST -- COMMAND [ARG...]")
    _enter(_chosen(flags).running(host), command)


def _shell(console: Console, flags: Flags, arguments: list[str]) -> None:
    _need_root()
    host = _chosen(flags).running(arguments[0])
    if console.is_terminal:
        console.line(f"Host {host.name} ({host.address}); swarm and docker speak to its daemon.")
    shell = os.environ.get("SHELL") or "/bin/sh"
    # A small shell wants the terminal back for whoever had it before, who is not in this host.
    has_jobs = os.path.basename(shell) not in {"sh", "dash", "ash"}  # noqa: PTH119 -- no pathlib here
    _enter(host, [shell] if has_jobs else [shell, "+m"])


def _cut(_console: Console, flags: Flags, arguments: list[str]) -> None:
    _need_root()
    _chosen(flags).cut(arguments[0], arguments[1:])


def _heal(_console: Console, flags: Flags, arguments: list[str]) -> None:
    _need_root()
    _chosen(flags).heal(arguments[0] if arguments else "", arguments[1:])


def _kill(console: Console, flags: Flags, arguments: list[str]) -> None:
    _need_root()
    lab = _chosen(flags)
    for host in arguments:
        if flags.is_on("daemon"):
            lab.kill_daemon(host)
        else:
            lab.kill(host)
        console.line(host)


def _start(console: Console, flags: Flags, arguments: list[str]) -> None:
    _need_root()
    lab = _chosen(flags)
    for host in arguments:
        lab.start(host)
        console.line(host)


def _logs(_console: Console, flags: Flags, arguments: list[str]) -> None:
    path = _chosen(flags).host(arguments[0]).log
    if not path.exists():
        raise CommandError(f"{arguments[0]} has no log: its daemon was never started")
    lines = flags.get("tail", "+1")
    command = ["tail", "-n", str(lines), *(["-F"] if flags.is_on("follow") else []), str(path)]
    os.execvp(command[0], command)  # noqa: S606 -- no shell is meant


UP = Spec(
    _up,
    (
        Flag("managers", "uint", "Number of managers, m1 and so on (default 3)", parse=unsigned),
        Flag("workers", "uint", "Number of workers, w1 and so on (default 2)", parse=unsigned),
        Flag("name", "string", f'Name of the lab (default "{DEFAULT_NAME}")'),
        Flag("no-form", "", "Start the daemons, but make no swarm of them"),
        Flag("quiet", "", "Print nothing", "q"),
    ),
    "[OPTIONS]",
)
LIST = Spec(_list, (NAME, Flag("quiet", "", "Only display names of hosts", "q")), "[OPTIONS]")
DOWN = Spec(
    _down, (NAME, Flag("all", "", "End all labs, and what crashed ones left", "a")), "[OPTIONS]"
)
EXEC = Spec(
    _exec, (NAME,), "[OPTIONS] HOST [--] COMMAND [ARG...]", least=2, most=None, interspersed=False
)
SHELL = Spec(_shell, (NAME,), "[OPTIONS] HOST", least=1, most=1)
CUT = Spec(_cut, (NAME,), "[OPTIONS] HOST [HOST...]", least=1, most=None)
HEAL = Spec(_heal, (NAME,), "[OPTIONS] [HOST [HOST...]]", most=None)
KILL = Spec(
    _kill,
    (NAME, Flag("daemon", "", "End swarmd alone; containers run on")),
    "[OPTIONS] HOST [HOST...]",
    least=1,
    most=None,
)
START = Spec(_start, (NAME,), "[OPTIONS] HOST [HOST...]", least=1, most=None)
LOGS = Spec(
    _logs,
    (
        NAME,
        Flag("follow", "", "Follow log output", "f"),
        Flag("tail", "uint", "Number of lines to show from the end (default all)", "n", unsigned),
    ),
    "[OPTIONS] HOST",
    least=1,
    most=1,
)

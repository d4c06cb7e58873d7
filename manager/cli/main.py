"""The program `swarm`: finds the command, runs it, and turns what goes wrong into exit codes.

No traceback reaches a user: errors of the tree in `proto.errors` are printed, an interrupt ends
with 130, a closed output with 141 (as a shell counts SIGPIPE), and a bug prints one line that asks
for a report; SWARM_DEBUG=1 then shows the traceback.
"""

from __future__ import annotations

import os
import sys

import click

from manager.cli.errors import CommandError, OutputClosedError
from manager.cli.program import Console, Entry, LazyGroup
from proto.errors import SwarmError
from proto.text import printable_lines

INTERRUPTED_EXIT_CODE = 130
PIPE_EXIT_CODE = 141

_CLUSTER = "commands.cluster"
_NODE = "commands.node"
_SERVICE = "commands.service"
_IMAGE = "commands.image"
_LAB = "commands.lab"

TABLES: dict[str, dict[str, Entry]] = {
    "swarm": {
        "ca": Entry("commands.ca", "CA", "Display and rotate the root CA"),
        "init": Entry(_CLUSTER, "INIT", "Initialize a swarm"),
        "join": Entry(_CLUSTER, "JOIN", "Join a swarm as a node and/or manager"),
        "join-token": Entry(_CLUSTER, "JOIN_TOKEN", "Manage join tokens"),
        "leave": Entry(_CLUSTER, "LEAVE", "Leave the swarm"),
        "update": Entry(_CLUSTER, "UPDATE", "Update the swarm"),
        "unlock": Entry(_CLUSTER, "UNLOCK", "Unlock swarm"),
        "unlock-key": Entry(_CLUSTER, "UNLOCK_KEY", "Manage the unlock key"),
        "node": Entry("", "node", "Manage Swarm nodes"),
        "service": Entry("", "service", "Manage Swarm services"),
        "image": Entry("", "image", "Manage images"),
        "lab": Entry("", "lab", "Try a swarm of several hosts on this machine"),
        "info": Entry("commands.system", "INFO", "Display system-wide information"),
        "version": Entry("commands.system", "VERSION", "Show the version information"),
    },
    "node": {
        "demote": Entry(_NODE, "DEMOTE", "Demote one or more nodes from manager in the swarm"),
        "inspect": Entry(_NODE, "INSPECT", "Display detailed information on one or more nodes"),
        "ls": Entry(_NODE, "LIST", "List nodes in the swarm"),
        "list": Entry(_NODE, "LIST", "List nodes in the swarm", hidden=True),
        "promote": Entry(_NODE, "PROMOTE", "Promote one or more nodes to manager in the swarm"),
        "ps": Entry(_NODE, "TASKS", "List tasks running on one or more nodes"),
        "rm": Entry(_NODE, "REMOVE", "Remove one or more nodes from the swarm"),
        "remove": Entry(_NODE, "REMOVE", "Remove one or more nodes from the swarm", hidden=True),
        "update": Entry(_NODE, "UPDATE", "Update a node"),
    },
    "service": {
        "create": Entry("commands.service_create", "CREATE", "Create a new service"),
        "inspect": Entry(_SERVICE, "INSPECT", "Display detailed information on services"),
        "logs": Entry("commands.service_logs", "LOGS", "Fetch the logs of a service or task"),
        "ls": Entry(_SERVICE, "LIST", "List services"),
        "list": Entry(_SERVICE, "LIST", "List services", hidden=True),
        "ps": Entry(_SERVICE, "TASKS", "List the tasks of one or more services"),
        "rm": Entry(_SERVICE, "REMOVE", "Remove one or more services"),
        "remove": Entry(_SERVICE, "REMOVE", "Remove one or more services", hidden=True),
        "rollback": Entry(_SERVICE, "ROLLBACK", "Revert changes to a service's configuration"),
        "scale": Entry(_SERVICE, "SCALE", "Scale one or multiple replicated services"),
        "update": Entry("commands.service_create", "UPDATE", "Update a service"),
    },
    "image": {
        "history": Entry(_IMAGE, "HISTORY", "Show the history of an image"),
        "import": Entry(_IMAGE, "IMPORT", "Make an image of a tarball's file system"),
        "inspect": Entry(_IMAGE, "INSPECT", "Display detailed information on one or more images"),
        "load": Entry(_IMAGE, "LOAD", "Load an image from a tar archive or STDIN"),
        "ls": Entry(_IMAGE, "LIST", "List images"),
        "list": Entry(_IMAGE, "LIST", "List images", hidden=True),
        "prune": Entry(_IMAGE, "PRUNE", "Remove unused images"),
        "pull": Entry(_IMAGE, "PULL", "Download an image from a registry"),
        "push": Entry(_IMAGE, "PUSH", "Upload an image to a registry"),
        "rm": Entry(_IMAGE, "REMOVE", "Remove one or more images"),
        "remove": Entry(_IMAGE, "REMOVE", "Remove one or more images", hidden=True),
        "save": Entry(_IMAGE, "SAVE", "Save one or more images to a tar archive"),
        "tag": Entry(_IMAGE, "TAG", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
    },
    "lab": {
        "up": Entry(_LAB, "UP", "Make hosts on this machine, and a swarm of them"),
        "ls": Entry(_LAB, "LIST", "List the hosts"),
        "list": Entry(_LAB, "LIST", "List the hosts", hidden=True),
        "exec": Entry(_LAB, "EXEC", "Run a command in a host"),
        "shell": Entry(_LAB, "SHELL", "Start a shell in a host"),
        "logs": Entry(_LAB, "LOGS", "Show the log of a host's daemon"),
        "kill": Entry(_LAB, "KILL", "Take hosts' power, or end their daemons"),
        "start": Entry(_LAB, "START", "Bring hosts or their daemons back"),
        "cut": Entry(_LAB, "CUT", "Drop all traffic between a host and others (default all)"),
        "heal": Entry(_LAB, "HEAL", "Undo cuts (default all)"),
        "down": Entry(_LAB, "DOWN", "Remove a lab and everything that it left"),
    },
}
"""Every command: group, name, module, summary."""


@click.pass_context
def _root(ctx: click.Context, host: str | None) -> None:
    """Choose the daemon for the command that follows."""
    ctx.obj = Console(host or "")
    ctx.call_on_close(ctx.obj.engine.close)


def _show_version(ctx: click.Context, _option: click.Parameter, *, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from manager.cli.commands.system import client_version  # noqa: PLC0415 -- rare

        click.echo(f"Swarm version {client_version()}")
        ctx.exit()


def program() -> LazyGroup:
    """Make the root group."""
    return LazyGroup(
        "swarm",
        TABLES,
        "swarm",
        "A container orchestrator with Docker Swarm's commands",
        params=[
            click.Option(["-H", "--host"], metavar="string"),
            click.Option(
                ["-v", "--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=lambda ctx, option, wanted: _show_version(ctx, option, wanted=wanted),
            ),
        ],
        callback=_root,
    )


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and give the exit code."""
    try:
        code = program().main(arguments, "swarm", standalone_mode=False)
    except SwarmError as error:
        return _report(error.message, error.exit_code if isinstance(error, CommandError) else 1)
    except click.ClickException as error:
        return _report(f"{error.format_message()}\n\nRun 'swarm --help' for more information", 125)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED_EXIT_CODE
    except OutputClosedError:
        _discard_output()
        return PIPE_EXIT_CODE
    except Exception as error:  # the top: a bug must not show a traceback to a user
        if os.environ.get("SWARM_DEBUG"):
            raise
        message = f"swarm: internal error: {type(error).__name__}: {error}"
        return _report(f"{message}\nPlease report it with the output of SWARM_DEBUG=1 swarm …", 1)
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    if message:
        sys.stderr.write(printable_lines(message) + "\n")
    return code


def _discard_output() -> None:
    """Let what is left of the output go nowhere: flushing it would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run as the program `swarm`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character gets a mark, never a crash.
            stream.reconfigure(errors="replace")
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = PIPE_EXIT_CODE
    sys.stderr.flush()
    # Nothing here needs Python's orderly end, which takes 7 ms of a command's 70.
    os._exit(code)


if __name__ == "__main__":
    main()

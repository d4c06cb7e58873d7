"""Errors that end a command: what is printed, and the exit code."""

from __future__ import annotations

from proto.errors import SwarmError

FLAG_EXIT_CODE = 125
"""Docker's exit code for flags that cannot be parsed."""


class CommandError(SwarmError):
    """Ends the command with a message on standard error.

    Attributes:
        exit_code: the exit code of the program.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """Keep the exit code; an empty message prints nothing."""
        super().__init__(message)
        self.exit_code = exit_code


class DaemonError(SwarmError):
    """The daemon answered with an error.

    Attributes:
        status: the HTTP status code.
        reason: the daemon's sentence.
    """

    def __init__(self, status: int, reason: str) -> None:
        """Make Docker's text."""
        super().__init__(f"Error response from daemon: {reason}")
        self.status = status
        self.reason = reason

    @property
    def is_not_found(self) -> bool:
        """Tell whether the object does not exist."""
        return self.status == 404  # noqa: PLR2004 -- HTTP's number


class OutputClosedError(Exception):
    """Nobody reads the output any more (`swarm … | head`); there is nobody to tell."""


def joined(errors: list[SwarmError]) -> CommandError:
    """Make one error of several, a line each."""
    return CommandError("\n".join(error.message for error in errors))

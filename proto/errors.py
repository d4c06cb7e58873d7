"""The one tree of errors, and the table that maps it to HTTP status codes.

Every error that may reach a user is a `SwarmError`: its text is a sentence that names the thing
and, where there is one, the remedy. Each class has fields besides its text, so that a caller
decides by type and field, never by reading the sentence. A *refusal* that is expected (a
scheduler's "no suitable node") is a value, not one of these; a *bug* is an `AssertionError` or
`InvariantViolationError` and is never caught except by the supervisor that stops the component.
"""

from __future__ import annotations

from proto.text import CUT_MARK

# Of an error's text, whatever it quotes: it goes into logs, tasks and answers.
MESSAGE_CHARACTERS_MAX = 16_384


class SwarmError(Exception):
    """Base of all errors that may be shown to a user; `message` is a whole sentence."""

    http_status: int = 500

    def __init__(self, message: str) -> None:
        """Keep the sentence, of which no reader wants more than a few pages."""
        if len(message) > MESSAGE_CHARACTERS_MAX:
            message = message[:MESSAGE_CHARACTERS_MAX] + CUT_MARK
        super().__init__(message)
        self.message = message


def reason_of(error: BaseException) -> str:
    """Say why something failed, for a log: many of Python's own errors have no text."""
    what = "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
    return str(error) or what


class NotFoundError(SwarmError):
    """The named object does not exist.

    Attributes:
        kind: what was looked for ("service", "image", ...).
        reference: the name, ID or prefix as the caller gave it.
    """

    http_status = 404

    def __init__(self, kind: str, reference: str, message: str | None = None) -> None:
        """Name the object; the default sentence is Docker's (`service web not found`)."""
        super().__init__(message or f"{kind} {reference} not found")
        self.kind = kind
        self.reference = reference


class ConflictError(SwarmError):
    """The request contradicts the present state."""

    http_status = 409


class SequenceConflictError(ConflictError):
    """An update was made against an older version than the stored one."""

    http_status = (
        500  # Docker answers 500 with the text "update out of sequence"; clients look for it.
    )

    def __init__(self, kind: str, reference: str, given: int, stored: int) -> None:
        """Keep both versions."""
        super().__init__(
            f"update out of sequence: {kind} {reference} is at version {stored}, "
            f"the request was made for {given}; read it again and repeat"
        )
        self.given = given
        self.stored = stored


class NameConflictError(ConflictError):
    """Another object of this kind has the name already."""

    def __init__(self, kind: str, name: str) -> None:
        """Name both."""
        super().__init__(f"name conflicts with an existing object: {kind} {name} already exists")
        self.kind = kind
        self.name = name


class InUseError(ConflictError):
    """The object cannot go or be taken because something uses it."""


class InvalidError(SwarmError):
    """The request is malformed or breaks a rule; nothing was done."""

    http_status = 400


class DeniedError(SwarmError):
    """The caller may not do this."""

    http_status = 403


class RemovedError(DeniedError):
    """The caller's node is no longer in the cluster; it will not be let in again."""

    def __init__(self, node_id: str, *, is_known: bool = False) -> None:
        """Name the node and the way back; `is_known`: its removal is on record."""
        what = "was removed from" if is_known else "is not in"
        super().__init__(
            f"node {node_id} {what} this cluster: run swarm leave on it, then join anew"
        )
        self.node_id = node_id


class UnavailableError(SwarmError):
    """This node cannot serve the request now."""

    http_status = 503


class DuplicateNodeError(UnavailableError):
    """Another program is the caller's node; perhaps only until it is noticed to be dead."""

    def __init__(self, node_id: str, address: str) -> None:
        """Name the node and where the other one is."""
        where = f" from {address}" if address else ""
        super().__init__(
            f"node {node_id} has a session{where} that lives: if this node's state directory was "
            "copied from it, stop swarmd here, remove the directory, and join anew"
        )
        self.node_id = node_id
        self.address = address


class NotLeaderError(UnavailableError):
    """Another manager leads; `leader_address` is "" when it is not known."""

    def __init__(self, leader_address: str = "") -> None:
        """Keep the leader's address."""
        where = f"the leader is {leader_address}" if leader_address else "no leader is known"
        super().__init__(f"this manager is not the leader ({where})")
        self.leader_address = leader_address


class LockedError(UnavailableError):
    """The manager's keys are sealed and the unlock key was not given yet."""

    def __init__(self) -> None:
        """Docker's sentence."""
        super().__init__(
            "Swarm is encrypted and needs to be unlocked before it can be used. "
            'Please use "swarm unlock" to unlock it.'
        )


class ResourceExhaustedError(SwarmError):
    """A disk, queue, pool or limit is full."""

    http_status = 507


class NotImplementedYetError(SwarmError):
    """A part of the Engine API that this version does not serve."""

    http_status = 501


class CorruptError(SwarmError):
    """Stored data failed its check; `path` and `offset` say where. Nothing of it was used."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        """Name the file and the offset in bytes."""
        super().__init__(f"{path} is damaged at byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class RuntimeFailedError(SwarmError):
    """The container runtime or a kernel call failed while working for a task."""


class InvariantViolationError(AssertionError):
    """A bug: something that must always hold does not. Never caught but by a supervisor."""


class ForgottenEntriesError(InvariantViolationError):
    """A log lacks what its member had confirmed: its disk was put back, or lost what it held."""

"""Judges a second attempt at a change whose first one has no known outcome. Pure.

The leader works on a state that runs ahead of what is committed. A second attempt may meet the
first one there while it can still fail; so what was wanted counts as done only when it is
committed, and the attempt is repeated until then.
"""

from __future__ import annotations

from collections.abc import Callable

from proto.errors import NotFoundError, SequenceConflictError, UnavailableError


def settle_update(
    error: SequenceConflictError,
    *,
    given: int,
    committed: int,
    is_wanted: bool,
) -> None:
    """Return if an earlier attempt has done it.

    Args:
        error: what this attempt was refused with.
        given: the version that the update was made for.
        committed: the version of what is committed.
        is_wanted: whether what is committed is what was wanted.

    Raises:
        SequenceConflictError: somebody else has changed it.
        UnavailableError: a change is on its way, the earlier attempt's perhaps.
    """
    if committed <= given:
        raise UnavailableError("the change is not committed yet")
    if not is_wanted:
        raise error


def settle_removal(*, is_committed: bool) -> None:
    """Return if an earlier attempt has done it, likewise.

    Args:
        is_committed: whether what is committed has no such object.

    Raises:
        UnavailableError: a removal is on its way.
    """
    if not is_committed:
        raise UnavailableError("the removal is not committed yet")


def is_gone(find: Callable[[str], object], reference: str) -> bool:
    """Tell whether what is committed has no such object."""
    try:
        find(reference)
    except NotFoundError:
        return True
    return False

"""A second attempt at what may have been done."""

from __future__ import annotations

import pytest

from manager.httpapi.repeats import is_gone, settle_removal, settle_update
from proto.errors import NotFoundError, SequenceConflictError, UnavailableError

CONFLICT = SequenceConflictError("service", "s1", 7, 9)


def judged(*, committed: int = 9, is_wanted: bool = True) -> None:
    """Judge an update that was made for version 7."""
    settle_update(CONFLICT, given=7, committed=committed, is_wanted=is_wanted)


def test_what_is_committed_and_wanted_is_done() -> None:
    """The earlier attempt was it, or somebody who wanted the same."""
    judged()
    settle_removal(is_committed=True)


def test_what_is_not_committed_is_neither_done_nor_refused() -> None:
    """The earlier attempt may still fail: it is to be looked at again."""
    with pytest.raises(UnavailableError):
        judged(committed=7)
    with pytest.raises(UnavailableError):
        settle_removal(is_committed=False)


def test_another_change_that_was_first_wins() -> None:
    """What is committed is newer and something else."""
    with pytest.raises(SequenceConflictError):
        judged(is_wanted=False)


def test_gone_is_what_cannot_be_found() -> None:
    """By the committed state."""

    def find(reference: str) -> object:
        if reference == "there":
            return object()
        raise NotFoundError("service", reference)

    assert is_gone(find, "s1")
    assert not is_gone(find, "there")

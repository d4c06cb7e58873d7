"""Errors arrive as what they were sent as."""

import grpc
import pytest

from manager.nodeport import errors as module
from manager.nodeport.errors import MESSAGE_CHARACTERS_MAX, error_of, status_of
from proto import errors
from proto.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    DuplicateNodeError,
    InUseError,
    InvalidError,
    LockedError,
    NameConflictError,
    NotFoundError,
    NotImplementedYetError,
    NotLeaderError,
    RemovedError,
    ResourceExhaustedError,
    RuntimeFailedError,
    SequenceConflictError,
    SwarmError,
    UnavailableError,
)

SAMPLES = [
    SwarmError("some sentence"),
    NotFoundError("node", "n1"),
    ConflictError("a contradiction"),
    SequenceConflictError("node", "n1", 3, 4),
    NameConflictError("service", "web"),
    InUseError("it is used"),
    InvalidError("nonsense: ü"),
    DeniedError("you may not"),
    RemovedError("n1", is_known=True),
    DuplicateNodeError("n1", "10.0.0.1"),
    UnavailableError("not now"),
    NotLeaderError("10.0.0.1:2378"),
    NotLeaderError(),
    LockedError(),
    ResourceExhaustedError("the disk is full"),
    NotImplementedYetError("not yet"),
    CorruptError("/a/b", 17, "bad sum"),
    RuntimeFailedError("the runtime failed"),
]


def all_kinds(kind=SwarmError):
    """List every class of the tree."""
    return {kind, *(found for sub in kind.__subclasses__() for found in all_kinds(sub))}


def test_every_error_has_a_sample_and_a_code():
    """A new class of error is not forgotten."""
    kinds = {kind for kind in all_kinds() if kind.__module__ == errors.__name__}
    assert kinds == set(module._CODES)
    assert kinds == {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize(
    "error", SAMPLES, ids=[f"{i}-{type(e).__name__}" for i, e in enumerate(SAMPLES)]
)
def test_an_error_arrives_with_its_fields(error):
    """Class, sentence and fields are the same on the other side."""
    arrived = error_of(*status_of(error))

    assert type(error) is type(arrived)
    assert vars(error) == vars(arrived)
    assert str(error) == str(arrived)


def test_a_subclass_of_ours_arrives_as_its_base():
    """A class that only one side knows is still decided upon by type."""

    class SpecialError(UnavailableError):
        pass

    assert type(error_of(*status_of(SpecialError("gone")))) is UnavailableError


def test_a_long_error_is_cut():
    """Headers are bounded, so is what is put in."""
    _, message, metadata = status_of(NotFoundError("node", "n" * 100_000))

    assert len(message) == MESSAGE_CHARACTERS_MAX
    assert len(metadata[0][1]) < 100


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.CANCELLED, UnavailableError),
        (grpc.StatusCode.UNKNOWN, UnavailableError),
        (grpc.StatusCode.PERMISSION_DENIED, DeniedError),
        (grpc.StatusCode.UNIMPLEMENTED, NotImplementedYetError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidError),
    ],
)
def test_what_is_no_error_of_ours_is_read_by_its_code(code, kind):
    """The library's own refusals, and metadata that cannot be read."""
    for metadata in (None, (), ((module.ERROR_KEY, b"\xff"),)):
        error = error_of(code, "because", metadata)
        assert (type(error), error.message) == (kind, "because")
    assert error_of(code, "", None).message == "the connection was lost"

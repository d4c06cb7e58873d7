"""The bytes of streams."""

from __future__ import annotations

import msgspec
import pytest

from manager.httpapi.frames import bar, details_of, error_line, frame, log_line, progress_line
from proto.logs import LogRecord
from worker.images.api import Progress

RECORD = LogRecord(time_ns=1_600_000_000_000_000_000, stream="stderr", data=b"hello world\n")


@pytest.mark.parametrize(("stream", "number"), [("stdout", 1), ("stderr", 2), ("systemerr", 3)])
def test_a_frame_has_its_stream_and_length(stream: str, number: int) -> None:
    """Eight bytes of header, the length in big-endian."""
    assert bytes([number, 0, 0, 0, 0, 0, 1, 2]) + b"x" * 258 == frame(stream, b"x" * 258)


def test_a_line_has_time_then_details_then_data() -> None:
    """`docker service logs` splits at the first spaces in this order."""
    line = log_line(RECORD, timestamps=True, details=b"a=1,b=2", is_multiplexed=False)
    assert line == b"2020-09-13T12:26:40.000000000Z a=1,b=2 hello world\n"


def test_a_multiplexed_line_is_one_frame_of_its_stream() -> None:
    """The header counts what was put before the data too."""
    line = log_line(RECORD, timestamps=False, details=None, is_multiplexed=True)
    assert line == b"\x02\0\0\0\0\0\0\x0chello world\n"


def test_details_are_sorted_and_escaped() -> None:
    """A value with a comma or an equals sign must not end the pair."""
    assert details_of({"b": "x,y=z w", "a": "1"}) == b"a=1,b=x%2Cy%3Dz+w"


def test_progress_has_a_bar_only_when_there_is_something_to_count() -> None:
    """A step without numbers is a line of text to clients."""
    assert msgspec.json.decode(progress_line(Progress(status="Pulling", id="ab"))) == {
        "status": "Pulling",
        "id": "ab",
    }
    moving = msgspec.json.decode(progress_line(Progress(status="Downloading", current=1, total=2)))
    assert moving["progressDetail"] == {"current": 1, "total": 2}


@pytest.mark.parametrize(
    ("current", "total", "expected"),
    [
        (0, 100, "[>" + " " * 49 + "]  0B/100B"),
        (50, 100, "[" + "=" * 25 + ">" + " " * 24 + "]  50B/100B"),
        (100, 100, "[" + "=" * 50 + "]  100B/100B"),
        (1500, 0, "1.5kB"),
        (200, 100, "[" + "=" * 50 + "]  200B/100B"),
    ],
)
def test_a_bar_never_leaves_its_frame(current: int, total: int, expected: str) -> None:
    """Also when more came than was announced, or nothing was."""
    assert expected == bar(current, total)


def test_a_late_error_is_in_both_members() -> None:
    """Old clients read `error`, new ones `errorDetail`."""
    assert msgspec.json.decode(error_line("no")) == {
        "error": "no",
        "errorDetail": {"message": "no"},
    }

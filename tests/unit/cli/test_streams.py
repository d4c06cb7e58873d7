"""Log frames and progress messages, however the stream is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.cli.convergence import Line
from manager.cli.jsonstream import MessageReader, message_error, message_line
from manager.cli.logstream import FrameReader, Origin, format_line, parse_line, task_prefix
from proto.errors import InvalidError

DETAILS = (
    b"com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,"
    b"com.docker.swarm.task.id=t1,a%2Cb=c+d"
)


def frame(kind: int, message: bytes) -> bytes:
    """Make a frame."""
    return bytes([kind, 0, 0, 0]) + len(message).to_bytes(4, "big") + message


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=20)), max_size=5),
    st.lists(st.integers(1, 9), max_size=20),
)
def test_frames_survive_any_cutting(frames: list[tuple[int, bytes]], sizes: list[int]) -> None:
    """Where the stream is cut does not matter."""
    stream = b"".join(frame(kind, message) for kind, message in frames)
    reader, found = FrameReader(), []
    for size in [*sizes, len(stream)]:
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == [(kind == 2, message) for kind, message in frames]


@pytest.mark.parametrize("data", [b"\x07" + b"\0" * 7, b"\x01\0\0\0\xff\xff\xff\xff"])
def test_a_damaged_stream_is_refused(data: bytes) -> None:
    """A wrong kind or an absurd length is not waited for."""
    with pytest.raises(InvalidError, match="damaged"):
        FrameReader().feed(data)


def test_a_line_says_who_wrote_it() -> None:
    """Details are decoded, and the origin taken out of them."""
    line = parse_line(b"2026-01-01T00:00:00Z " + DETAILS + b" hello world\n", with_timestamp=True)
    assert line.origin == Origin("s1", "t1", "n1")
    assert line.details == (("a,b", "c d"),)
    prefix = task_prefix("web", 3, "t1" + "x" * 20, "mgr01", padding=2)
    expected = b"2026-01-01T00:00:00Z web.3.t1xxxxxxxxxx@mgr01     | hello world\n"
    assert format_line(line, prefix, with_details=False) == expected
    assert b"    | a,b=c d hello" in format_line(line, prefix, with_details=True)


@pytest.mark.parametrize("message", [b"", b"hello\n", b"hello world\n", DETAILS])
def test_a_line_without_origin_is_refused(message: bytes) -> None:
    """Docker's client says the same."""
    with pytest.raises(InvalidError, match="invalid context in log message"):
        parse_line(message, with_timestamp=False)


@given(st.lists(st.dictionaries(st.text(), st.text(), max_size=3), max_size=4), st.integers(1, 9))
def test_messages_survive_any_cutting(messages: list[dict[str, str]], size: int) -> None:
    """Where the stream is cut does not matter, and the last line needs no end."""
    stream = "\r\n".join(json.dumps(message) for message in messages).encode()
    reader, found = MessageReader(), []
    while stream:
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found + reader.finish() == messages


def test_messages_without_line_breaks() -> None:
    """A daemon may write objects one right after the other."""
    assert MessageReader().feed(b'{"a":1} {"b":2}\n') == [{"a": 1}, {"b": 2}]


def test_no_json_is_refused() -> None:
    """What is no JSON says so."""
    with pytest.raises(InvalidError, match="is not JSON"):
        MessageReader().feed(b"{nope\n")


def test_messages_are_shown() -> None:
    """Plain text, states, bars and errors."""
    assert message_line({"stream": "Loaded image: x\n"}) == "Loaded image: x\n"
    assert message_line({"status": "Pulling from x"}) == "Pulling from x\n"
    assert message_line({"status": "Waiting", "id": "ab"}) == Line("ab", "Waiting")
    assert message_line({"aux": {}}) is None
    detail = {"current": 5_000_000, "total": 10_000_000}
    line = message_line({"status": "Downloading", "id": "ab", "progressDetail": detail})
    assert isinstance(line, Line)
    assert line.is_bar
    assert line.text.startswith("Downloading [========================>   ")
    assert line.text.endswith("5MB/10MB")
    assert message_error({"errorDetail": {"message": "no"}, "error": "no"}) == "no"
    assert message_error({"status": "x"}) == ""

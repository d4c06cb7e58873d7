"""Records, frames and headers: what goes in comes out, and torn is told from rotten."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raft import format as layout
from raft.core import Entries, HardState, RaftID

HEADER = layout.FileHeader(
    magic=layout.MAGIC_SEGMENT, key_id=7, number=3, index=1, salt=bytes(layout.SALT_BYTES)
)
ME = RaftID(7)
CIPHER = layout.file_cipher(bytes(32), HEADER)
entries_strategy = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


def segment(batches: list[list[bytes]]) -> tuple[bytes, list[int]]:
    """Return a segment's content and where its records start."""
    content, starts, index = layout.encode_file_header(HEADER), [], 1
    for sequence, entries in enumerate(batches):
        starts.append(len(content))
        step = layout.State(HardState(1, ME, index - 1), Entries(index, entries, ((index, 1),)))
        packed = layout.pack_states(layout.States(ME, [step]))
        content += b"".join(layout.encode_states(CIPHER, HEADER.key_id, sequence, packed))
        index += len(entries)
    return content, starts


def read(content: bytes) -> list[list[bytes]]:
    """Read a segment's records."""
    stream = io.BytesIO(content)
    stream.seek(layout.FILE_HEADER_BYTES)
    return [entries_of(batch) for batch in layout.read_batches(stream, CIPHER, HEADER.key_id)]


def entries_of(batch: layout.Batch) -> list[bytes]:
    """Return the entries of a record with one step."""
    (step,) = batch.states.steps
    assert step.entries is not None
    return step.entries.data


@given(st.lists(entries_strategy, max_size=5))
def test_records_round_trip(batches):
    """Any entries, also empty ones, come back as they were, in the same records."""
    assert read(segment(batches)[0]) == batches


@given(
    st.sampled_from([layout.MAGIC_SEGMENT, layout.MAGIC_SNAPSHOT]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
)
def test_file_headers_round_trip(magic, key_id, number, index, salt):
    """All fields come back."""
    header = layout.FileHeader(magic=magic, key_id=key_id, number=number, index=index, salt=salt)
    data = layout.encode_file_header(header)
    assert len(data) == layout.FILE_HEADER_BYTES
    assert layout.decode_file_header(data, magic) == header


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_synced_marks_round_trip(number, offset):
    """Both fields come back."""
    synced = layout.Synced(number=number, offset=offset)
    assert layout.decode_synced(layout.encode_synced(synced)) == synced


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_frames_round_trip(chunks):
    """Chunks come back as they were cut."""
    content = b"".join(layout.encode_frame(CIPHER, n, chunk) for n, chunk in enumerate(chunks))
    content += layout.encode_final_frame(CIPHER, len(chunks), sum(map(len, chunks)))
    assert list(layout.read_frames(io.BytesIO(content), CIPHER)) == chunks


@given(st.lists(entries_strategy, min_size=1, max_size=4), st.data())
def test_any_change_of_a_segment_is_found_and_nothing_false_is_read(batches, data):
    """Cut, insert, overwrite: only a prefix of the true records is ever read."""
    content, _ = segment(batches)
    start = data.draw(st.integers(layout.FILE_HEADER_BYTES, len(content) - 1))
    stop = data.draw(st.integers(start, len(content)))
    put = data.draw(st.binary(max_size=60))
    changed = content[:start] + put + content[stop:]
    assume(changed != content)
    stream = io.BytesIO(changed)
    stream.seek(layout.FILE_HEADER_BYTES)
    got: list[list[bytes]] = []
    with contextlib.suppress(layout.DamagedError):
        for batch in layout.read_batches(stream, CIPHER, HEADER.key_id):
            got.append(entries_of(batch))  # noqa: PERF401 -- what came before the error counts
    assert got == batches[: len(got)]
    assert len(got) < len(batches) or len(changed) > len(content)


@given(st.integers(0, 1200), st.integers(0, 1500), st.integers(0, 2**12 - 1), st.integers(0, 2000))
def test_whatever_a_crash_leaves_of_the_last_write_is_torn(before, size, lost, missing):
    """Any sectors missing or the end missing: not whole, then torn; never taken for damage."""
    content, starts = segment([[bytes(before)], [bytes(size)]])
    start = starts[1]
    torn = bytearray(content[: max(start + 1, len(content) - missing)])
    for number, sector in enumerate(range(start // 512 * 512, len(torn), 512)):
        if lost >> number & 1:
            low, high = max(sector, start), min(sector + 512, len(torn))
            torn[low:high] = bytes(high - low)
    assume(bytes(torn) != content)
    assert read(bytes(torn[:start])) == [[bytes(before)]]
    with pytest.raises(layout.DamagedError) as caught:
        read(bytes(torn))
    assert caught.value.offset == start
    assert layout.is_torn_tail(bytes(torn[start:]), start, start, HEADER.key_id)


@given(st.integers(0, 1200), st.integers(0, 1500), st.data())
def test_a_changed_byte_of_a_whole_last_record_is_damage(before, size, data):
    """Also without a synced mark, unless the byte is alone in its sector and became zero."""
    content, starts = segment([[bytes(before)], [bytes(size)]])
    start = starts[1]
    place = data.draw(st.integers(start, len(content) - 1))
    value = data.draw(st.integers(0, 255))
    assume(value != content[place])
    tail = bytearray(content[start:])
    tail[place - start] = value
    # The rest of the sector, as far as it belongs to this record, is not all zeros by chance.
    low = max(start, place // 512 * 512)
    high = min(len(content), place // 512 * 512 + 512)
    assume(any(tail[low - start : high - start]))
    for other in range(start // 512 * 512, len(content), 512):
        assume(any(tail[max(other, start) - start : min(other + 512, len(content)) - start]))
    assert not layout.is_torn_tail(bytes(tail), start, 0, HEADER.key_id)
    assert not layout.is_torn_tail(bytes(tail), start, start + 1, HEADER.key_id)

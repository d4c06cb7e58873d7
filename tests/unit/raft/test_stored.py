"""What is made of records and a snapshot's description, without any file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft import format as layout
from raft.core import NOBODY, Entries, HardState, RaftID, Snapshot
from raft.stored import LogReader, Stored, completed, is_void, newest_membership

ME = RaftID(7)

runs = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5), st.booleans()), max_size=12)


@given(runs)
def test_later_entries_replace_earlier_ones_from_their_first_on(steps):
    """The log equals a list that is cut before each run is added: data, terms, memberships."""
    reader = LogReader()
    expected: list[tuple[bytes, int, bool]] = []
    for term, (asked, count, is_change) in enumerate(steps, 1):
        # Entries only follow what is there: `raft.segments` refuses a gap.
        first = min(asked, len(expected) + 1)
        data = [b"%d of %d" % (index, term) for index in range(first, first + count)]
        changes = (first,) if is_change else ()
        reader.add(Entries(first, data, ((first, term),), changes))
        del expected[first - 1 :]
        expected += [(item, term, is_change and place == 0) for place, item in enumerate(data)]
    found = reader.entries()
    assert reader.last == len(expected)
    if found is None:
        assert expected == []
        return
    terms = [found.term(index) for index in range(1, found.last + 1)]
    is_changes = [index in found.changes for index in range(1, found.last + 1)]
    assert list(zip(found.data, terms, is_changes, strict=True)) == expected


def record(offset, hard_state, entries=None):
    """Make a record."""
    return layout.Batch(offset, offset + 1, layout.States(ME, [layout.State(hard_state, entries)]))


def test_a_segment_elsewhere_begins_the_log_anew():
    """Behind a leader's snapshot it voids what was before; behind its predecessor it does not."""
    begin = layout.FILE_HEADER_BYTES
    reader = LogReader()
    reader.visit(1, record(begin, HardState(1, ME, 0), Entries(1, [b"1", b"2"], ((1, 1),))))
    reader.visit(3, record(begin, HardState(1, ME, 2)))
    assert reader.entries() == Entries(1, [b"1", b"2"], ((1, 1),))
    reader.visit(11, record(begin, HardState(5, NOBODY, 10)))
    assert (reader.entries(), reader.last) == (None, 10)
    reader.visit(11, record(begin + 1, HardState(5, NOBODY, 10), Entries(11, [b"11"], ((11, 5),))))
    assert reader.entries() == Entries(11, [b"11"], ((11, 5),))
    assert (reader.member_id, reader.hard_state) == (ME, HardState(5, NOBODY, 10))


def test_a_term_of_a_snapshot_takes_the_vote_with_it():
    """A vote belongs to its term: a later term that was only told of has none."""
    assert completed(HardState(3, ME, 4), Snapshot(), None) == HardState(3, ME, 4)
    assert completed(HardState(3, ME, 4), Snapshot(9, 3), None) == HardState(3, ME, 9)
    assert completed(HardState(3, ME, 4), Snapshot(9, 5), None) == HardState(5, NOBODY, 9)
    entries = Entries(1, [b"1"], ((1, 6),))
    assert completed(HardState(3, ME, 4), Snapshot(), entries) == HardState(6, NOBODY, 4)


@pytest.mark.parametrize(
    ("first", "count", "term", "expected"),
    [
        (1, 9, 5, True),  # It ends before the snapshot.
        (1, 10, 5, False),
        (1, 12, 4, True),  # It goes on with something else.
        (1, 12, 5, False),
        (11, 2, 5, False),  # It begins behind it.
    ],
)
def test_a_log_that_does_not_go_with_an_installed_snapshot_is_void(first, count, term, expected):
    """It is kept only if it holds the snapshot's own entry, or what comes after it."""
    entries = Entries(first, [b""] * count, ((first, term),))
    assert is_void(Snapshot(10, 5), entries, entries.last) is expected
    assert is_void(Snapshot(10, 5), None, 9) is True
    assert is_void(Snapshot(10, 5), None, 10) is False


def test_an_empty_directory_has_nobody_and_no_group():
    """What is found in it makes a core that knows nothing."""
    stored = Stored(NOBODY, HardState(), Snapshot(), None)
    assert stored.is_empty
    assert stored.last_index == 0
    assert newest_membership(stored).members == ()

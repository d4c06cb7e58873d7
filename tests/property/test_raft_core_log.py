"""The log against a plain list of entries, and messages through their encoding."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from raft.core import Entries, Member, Membership, RaftID, Snapshot, decode, encode
from raft.core.log import Log
from raft.core.messages import Append, AppendReply, Install, Vote


def entries_of(first, terms):
    """Build entries with runs from terms one by one; each holds its place and term."""
    runs = tuple(
        (first + place, term)
        for place, term in enumerate(terms)
        if place == 0 or terms[place - 1] != term
    )
    data = [b"%d/%d" % (first + place, term) for place, term in enumerate(terms)]
    return Entries(first, data, runs)


def log_of(terms):
    """Build a log."""
    log = Log(Snapshot(), None, 0)
    for index, term in enumerate(terms, 1):
        log.append(term, [b"%d/%d" % (index, term)])
    log.take_unstored()
    log.stored_to(log.last)
    return log


def content(log):
    """List what a log keeps, entry by entry."""
    if log.start == log.last:
        return []
    entries = log.entries(log.start + 1, log.last)
    return [(entries.term(index), data) for index, data in enumerate(entries.data, entries.first)]


ascending = st.lists(st.integers(1, 5), max_size=12).map(sorted)


@given(ascending, ascending, st.data())
def test_merging_equals_the_paper(own, leaders, data):
    """After a match: keep what equals, cut from the first difference, add the rest."""
    log = log_of(own)
    previous = data.draw(st.integers(0, len(leaders)))
    last = data.draw(st.integers(previous, len(leaders)))
    previous_term = leaders[previous - 1] if previous else 0
    sent = entries_of(previous + 1, leaders[previous:last])
    expected = list(own)
    is_match = previous <= len(own) and (previous == 0 or own[previous - 1] == previous_term)
    if is_match:
        for index in range(previous, last):
            if index >= len(expected):
                expected.append(leaders[index])
            elif expected[index] != leaders[index]:
                expected = [*expected[:index], leaders[index]]
    before = list(own)
    if is_match and any(a > b for a, b in itertools.pairwise(expected)):
        # A leader never sends such entries: its log has no falling terms and matched before.
        return
    cut = log.merge(previous, previous_term, sent)
    log.check()
    assert (cut >= 0) == is_match
    assert [term for term, _ in content(log)] == expected
    kept = next(
        (i for i, (a, b) in enumerate(zip(before, expected, strict=False)) if a != b),
        min(len(before), len(expected)),
    )
    assert log.durable == min(kept, len(before))


@given(ascending.filter(len), st.data())
def test_compaction_hides_only_what_it_dropped(terms, data):
    """Everything above the new start is as before."""
    log = log_of(terms)
    log.commit_to(len(terms))
    while log.take_committed(1 << 20) is not None:
        pass
    before = content(log)
    index = data.draw(st.integers(1, len(terms)))
    keep = data.draw(st.integers(0, len(terms)))
    log.compact(Snapshot(index, log.term(index)), keep)
    log.check()
    assert log.start == max(0, index - keep)
    assert content(log) == before[log.start :]
    assert log.term(log.start) == (terms[log.start - 1] if log.start else 0)


@given(ascending.filter(len), st.integers(0, 14), st.integers(0, 6))
def test_agreement_is_the_last_place_with_no_newer_term(terms, index, term):
    """As a walk backwards finds it."""
    log = log_of(terms)
    expected = min(index, len(terms))
    while expected > 0 and terms[expected - 1] > term:
        expected -= 1
    assert log.agreement(index, term) == expected


@given(ascending.filter(len), st.data())
def test_a_restart_finds_the_same_log(terms, data):
    """From a snapshot anywhere and entries that begin anywhere at or before its end."""
    log = log_of(terms)
    index = data.draw(st.integers(0, len(terms)))
    first = data.draw(st.integers(1, max(1, index)))
    term = terms[index - 1] if index else 0
    again = Log(Snapshot(index, term), log.entries(first, len(terms)), 0)
    again.check()
    kept = max(again.start, index) + 1
    for place in range(kept, len(terms) + 1):
        assert again.term(place) == terms[place - 1]
    assert again.last == len(terms)
    if kept <= len(terms):
        assert again.entries(kept, len(terms)) == log.entries(kept, len(terms))


numbers = st.integers(0, (1 << 63) - 1)
ids = st.integers(1, (1 << 63) - 1).map(RaftID)


@given(ids, ids, numbers, ascending.filter(len), st.booleans())
def test_messages_survive_encoding(sender, to, term, terms, flag):
    """A batch of different kinds is read back the same."""
    membership = Membership((Member(sender, is_voter=flag, address="a"),), (to,))
    messages = [
        Append(sender, to, term, 4, 2, 3, entries_of(5, terms)),
        AppendReply(sender, to, term, 7, flag, 5, 6),
        Vote(sender, to, term, 1, 2, flag),
        Install(sender, to, term, Snapshot(9, 3, membership)),
    ]
    assert decode(encode(messages)) == messages

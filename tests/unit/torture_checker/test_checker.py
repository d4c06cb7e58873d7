"""The checker on histories written by hand: it finds each fault, and nothing in a good one."""

import math

import pytest

MEMBERS = ("a", "b", "c")


@pytest.fixture
def history(checker):
    """Give the way to write a history: appends as (value, begun, ended or None, outcome)."""

    def write(appends, finals, *, reads=(), barriers=None):
        made = []
        for value, begun, ended, *outcome in appends:
            default = checker.UNKNOWN if ended is None else checker.ACKED
            end = math.inf if ended is None else ended
            made.append(checker.Append("k", value, begun, end, *(outcome or [default])))
        lists = finals if isinstance(finals, dict) else dict.fromkeys(MEMBERS, finals)
        return checker.History(
            made,
            list(reads),
            {member: {"k": values} for member, values in lists.items()},
            barriers or {},
        )

    return write


@pytest.fixture
def read(checker, digest):
    """Give the way to write a read of these values."""

    def write(values, begun, ended):
        return checker.Read("k", begun, ended, len(values), digest(values))

    return write


def test_good_history(checker, history, read):
    """Overlapping, unknown and refused appends and reads that fit have no fault."""
    appends = [
        (1, 0, 2),
        (2, 1, 3),
        (3, 4, None),
        (4, 4, None),
        (5, 5, 6),
        (6, 7, None, checker.REFUSED),
    ]
    reads = [read([2, 1], 3.5, 3.6), read([2, 1, 3, 5], 6.5, 8), read([], 0, 1)]
    report = checker.check(history(appends, [2, 1, 3, 5], reads=reads))
    assert report.faults() == {}
    assert (report.acked, report.refused, report.unknown, report.reads) == (3, 1, 2, 3)


def test_unknown_may_come_late(checker, history):
    """An append without an answer may take effect after others that came much later."""
    report = checker.check(history([(1, 0, None), (2, 10, 11)], [2, 1]))
    assert report.faults() == {}


def test_lost(checker, history):
    """An acknowledged value that nobody has is lost; an unknown one is not."""
    report = checker.check(history([(1, 0, 1), (2, 0, 1), (3, 0, None)], [2]))
    assert report.faults() == {"lost": 1}
    assert report.examples == {"lost": ["1"]}


def test_all_lost(checker, history):
    """Empty lists lose everything."""
    report = checker.check(history([(1, 0, 1), (2, 0, 1)], []))
    assert report.faults() == {"lost": 2}


def test_missing_on_one_member(checker, history):
    """A value that one member lacks makes the members differ, and is not called lost."""
    finals = {"a": [1, 2], "b": [1, 2], "c": [1]}
    report = checker.check(history([(1, 0, 1), (2, 0, 1)], finals))
    assert report.faults() == {"missing": 1, "diverged": 1}


def test_lagging_member_loses_nothing(checker, history):
    """A member without the barrier is unsettled; what it lacks is not lost, nor missing."""
    finals = {"a": [1, 2, 9], "b": [1, 2, 9], "c": [1]}
    appends = [(1, 0, 1), (2, 0, 1), (9, 5, 6)]
    report = checker.check(history(appends, finals, barriers={"k": 9}))
    assert report.faults() == {"unsettled": 1}


def test_barrier_proves_loss(checker, history):
    """A value before the barrier that no member with the barrier has is lost."""
    finals = {"a": [1, 9], "b": [1, 9], "c": [1, 2]}
    appends = [(1, 0, 1), (2, 0, 1), (9, 5, 6)]
    report = checker.check(history(appends, finals, barriers={"k": 9}))
    assert report.faults() == {"lost": 1, "unsettled": 1}


def test_duplicated(checker, history):
    """A value that is there twice is found once."""
    report = checker.check(history([(1, 0, 1), (2, 2, 3)], [1, 2, 1]))
    assert report.faults() == {"duplicated": 1}


def test_reordered(checker, history):
    """An append acknowledged before another was asked for must come before it."""
    report = checker.check(history([(1, 0, 1), (2, 2, 3), (3, 2, 4)], [2, 1, 3]))
    assert report.faults() == {"reordered": 1}
    assert report.examples == {"reordered": ["1"]}


def test_different_orders(checker, history):
    """Two members with the same values in another order differ."""
    finals = {"a": [1, 2], "b": [2, 1], "c": [1, 2]}
    report = checker.check(history([(1, 0, 5), (2, 0, 5)], finals))
    assert report.faults() == {"diverged": 1}


def test_invented(checker, history):
    """A value that nobody asked for is found."""
    report = checker.check(history([(1, 0, 1)], [1, 7]))
    assert report.faults() == {"invented": 1}


def test_invented_by_one_member(checker, history):
    """Also if only one member has it."""
    report = checker.check(history([(1, 0, 1)], {"a": [1], "b": [1], "c": [1, 7]}))
    assert report.faults() == {"invented": 1, "diverged": 1}


def test_refused_and_present(checker, history):
    """What was refused for certain may not be there."""
    report = checker.check(history([(1, 0, 1), (2, 0, None, checker.REFUSED)], [1, 2]))
    assert report.faults() == {"refused_present": 1}


def test_stale_read(checker, history, read):
    """A read that misses what was acknowledged before it began is stale."""
    report = checker.check(history([(1, 0, 1), (2, 2, 3)], [1, 2], reads=[read([1], 4, 5)]))
    assert report.faults() == {"stale_reads": 1}


def test_read_beside_an_append(checker, history, read):
    """A read that overlaps an append may see it or not."""
    reads = [read([1], 2.5, 5), read([1, 2], 2.5, 2.9)]
    # The second ended before the append was acknowledged, and the first had begun before that.
    report = checker.check(history([(1, 0, 1), (2, 2, 3)], [1, 2], reads=reads))
    assert report.faults() == {}


def test_early_read(checker, history, read):
    """A read cannot see what was asked for after it ended."""
    report = checker.check(history([(1, 0, 1), (2, 5, 6)], [1, 2], reads=[read([1, 2], 2, 3)]))
    assert report.faults() == {"early_reads": 1}


def test_read_of_something_else(checker, history, read):
    """A read of what is no beginning of the list is wrong, and one that is too long."""
    reads = [read([2], 0, 9), read([1, 2, 3], 0, 9)]
    report = checker.check(history([(1, 0, 1), (2, 0, 1)], [1, 2], reads=reads))
    assert report.faults() == {"wrong_reads": 2}


def test_reads_going_back(checker, history, read):
    """A read may not see less than one that ended before it, though nothing was acknowledged."""
    reads = [read([1], 1, 2), read([], 3, 4)]
    report = checker.check(history([(1, 0, None)], [1], reads=reads))
    assert report.faults() == {"stale_reads": 1}


def test_value_used_twice(checker, history):
    """A harness that repeats a value could hide a loss: it is stopped."""
    with pytest.raises(AssertionError, match="used twice"):
        checker.check(history([(1, 0, 1), (1, 2, 3)], [1]))


def test_key_that_nobody_holds(checker):
    """A key that vanished from all members is judged too."""
    appends = [checker.Append("gone", 1, 0, 1, checker.ACKED)]
    report = checker.check(checker.History(appends, [], {"a": {}, "b": {}}))
    assert report.faults() == {"lost": 1}


def test_all_counts_are_promises(checker):
    """Every count after those of outcomes makes a fault, so a new one cannot be forgotten."""
    names = checker.Report.__struct_fields__
    assert names[:5] == ("acked", "refused", "unknown", "reads", "lost")
    report = checker.Report(**dict.fromkeys(names[:-1], 1))
    assert set(names[4:-1]) == report.faults().keys()

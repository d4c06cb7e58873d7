"""The checker of histories, against small ones by hand and against trying every order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.sim.linear import FOREVER, Operation, applied, is_linearizable


def history(*rows):
    """Build operations from (id, kind, begun, ended, result)."""
    return [Operation(i, kind, 0, begun, ended, result) for i, kind, begun, ended, result in rows]


def test_a_read_sees_the_last_write():
    """Or, while both are under way, the one before."""
    assert is_linearizable(history((1, "write", 1, 2, None), (2, "read", 3, 4, (1,))))
    assert is_linearizable(history((1, "write", 1, 4, None), (2, "read", 2, 3, ())))
    assert is_linearizable(history((1, "write", 1, 4, None), (2, "read", 2, 3, (1,))))


def test_a_stale_read_is_found():
    """The write had ended before the read began."""
    assert not is_linearizable(history((1, "write", 1, 2, None), (2, "read", 3, 4, ())))


def test_a_lost_append_is_found():
    """An acknowledged element that a later read lacks."""
    rows = [(1, "append", 1, 2, None), (2, "append", 3, 4, None), (3, "read", 5, 6, (2,))]
    assert not is_linearizable(history(*rows))
    rows[2] = (3, "read", 5, 6, (1, 2))
    assert is_linearizable(history(*rows))


def test_reads_never_go_back():
    """Two reads one after the other cannot see a write and then not."""
    rows = [(1, "write", 1, 9, None), (2, "read", 2, 3, (1,)), (3, "read", 4, 5, ())]
    assert not is_linearizable(history(*rows))


def test_an_unanswered_write_may_have_happened_at_any_time_or_never():
    """Even long after, but only once."""
    lost = (1, "write", 1, FOREVER, None)
    assert is_linearizable(history(lost, (2, "read", 3, 4, ()), (3, "read", 5, 6, (1,))))
    assert is_linearizable(history(lost, (2, "read", 3, 4, ())))
    rows = [lost, (2, "read", 2, 3, (1,)), (3, "write", 4, 5, None), (4, "read", 6, 7, (1,))]
    assert not is_linearizable(history(*rows))


def test_a_queue_gives_what_came_first():
    """In the order of the calls, and nothing when it is empty."""
    rows = [
        (1, "enqueue", 1, 2, None),
        (2, "enqueue", 3, 4, None),
        (3, "dequeue", 5, 6, (1,)),
        (4, "dequeue", 7, 8, (2,)),
        (5, "dequeue", 9, 10, ()),
    ]
    assert is_linearizable(history(*rows))
    overtaken = [*rows[:2], (3, "dequeue", 5, 6, (2,))]
    assert not is_linearizable(history(*overtaken))


def test_calls_at_the_same_time_may_come_in_either_order():
    """Nobody can say which was first, but both takers must see the same."""
    rows = [(1, "enqueue", 1, 4, None), (2, "enqueue", 2, 3, None), (3, "dequeue", 5, 6, (2,))]
    assert is_linearizable(history(*rows))
    assert is_linearizable(history(*rows, (4, "dequeue", 7, 8, (1,))))
    assert not is_linearizable(history(*rows, (4, "dequeue", 7, 8, (2,))))


def test_an_element_that_is_lost_or_given_twice_is_found():
    """The faults for which one has a queue in the history."""
    put = (1, "enqueue", 1, 2, None)
    assert not is_linearizable(history(put, (2, "dequeue", 3, 4, ())))
    twice = [(2, "dequeue", 3, 4, (1,)), (3, "dequeue", 5, 6, (1,))]
    assert not is_linearizable(history(put, *twice))
    assert not is_linearizable(history((2, "dequeue", 3, 4, (1,)), (1, "enqueue", 5, 6, None)))
    assert not is_linearizable(history(put, twice[0], (3, "read", 5, 6, (1,))))


def test_a_dequeue_without_an_answer_takes_one_element_or_none():
    """Whichever is first at that moment, once, even long after; never two."""
    puts = [(1, "enqueue", 1, 2, None), (2, "enqueue", 3, 4, None)]
    lost = (3, "dequeue", 5, FOREVER, None)
    for seen in ((1,), (2,)):
        assert is_linearizable(history(*puts, lost, (4, "dequeue", 6, 7, seen)))
    assert not is_linearizable(history(*puts, lost, (4, "dequeue", 6, 7, ())))
    late = [(4, "dequeue", 6, 7, (1,)), (5, "dequeue", 8, 9, ())]
    assert is_linearizable(history(*puts, lost, *late))


def test_an_enqueue_without_an_answer_may_still_arrive():
    """Or never; what it put in can be taken once."""
    lost = (1, "enqueue", 1, FOREVER, None)
    empty, found = (2, "dequeue", 2, 3, ()), (3, "dequeue", 4, 5, (1,))
    assert is_linearizable(history(lost, empty, found))
    assert is_linearizable(history(lost, empty))
    assert not is_linearizable(history(lost, found, (4, "dequeue", 6, 7, (1,))))


def by_trying(operations):
    """Decide by trying every order of every choice of the unanswered."""
    answered = [each for each in operations if each.ended != FOREVER]
    unanswered = [each for each in operations if each.ended == FOREVER]
    for count in range(len(unanswered) + 1):
        for chosen in itertools.combinations(unanswered, count):
            for order in itertools.permutations([*answered, *chosen]):
                if fits(order):
                    return True
    return False


def fits(order):
    """Whether an order respects time and answers."""
    state = ()
    for place, operation in enumerate(order):
        if any(later.ended < operation.begun for later in order[place + 1 :]):
            return False
        state = applied(state, operation)
        if state is None:
            return False
    return True


@st.composite
def histories(draw):
    """Draw up to six operations with distinct moments and plausible answers."""
    count = draw(st.integers(1, 6))
    moments = draw(st.permutations(range(2 * count)))
    operations = []
    kind_of_write = draw(st.sampled_from(["write", "append", "enqueue"]))
    kinds = ["read", kind_of_write] + ["dequeue"] * (kind_of_write == "enqueue")
    for number in range(count):
        begun, ended = sorted(moments[2 * number : 2 * number + 2])
        kind = draw(st.sampled_from(kinds))
        result = None
        if kind == "read":
            result = tuple(draw(st.lists(st.integers(0, count - 1), max_size=3, unique=True)))
        elif draw(st.integers(0, 3)) == 0:
            ended = FOREVER
        elif kind == "dequeue":
            result = tuple(draw(st.lists(st.integers(0, count - 1), max_size=1)))
        operations.append(Operation(number, kind, 0, begun, ended, result))
    return operations


@given(histories())
def test_it_agrees_with_trying_every_order(operations):
    """The search with memory decides like the obvious one."""
    assert is_linearizable(operations) == by_trying(operations)


@pytest.mark.parametrize("kind", ["write", "append", "enqueue"])
def test_long_histories_are_decided(kind):
    """Hundreds of operations, four at a time."""
    operations = [
        Operation(3 * turn + place, kind, 0, 10 * turn + place, 10 * turn + 8 - place)
        for turn in range(100)
        for place in range(3)
    ]
    assert is_linearizable(operations)

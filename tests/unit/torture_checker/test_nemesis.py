"""What goes wrong is decided by the seed alone, and is what its name says."""

import random

import pytest


@pytest.fixture(scope="session")
def nemesis(torture):
    """Give the module."""
    return torture("nemesis")


def faults(nemesis, seed, *, leader=1, busy=(), weights=None, count=300):
    """Plan many."""
    rng = random.Random(seed)
    weights = weights or nemesis.WEIGHTS["ours"]
    return [nemesis.plan(rng, weights, (0, 1, 2), leader, set(busy)) for _ in range(count)]


def test_same_seed(nemesis):
    """A seed gives the same faults again, another gives others."""
    assert faults(nemesis, 7) == faults(nemesis, 7)
    assert faults(nemesis, 7) != faults(nemesis, 8)


def test_every_kind(nemesis):
    """All kinds come, and the leader is the victim more often than not."""
    planned = faults(nemesis, 1)
    assert set(nemesis.WEIGHTS["ours"]) == {fault.kind for fault in planned}
    single = [fault for fault in planned if len(fault.hosts) == 1]
    assert sum(fault.hosts == (1,) for fault in single) > len(single) / 2


@pytest.mark.parametrize(
    ("kind", "links"),
    [
        ("isolate", {(1, 0), (1, 2), (0, 1), (2, 1)}),
        ("mute", {(1, 0), (1, 2)}),
        ("deafen", {(0, 1), (2, 1)}),
    ],
)
def test_links(nemesis, kind, links):
    """A member is cut off in the directions that the kind says."""
    planned = faults(nemesis, 3, weights={kind: 1})
    assert {frozenset(links)} == {
        frozenset(fault.links) for fault in planned if fault.hosts == (1,)
    }


def test_majority(nemesis):
    """A majority is killed at once, and only when nobody suffers already."""
    planned = faults(nemesis, 4, weights={"kill_majority": 1})
    assert {2} == {len(set(fault.hosts)) for fault in planned}
    assert {None} == set(faults(nemesis, 4, weights={"kill_majority": 1}, busy=(0,)))


def test_busy_members_are_let_alone(nemesis):
    """Nobody suffers twice at a time."""
    planned = faults(nemesis, 5, weights={"kill": 1}, busy=(1,))
    assert not any(1 in fault.hosts for fault in planned)
    assert {None} == set(faults(nemesis, 5, weights={"kill": 1}, busy=(0, 1, 2)))


def test_one_left(nemesis):
    """With all others down or cut off the last one may suffer too, whatever the kind."""
    planned = faults(nemesis, 6, busy=(0, 1))
    assert {(2,)} == {fault.hosts for fault in planned if fault is not None}

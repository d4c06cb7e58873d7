"""What becomes of a request that an attempt did not settle."""

from __future__ import annotations

import pytest

from manager.httpapi.attempts import (
    LOST_SECONDS_MAX,
    Ended,
    Kind,
    Place,
    Progress,
    Step,
    in_doubt,
    kind_of,
    next_attempt,
    no_leader,
    place_of,
)
from manager.httpapi.backend import LeaderInfo, Quorum
from proto.ids import NodeID

ME, OTHER = NodeID("me"), NodeID("other")


@pytest.mark.parametrize(
    ("method", "path", "query", "kind"),
    [
        ("GET", "/nodes", {}, Kind.READ),
        ("HEAD", "/nodes/n1", {}, Kind.READ),
        ("GET", "/nodes", {"consistency": "stale"}, None),
        ("GET", "/services", {}, None),
        ("GET", "/swarm", {}, None),
        ("GET", "/join/v1/root", {}, None),
        ("POST", "/services/create", {}, Kind.REPEATABLE),
        ("POST", "/services/web/update", {"version": "7"}, Kind.REPEATABLE),
        ("POST", "/services/web/update", {"version": "7", "rollback": "previous"}, Kind.ONCE),
        ("DELETE", "/services/web", {}, Kind.REPEATABLE),
        ("POST", "/nodes/n1/update", {"version": "7"}, Kind.REPEATABLE),
        ("DELETE", "/nodes/n1", {"force": "1"}, Kind.REPEATABLE),
        ("POST", "/swarm/update", {"version": "7"}, Kind.REPEATABLE),
        ("POST", "/swarm/update", {"rotateWorkerToken": "false"}, Kind.REPEATABLE),
        ("POST", "/swarm/update", {"rotateWorkerToken": "true"}, Kind.ONCE),
        ("POST", "/swarm/update", {"rotateManagerUnlockKey": "1"}, Kind.ONCE),
        ("POST", "/join/v1/certificate", {}, Kind.ONCE),
        ("POST", "/swarm/join", {}, None),
        ("POST", "/swarm/leave", {}, None),
        ("POST", "/swarm/unlock", {}, None),
        ("POST", "/images/create", {}, None),
        ("DELETE", "/volumes/v", {}, None),
    ],
)
def test_only_what_the_leader_has_to_do_goes_to_it(
    method: str, path: str, query: dict[str, str], kind: Kind | None
) -> None:
    """Writes of the cluster's objects, and reads of what only the leader sees."""
    assert kind is kind_of(method, path, query)


@pytest.mark.parametrize(
    ("leader", "is_leader", "place"),
    [
        (None, False, Place.NOWHERE),
        (None, True, Place.HERE),
        (LeaderInfo(OTHER, "10.0.0.2:2377"), True, Place.HERE),
        (LeaderInfo(OTHER, "10.0.0.2:2377"), False, Place.THERE),
        (LeaderInfo(OTHER, ""), False, Place.NOWHERE),
        (LeaderInfo(ME, "10.0.0.1:2377"), False, Place.NOWHERE),
    ],
)
def test_an_attempt_goes_to_who_leads(
    leader: LeaderInfo | None, *, is_leader: bool, place: Place
) -> None:
    """Never to oneself over the network: that one would only send it on."""
    assert place is place_of(ME, leader, is_leader=is_leader)


CLEAR, DOUBT = Progress(is_in_doubt=False), Progress(is_in_doubt=True)


@pytest.mark.parametrize(
    ("ended", "kind", "before", "waited", "step", "after"),
    [
        # Nothing was done: whatever it is, it may be tried again, until the time is over.
        (Ended.NOTHING_DONE, Kind.READ, CLEAR, 0, Step.REPEAT, CLEAR),
        (Ended.NOTHING_DONE, Kind.REPEATABLE, CLEAR, 19.9, Step.REPEAT, CLEAR),
        (Ended.NOTHING_DONE, Kind.ONCE, CLEAR, 5, Step.REPEAT, CLEAR),
        (Ended.NOTHING_DONE, Kind.REPEATABLE, CLEAR, 20, Step.STOP_WITHOUT_LEADER, CLEAR),
        (Ended.NOTHING_DONE, Kind.ONCE, CLEAR, 20, Step.STOP_WITHOUT_LEADER, CLEAR),
        # It may have been done: only what notices a second time may be repeated.
        (Ended.UNKNOWN, Kind.READ, CLEAR, 0, Step.REPEAT, CLEAR),
        (Ended.UNKNOWN, Kind.REPEATABLE, CLEAR, 0, Step.REPEAT, DOUBT),
        (Ended.UNKNOWN, Kind.ONCE, CLEAR, 0, Step.STOP_IN_DOUBT, DOUBT),
        (Ended.UNKNOWN, Kind.REPEATABLE, CLEAR, 20, Step.STOP_IN_DOUBT, DOUBT),
        (Ended.UNKNOWN, Kind.READ, CLEAR, 20, Step.STOP_WITHOUT_LEADER, CLEAR),
        # A doubt stays, though a later attempt surely did nothing.
        (Ended.NOTHING_DONE, Kind.REPEATABLE, DOUBT, 1, Step.REPEAT, DOUBT),
        (Ended.NOTHING_DONE, Kind.REPEATABLE, DOUBT, 20, Step.STOP_IN_DOUBT, DOUBT),
    ],
)
def test_nothing_is_done_twice_and_nothing_given_up_too_early(
    *, ended: Ended, kind: Kind, before: Progress, waited: float, step: Step, after: Progress
) -> None:
    """Each case of the decision."""
    assert (step, after) == next_attempt(ended, kind, before, waited=waited, limit=20)


@pytest.mark.parametrize(
    ("before", "waited", "step"),
    [
        (CLEAR, LOST_SECONDS_MAX - 0.1, Step.REPEAT),
        (CLEAR, LOST_SECONDS_MAX, Step.STOP_WITHOUT_LEADER),
        (DOUBT, LOST_SECONDS_MAX - 0.1, Step.REPEAT),
        (DOUBT, LOST_SECONDS_MAX, Step.STOP_IN_DOUBT),
    ],
)
def test_an_election_that_cannot_succeed_is_not_waited_for(
    *, before: Progress, waited: float, step: Step
) -> None:
    """Not longer than for a majority that comes back at once; a shorter limit stays."""
    for limit in (20, LOST_SECONDS_MAX):
        given = next_attempt(
            Ended.NOTHING_DONE,
            Kind.REPEATABLE,
            before,
            waited=waited,
            limit=limit,
            is_majority_lost=True,
        )
        assert given == (step, before)
    stopped, _ = next_attempt(
        Ended.NOTHING_DONE, Kind.READ, CLEAR, waited=0.5, limit=0.1, is_majority_lost=True
    )
    assert stopped is Step.STOP_WITHOUT_LEADER


@pytest.mark.parametrize("ended", list(Ended))
@pytest.mark.parametrize("before", [CLEAR, DOUBT])
def test_what_would_be_done_twice_is_never_repeated_in_doubt(
    ended: Ended, before: Progress
) -> None:
    """Not even when the doubt is older than the last attempt."""
    step, after = next_attempt(ended, Kind.ONCE, before, waited=0, limit=20)
    assert step is not Step.REPEAT or not after.is_in_doubt


def test_a_lost_quorum_is_said_with_the_way_out() -> None:
    """How many of how many, how many it takes, and the command."""
    sentence = no_leader(Quorum(reachable=1, total=3, has_leader=False))
    assert "1 of 3 managers reachable, and it takes 2" in sentence
    assert "swarm init --force-new-cluster" in sentence
    assert "look, and repeat it" in in_doubt(sentence)


def test_a_slow_election_is_not_called_a_lost_quorum() -> None:
    """The desperate command is not advised while a majority is there."""
    sentence = no_leader(Quorum(reachable=2, total=3, has_leader=False))
    assert "2 of 3 managers reachable" in sentence
    assert "force-new-cluster" not in sentence

"""The dispatcher's decisions against simple models."""

import asyncio
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher import wire
from manager.dispatcher.assignments import (
    CHANGES_MAX,
    GATHER_SECONDS_MAX,
    Chain,
    complete_assignments,
    flush_at,
    touched_nodes,
)
from manager.dispatcher.liveness import (
    BUCKET_SECONDS,
    GRACE_SECONDS_MAX,
    REGISTRATION_SECONDS,
    REGISTRATIONS_MAX,
    RETURNS_PER_SECOND,
    Beat,
    Grace,
    Liveness,
    RegistrationLimit,
    spread_seconds,
)
from manager.dispatcher.session import Numbered, OpenSession, Session
from manager.nodeport.remotes import WEIGHT_BAD, WEIGHT_GOOD, ManagerPeer, Remotes
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.assignments import CompleteAssignments
from proto.errors import InvalidError, UnavailableError
from proto.objects import ClusterSpec, Node, ServiceSpec, ServiceSpecVersion, Task, TaskStatus
from proto.states import TaskState

NODES = ("a", "b", "c")

# --- who is alive ---

steps = st.lists(
    st.tuples(
        st.sampled_from(["heard", "expect", "forget", "due"]),
        st.sampled_from(NODES),
        st.floats(0, 3),  # the time that passes before
        st.floats(0, 10),  # how long a node is expected
    ),
    max_size=60,
)


@given(steps, st.floats(0.3, 5))
def test_liveness_is_a_table_of_deadlines(steps, dead_seconds):
    """The wheel buries who is silent for too long, at most a bucket late, and nobody else."""
    liveness, model, now = Liveness(dead_seconds), {}, 100.0
    for kind, node, passed, more in steps:
        now += passed
        match kind:
            case "heard":
                liveness.heard(node, now)
                model[node] = now + dead_seconds
            case "expect":
                liveness.expect(node, now + more)
                model[node] = max(model.get(node, 0.0), now + more)
            case "forget":
                liveness.forget(node)
                model.pop(node, None)
            case "due":
                for node_id in liveness.due(now):
                    assert model.pop(node_id) <= now
                for until in model.values():
                    assert until > now - BUCKET_SECONDS
        liveness.check()
        assert model.keys() == {node for node in NODES if node in liveness}
        assert (liveness.next_at() is None) is not bool(model)
        if model:
            assert liveness.next_at() <= min(model.values()) + BUCKET_SECONDS


@given(steps, st.floats(0.3, 5), st.floats(0.3, 5))
def test_a_loop_that_asks_when_told_buries_in_time(steps, dead_seconds, other_seconds):
    """Asked at `next_at` each time, the wheel is never late by more than a bucket."""
    liveness, model, now = Liveness(dead_seconds), {}, 100.0
    for i, (_, node, passed, _) in enumerate(steps):
        end = now + passed
        while (at := liveness.next_at()) is not None and at <= end:
            now = max(now, at)
            for node_id in liveness.due(now):
                until = model.pop(node_id)
                assert until <= now <= until + 2 * BUCKET_SECONDS
        now = end
        if i == len(steps) // 2:
            dead_seconds = other_seconds
            liveness.set_dead_seconds(dead_seconds)
        liveness.heard(node, now)
        model[node] = now + dead_seconds
        liveness.check()


@given(st.lists(st.floats(0, 30), max_size=100), st.floats(0.3, 5))
def test_grace_is_twice_the_silence_and_has_an_end(gaps, dead_seconds):
    """It never shrinks, and no stream of returning nodes makes it last for ever."""
    grace, now = Grace(0.0, dead_seconds), 0.0
    assert grace.until == 2 * dead_seconds
    for gap in gaps:
        now += gap
        before = grace.until
        grace.returned(now)
        assert before <= grace.until <= max(GRACE_SECONDS_MAX, 2 * dead_seconds)
        if now < before and grace.until < GRACE_SECONDS_MAX:
            assert grace.until >= now + dead_seconds


@given(st.lists(st.tuples(st.sampled_from(NODES), st.floats(0, 4)), max_size=80))
def test_registrations_are_limited_per_node(attempts):
    """Within any 8 seconds a node is let in three times at most, and not refused without cause."""
    limit, now = RegistrationLimit(), 0.0
    allowed = {node: [] for node in NODES}
    for node, passed in attempts:
        now += passed
        recent = [at for at in allowed[node] if at > now - REGISTRATION_SECONDS]
        is_allowed = limit.is_allowed(node, now)
        assert is_allowed is (len(recent) < REGISTRATIONS_MAX)
        if is_allowed:
            allowed[node].append(now)
        assert len(limit._times) <= len(NODES)


@given(st.integers(0, 10**12), st.integers(-5, 100), st.integers())
def test_the_beat_is_the_clusters(period_ns, missed, seed):
    """A drawn period differs by a tenth at most, and silence lasts at least one period."""
    spec = ClusterSpec(dispatcher_heartbeat_ns=period_ns, dispatcher_heartbeats_missed_max=missed)
    beat = Beat.of(spec)

    drawn = beat.drawn(random.Random(seed))

    assert beat.period_seconds * 0.9 <= drawn <= beat.period_seconds * 1.1
    assert beat.dead_seconds >= beat.period_seconds >= 0.1


@given(st.integers(0, 100_000))
def test_a_return_is_spread_as_far_as_it_must(nodes):
    """Few nodes come at once; many no faster than a manager takes them, and not much slower."""
    seconds = spread_seconds(nodes)

    if nodes <= 32:
        assert seconds == 0
    else:
        assert nodes / RETURNS_PER_SECOND <= seconds <= 1.26 * nodes / RETURNS_PER_SECOND


# --- what a node is told ---


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 5000), st.integers(0, 200))
def test_a_change_waits_for_others_only_shortly(now, last, told, waiting):
    """Never in the past, never longer than the gathering, and a full message goes at once."""
    at = flush_at(now, min(last, now), told, waiting)

    assert now <= at <= now + GATHER_SECONDS_MAX
    if waiting >= CHANGES_MAX or last <= now - GATHER_SECONDS_MAX:
        assert at == now


states = st.sampled_from(
    [TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING, TaskState.FAILED, TaskState.ORPHANED]
)
desired = st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN])
task_changes = st.lists(
    st.tuples(
        st.sampled_from([f"t{i}" for i in range(6)]),
        st.sampled_from(["", "me", "other"]),
        states,
        desired,
        st.booleans(),  # the task goes
        st.sampled_from(["", "read", "resync"]),
    ),
    max_size=40,
)


class Follower:
    """A node that reads a session's messages and keeps what they lead to."""

    def __init__(self, view):
        told = Session(session_id="s", node=Node(id="me"))
        self.session = OpenSession(told, view, is_local=True)
        self.known = {}
        self._chain = Chain()
        assert self.session._take() is told

    def read(self):
        """Read all that there is."""
        self.session.release()
        while (message := self.session._take()) is not None:
            assert isinstance(message, Numbered)
            assert self._chain.accept(
                is_complete=message.is_complete,
                applies_to=message.applies_to,
                results_in=message.results_in,
            )
            self._take(message.content)

    def _take(self, content):
        if isinstance(content, CompleteAssignments):
            self.known = {a.task.id: a.task.desired_state for a in content.assignments}
            return
        assert len(content.updated) + len(content.removed) <= CHANGES_MAX
        self.known.update({a.task.id: a.task.desired_state for a in content.updated})
        for task_id in content.removed:
            self.known.pop(task_id, None)


def changed(view, task_id, node, state, wanted, *, goes):
    """Write or delete a task; return the transaction."""
    tx = Transaction(view, 1.0)
    old = tx.tasks.get(task_id)
    if goes:
        if old is not None:
            tx.delete("tasks", task_id)
        return tx
    row = Task(
        id=task_id,
        version=old.version if old is not None else 0,
        service_id="svc",
        spec_version=1,
        node_id=node,
        desired_state=wanted,
        status=TaskStatus(state=state),
    )
    _ = tx.update(row) if old is not None else tx.create(row)
    return tx


@given(task_changes)
def test_a_node_that_follows_the_chain_knows_its_tasks(story):
    """Whatever happens between two reads, the messages lead to what a fresh session would get."""
    tx = Transaction(View.empty(), 1.0)
    spec = ServiceSpec(name="web")
    tx.create(ServiceSpecVersion(id="svc.1", service_id="svc", spec_version=1, spec=spec))
    views = [tx.to_view()]
    follower = Follower(lambda: views[-1])
    follower.read()
    for task_id, node, state, wanted, goes, then in story:
        tx = changed(views[-1], task_id, node, state, wanted, goes=goes)
        views.append(tx.to_view())
        for change in tx.to_changes():
            for node_id, touched in touched_nodes(change):
                if node_id == "me":
                    follower.session.touch(touched)
        if then == "resync":
            follower.session.start_again()
        if then:
            follower.read()
    follower.read()
    fresh = complete_assignments(views[-1], "me")
    assert follower.known == {a.task.id: a.task.desired_state for a in fresh.assignments}


async def test_an_ended_session_says_why():
    """The reason is raised to whoever waits, and to whoever comes later."""
    told = Session(session_id="s", node=Node(id="me"))
    session = OpenSession(told, View.empty, is_local=True)
    assert await session.next() is told
    await session.next()
    waiting = asyncio.create_task(session.next())
    await asyncio.sleep(0)
    session.close(UnavailableError("first"))
    session.close(UnavailableError("second"))
    for attempt in (waiting, session.next()):
        with pytest.raises(UnavailableError, match="first"):
            await attempt


@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused(data):
    """What an agent sends is either read or refused with an error of ours."""
    for read in (wire.description_of, wire.updates_of):
        with contextlib.suppress(InvalidError):
            read(data)
    with pytest.raises(InvalidError, match="cannot be read"):
        wire.updates_of(b"\xc1" + data)


# --- which manager ---

peers = st.builds(
    ManagerPeer,
    st.sampled_from(["", "m1", "m2", "m3"]),
    st.sampled_from(["", "h1:1", "h2:1", "h3:1", "h4:1"]),
    st.integers(-5, 20),
)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(peers, max_size=3)),
            st.tuples(st.just("replace"), st.lists(peers, max_size=3)),
            st.tuples(
                st.just("observe"), st.tuples(st.sampled_from(["h1:1", "x:1"]), st.booleans())
            ),
        ),
        max_size=30,
    ),
    st.integers(),
)
def test_remotes_stay_usable(steps, seed):
    """Weights are positive and bounded, no node has two addresses, and none is known no more."""
    remotes, rng = Remotes(), random.Random(seed)
    had_some = False
    for kind, given_ in steps:
        match kind:
            case "add":
                remotes.add(given_)
            case "replace":
                remotes.replace(given_)
            case "observe":
                remotes.observe(given_[0], is_good=given_[1])
        known = remotes.peers()
        had_some = had_some or bool(known)
        assert bool(known) is had_some
        names = [peer.node_id for peer in known if peer.node_id]
        assert len(names) == len(set(names))
        assert {peer.address for peer in known} == remotes.weights().keys()
        assert all(WEIGHT_BAD <= weight <= 20 for weight in remotes.weights().values())
        tried = set()
        while (peer := remotes.choose(rng, tried=tried)) is not None:
            assert peer.address not in tried
            tried.add(peer.address)
        assert tried == remotes.weights().keys()


def test_a_manager_that_fails_is_chosen_seldom_and_found_again():
    """A few failures make it a hundred times less likely; successes bring it back."""
    remotes = Remotes([ManagerPeer("m1", "good:1"), ManagerPeer("m2", "bad:1")])
    for _ in range(10):
        remotes.observe("bad:1", is_good=False)
        remotes.observe("good:1", is_good=True)
    rng = random.Random(1)
    chosen = [remotes.choose(rng).address for _ in range(2_000)]
    assert 1 <= chosen.count("bad:1") <= 100
    for _ in range(10):
        remotes.observe("bad:1", is_good=True)
    assert remotes.weights()["bad:1"] > WEIGHT_GOOD * 0.99

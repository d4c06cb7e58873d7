"""The leader's dispatcher, on a real store and virtual time."""

import asyncio
import contextlib

import msgspec
import pytest
import structlog

from manager.dispatcher.core import UPDATES_MAX
from manager.dispatcher.deaths import ORPHAN_SECONDS
from manager.dispatcher.descriptions import DESCRIPTION_BYTES_MAX
from manager.dispatcher.session import Numbered, Session
from manager.dispatcher.writer import Writer
from manager.nodeport.remotes import ManagerPeer
from manager.store.watch import WATCH_EVENTS_MAX
from proto.assignments import CompleteAssignments, StatusUpdate
from proto.errors import (
    DeniedError,
    DuplicateNodeError,
    InvalidError,
    NotLeaderError,
    ResourceExhaustedError,
    UnavailableError,
)
from proto.objects import (
    NANOSECONDS,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Resources,
    RootRotation,
    TaskStatus,
)
from proto.states import TaskState
from raft.transport.identity import WORKER_ROLE


async def soon(session, seconds=1.0):
    """Return a session's next message."""
    async with asyncio.timeout(seconds):
        return await session.next()


async def nothing(session, seconds=1.5):
    """Check that a session has nothing to tell."""
    with pytest.raises(TimeoutError):
        await soon(session, seconds)


async def opened(world, name="n1", **options):
    """Open a session and read what comes first."""
    session = await world.register(name, **options)
    told, complete = await soon(session), await soon(session)
    assert isinstance(told, Session)
    assert complete.is_complete
    return session, told, complete.content


def test_a_registration_makes_a_node_ready(play):
    """The row says READY, with description and address; what came first is the node itself."""

    async def scenario(world):
        _, told, complete = await opened(world, address="10.0.0.7")
        node = world.node("n1")
        assert node.status == NodeStatus(state=NodeState.READY, addr="10.0.0.7")
        assert node.description.hostname == "n1"
        assert node == told.node
        assert complete == CompleteAssignments(())
        assert 0.9 <= told.heartbeat_seconds <= 1.1

    play(scenario)


def test_a_registration_that_changes_nothing_writes_nothing(play):
    """A thousand nodes that come back to a new leader leave no mark in the log."""

    async def scenario(world):
        await opened(world, address="10.0.0.7")
        before = len(world.log.entries)
        await opened(world, address="10.0.0.7")
        assert before == len(world.log.entries)

    play(scenario)


def test_many_registrations_share_transactions(play):
    """What comes while a transaction is on its way goes into the next, together."""

    async def scenario(world):
        names = [f"m{i:03}" for i in range(500)]
        await world.add_nodes(*names)
        world.log.seconds = 0.05
        before = len(world.log.entries)
        await asyncio.gather(*(world.register(name) for name in names))
        assert {world.node(name).status.state for name in names} == {NodeState.READY}
        assert len(world.log.entries) - before <= 6

    play(scenario)


def test_an_unknown_node_is_denied_and_harms_no_other(play):
    """One that was removed is refused, in the same batch as one that is welcome."""

    async def scenario(world):
        results = await asyncio.gather(
            world.register("gone"), world.register("n1"), return_exceptions=True
        )
        assert isinstance(results[0], DeniedError)
        assert "gone is not in this cluster" in str(results[0])
        assert world.node("n1").status.state is NodeState.READY

    play(scenario)


def test_a_description_is_bounded(play):
    """A node cannot fill the log with what it says of itself."""

    async def scenario(world):
        huge = NodeDescription(hostname="x" * DESCRIPTION_BYTES_MAX)
        with pytest.raises(InvalidError, match="n1"):
            await world.core.register("n1", huge)
        session = await world.register("n1")
        with pytest.raises(InvalidError):
            await world.core.describe(session, huge)
        await world.core.describe(session, NodeDescription(hostname="renamed"))
        assert world.node("n1").description.hostname == "renamed"

    play(scenario)


def test_too_many_registrations_are_refused(play):
    """The fourth within 8 seconds is refused; later it is let in again."""

    async def scenario(world):
        for _ in range(3):
            await world.register("n1")
        with pytest.raises(UnavailableError, match="n1 registers too often"):
            await world.register("n1")
        await world.register("n2")
        await asyncio.sleep(8)
        await world.register("n1")

    play(scenario)


def test_what_a_node_writes_into_the_log_is_bounded_in_bytes(play):
    """Long texts count as many statuses: a worker cannot fill the log with few of them."""

    async def scenario(world):
        names = [f"t{number}" for number in range(50)]
        await world.assign(*names)
        session = await world.register("n1", certificate_role=WORKER_ROLE)
        before = sum(len(entry.data) for entry in world.log.entries)
        number = 0

        def written():
            return sum(len(entry.data) for entry in world.log.entries) - before

        async def flood():
            nonlocal number
            while written() < 64 << 20:
                number += 1
                text = f"{number} ".ljust(4096, "x")
                status = TaskStatus(state=TaskState.RUNNING, message=text, err=text)
                await world.core.update_statuses(
                    session, [StatusUpdate(name, status) for name in names]
                )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await flood()
        assert written() < 20 << 20
        assert session.end is None  # it is alive: it is this manager that does not read on

    play(scenario)


def test_a_second_program_is_refused_while_the_first_lives(play):
    """A copied state directory is one node too many; one that died makes room when it is missed."""

    async def scenario(world):
        first = await world.core.register("n1", NodeDescription(), address="10.0.0.1", instance="a")
        with pytest.raises(DuplicateNodeError, match=r"n1 has a session from 10\.0\.0\.1"):
            await world.core.register("n1", NodeDescription(), instance="b")
        assert first.end is None
        again = await world.core.register("n1", NodeDescription(), instance="a")
        assert first.end is not None
        await asyncio.sleep(10)  # nothing is heard of it any more
        assert again.end is not None
        await world.core.register("n1", NodeDescription(), instance="b")

    play(scenario)


def test_a_newer_session_ends_the_older(play):
    """The older one is told why, and its reports count no more."""

    async def scenario(world):
        older, _, _ = await opened(world)
        newer, _, _ = await opened(world)
        with pytest.raises(UnavailableError, match="a newer session of node n1"):
            await older.next()
        with pytest.raises(UnavailableError):
            await world.core.update_statuses(older, [])
        world.core.end(older)
        await world.beat(newer, 10)
        assert newer.end is None
        assert world.node("n1").status.state is NodeState.READY

    play(scenario)


def test_silence_is_death(play):
    """Three periods without a sign of life: DOWN, with a reason and a date; the session ends."""

    async def scenario(world):
        session, _, _ = await opened(world)
        other, _, _ = await opened(world, "n2")
        keeper = asyncio.create_task(world.beat(other, 60))
        await world.beat(session, 5)
        assert world.node("n1").status.state is NodeState.READY
        silent_since = world.clock.wall()
        await asyncio.sleep(4)
        node = world.node("n1")
        assert node.status.state is NodeState.DOWN
        assert node.status.message == "no heartbeat for 3 s"
        assert 2.4 <= node.down_since - silent_since <= 3.5
        assert "silent" in session.end.message
        assert world.node("n2").status.state is NodeState.READY
        keeper.cancel()

    play(scenario)


def test_the_settings_say_what_silence_is(play):
    """Period and number of missed heartbeats come from the cluster, and may change."""

    async def scenario(world):
        session, told, _ = await opened(world)
        assert 1.8 <= told.heartbeat_seconds <= 2.2
        await asyncio.sleep(9)
        assert world.node("n1").status.state is NodeState.READY
        (cluster,) = world.store.view().clusters
        spec = msgspec.structs.replace(cluster.spec, dispatcher_heartbeat_ns=NANOSECONDS // 2)
        await world.change(msgspec.structs.replace(cluster, spec=spec))
        assert 0.45 <= (await soon(session)).heartbeat_seconds <= 0.55
        world.core.heartbeat(session)
        await asyncio.sleep(3)
        assert world.node("n1").status.state is NodeState.DOWN

    play(scenario, dispatcher_heartbeat_ns=2 * NANOSECONDS, dispatcher_heartbeats_missed_max=5)


def test_a_broken_stream_is_no_death(play):
    """A node that comes back in time was never down; one that does not is."""

    async def scenario(world):
        session, _, _ = await opened(world)
        world.core.end(session)
        await asyncio.sleep(2)
        assert world.node("n1").status.state is NodeState.READY
        session, _, _ = await opened(world)
        world.core.end(session)
        await asyncio.sleep(4)
        assert world.node("n1").status.state is NodeState.DOWN

    play(scenario)


def test_a_goodbye_is_known_at_once(play):
    """Who leaves on purpose is DOWN without waiting; coming back makes it READY."""

    async def scenario(world):
        session, _, _ = await opened(world)
        world.core.end(session, is_goodbye=True)
        await asyncio.sleep(0.1)
        assert world.node("n1").status.state is NodeState.DOWN
        await opened(world)
        node = world.node("n1")
        assert (node.status.state, node.status.message) == (NodeState.READY, "")
        assert node.down_since == 0.0

    play(scenario)


def test_a_new_leader_gives_everybody_time(play):
    """Nodes stay what they were for twice the time; nothing is written for those who return."""

    async def scenario(world):
        for name in ("n1", "n2"):
            await opened(world, name)
        await world.stop()
        before = len(world.log.entries)
        world.core = world.new_core()
        await world.run()
        await asyncio.sleep(5.5)
        states = {world.node(name).status.state for name in ("n1", "n2")}
        assert states == {NodeState.READY}
        session, _, _ = await opened(world, "n1")
        assert before == len(world.log.entries)
        await world.beat(session, 5)
        assert world.node("n1").status.state is NodeState.READY
        assert world.node("n2").status.state is NodeState.DOWN
        assert "change of the leader" in world.node("n2").status.message

    play(scenario)


def test_a_new_leader_does_not_wait_for_managers_that_the_log_misses(play):
    """The leader before it, mostly: an ordinary silence is enough; other nodes have their time."""

    async def scenario(world):
        for name in ("n1", "n2", "n3"):
            await opened(world, name)
        for name in ("n1", "n2"):
            await world.change(msgspec.structs.replace(world.node(name), role=NodeRole.MANAGER))
        await world.stop()
        world.core = world.new_core()
        world.unheard = {"n1", "n3"}
        await world.run()
        await asyncio.sleep(2.9)
        assert world.node("n1").status.state is NodeState.READY
        await asyncio.sleep(0.5)
        assert world.node("n1").status.state is NodeState.DOWN
        await asyncio.sleep(2)
        assert world.node("n2").status.state is world.node("n3").status.state is NodeState.READY
        await asyncio.sleep(1)
        assert world.node("n2").status.state is world.node("n3").status.state is NodeState.DOWN

    play(scenario)


def test_the_time_is_longer_while_nodes_come_back(play):
    """A leader that has many to greet does not take the last of them for dead."""

    async def scenario(world):
        names = [f"m{i:02}" for i in range(20)]
        await world.add_nodes(*names)
        for name in names:
            await opened(world, name)
        await world.stop()
        world.core = world.new_core()
        await world.run()
        sessions = []
        for name in names:
            sessions.append(await world.register(name))
            for session in sessions:
                world.core.heartbeat(session)
            await asyncio.sleep(1)
        assert {world.node(name).status.state for name in names} == {NodeState.READY}

    play(scenario)


def test_tasks_of_a_node_that_is_away_for_a_day_are_orphaned(play):
    """24 hours after it went down, also when the leader changed meanwhile."""

    async def scenario(world):
        await world.assign("t1", "t2", state=TaskState.RUNNING)
        await world.assign("t3", state=TaskState.COMPLETE)
        await world.assign("t4", node="n2", state=TaskState.RUNNING)
        session, _, _ = await opened(world)
        world.core.end(session)
        await asyncio.sleep(ORPHAN_SECONDS / 2)
        since = world.node("n1").down_since
        await world.stop()
        world.core = world.new_core()
        await world.run()
        await asyncio.sleep(since + ORPHAN_SECONDS - world.clock.wall() - 10)
        assert world.store.view().tasks.get("t1").status.state is TaskState.RUNNING
        await asyncio.sleep(20)
        states = {task.id: task.status.state for task in world.store.view().tasks}
        assert [states[f"t{i}"].name for i in (1, 2, 3)] == ["ORPHANED", "ORPHANED", "COMPLETE"]

    play(scenario)


def test_changes_come_in_a_chain(play):
    """Each message applies to the one before it; what comes together is told together."""

    async def scenario(world):
        session, _, _ = await opened(world)
        await world.assign("a")
        first = await soon(session)
        await world.assign("b")
        await world.assign("c")
        await world.assign("foreign", node="n2")
        second = await soon(session)
        assert [a.task.id for a in first.content.updated] == ["a"]
        assert [a.task.id for a in second.content.updated] == ["b", "c"]
        assert (first.applies_to, first.results_in) == (1, 2)
        assert (second.applies_to, second.results_in) == (2, 3)

    play(scenario)


def test_a_message_has_a_hundred_changes_at_most(play):
    """More are told in several."""

    async def scenario(world):
        session, _, _ = await opened(world, is_local=True)
        await world.assign(*(f"t{i:03}" for i in range(150)))
        sizes = [len((await soon(session)).content.updated) for _ in range(2)]
        assert sizes == [100, 50]
        await nothing(session)

    play(scenario)


def test_no_change_is_missed_when_events_are_lost(play):
    """After more events than a watch holds, everything is told anew."""

    async def scenario(world):
        session, _, _ = await opened(world, is_local=True)
        await world.store.batch(
            range(WATCH_EVENTS_MAX + 10),
            lambda tx, i: tx.create(msgspec.structs.replace(world.node("n1"), id=f"extra{i}")),
        )
        (watch,) = world.store._watches
        watch.resync()
        await world.assign("t1")
        while not (isinstance(message := await soon(session), Numbered) and message.is_complete):
            pass
        assert [a.task.id for a in message.content.assignments] == ["t1"]

    play(scenario)


def test_a_node_is_told_what_changes_about_it(play):
    """Role, availability, managers, roots and the wish for a new certificate; nothing else."""

    async def scenario(world):
        session, _, _ = await opened(world)
        keeper = asyncio.create_task(world.beat(session, 60))
        node = world.node("n1")
        paused = msgspec.structs.replace(node.spec, availability=NodeAvailability.PAUSE)
        await world.change(msgspec.structs.replace(node, spec=paused))
        assert (await soon(session)).node.spec.availability is NodeAvailability.PAUSE
        world.peers = (ManagerPeer("m", "10.0.0.1:2378"),)
        assert (await soon(session, 2)).managers == world.peers
        world.renew.add("n1")
        assert (await soon(session, 2)).renew_certificate
        (cluster,) = world.store.view().clusters
        rotation = RootRotation(certificate_pem="NEW")
        await world.change(
            msgspec.structs.replace(
                cluster, root_ca_certificate_pem="OLD\n", root_rotation=rotation
            )
        )
        assert (await soon(session)).roots_pem == b"OLD\nNEW\n"
        await world.core.describe(session, NodeDescription(hostname="renamed"))
        await nothing(session)
        keeper.cancel()

    play(scenario)


def test_a_certificate_of_another_role_has_to_be_renewed(play):
    """A worker that was promoted is told to get a manager's certificate."""

    async def scenario(world):
        session, told, _ = await opened(world, certificate_role=WORKER_ROLE)
        assert not told.renew_certificate
        node = world.node("n1")
        await world.change(msgspec.structs.replace(node, role=NodeRole.MANAGER))
        assert (await soon(session)).renew_certificate

    play(scenario)


def test_a_session_ends_with_its_certificate(play):
    """What the handshake checked is checked again while the session lives."""

    async def scenario(world):
        until = world.clock.wall() + 5
        session, _, _ = await opened(world, certificate_until=until)
        await world.beat(session, 7)
        assert isinstance(session.end, DeniedError)
        assert "expired" in session.end.message

    play(scenario)


def test_a_removed_node_is_cut_off(play):
    """Its session ends with a sentence, and it is not let in again."""

    async def scenario(world):
        session, _, _ = await opened(world)
        await world.store.update(lambda tx: tx.delete("nodes", "n1"))
        with pytest.raises(DeniedError, match="n1 was removed from this cluster"):
            await soon(session)
        with pytest.raises(DeniedError):
            await world.register("n1")

    play(scenario)


def test_sessions_end_with_the_leadership(play):
    """They are told who leads, and nobody is let in any more."""

    async def scenario(world):
        session, _, _ = await opened(world)
        world.store.follow()
        with pytest.raises(NotLeaderError) as caught:
            await soon(session)
        assert caught.value.leader_address == "10.0.0.9:2378"
        with pytest.raises(NotLeaderError):
            await world.register("n1")
        await world.running
        world.store.lead(2)
        await world.run()
        await opened(world)

    play(scenario)


def test_a_registration_waits_for_a_leader_that_begins(play):
    """Between gaining the leadership and the first turn of `run` a node is not sent away."""

    async def scenario(world):
        await world.stop()
        waiting = asyncio.create_task(world.register("n1"))
        await asyncio.sleep(0.1)
        await world.run()
        assert (await waiting).end is None
        await world.stop()
        with pytest.raises(UnavailableError, match="has not begun yet"):
            await world.register("n2")
        await world.run()

    play(scenario)


def test_statuses_are_durable_on_return_and_tell_of_life(play):
    """A report is a heartbeat, too; a full disk is told to the caller."""

    async def scenario(world):
        await world.assign("t1")
        session, _, _ = await opened(world)
        for state in (TaskState.PREPARING, TaskState.RUNNING):
            update = StatusUpdate("t1", TaskStatus(state=state))
            await world.core.update_statuses(session, [update])
            assert world.store.view().tasks.get("t1").status.state is state
            await asyncio.sleep(2)
        assert world.node("n1").status.state is NodeState.READY
        world.log.error = ResourceExhaustedError("the disk is full")
        update = StatusUpdate("t1", TaskStatus(state=TaskState.FAILED))
        with pytest.raises(ResourceExhaustedError, match="the disk is full"):
            await world.core.update_statuses(session, [update])

    play(scenario)


def test_a_death_that_could_not_be_stored_is_tried_again(play):
    """A full disk delays it, no more."""

    async def scenario(world):
        session, _, _ = await opened(world)
        world.log.error = ResourceExhaustedError("the disk is full")
        await asyncio.sleep(5)
        assert session.end is not None
        assert world.node("n1").status.state is NodeState.READY
        world.log.error = None
        await asyncio.sleep(2)
        assert world.node("n1").status.state is NodeState.DOWN

    play(scenario)


def test_a_local_agent_needs_no_heartbeat_and_wakes_nobody(play):
    """A lone manager is idle: hardly a turn of the loop in an hour."""

    async def scenario(world):
        await world.assign("t1")
        session, _, complete = await opened(world, is_local=True)
        assert [a.task.id for a in complete.assignments] == ["t1"]
        await asyncio.sleep(10)  # the two other nodes never come
        turns = asyncio.get_running_loop().turns
        await asyncio.sleep(3600)
        assert asyncio.get_running_loop().turns - turns < 5
        assert session.end is None
        assert world.node("n1").status.state is NodeState.READY
        world.core.end(session)
        await asyncio.sleep(4)
        assert world.node("n1").status.state is NodeState.DOWN

    play(scenario)


def test_ten_thousand_ignored_statuses_are_one_line(play):
    """A node that reports the tasks of another writes neither to the log file nor to the log."""

    async def scenario(world):
        await world.assign("t1", node="n2")
        session = await world.register("n1")
        running = StatusUpdate("t1", TaskStatus(state=TaskState.RUNNING, timestamp=5.0))
        before = len(world.log.entries)
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                await world.core.update_statuses(session, [running] * UPDATES_MAX)
        ignored = [line for line in lines if line["log_level"] == "warning"]
        assert [line["event"] for line in ignored] == ["statuses_ignored"]
        assert ignored[0]["count"] == UPDATES_MAX
        assert before == len(world.log.entries)

    play(scenario)


def test_a_node_that_reports_without_end_is_slowed_down(play):
    """It waits for its turn; the reports of another node do not."""

    async def scenario(world):
        await world.assign("t1")
        loud, quiet = await world.register("n1"), await world.register("n2")
        update = StatusUpdate("t1", TaskStatus(state=TaskState.RUNNING, timestamp=5.0))
        began = world.clock.monotonic()
        for _ in range(2):
            await world.core.update_statuses(loud, [update] * UPDATES_MAX)
        flood = asyncio.create_task(world.core.update_statuses(loud, [update] * UPDATES_MAX))
        await world.core.update_statuses(quiet, [update])
        assert world.clock.monotonic() - began < 1.0
        await flood
        assert world.clock.monotonic() - began > 5.0

    play(scenario)


def test_what_is_too_large_fails_alone(play):
    """Other nodes' writes of the same batch are stored, and nothing of the large one is."""

    async def scenario(world):
        writer = Writer(world.store)

        def write(name, size):
            node = world.node(name)
            spec = NodeSpec(labels={"a": "x" * size})
            return lambda tx: tx.update(msgspec.structs.replace(node, spec=spec))

        large, small = (
            writer.put([write("n1", 10_000_000)]),
            writer.put([write("n2", 10)]),
        )
        with pytest.raises(InvalidError, match="more than"):
            await large
        await small
        assert world.node("n1").spec.labels == {}
        assert world.node("n2").spec.labels == {"a": "x" * 10}

    play(scenario)


def test_a_description_out_of_range_is_refused(play):
    """A number that no client can read never gets into the store; a text is made printable."""

    async def scenario(world):
        hostile = NodeDescription(resources=Resources(nano_cpus=2**64 - 1))
        with pytest.raises(InvalidError, match="18446744073709551615"):
            await world.core.register("n1", hostile)
        session = await world.register("n1")
        await world.core.describe(session, NodeDescription(hostname="\x1b[2J"))
        assert world.node("n1").description.hostname == "\\x1b[2J"

    play(scenario)

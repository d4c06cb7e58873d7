"""Whatever goes wrong in a member's tasks is seen: it is tried again, or stops the member aloud."""

from __future__ import annotations

import asyncio

import pytest

from proto.errors import CorruptError, DeniedError, InUseError, UnavailableError
from raft.core import Snapshot, encode
from raft.core.messages import Install
from raft.node import Settings


async def break_disk(group, name):
    """Let a follower's disk fail for a moment, until the member noticed."""
    node = group[name].node
    group[name].files.fail_sync = True
    await (await group.leader()).propose(b"while it fails")
    await group.until(lambda: node._recovery is not None)
    group[name].files.fail_sync = False


@pytest.mark.parametrize("error", [MemoryError("a large log"), CorruptError("/m/wal", 0, "rot")])
def test_a_directory_that_cannot_be_read_anew_stops_the_member_aloud(play, error):
    """No fault of the disk that passes: whoever listens hears of it, with the reason."""

    async def story(group):
        await group.form("abc")
        second = group["b"]

        def fail():
            raise error

        second.node._storage.reopen = fail
        await break_disk(group, "b")
        await group.until(lambda: second.machine.failed)
        assert str(error) in second.machine.failed.message
        with pytest.raises(UnavailableError, match=str(error)):
            await second.node.read_barrier()
        await group.commit(b"on", "ac")

    play(story)


def test_a_directory_that_cannot_be_read_for_a_while_is_tried_again(play):
    """Errors of the disk, and what names itself as one of ours, pass."""

    async def story(group):
        leader = await group.form("abc")
        second = group["b"]
        reopen = second.node._storage.reopen
        errors = [OSError(5, "gone"), InUseError("/m"), OSError(5, "gone")]

        def fail():
            if errors:
                raise errors.pop()
            return reopen()

        second.node._storage.reopen = fail
        await break_disk(group, "b")
        await group.agree()
        assert second.machine.failed is None
        assert leader.machine.failed is None

    play(story)


def test_a_listener_that_fails_in_a_fault_of_the_disk_stops_the_member_aloud(play):
    """A second error on the way to recovery does not leave the member half dead."""

    async def story(group):
        leader = await group.form("abc")

        def fail():
            raise AssertionError("a bug of the listener")

        leader.machine.follow = fail
        leader.files.fail_sync = True
        leader.node.propose(b"lost").add_done_callback(lambda done: done.exception())
        await group.until(lambda: leader.machine.failed)
        assert "a bug of the listener" in leader.machine.failed.message

    play(story)


def test_a_task_that_nobody_waits_for_fails_aloud(play):
    """The kind: any of a member's own tasks."""

    async def story(group):
        leader = await group.form("abc")

        async def fail():
            raise RuntimeError("a bug of a task")

        leader.node._spawn_soon(fail())
        await group.until(lambda: leader.machine.failed)
        assert "a bug of a task" in leader.machine.failed.message

    play(story)


def test_a_snapshot_that_cannot_be_sent_is_sent_again(play):
    """Whatever the error was, the core hears of it, and the peer gets another."""

    async def story(group):
        group.settings = Settings(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        group["c"].kill()
        for number in range(20):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        send = leader.wire.send_snapshot
        errors = [RuntimeError("can't start new thread"), MemoryError(), OSError(5, "gone")]

        async def fail(*what):
            if errors:
                raise errors.pop()
            await send(*what)

        leader.wire.send_snapshot = fail
        await group["c"].restart()
        await group.agree()
        assert errors == []
        assert group["c"].machine.installs == 1
        assert leader.machine.failed is None

    play(story)


def test_a_snapshots_header_as_a_message_is_refused(play):
    """It comes only with its content; on its own it would leave the member with no state."""

    async def story(group):
        leader = await group.form("abc")
        node = group["b"].node
        snapshot = Snapshot(999, leader.node.term, leader.node.membership)
        install = Install(leader.node.member_id, node.member_id, leader.node.term, snapshot)
        with pytest.raises(DeniedError, match="without its content"):
            node.on_messages("a", [encode([install])])
        await leader.propose(b"on")
        await group.agree()
        assert group["b"].machine.failed is None

    play(story)


def test_a_snapshot_of_what_was_applied_before_a_fault_waits_for_the_log(play):
    """The core began anew from the disk and does not know yet how far it had been."""

    async def story(group):
        leader = await group.form("abc")
        second = group["b"]
        for number in range(20):
            await leader.propose(b"%d" % number)
        await group.agree()
        await break_disk(group, "b")
        group.isolate("b")
        await group.until(lambda: second.node._recovery is None)
        assert second.node._core.log.commit < second.machine.index, "the story did not happen"
        with pytest.raises(UnavailableError, match="try again"):
            await second.snapshot()
        group.heal()
        await group.agree()
        await second.snapshot()
        assert second.node.snapshot_index == second.machine.index

    play(story)


def test_a_snapshot_that_was_under_way_in_a_fault_leaves_nothing(play):
    """Its place is in a directory that was read anew meanwhile."""

    async def story(group):
        leader = await group.form("abc")
        second = group["b"]
        for number in range(20):
            await leader.propose(b"%d" % number)
        await group.agree()

        async def chunks():
            yield b"some"
            await break_disk(group, "b")
            await group.until(lambda: second.node._recovery is None)
            yield b"more"

        with pytest.raises(UnavailableError, match="try again"):
            await second.node.save_snapshot(second.machine.index, chunks())
        await group.agree()
        assert second.node.snapshot_index == 0
        await second.snapshot()
        second.kill(is_power_lost=False)
        await second.restart()
        await group.agree()
        assert second.machine.failed is None

    play(story)


def test_a_received_snapshot_is_not_mixed_up_with_one_of_before_a_fault(play):
    """One that came in while the directory was read anew is thrown away and sent again."""

    async def story(group):
        group.settings = Settings(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        third = group["c"]
        group.isolate("c")
        for number in range(100):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        group.heal()
        await group.until(lambda: any("received" in str(path) for path in third.files.paths()))
        third.node._on_disk_fault(OSError(5, "a sync failed"))
        await group.agree()
        assert third.machine.failed is None
        assert [path for path in third.files.paths() if path.suffix == ".tmp"] == []
        third.kill(is_power_lost=False)
        await third.restart()
        await group.agree()

    play(story)


def test_nothing_is_saved_that_an_installed_snapshot_holds(play):
    """It is durable and newer, but the listener is still taking it."""

    async def story(group):
        group.settings = Settings(entries_kept=0, awaited_bytes_max=0)
        leader = await group.form("abc")
        third = group["c"]
        group.isolate("c")
        for number in range(20):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        group.heal()
        await group.until(lambda: third.node.snapshot_index)
        assert third.machine.index < third.node.snapshot_index, "the story did not happen"
        await third.snapshot()
        assert third.node.snapshot_index == leader.node.snapshot_index
        await group.agree()
        await asyncio.sleep(1.0)
        assert third.machine.failed is None

    play(story)

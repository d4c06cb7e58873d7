"""A disk that fails a write and cannot be read again: whoever waits is told; nobody hangs."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from proto.errors import NotLeaderError, ResourceExhaustedError, UnavailableError

# In virtual time: only what would wait for ever takes longer.
PATIENCE_SECONDS = 60.0


def die_at(files, write):
    """Let the disk fail at a write, counted from here, and be unreadable from then on."""
    take_room = type(files).take_room
    left = [write]

    def dying(wanted):
        left[0] -= 1
        if left[0] < 0:
            files.fail_read = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return take_room(files, wanted)

    files.take_room = dying


def mend(files):
    """Let the disk work again."""
    del files.take_room
    files.fail_read = False


@pytest.mark.parametrize("how", ["create", "open"])
def test_a_disk_that_dies_at_the_start_is_reported(play, how):
    """At whichever write: the error comes, the directory is free, and nothing was lost."""

    async def story(group):
        failures = 0
        for write in range(20):
            name = f"{how}{write}"
            peer = group.peers[name] = group.new_peer(name)
            if how == "open":
                await peer.start("create")
                await peer.propose(b"kept")
                peer.kill(is_power_lost=False)
            die_at(peer.files, write)
            async with asyncio.timeout(PATIENCE_SECONDS):
                try:
                    await peer.start(how)
                except (UnavailableError, ResourceExhaustedError) as error:
                    assert "/manager" in error.message  # noqa: PT017 -- both ways are looked at
                else:
                    break
            failures += 1
            assert not peer.is_locked
            assert not peer.live_tasks()
            mend(peer.files)
            if how == "open":
                await peer.restart()
                assert peer.machine.entries == [b"kept"]
        else:
            pytest.fail("it never started")
        return failures

    assert play(story) >= 2


@pytest.mark.parametrize("wait", [0.0, 0.001, 0.05, 0.5, 5.0])
def test_close_ends_though_the_disk_is_dead(play, wait):
    """Whatever the member is at: the proposal's future fails, and the directory is free."""

    async def story(group):
        peer = await group.form("a")
        await peer.propose(b"1")
        die_at(peer.files, 0)
        future = peer.propose(b"2")
        await asyncio.sleep(wait)
        node, peer.node = peer.node, None
        async with asyncio.timeout(PATIENCE_SECONDS):
            await node.close()
            with pytest.raises((UnavailableError, ResourceExhaustedError)):
                await future
        assert not peer.is_locked
        assert not node._tasks
        mend(peer.files)
        peer.kill()
        await peer.restart()
        assert peer.machine.entries == [b"1"]

    play(story)


def test_whoever_waits_for_a_change_of_members_is_told_of_the_close(play):
    """A change that waits for its turn fails when the member closes; it does not wait for ever."""

    async def story(group):
        peer = await group.form("a")
        await peer.node.add_learner("b", "b:1")
        peer.slow_seconds = 1.0
        first = asyncio.ensure_future(peer.node.change_address("b", "b:2"))
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(peer.node.change_address("b", "b:3"))
        await asyncio.sleep(0.01)
        node, peer.node = peer.node, None
        async with asyncio.timeout(PATIENCE_SECONDS):
            await node.close()
            for waiting in (first, second):
                with pytest.raises((UnavailableError, NotLeaderError)):
                    await waiting

    play(story)


def test_changes_that_wait_for_their_turn_let_time_pass(play):
    """They must not wake each other again and again in the same moment."""

    async def story(group):
        peer = await group.form("abc")
        group.isolate("b")
        group.isolate("c")
        changes = [
            asyncio.ensure_future(peer.node.change_address("b", f"b:{port}")) for port in (2, 3, 4)
        ]
        async with asyncio.timeout(PATIENCE_SECONDS):
            for change in changes:
                with pytest.raises((UnavailableError, NotLeaderError)):
                    await change

    play(story)

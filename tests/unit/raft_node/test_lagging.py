"""What a leader does for a peer that is down, slow, stuck or far behind, and what that costs."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from proto.errors import UnavailableError
from raft.core import Entries, encode
from raft.core.messages import Append
from raft.node import Settings

KIB = 1 << 10
MIB = 1 << 20


def count_bytes(leader, group):
    """Count what a leader sends to each peer; a link to one that is down loses all, and says so."""
    sent = dict.fromkeys(group.peers, 0)
    send = leader.wire.send

    def counting(name, messages, *, lane):
        sent[name] += sum(map(len, messages))
        if group[name].node is None:
            group.loop.call_soon(leader.node.on_unreachable, name)
            return
        send(name, messages, lane=lane)

    leader.wire.send = counting
    return sent


def test_a_dead_peer_costs_heartbeats_only(play):
    """However far it is behind; when it is back it gets all."""

    async def story(group):
        leader = await group.form("abc")
        sent = count_bytes(leader, group)
        group["c"].kill()
        for _ in range(100):
            await asyncio.gather(*(leader.propose(b"x" * 200) for _ in range(50)))
        sent.update(b=0, c=0)
        began = group.loop.time()
        for _ in range(500):
            await leader.propose(b"y" * 200)
        ticks = (group.loop.time() - began) / 0.1
        assert sent["b"] > 500 * 200
        assert sent["c"] < 100 * (ticks + 1)
        leader.wire.send = type(leader.wire).send.__get__(leader.wire)
        await group["c"].restart()
        await group.agree()

    play(story)


def test_a_peer_that_is_cut_off_is_sent_one_pipeline_at_most(play):
    """Nothing tells that the link is dead: it just does not answer."""

    async def story(group):
        leader = await group.form("abc")
        sent = count_bytes(leader, group)
        group.isolate("c")
        for _ in range(300):
            await leader.propose(b"x" * 64 * KIB)
        assert sent["b"] > 300 * 64 * KIB
        assert sent["c"] < 5 * MIB
        group.heal()
        await group.until(lambda: group["c"].machine.index == leader.machine.index)

    play(story)


def waiting_bytes(node):
    """Count what a member holds for its disk."""
    return sum(each.size for each in itertools.chain(node._writing, node._unstored))


def test_a_peer_whose_disk_hangs_is_sent_one_pipeline_at_most(play):
    """It answers every heartbeat, and holds no more than that, in few pieces."""

    async def story(group):
        leader = await group.form("abc")
        third = group["c"]
        third.slow_seconds = 40.0
        held = steps = 0
        for _ in range(300):
            await leader.propose(b"x" * 128 * KIB)
            await asyncio.sleep(0.1)
            held = max(held, waiting_bytes(third.node))
            steps = max(steps, len(third.node._unstored))
        assert leader.node.is_leader
        assert MIB < held < 6 * MIB
        assert steps < 50
        third.slow_seconds = 0.0
        await group.until(lambda: third.machine.index == leader.machine.index, within=60.0)

    play(story)


def test_a_member_whose_disk_hangs_reads_no_more(play):
    """Whatever a leader sends: the stream of entries waits for the disk, and goes on with it."""

    async def story(group):
        group.settings = Settings(unstored_bytes_max=2 * MIB)
        leader = await group.form("abc")
        await group.agree()
        third = group["c"]
        third.slow_seconds = 5.0
        core, at = leader.node._core, leader.node.last_index
        waits = None
        for number in range(8):
            first = at + 1 + number
            entries = Entries(first, [b"x" * 512 * KIB], ((first, core.term),))
            append = Append(
                leader.node.member_id,
                third.node.member_id,
                core.term,
                first - 1,
                core.log.term(at),
                at,
                entries,
            )
            waits = third.node.on_messages("a", [encode([append])])
            if waits is not None:
                break
        assert waits is not None
        assert waiting_bytes(third.node) <= 3 * MIB
        third.slow_seconds = 0.0
        await asyncio.wait_for(waits, 200.0)
        assert waiting_bytes(third.node) <= 2 * MIB

    play(story)


def test_a_peer_that_needs_a_snapshot_under_load_catches_up(play):
    """Snapshots are made faster than one is sent; what comes after it is kept meanwhile."""

    async def story(group):
        group.settings = Settings(entries_kept=20)
        leader = await group.form("abc")
        group["c"].kill()
        is_over = False

        async def call():
            while not is_over:
                await leader.propose(b"some")

        async def save():
            while not is_over:
                await group.until(lambda: leader.machine.index > leader.node.snapshot_index + 400)
                # The state stays of one size.
                del leader.machine.entries[:-400]
                await leader.snapshot()

        work = [asyncio.ensure_future(call()) for _ in range(8)]
        work.append(asyncio.ensure_future(save()))
        await asyncio.sleep(3.0)
        third = (await group["c"].restart(),)[0]

        def lag():
            return leader.node.last_index - third.last_index

        assert lag() > 2000, "the story did not happen"
        await group.until(lambda: lag() < 100, within=10.0)
        await asyncio.sleep(3.0)
        assert lag() < 200
        assert group["c"].machine.installs <= 2
        # Once it has caught up, no more is kept than before.
        await group.until(lambda: leader.node.last_index - leader.node._core.log.start < 1000)
        is_over = True
        for task in work:
            task.cancel()

    play(story)


@pytest.mark.parametrize("is_stuck", [True, False])
def test_what_a_peer_needs_is_kept_within_bounds(play, is_stuck):
    """Neither a peer that comes no nearer for long nor too many bytes fill the memory."""

    async def story(group):
        group.settings = Settings(entries_kept=5, awaited_bytes_max=MIB)
        leader = await group.form("abc")
        third = group["c"]
        third.slow_seconds = 300.0
        count = 20 if is_stuck else 200
        for _ in range(count):
            await leader.propose(b"x" * 10 * KIB)
        await leader.snapshot()
        log = leader.node._core.log
        kept = leader.node.snapshot_index - log.start
        assert kept >= count if is_stuck else kept == 5
        if is_stuck:
            await asyncio.sleep(200.0)
            await leader.propose(b"on")
            await leader.snapshot()
            assert leader.node.snapshot_index - log.start == 5

    play(story)


def test_snapshots_that_are_refused_are_tried_with_a_growing_pause(play):
    """Two minutes of a peer that answers but cannot take one; then it can."""

    async def story(group):
        group.settings = Settings(entries_kept=0)
        leader = await group.form("abc")
        group["c"].kill()
        await asyncio.sleep(2.0)
        for number in range(20):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        send = leader.wire.send_snapshot
        tries = 0

        async def refuse(*_what):
            nonlocal tries
            tries += 1
            raise UnavailableError("its disk is full")

        leader.wire.send_snapshot = refuse
        await group["c"].restart()
        await asyncio.sleep(120.0)
        assert 5 < tries < 20
        leader.wire.send_snapshot = send
        await group.agree(within=40.0)

    play(story)


def test_a_peer_that_is_down_is_offered_no_snapshots(play):
    """Not before it answers."""

    async def story(group):
        group.settings = Settings(entries_kept=0)
        leader = await group.form("abc")
        group["c"].kill()
        await asyncio.sleep(2.0)
        for number in range(20):
            await leader.propose(b"%d" % number)
        await leader.snapshot()
        for _ in range(100):
            await asyncio.sleep(1.0)
            await leader.propose(b"on")
            leader.node.on_unreachable("c")
        assert leader.wire.snapshots_begun == 0
        await group["c"].restart()
        await group.agree()
        assert leader.wire.snapshots_begun == 1

    play(story)

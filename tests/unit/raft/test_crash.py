"""Power is lost, or the process killed, at every operation of everything a lone member does."""

from __future__ import annotations

import contextlib
import random

import pytest

from proto.errors import SwarmError
from raft.simdisk import SimFiles

SEGMENT_BYTES = 1500


async def abandon(member) -> None:
    """End the member's threads; on a stopped disk closing can only fail."""
    with contextlib.suppress(SwarmError):
        await member.close()


async def work(member, acknowledged: list[bytes]) -> None:
    """Write, take a snapshot, change the data key, take another one, write."""
    indexes = []
    for number in range(3):
        indexes.append(await member.propose(b"a%d" % number * 300))
        acknowledged.append(b"a%d" % number * 300)
    await member.save(indexes[1], *acknowledged[:2])
    await member.propose(b"b" * 700)
    acknowledged.append(b"b" * 700)
    await member.raft.rotate_data_key()
    index = await member.propose(b"c")
    acknowledged.append(b"c")
    await member.save(index, *acknowledged)
    await member.propose(b"d")
    acknowledged.append(b"d")


@pytest.mark.parametrize("is_only_killed", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_a_crash_at_every_operation_loses_nothing_acknowledged(node, seed, is_only_killed):
    """What resolved is there, beyond it at most what was proposed; the next crash takes none."""
    for step in range(500):
        rng = random.Random(seed * 1000 + step)
        current = type(node)(SimFiles(rng), rng)
        current.segment_bytes = SEGMENT_BYTES
        member = await current.start()
        acknowledged: list[bytes] = []
        with current.files.stopping_at(step):
            await work(member, acknowledged)
        is_over = not current.files.is_stopped
        await abandon(member)
        if is_only_killed:
            current.kill()
        else:
            current.lose_power()
        found = (await started_and_abandoned(current)).state
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 1
        # Whatever was handed out at this start is durable: it survives the next power loss.
        current.lose_power()
        assert (await started_and_abandoned(current)).state == found
        # And it can go on, to the end of an interrupted rotation.
        member = await current.start()
        index = await member.propose(b"e")
        await member.save(index, *found, b"e")
        assert not member.raft.is_rotating
        assert len(current.segments()) == 1
        await member.close()
        if is_over:
            assert step > 50
            return
    pytest.fail("the work never ended")


async def started_and_abandoned(node):
    """Start, and stop without a clean end as far as the disk is concerned."""
    member = await node.start()
    await abandon(member)
    return member


@pytest.mark.parametrize("is_only_killed", [False, True])
async def test_a_crash_while_beginning_is_harmless(node, is_only_killed):
    """A member that is made for the first time is there afterwards, or is made again."""
    outcomes = set()
    for step in range(100):
        rng = random.Random(step)
        current = type(node)(SimFiles(rng), rng)
        with current.files.stopping_at(step):
            await abandon(await current.start())
        is_over = not current.files.is_stopped
        if is_only_killed:
            current.kill()
        else:
            current.lose_power()
        log = current.direct()
        is_there = not log.storage.stored.is_empty
        log.close()
        opened = await current.start(is_new=not is_there)
        outcomes.add("there" if is_there else "again")
        assert opened.state == []
        await opened.propose(b"1")
        await opened.close()
        assert (await started_and_abandoned(current)).state == [b"1"]
        if is_over:
            assert outcomes == {"there", "again"}
            return
    pytest.fail("the beginning never ended")


async def test_a_crash_while_opening_is_harmless(node):
    """Cutting a torn tail and making the mark may themselves be interrupted at each step."""
    node.written([b"1", b"2"])
    (path,) = node.segments()
    content = node.files.content(path)
    for step in range(20):
        node.files.put(path, content + b"\1\1torn")
        node.files.remove(node.wal / "synced")
        with node.files.stopping_at(step):
            node.direct()
        is_over = not node.files.is_stopped
        node.lose_power()
        assert node.restored() == ([], [b"1", b"2"])
        if is_over:
            return
    pytest.fail("opening never ended")

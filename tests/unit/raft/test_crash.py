"""Power is lost, or the process killed, at every operation of everything the log does."""

from __future__ import annotations

import contextlib
import random

import pytest

from proto.errors import SwarmError
from raft.simdisk import SimFiles


async def abandon(log) -> None:
    """End the log's threads; on a stopped disk closing can only fail."""
    with contextlib.suppress(SwarmError):
        await log.close()


async def work(log, chunks, acknowledged: list[bytes]) -> None:
    """Write, take a snapshot, change the data key, take another one, write."""
    for number in range(3):
        await log.propose(b"a%d" % number * 300)
        acknowledged.append(b"a%d" % number * 300)
    await log.save_snapshot(2, chunks(*acknowledged[:2]))
    await log.propose(b"b" * 700)
    acknowledged.append(b"b" * 700)
    await log.rotate_data_key()
    await log.propose(b"c")
    acknowledged.append(b"c")
    await log.save_snapshot(5, chunks(*acknowledged))
    await log.propose(b"d")
    acknowledged.append(b"d")


@pytest.mark.parametrize("is_only_killed", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_a_crash_at_every_operation_loses_nothing_acknowledged(
    read, chunks, node, seed, is_only_killed
):
    """What resolved is there, beyond it at most what was proposed; the next crash takes none."""
    for step in range(500):
        rng = random.Random(seed * 1000 + step)
        current = type(node)(SimFiles(rng), rng)
        current.segment_bytes = 1500
        log = current.open()
        acknowledged: list[bytes] = []
        with current.files.stopping_at(step):
            await work(log, chunks, acknowledged)
        is_over = not current.files.is_stopped
        await abandon(log)
        stop = current.reopen_after_kill if is_only_killed else current.reopen_after_power_loss
        log = stop()
        state, entries = read(log)
        found = state + entries
        await log.close()
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 1
        # Whatever was handed out at this start is durable: it survives the next power loss.
        log = current.reopen_after_power_loss()
        state, entries = read(log)
        assert state + entries == found
        await log.close()
        log = current.open()
        # And it can go on, to the end of an interrupted rotation.
        assert await log.propose(b"e") == len(found) + 1
        await log.save_snapshot(len(found) + 1, chunks(*found, b"e"))
        assert not log.is_rotating
        assert len(current.segments()) == 1
        await log.close()
        if is_over:
            assert step > 50
            return
    pytest.fail("the work never ended")


async def test_a_crash_while_opening_is_harmless(read, node):
    """Cutting a torn tail and making the mark may themselves be interrupted at each step."""
    await node.written([b"1", b"2"])
    (path,) = node.segments()
    content = node.files.content(path)
    for step in range(20):
        node.files.put(path, content + b"\1\1torn")
        node.files.remove(node.wal / "synced")
        with node.files.stopping_at(step):
            node.open()
        is_over = not node.files.is_stopped
        log = node.reopen_after_power_loss()
        assert read(log) == ([], [b"1", b"2"])
        await log.close()
        if is_over:
            return
    pytest.fail("opening never ended")

"""A group of one, as the store sees its log, and what is on its disk."""

from __future__ import annotations

import asyncio
import math
import os
import struct
from pathlib import Path

import pytest

from proto.errors import (
    CorruptError,
    InUseError,
    InvalidError,
    ResourceExhaustedError,
    UnavailableError,
)
from raft import format as layout
from raft.keys import KeyRing
from raft.node import ENTRY_BYTES_MAX
from raft.segments import read_batches


async def test_restart_restores_everything(node):
    """What resolved is there after a restart, in order, and numbering goes on."""
    member = await node.start()
    futures = [member.propose(b"entry %d" % number) for number in range(500)]
    indexes = await asyncio.gather(*futures)
    assert indexes == list(range(indexes[0], indexes[0] + 500))
    assert member.raft.last_index == member.raft.applied_index == indexes[-1]
    await member.close()
    member = await node.start()
    assert member.chunks == []
    assert member.entries == [b"entry %d" % number for number in range(500)]
    assert [entry.index for entry in member.restored] == indexes
    last = member.raft.last_index
    assert await member.propose(b"next") == last + 1
    await member.close()
    member = await node.start()
    assert member.entries[-1] == b"next"
    await member.close()


async def test_restart_on_the_real_disk(tmp_path, real_keys, start_member):
    """The same on a real file system, with a snapshot and files only the owner reads."""
    member = await start_member(tmp_path / "log", real_keys, is_new=True)
    indexes = await asyncio.gather(
        *(member.propose(bytes([number]) * 200) for number in range(100))
    )
    await member.save(indexes[59], b"state", b"", b"more" * 100_000)
    await member.propose(b"after")
    await member.close()
    member = await start_member(tmp_path / "log", real_keys, is_new=False)
    await member.close()
    assert member.chunks == [b"state", b"", b"more" * 100_000]
    assert member.entries == [bytes([number]) * 200 for number in range(60, 100)] + [b"after"]
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {0o700 if path.is_dir() else 0o600 for path in modes} == set(modes.values())


def records(node) -> list[layout.Batch]:
    """Return the records of all segments."""
    return [
        batch for path in node.segments() for batch in read_batches(node.files, path, node.keys)
    ]


async def test_proposals_of_one_iteration_share_one_record_and_one_sync(node):
    """A batch is one record; its size grows by a few bytes an entry."""
    member = await node.start()
    await member.propose(b"first")
    before = node.files.operations
    futures = [member.propose(b"12345678") for _ in range(64)]
    await asyncio.gather(*futures)
    # One write, one sync, one note of the synced mark.
    assert node.files.operations - before == 3
    last = records(node)[-1]
    assert sum(len(step.entries.data) for step in last.states.steps if step.entries) == 64
    assert last.end - last.offset < 100 + 64 * (8 + 5)
    await member.close()


async def test_overhead_of_a_lone_entry_is_small(node):
    """At most 70 bytes are added to an entry that is not batched."""
    member = await node.start()
    await member.propose(bytes(200))
    last = records(node)[-1]
    assert last.end - last.offset <= 270
    await member.close()


async def test_proposals_gather_while_a_sync_is_under_way(node):
    """Those that come during a sync share the next one."""
    member = await node.start()
    await member.propose(b"make the segment")
    first = member.propose(b"a")
    await asyncio.sleep(0)
    before = node.files.operations
    rest = []
    for number in range(20):
        rest.append(member.propose(b"%d" % number))
        if first.done():
            break
        await asyncio.sleep(0)
    await asyncio.gather(first, *rest)
    assert node.files.operations - before <= 9
    await member.close()


async def test_entry_size_is_limited(node):
    """The largest entry passes; one byte more, or none at all, is refused and takes no index."""
    member = await node.start()
    last = member.raft.last_index
    for size in (0, ENTRY_BYTES_MAX + 1):
        with pytest.raises(InvalidError, match="one may have"):
            member.propose(bytes(size))
    assert await member.propose(bytes(ENTRY_BYTES_MAX)) == last + 1
    await member.close()
    member = await node.start()
    assert member.entries == [bytes(ENTRY_BYTES_MAX)]
    await member.close()


async def test_bytes_in_flight_are_limited(node):
    """A flood is refused while the disk is busy, and accepted again afterwards."""
    member = await node.start(in_flight_bytes_max=1000)
    first = member.propose(bytes(900))
    with pytest.raises(ResourceExhaustedError, match="bytes are waiting to be committed"):
        member.propose(bytes(100))
    index = await first
    assert await member.propose(bytes(100)) == index + 1
    await member.close()


async def test_a_backlog_is_split_into_records_that_fit(node):
    """A batch never exceeds a record's limit, whatever waits."""
    member = await node.start()
    entries = [bytes([number]) * ENTRY_BYTES_MAX for number in range(12)]
    await asyncio.gather(*(member.propose(data) for data in entries))
    await member.close()
    assert max(each.end - each.offset for each in records(node)) <= layout.RECORD_BYTES_MAX
    member = await node.start()
    assert member.entries == entries
    await member.close()


async def test_a_cancelled_waiter_does_not_stop_the_others(node):
    """The entry of a caller that went away is kept; indexes stay right."""
    member = await node.start()
    first, second, third = (member.propose(b"%d" % number) for number in (1, 2, 3))
    second.cancel()
    assert await third - await first == 2
    await member.close()
    member = await node.start()
    assert member.entries == [b"1", b"2", b"3"]
    await member.close()


async def test_close_finishes_what_was_proposed(node):
    """Nobody needs to wait for the futures before closing; afterwards nothing is taken."""
    member = await node.start()
    futures = [member.propose(b"%d" % number) for number in range(10)]
    await member.close()
    indexes = [future.result() for future in futures]
    assert indexes == list(range(indexes[0], indexes[0] + 10))
    with pytest.raises(UnavailableError, match="closed"):
        member.propose(b"late")
    await member.close()


async def test_two_openers(node, tmp_path, real_keys, start_member):
    """A directory has one daemon: in the simulation and with the kernel's lock."""
    member = await node.start()
    with pytest.raises(InUseError, match="stop that daemon"):
        await node.start()
    await member.close()
    await (await node.start()).close()
    member = await start_member(tmp_path / "log", real_keys, is_new=True)
    with pytest.raises(InUseError, match=f"{tmp_path}/log is in use by process {os.getpid()}"):
        await start_member(tmp_path / "log", real_keys, is_new=False)
    await member.close()
    await (await start_member(tmp_path / "log", real_keys, is_new=False)).close()


async def test_a_failed_open_releases_the_lock(node):
    """Damage is reported each time, not once and then "in use"."""
    member = await node.start()
    await member.propose(b"a")
    await member.close()
    path = node.segments()[0]
    good = node.files.content(path)
    node.files.put(path, b"x" + good[1:])
    for _ in range(2):
        with pytest.raises(CorruptError, match="damaged"):
            await node.start()
    node.files.put(path, good)
    member = await node.start()
    assert member.entries == [b"a"]
    await member.close()


def test_segments_roll_over(node):
    """A new segment starts before one outgrows its limit; nothing is lost across them."""
    node.segment_bytes = 1000
    entries = [os.urandom(200) for _ in range(40)]
    node.written(entries)
    fit = (1000 - layout.FILE_HEADER_BYTES) // node.record_bytes(40, bytes(200))
    assert (fit, len(node.segments())) == (3, 14)
    assert all(len(node.files.content(path)) <= 1000 for path in node.segments())
    assert node.restored() == ([], entries)


def test_a_record_that_fills_a_segment_to_its_last_byte_is_in_it(node):
    """The limit is exact: one byte less and the record starts the next segment."""
    size = sum(node.record_bytes(index, b"entry") for index in (1, 2))
    for room, count in ((0, 1), (-1, 2)):
        fresh = type(node)(type(node.files)(node.rng), node.rng)
        fresh.segment_bytes = layout.FILE_HEADER_BYTES + size + room
        fresh.written([b"entry", b"entry"])
        assert len(fresh.segments()) == count


async def test_appends_go_on_during_a_snapshot(node):
    """A slow producer of chunks does not hold up proposals; all of them are kept."""
    member = await node.start()
    index = await member.propose(b"1")

    async def slow():
        for number in range(5):
            yield b"chunk %d" % number
            assert await member.propose(b"during %d" % number) == index + number + 1

    await member.raft.save_snapshot(index, slow())
    await member.close()
    member = await node.start()
    assert member.chunks == [b"chunk %d" % number for number in range(5)]
    assert member.entries == [b"during %d" % number for number in range(5)]
    await member.close()


async def test_a_snapshot_drops_what_is_not_needed_and_nothing_else(node):
    """Older segments and snapshots go; a segment with one later entry stays."""
    node.segment_bytes = 350
    member = await node.start()
    opening = len(node.segments())
    indexes = [await member.propose(b"entry %03d" % n + bytes(190)) for n in range(1, 21)]
    assert len(node.segments()) == opening + 20
    await member.save(indexes[4], b"state at 5")
    assert len(node.segments()) == 16  # 6 to 20, and one for what comes
    await member.save(indexes[19], b"state at 20")
    assert len(node.segments()) == 1
    assert node.files.names(node.snapshots) == [f"{indexes[19]:016x}.snap"]
    await member.propose(b"21")
    await member.close()
    member = await node.start()
    assert (member.chunks, member.entries) == ([b"state at 20"], [b"21"])
    assert member.raft.snapshot_index == indexes[19]
    await member.close()


async def test_a_failing_producer_leaves_the_older_snapshot(node):
    """A snapshot that was not finished is as if never begun; the error is passed on."""
    member = await node.start()
    first = await member.propose(b"1")
    await member.save(first, b"old")
    second = await member.propose(b"2")

    async def failing():
        yield b"half"
        raise RuntimeError("the store gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        await member.raft.save_snapshot(second, failing())
    assert node.files.names(node.snapshots) == [f"{first:016x}.snap"]
    await member.close()
    member = await node.start()
    assert (member.chunks, member.entries) == ([b"old"], [b"2"])
    await member.close()


async def test_a_cancelled_snapshot_leaves_no_trace(node):
    """Cancelling is as good as failing, and a later snapshot works."""
    member = await node.start()
    index = await member.propose(b"1")
    started = asyncio.Event()

    async def endless():
        started.set()
        while True:
            yield bytes(100_000)
            await asyncio.sleep(0)

    task = asyncio.ensure_future(member.raft.save_snapshot(index, endless()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (node.files.names(node.snapshots), member.raft.snapshot_index) == ([], 0)
    await member.save(index, b"state")
    assert member.raft.snapshot_index == index
    await member.close()


async def test_no_plain_text_on_disk(node):
    """Neither entries, chunks nor secrets are in any file, and contents do not compress."""
    secret = b"a service named web with a token SWMTKN"
    member = await node.start()
    indexes = await asyncio.gather(*(member.propose(secret * 3) for _ in range(200)))
    await member.save(indexes[99], secret * 1000)
    node.keys.seal("tls", secret)
    await member.close()
    for path in node.files.paths():
        content = node.files.content(path)
        for start in range(len(secret) - 8):
            assert secret[start : start + 8] not in content
        if len(content) > 4096:
            counts = [content.count(bytes([value])) for value in range(256)]
            entropy = -sum(n / len(content) * math.log2(n / len(content)) for n in counts if n)
            assert entropy > 7.8


def test_the_same_entry_never_looks_the_same(node):
    """Two records, or the same log written twice, share no ciphertext."""
    node.written([bytes(64), bytes(64)])
    first = node.files.content(node.segments()[0])
    body = first[layout.FILE_HEADER_BYTES :]
    size = len(body) // 2
    assert size == node.record_bytes(1, bytes(64)) == node.record_bytes(2, bytes(64))
    sealed = {body[layout.RECORD_HEADER_BYTES : size], body[size + layout.RECORD_HEADER_BYTES :]}
    assert len(sealed) == 2
    other = type(node)(type(node.files)(node.rng), node.rng)
    other.written([bytes(64), bytes(64)])
    again = other.files.content(other.segments()[0])
    assert again[layout.FILE_HEADER_BYTES :][layout.RECORD_HEADER_BYTES : size] not in sealed


def test_every_start_writes_to_a_segment_of_its_own(node):
    """A file, and so its key, is never continued: that is what makes counters good nonces."""
    for number in range(4):
        node.written([b"run %d" % number])
    assert len(node.segments()) == 4
    salts = {node.files.content(path)[: layout.FILE_HEADER_BYTES] for path in node.segments()}
    assert len(salts) == 4
    node.direct().close()
    assert len(node.segments()) == 4  # a start that writes nothing makes no file


def key_ids(node) -> set[int]:
    """Return the data keys that segments and snapshots need."""
    needed = set()
    for path in node.files.paths():
        magic = {".wal": layout.MAGIC_SEGMENT, ".snap": layout.MAGIC_SNAPSHOT}.get(path.suffix)
        if magic is not None:
            header = node.files.content(path)[: layout.FILE_HEADER_BYTES]
            needed.add(layout.decode_file_header(header, magic).key_id)
    return needed


async def test_data_key_rotation(node):
    """New segments use the new key, old ones stay readable, a snapshot ends the rotation."""
    member = await node.start()
    old = await member.propose(b"old")
    index = await member.raft.rotate_data_key()
    assert (index, member.raft.is_rotating, node.keys.ids) == (old, True, (1, 2))
    await member.propose(b"new")
    assert key_ids(node) == {1, 2}
    await member.close()
    member = await node.start()
    assert member.raft.is_rotating
    assert member.entries == [b"old", b"new"]
    await member.save(index, b"state")
    assert (member.raft.is_rotating, node.keys.ids) == (False, (2,))
    assert key_ids(node) == {2}
    await member.close()
    member = await node.start()
    assert (member.chunks, member.entries) == ([b"state"], [b"new"])
    await member.close()


async def test_rotation_at_the_newest_snapshot_replaces_it(node):
    """Also when nothing was written since, the old key goes."""
    member = await node.start()
    index = await member.propose(b"1")
    await member.save(index, b"state")
    await member.raft.rotate_data_key()
    await member.save(index, b"state again")
    assert (node.keys.ids, key_ids(node)) == ((2,), {2})
    await member.close()
    member = await node.start()
    assert (member.chunks, member.entries) == ([b"state again"], [])
    await member.close()


async def test_open_without_the_data_key_is_refused(node):
    """A ring that lacks a key names the file and the key."""
    await (await node.start()).close()
    node.keys.close()
    other = KeyRing.create(Path("/other"), node.rng.randbytes, files=node.files)
    other.add_data_key()
    other.retain_data_keys([])
    node.keys = other
    sentence = r"\.wal is damaged .* data key 1 is not in the key ring"
    with pytest.raises(CorruptError, match=sentence):
        await node.start()


async def test_a_fault_in_the_thread_stops_the_member(node, monkeypatch):
    """A bug is not a full disk: waiters are told that nothing is known, and nothing is taken."""
    member = await node.start()
    await member.propose(b"1")

    def bug(*_):
        raise struct.error("a bug")

    monkeypatch.setattr(layout, "encode_states", bug)
    future = member.propose(b"2")
    with pytest.raises(UnavailableError, match="not known"):
        await future
    with pytest.raises(UnavailableError, match="log stopped"):
        member.propose(b"3")
    await member.close()

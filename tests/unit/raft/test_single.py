"""The log as the store sees it."""

from __future__ import annotations

import asyncio
import math
import os
import struct
from pathlib import Path

import pytest

from proto.errors import (
    InUseError,
    InvalidError,
    ResourceExhaustedError,
    UnavailableError,
)
from raft import format as layout
from raft.keys import KeyRing
from raft.single import ENTRY_BYTES_MAX, SingleLog


async def test_restart_restores_everything(node, read):
    """What resolved is there after a restart, in order, and numbering goes on."""
    log = node.open()
    futures = [log.propose(b"entry %d" % number) for number in range(500)]
    assert log.last_index == 500
    assert await asyncio.gather(*futures) == list(range(1, 501))
    await log.close()
    log = node.open()
    assert (log.last_index, log.durable_index, log.snapshot_index) == (500, 500, 0)
    assert read(log) == ([], [b"entry %d" % number for number in range(500)])
    assert await log.propose(b"") == 501
    await log.close()
    assert (await node.restored())[1][-1] == b""


async def test_restart_on_the_real_disk(tmp_path, real_keys, read, chunks):
    """The same on a real file system, with a snapshot and files only the owner reads."""
    log = SingleLog.open(tmp_path / "log", real_keys)
    await asyncio.gather(*(log.propose(bytes([number]) * 200) for number in range(100)))
    await log.save_snapshot(60, chunks(b"state", b"", b"more" * 100_000))
    await log.propose(b"after")
    await log.close()
    log = SingleLog.open(tmp_path / "log", real_keys)
    state, entries = read(log)
    await log.close()
    assert state == [b"state", b"", b"more" * 100_000]
    assert entries == [bytes([number]) * 200 for number in range(60, 100)] + [b"after"]
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {0o700 if path.is_dir() else 0o600 for path in modes} == set(modes.values())


async def test_proposals_of_one_iteration_share_one_record_and_one_sync(node):
    """A batch is one record; its size grows by four bytes an entry."""
    log = node.open()
    await log.propose(b"first")
    before = node.files.operations
    futures = [log.propose(b"12345678") for _ in range(64)]
    await asyncio.gather(*futures)
    # One write, one sync, one note of the synced mark.
    assert node.files.operations - before == 3
    path = node.segments()[-1]
    assert len(node.files.content(path)) == (
        layout.FILE_HEADER_BYTES
        + 2 * layout.RECORD_OVERHEAD_BYTES
        + 65 * layout.ENTRY_OVERHEAD_BYTES
        + 5
        + 64 * 8
    )
    await log.close()


def test_overhead_of_a_lone_entry_is_small():
    """Less than 60 bytes are added to an entry that is not batched."""
    assert layout.RECORD_OVERHEAD_BYTES + layout.ENTRY_OVERHEAD_BYTES == 43


async def test_proposals_gather_while_a_sync_is_under_way(node):
    """Those that come during a sync share the next one."""
    log = node.open()
    await log.propose(b"make the segment")
    first = log.propose(b"a")
    await asyncio.sleep(0)
    before = node.files.operations
    rest = []
    for number in range(20):
        rest.append(log.propose(b"%d" % number))
        if first.done():
            break
        await asyncio.sleep(0)
    await asyncio.gather(first, *rest)
    assert node.files.operations - before <= 9
    await log.close()


async def test_entry_size_is_limited(node, read):
    """The largest entry passes, one byte more is refused and takes no index."""
    log = node.open()
    with pytest.raises(InvalidError, match="one change may have"):
        log.propose(bytes(ENTRY_BYTES_MAX + 1))
    assert await log.propose(bytes(ENTRY_BYTES_MAX)) == 1
    assert len(read(log)[1][0]) == ENTRY_BYTES_MAX
    await log.close()


async def test_bytes_in_flight_are_limited(node):
    """A flood is refused while the disk is busy, and accepted again afterwards."""
    log = node.open(in_flight_bytes_max=1000)
    first = log.propose(bytes(900))
    with pytest.raises(ResourceExhaustedError, match="waiting to be written to /node/log"):
        log.propose(bytes(100))
    assert log.last_index == 1
    await first
    assert await log.propose(bytes(100)) == 2
    await log.close()


async def test_a_backlog_is_split_into_records_that_fit(node, read):
    """A batch never exceeds a record's limit, whatever waits."""
    log = node.open()
    entries = [bytes([number]) * ENTRY_BYTES_MAX for number in range(12)]
    await asyncio.gather(*(log.propose(data) for data in entries))
    assert read(log)[1] == entries
    await log.close()


async def test_a_cancelled_waiter_does_not_stop_the_others(node, read):
    """The entry of a caller that went away is kept; indexes stay right."""
    log = node.open()
    first, second, third = log.propose(b"1"), log.propose(b"2"), log.propose(b"3")
    second.cancel()
    assert (await first, await third) == (1, 3)
    assert read(log)[1] == [b"1", b"2", b"3"]
    await log.close()


async def test_close_finishes_what_was_proposed(node):
    """Nobody needs to wait for the futures before closing; afterwards nothing is taken."""
    log = node.open()
    futures = [log.propose(b"%d" % number) for number in range(10)]
    await log.close()
    assert [future.result() for future in futures] == list(range(1, 11))
    with pytest.raises(UnavailableError, match="closed"):
        log.propose(b"late")
    await log.close()


async def test_two_openers(node, tmp_path, real_keys):
    """A directory has one daemon: in the simulation and with the kernel's lock."""
    log = node.open()
    with pytest.raises(InUseError, match="stop that daemon"):
        node.open()
    await log.close()
    await node.open().close()
    log = SingleLog.open(tmp_path / "log", real_keys)
    with pytest.raises(InUseError, match=f"{tmp_path}/log is in use by process {os.getpid()}"):
        SingleLog.open(tmp_path / "log", real_keys)
    await log.close()
    await SingleLog.open(tmp_path / "log", real_keys).close()


async def test_a_failed_open_releases_the_lock(node):
    """Damage is reported each time, not once and then "in use"."""
    await node.written([b"a"])
    path = node.segments()[0]
    good = node.files.content(path)
    node.files.put(path, b"x" + good[1:])
    for _ in range(2):
        with pytest.raises(Exception, match="damaged"):
            node.open()
    node.files.put(path, good)
    assert (await node.restored())[1] == [b"a"]


async def test_segments_roll_over(node):
    """A new segment starts before one outgrows its limit; nothing is lost across them."""
    node.segment_bytes = 1000
    entries = [os.urandom(200) for _ in range(40)]
    await node.written(entries)
    assert len(node.segments()) == 14  # three of 243 bytes each fit beside the header
    assert all(len(node.files.content(path)) <= 1000 for path in node.segments())
    assert (await node.restored())[1] == entries


async def test_appends_go_on_during_a_snapshot(node, read):
    """A slow producer of chunks does not hold up proposals; all of them are kept."""
    log = node.open()
    await log.propose(b"1")

    async def slow():
        for number in range(5):
            yield b"chunk %d" % number
            assert await log.propose(b"during %d" % number) == number + 2

    await log.save_snapshot(1, slow())
    await log.close()
    log = node.open()
    assert read(log) == (
        [b"chunk %d" % number for number in range(5)],
        [b"during %d" % number for number in range(5)],
    )
    await log.close()


async def test_a_snapshot_drops_what_is_not_needed_and_nothing_else(node, read, chunks):
    """Older segments and snapshots go; a segment with one later entry stays."""
    node.segment_bytes = 300
    log = node.open()
    for number in range(1, 21):
        await log.propose(b"entry %03d" % number + bytes(190))
    assert len(node.segments()) == 20
    await log.save_snapshot(5, chunks(b"state at 5"))
    assert len(node.segments()) == 16  # 6 to 20, and an empty one for what comes
    await log.save_snapshot(20, chunks(b"state at 20"))
    assert len(node.segments()) == 1
    assert node.files.names(node.snapshots) == [f"{20:016x}.snap"]
    assert read(log) == ([b"state at 20"], [])
    await log.propose(b"21")
    await log.close()
    log = node.open()
    assert read(log) == ([b"state at 20"], [b"21"])
    assert log.snapshot_index == 20
    await log.close()


async def test_a_failing_producer_leaves_the_older_snapshot(node, read, chunks):
    """A snapshot that was not finished is as if never begun; the error is passed on."""
    log = node.open()
    await log.propose(b"1")
    await log.save_snapshot(1, chunks(b"old"))
    await log.propose(b"2")

    async def failing():
        yield b"half"
        raise RuntimeError("the store gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        await log.save_snapshot(2, failing())
    assert read(log) == ([b"old"], [b"2"])
    assert node.files.names(node.snapshots) == [f"{1:016x}.snap"]
    await log.close()


async def test_a_cancelled_snapshot_leaves_no_trace(node, chunks):
    """Cancelling is as good as failing, and a later snapshot works."""
    log = node.open()
    await log.propose(b"1")
    started = asyncio.Event()

    async def endless():
        started.set()
        while True:
            yield bytes(100_000)
            await asyncio.sleep(0)

    task = asyncio.ensure_future(log.save_snapshot(1, endless()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (node.files.names(node.snapshots), log.snapshot_index) == ([], 0)
    await log.save_snapshot(1, chunks(b"state"))
    assert log.snapshot_index == 1
    await log.close()


async def test_no_plain_text_on_disk(node, chunks):
    """Neither entries, chunks nor secrets are in any file, and contents do not compress."""
    secret = b"a service named web with a token SWMTKN"
    log = node.open()
    await asyncio.gather(*(log.propose(secret * 3) for _ in range(200)))
    await log.save_snapshot(100, chunks(secret * 1000))
    node.keys.seal("tls", secret)
    await log.close()
    for path in node.files.paths():
        content = node.files.content(path)
        for start in range(len(secret) - 8):
            assert secret[start : start + 8] not in content
        if len(content) > 4096:
            counts = [content.count(bytes([value])) for value in range(256)]
            entropy = -sum(n / len(content) * math.log2(n / len(content)) for n in counts if n)
            assert entropy > 7.8


async def test_the_same_entry_never_looks_the_same(node):
    """Two records, or the same log written twice, share no ciphertext."""
    await node.written([bytes(64), bytes(64)])
    first = node.files.content(node.segments()[0])
    body = first[layout.FILE_HEADER_BYTES :]
    size = len(body) // 2
    sealed = {body[layout.RECORD_HEADER_BYTES : size], body[size + layout.RECORD_HEADER_BYTES :]}
    assert len(sealed) == 2
    other = type(node)(type(node.files)(node.rng), node.rng)
    await other.written([bytes(64), bytes(64)])
    again = other.files.content(other.segments()[0])
    assert again[layout.FILE_HEADER_BYTES :][layout.RECORD_HEADER_BYTES : size] not in sealed


async def test_every_start_writes_to_a_segment_of_its_own(node):
    """A file, and so its key, is never continued: that is what makes counters good nonces."""
    for number in range(4):
        await node.written([b"run %d" % number])
    assert len(node.segments()) == 4
    salts = {node.files.content(path)[: layout.FILE_HEADER_BYTES] for path in node.segments()}
    assert len(salts) == 4
    await node.open().close()
    assert len(node.segments()) == 4  # a start that writes nothing makes no file


async def test_data_key_rotation(node, chunks):
    """New segments use the new key, old ones stay readable, a snapshot ends the rotation."""
    log = node.open()
    await log.propose(b"old")
    index = await log.rotate_data_key()
    assert (index, log.is_rotating, node.keys.ids) == (1, True, (1, 2))
    await log.propose(b"new")
    await log.close()
    log = node.open()
    assert log.is_rotating
    assert [entry.data for entry in log.restore()[1]] == [b"old", b"new"]
    await log.save_snapshot(index, chunks(b"state"))
    assert (log.is_rotating, node.keys.ids) == (False, (2,))
    key_ids = {
        layout.decode_file_header(
            node.files.content(path)[: layout.FILE_HEADER_BYTES], layout.MAGIC_SEGMENT
        ).key_id
        for path in node.segments()
    }
    assert key_ids == {2}
    await log.close()
    assert await node.restored() == ([b"state"], [b"new"])


async def test_rotation_at_the_newest_snapshot_replaces_it(node, chunks):
    """Also when nothing was written since, the old key goes."""
    log = node.open()
    await log.propose(b"1")
    await log.save_snapshot(1, chunks(b"state"))
    await log.rotate_data_key()
    await log.save_snapshot(1, chunks(b"state again"))
    assert node.keys.ids == (2,)
    await log.close()
    assert await node.restored() == ([b"state again"], [])


async def test_open_without_the_data_key_is_refused(node):
    """A ring that lacks a key names the file and the key."""
    await node.written([b"a"])
    node.keys.close()
    other = KeyRing.create(Path("/other"), node.rng.randbytes, files=node.files)
    other.add_data_key()
    other.retain_data_keys([])
    node.keys = other
    with pytest.raises(Exception, match=r"\.wal is damaged .* data key 1 is not in the key ring"):
        node.open()


async def test_a_fault_in_the_thread_stops_the_log(node, monkeypatch):
    """A bug is not a full disk: waiters are told that nothing is known, and nothing is taken."""
    log = node.open()
    await log.propose(b"1")

    def bug(*_):
        raise struct.error("a bug")

    monkeypatch.setattr(layout, "encode_batch", bug)
    future = log.propose(b"2")
    with pytest.raises(UnavailableError, match="not known"):
        await future
    with pytest.raises(UnavailableError, match="stopped after a fault"):
        log.propose(b"3")
    await log.close()

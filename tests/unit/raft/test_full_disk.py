"""A disk that is full or fails: what was not kept is said, nothing is lost, and it goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap

import pytest

from proto.errors import ResourceExhaustedError, UnavailableError


@pytest.mark.parametrize("room", range(0, 300, 7))
async def test_full_disk_is_said_and_leaves_nothing_behind(node, read, room):
    """Wherever in a record the room ends, the waiters hear it and the entry is surely not there."""
    log = node.open()
    await log.propose(b"kept")
    node.files.room_bytes = room
    first, second = log.propose(b"x" * 200), log.propose(b"y" * 200)
    for future in (first, second):
        with pytest.raises(ResourceExhaustedError, match="cannot write to /node/log: No space"):
            await future
    assert log.last_index == 1
    await asyncio.sleep(0)  # everybody has been told
    with pytest.raises(ResourceExhaustedError):
        await log.propose(b"z" * 500)
    await asyncio.sleep(0)
    node.files.room_bytes = None
    assert await log.propose(b"room again") == 2
    assert read(log)[1] == [b"kept", b"room again"]
    await log.close()
    assert (await node.restored())[1] == [b"kept", b"room again"]


async def test_a_failed_write_fails_all_that_waited_behind_it(node, read):
    """A later change may build on an earlier one, so neither is kept, whatever the room."""
    log = node.open()
    await log.propose(b"kept")
    node.files.room_bytes = 50
    first = log.propose(b"large" * 100)
    await asyncio.sleep(0)
    behind = log.propose(b"s")
    outcomes = await asyncio.gather(first, behind, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ResourceExhaustedError] * 2
    assert read(log)[1] == [b"kept"]
    node.files.room_bytes = None
    await log.close()


async def test_new_proposals_are_refused_until_the_waiters_know(node):
    """A callback that runs before the waiter's cannot slip an entry into the fallen index."""
    log = node.open()
    await log.propose(b"kept")
    node.files.room_bytes = 0
    future = log.propose(b"lost")
    outcomes = []

    def early(_):
        try:
            log.propose(b"built on what is lost")
        except ResourceExhaustedError as error:
            outcomes.append(error)

    future.add_done_callback(early)
    with pytest.raises(ResourceExhaustedError):
        await future
    assert len(outcomes) == 1
    await asyncio.sleep(0)
    node.files.room_bytes = None
    assert await log.propose(b"next") == 2
    await log.close()


async def test_a_failed_sync_is_not_trusted_later(node, read):
    """After a failed sync the kernel may have dropped the pages: the record is cut, not retried."""
    log = node.open()
    await log.propose(b"kept")
    node.files.fail_sync = True
    future = log.propose(b"lost")
    # Cutting needs a sync as well, so nothing is sure yet.
    with pytest.raises(UnavailableError, match="not known"):
        await future
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError):
        await log.propose(b"still failing")
    await asyncio.sleep(0)
    node.files.fail_sync = False
    assert await log.propose(b"works again") == 2
    assert read(log)[1] == [b"kept", b"works again"]
    log = node.reopen_after_power_loss()
    assert read(log)[1] == [b"kept", b"works again"]
    await log.close()


async def test_a_segment_whose_name_may_not_be_durable_is_made_again(node, read, chunks):
    """The half-made file starts at an entry that goes elsewhere: it is replaced before that."""
    log = node.open()
    await log.propose(b"1")
    node.files.fail_directory_sync = True
    with pytest.raises(ResourceExhaustedError):
        await log.save_snapshot(1, chunks(b"state"))
    node.files.fail_directory_sync = False
    assert await log.propose(b"2") == 2
    await log.close()
    assert (await node.restored())[1] == [b"1", b"2"]
    log = node.reopen_after_power_loss()
    assert read(log)[1] == [b"1", b"2"]
    await log.close()


async def test_full_disk_during_a_snapshot(node, read, chunks):
    """The older snapshot stays, the log goes on, and the next snapshot works."""
    log = node.open()
    await log.propose(b"1")
    await log.save_snapshot(1, chunks(b"old"))
    await log.propose(b"2")
    node.files.room_bytes = 5000
    with pytest.raises(ResourceExhaustedError, match="/node/log"):
        await log.save_snapshot(2, chunks(*[bytes(1000)] * 1000))
    assert not [name for name in node.files.names(node.snapshots) if name.endswith(".tmp")]
    assert read(log) == ([b"old"], [b"2"])
    node.files.room_bytes = None
    await log.propose(b"3")
    await log.save_snapshot(3, chunks(b"new"))
    await log.close()
    assert await node.restored() == ([b"new"], [])


async def test_a_full_disk_does_not_prevent_a_start(node):
    """A manager with a full disk restarts and reads; only writing is refused."""
    await node.written([b"a", b"b"])
    node.files.room_bytes = 0
    log = node.open()
    assert [entry.data for entry in log.restore()[1]] == [b"a", b"b"]
    with pytest.raises(ResourceExhaustedError):
        await log.propose(b"c")
    await log.close()


# Runs in a process of its own, because the limit on the size of files holds for all of it.
REAL_LIMIT = """
    import asyncio, json, logging, resource, sys
    from pathlib import Path
    import structlog
    from proto.errors import ResourceExhaustedError
    from raft.keys import KeyRing
    from raft.single import SingleLog

    async def main():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
        )
        directory = Path(sys.argv[1])
        keys = KeyRing.create(directory)
        log = SingleLog.open(directory, keys)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        kept, sentences = [], []
        for number in range(30):
            # The size is such that the limit falls into a record.
            try:
                kept.append(await log.propose(b"%04d" % number + bytes(3000)))
            except ResourceExhaustedError as error:
                sentences.append(str(error))
                await asyncio.sleep(0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        await log.propose(b"after")
        await log.close()
        log = SingleLog.open(directory, keys)
        entries = [entry.data[:5].decode() for entry in log.restore()[1]]
        await log.close()
        print(json.dumps([kept, sentences, entries]))

    asyncio.run(main())
"""


def test_a_real_limit_of_the_kernel(tmp_path):
    """With RLIMIT_FSIZE the kernel cuts a write in the middle: the log starts a new file."""
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REAL_LIMIT), str(tmp_path)],
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout
    kept, sentences, entries = json.loads(output)
    # Three records fit into a file; the fourth is refused and makes the next go to a new file.
    assert len(sentences) == 7
    assert all(f"cannot write to {tmp_path}: File too large" in text for text in sentences)
    assert kept == list(range(1, 24))
    refused = {3, 7, 11, 15, 19, 23, 27}
    expected = [f"{number:04d}\0" for number in range(30) if number not in refused]
    assert entries == [*expected, "after"]

"""A disk that is full or fails: what was not kept is said, nothing is lost, and it goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap

import pytest

from proto.errors import ResourceExhaustedError, UnavailableError


async def entries_of(node) -> list[bytes]:
    """Start, return what is there, close."""
    member = await node.start()
    await member.close()
    return member.entries


@pytest.mark.parametrize("room", range(0, 300, 7))
async def test_full_disk_is_said_and_leaves_nothing_behind(node, room):
    """Wherever in a record the room ends, the waiters hear it and the entry is surely not there."""
    member = await node.start()
    kept = await member.propose(b"kept")
    node.files.room_bytes = room
    first, second = member.propose(b"x" * 200), member.propose(b"y" * 200)
    for future in (first, second):
        with pytest.raises(ResourceExhaustedError, match="cannot write to /node/log: No space"):
            await future
    with pytest.raises(ResourceExhaustedError, match="cannot write to /node/log: No space"):
        await member.propose(b"z" * 500)
    node.files.room_bytes = None
    await member.until_it_leads()
    assert await member.propose(b"room again") > kept
    assert member.told == []
    await member.close()
    assert await entries_of(node) == [b"kept", b"room again"]


async def test_a_failed_write_fails_all_that_waited_behind_it(node):
    """A later change may build on an earlier one, so neither is kept, whatever the room."""
    member = await node.start()
    await member.propose(b"kept")
    node.files.room_bytes = 50
    first = member.propose(b"large" * 100)
    await asyncio.sleep(0)
    behind = member.propose(b"s")
    outcomes = await asyncio.gather(first, behind, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ResourceExhaustedError] * 2
    node.files.room_bytes = None
    await member.until_it_leads()
    await member.close()
    assert member.told == []
    assert await entries_of(node) == [b"kept"]


async def test_new_proposals_are_refused_until_the_waiters_know(node):
    """A callback that runs before the waiter's cannot slip an entry in behind the lost one."""
    member = await node.start()
    await member.propose(b"kept")
    node.files.room_bytes = 0
    future = member.propose(b"lost")
    outcomes = []

    def early(_):
        try:
            member.propose(b"built on what is lost")
        except ResourceExhaustedError as error:
            outcomes.append(error)

    future.add_done_callback(early)
    with pytest.raises(ResourceExhaustedError):
        await future
    assert len(outcomes) == 1
    node.files.room_bytes = None
    await member.until_it_leads()
    await member.propose(b"next")
    await member.close()
    assert await entries_of(node) == [b"kept", b"next"]


async def test_a_failed_sync_is_not_trusted_later(node):
    """After a failed sync the kernel may have dropped the pages: the record is cut, not retried."""
    member = await node.start()
    await member.propose(b"kept")
    node.files.fail_sync = True
    future = member.propose(b"lost")
    # Cutting needs a sync as well, so nothing is sure yet.
    with pytest.raises(UnavailableError, match="not known"):
        await future
    with pytest.raises(ResourceExhaustedError):
        await member.propose(b"still failing")
    node.files.fail_sync = False
    await member.until_it_leads()
    await member.propose(b"works again")
    assert member.told == []
    await member.close()
    node.lose_power()
    assert await entries_of(node) == [b"kept", b"works again"]


async def test_a_segment_whose_name_may_not_be_durable_is_made_again(node):
    """The half-made file starts at an entry that goes elsewhere: it is replaced before that."""
    member = await node.start()
    index = await member.propose(b"1")
    node.files.fail_directory_sync = True
    with pytest.raises(ResourceExhaustedError):
        await member.save(index, b"state")
    node.files.fail_directory_sync = False
    assert await member.propose(b"2") == index + 1
    await member.close()
    assert await entries_of(node) == [b"1", b"2"]
    node.lose_power()
    assert await entries_of(node) == [b"1", b"2"]


async def test_full_disk_during_a_snapshot(node):
    """The older snapshot stays, the log goes on, and the next snapshot works."""
    member = await node.start()
    index = await member.propose(b"1")
    await member.save(index, b"old")
    index = await member.propose(b"2")
    node.files.room_bytes = 5000
    with pytest.raises(ResourceExhaustedError, match="/node/log"):
        await member.save(index, *[bytes(1000)] * 1000)
    assert not [name for name in node.files.names(node.snapshots) if name.endswith(".tmp")]
    node.files.room_bytes = None
    await member.close()
    member = await node.start()
    assert (member.chunks, member.entries) == ([b"old"], [b"2"])
    await member.save(await member.propose(b"3"), b"new")
    await member.close()
    member = await node.start()
    assert (member.chunks, member.entries) == ([b"new"], [])
    await member.close()


async def test_a_full_disk_does_not_prevent_a_start(node):
    """A manager with a full disk restarts and reads; only writing is refused, until it works."""
    member = await node.start()
    await member.propose(b"a")
    await member.propose(b"b")
    await member.close()
    node.files.room_bytes = 0
    member = await node.start()
    assert member.entries == [b"a", b"b"]
    with pytest.raises(ResourceExhaustedError):
        await member.propose(b"c")
    node.files.room_bytes = None
    await member.until_it_leads()
    await member.propose(b"d")
    await member.close()
    assert await entries_of(node) == [b"a", b"b", b"d"]


# Runs in a process of its own, because the limit on the size of files holds for all of it.
REAL_LIMIT = """
    import asyncio, json, logging, random, resource, sys
    from pathlib import Path
    import structlog
    from proto.clock import SystemClock
    from proto.errors import ResourceExhaustedError
    from raft import shell
    from raft.keys import KeyRing
    from raft.listener import Deaf
    from raft.node import RaftNode

    shell.RECOVERY_SECONDS_FIRST = 0.005

    class Listener(Deaf):
        leads = asyncio.Event()

        def lead(self, term):
            self.leads.set()

        def follow(self):
            self.leads.clear()

    async def main():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
        )
        directory = Path(sys.argv[1])
        keys = KeyRing.create(directory)
        options = dict(node_id="n", address="n:1", clock=SystemClock(), rng=random.Random(1))
        node = await RaftNode.create(directory, keys, **options)
        list(node.restore()[1])
        node.attach(Listener())
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        kept, sentences = [], []
        for number in range(30):
            # The size is such that the limit falls into a record.
            try:
                await node.propose(b"%04d" % number + bytes(3000))
                kept.append(number)
            except ResourceExhaustedError as error:
                sentences.append(str(error))
                await asyncio.wait_for(Listener.leads.wait(), 10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        await node.propose(b"after")
        await node.close()
        node = await RaftNode.open(directory, keys, **options)
        entries = [entry.data[:5].decode() for entry in node.restore()[1] if entry.data]
        sizes = [path.stat().st_size for path in sorted(directory.glob("wal/*.wal"))]
        await node.close()
        print(json.dumps([kept, sentences, entries, sizes]))

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
    kept, sentences, entries, sizes = json.loads(output)
    # Three records fit into a file; the fourth is refused and makes the next go to a new file.
    assert len(sentences) == 7
    assert all(f"cannot write to {tmp_path}: File too large" in text for text in sentences)
    refused = {3, 7, 11, 15, 19, 23, 27}
    assert kept == [number for number in range(30) if number not in refused]
    assert entries == [*(f"{number:04d}\0" for number in kept), "after"]
    assert len(sizes) == 9
    assert all(size < 10_000 for size in sizes)

"""A lone member of the group starts whatever its disk says."""

import asyncio
import random
from pathlib import Path

from raft.keys import KeyRing
from raft.node import RaftNode
from raft.simdisk import SimFiles

DIRECTORY = Path("/node/raft")


class LoopClock:
    """The loop's time."""

    def wall(self):
        """Return a date."""
        return 1_700_000_000.0

    def monotonic(self):
        """Return the loop's time."""
        return asyncio.get_running_loop().time()


class Listener:
    """Takes what it is told and needs nothing of it."""

    def apply(self, first, data):
        """Take entries."""

    def lead(self, term):
        """Begin to lead."""

    def follow(self):
        """Stop leading."""

    def fail(self, error):
        """Stop for good."""

    async def install(self, index, chunks):
        """Take a state."""


async def test_entries_come_once_though_the_disk_is_full_at_the_start():
    """The first write fails and the disk is read again: nothing is restored twice."""
    files, rng = SimFiles(random.Random(1)), random.Random(2)
    keys = KeyRing.create(DIRECTORY, rng.randbytes, files=files)
    options = {"node_id": "n1", "address": "", "clock": LoopClock(), "rng": rng, "files": files}
    node = await RaftNode.create(DIRECTORY, keys, **options)
    list(node.restore()[1])
    node.attach(Listener())
    for data in (b"one", b"two"):
        await node.propose(data)
    await node.close()

    files.room_bytes = 0
    again = await RaftNode.open(DIRECTORY, keys, **options)
    entries = list(again.restore()[1])

    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.data for entry in entries if entry.data] == [b"one", b"two"]
    again.attach(Listener())
    await again.close()

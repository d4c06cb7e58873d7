"""The lists themselves as the state machine of `RaftNode`: the log, and nothing above it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec
from config import MemberConfig
from state import Lists

from proto.errors import NotLeaderError, ResourceExhaustedError, SwarmError
from raft.node import RaftNode

CHUNK_VALUES = 20_000
SNAPSHOT_LOOK_SECONDS = 0.05

Command = tuple[str, int, bytes]


class ListsMachine:
    """The listener: own appends and others', in the order of the log."""

    def __init__(self, config: MemberConfig, node: RaftNode) -> None:
        """Take what the log holds."""
        self.content = Lists()
        self.index = 0
        self._node = node
        self._snapshot_entries = config.snapshot_entries
        self._padding = config.padding()
        self._own: deque[tuple[asyncio.Future[int], str, int]] = deque()
        chunks, entries = node.restore()
        self.restore(node.snapshot_index, chunks)
        for entry in entries:
            self.take(entry.index, entry.data)

    def attach(self) -> None:
        """Be told of everything from now on."""
        self._node.attach(self)

    # What clients ask.

    async def append(self, key: str, value: int) -> None:
        """Append, durably on return."""
        data = msgspec.msgpack.encode((key, value, self._padding))
        try:
            future = self._node.propose(data)
        except NotLeaderError:
            raise
        except SwarmError as error:
            # Whatever it is, nothing was proposed.
            raise ResourceExhaustedError(error.message) from error
        self._own.append((future, key, value))
        # At once, and not when this coroutine has its turn.
        future.add_done_callback(lambda _: self.settle())
        await future

    async def read(self, key: str) -> tuple[int, int]:
        """Return how many values a key has, and the digest of them all."""
        await self._node.read_barrier()
        self.settle()
        return self.content.read(key)

    def lists(self) -> dict[str, list[int]]:
        """Return all that was applied here."""
        self.settle()
        return self.content.lists

    async def work(self) -> None:
        """Save a snapshot whenever the log has grown enough; a full disk only delays it."""
        node = self._node
        while True:
            await asyncio.sleep(SNAPSHOT_LOOK_SECONDS)
            self.settle()
            if self.index - node.snapshot_index < self._snapshot_entries:
                continue
            lists = {key: list(values) for key, values in self.content.lists.items()}
            try:
                await node.save_snapshot(self.index, snapshot_chunks(lists))
            except SwarmError as error:
                print(f"no snapshot: {error.message}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.5)

    # What the log tells.

    def settle(self) -> None:
        """Apply the own appends that are committed."""
        own = self._own
        while own and own[0][0].done():
            future, key, value = own.popleft()
            if not future.cancelled() and future.exception() is None:
                self._move_to(future.result())
                self.content.append(key, value)

    def _move_to(self, index: int) -> None:
        assert index == self.index + 1, f"entry {index} comes after {self.index}"
        self.index = index

    def take(self, index: int, data: bytes) -> None:
        """Apply somebody else's entry, or one that changes nothing."""
        self._move_to(index)
        if data:
            key, value, _ = msgspec.msgpack.decode(data, type=Command)
            self.content.append(key, value)

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Be told of committed entries."""
        self.settle()
        for index, data in enumerate(entries, first):
            self.take(index, data)

    def restore(self, index: int, chunks: Iterator[bytes]) -> None:
        """Take a snapshot's content."""
        lists: dict[str, list[int]] = {}
        for chunk in chunks:
            key, values = msgspec.msgpack.decode(chunk, type=tuple[str, list[int]])
            lists.setdefault(key, []).extend(values)
        self.content = Lists(lists)
        self.index = index

    async def install(self, index: int, chunks: Iterator[bytes]) -> None:
        """Be given a snapshot by the leader."""
        self.settle()
        await asyncio.to_thread(self.restore, index, chunks)

    def lead(self, term: int) -> None:
        """Lead; clients find out."""

    def follow(self) -> None:
        """Lead no more."""
        self.settle()

    def fail(self, error: SwarmError) -> None:
        """End: whoever supervises us starts us again."""
        print(f"the log failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)


async def snapshot_chunks(lists: dict[str, list[int]]) -> AsyncIterator[bytes]:
    """Yield the content of a snapshot."""
    for key, values in lists.items():
        for start in range(0, len(values), CHUNK_VALUES):
            yield msgspec.msgpack.encode((key, values[start : start + CHUNK_VALUES]))
            await asyncio.sleep(0)

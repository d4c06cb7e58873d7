"""The log on a disk that loses power, fills up and fails, against a list."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.errors import ResourceExhaustedError, SwarmError, UnavailableError
from raft.entry import Entry
from raft.keys import Kek, KeyRing
from raft.listener import Deaf
from raft.node import RaftNode, Settings
from raft.simdisk import SimFiles

KEYS, LOG = Path("/node/keys"), Path("/node/log")

action = st.one_of(
    st.tuples(st.just("propose"), st.integers(1, 6), st.integers(1, 900)),
    st.tuples(st.just("snapshot"), st.integers(0, 3), st.integers(0, 3000)),
    st.tuples(st.just("rotate data key"), st.just(0), st.just(0)),
    st.tuples(st.just("rotate kek"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
    st.tuples(st.just("stop"), st.integers(0, 25), st.booleans()),
    st.tuples(st.just("full disk"), st.integers(0, 1500), st.integers(1, 3)),
    st.tuples(st.just("failing sync"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("failing directory sync"), st.integers(1, 3), st.just(0)),
)


class Clock:
    """The loop's time."""

    def wall(self) -> float:
        """Return a date."""
        return 1_700_000_000.0

    def monotonic(self) -> float:
        """Return the loop's time."""
        return asyncio.get_running_loop().time()


class Model(Deaf):
    """A lone member, and the list that its log must equal.

    `entries` was acknowledged, or told; `unsure` was proposed last and may be there or not.
    """

    log: RaftNode

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = SimFiles(self.rng)
        self.kek: Kek | None = None
        self.old_kek: Kek | None = None
        self.keys = KeyRing.create(KEYS, self.rng.randbytes, files=self.files)
        self.entries: list[Entry] = []
        self.unsure: list[bytes] = []
        self.line: list[tuple[asyncio.Future[int], bytes]] = []
        self.snapshot_index = 0
        self.leads = asyncio.Event()

    async def open(self, *, is_new: bool = False) -> None:
        """Start the member; small segments, so that there are many."""
        opener = RaftNode.create if is_new else RaftNode.open
        self.leads.clear()
        self.log = await opener(
            LOG,
            self.keys,
            node_id="n1",
            address="n1:1",
            clock=Clock(),
            rng=self.rng,
            settings=Settings(entries_kept=3),
            files=self.files,
            segment_bytes=2000,
        )
        self.check()
        self.log.attach(self)
        assert self.leads.is_set()

    def open_keys(self) -> KeyRing:
        """Open the ring with what an operator has: nothing, the new or the former key."""
        for kek in (None, self.kek, self.old_kek):
            with contextlib.suppress(SwarmError):
                keys = KeyRing.open(KEYS, kek, rng_bytes=self.rng.randbytes, files=self.files)
                self.kek = keys.kek if keys.is_autolocked else None
                return keys
        raise AssertionError("locked out")

    def settle(self) -> None:
        """Take own entries whose turn has come."""
        while self.line and self.line[0][0].done():
            future, data = self.line.pop(0)
            if future.exception() is None:
                assert not self.unsure, "nothing may follow what is not known to be there"
                self.add(future.result(), data)

    def add(self, index: int, data: bytes) -> None:
        """Put an entry at the list's end."""
        assert index > (self.entries[-1].index if self.entries else 0)
        self.entries.append(Entry(index, data))

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Take what comes by itself: nothing, or all of what was not known to be there."""
        self.settle()
        told = [(index, data) for index, data in enumerate(entries, first) if data]
        assert [data for _, data in told] in ([], self.unsure)
        if told:
            self.unsure = []
        for index, data in told:
            self.add(index, data)

    def lead(self, _term: int) -> None:
        """Everything that is there was told."""
        self.settle()
        self.unsure = []
        self.leads.set()

    def follow(self) -> None:
        """Wait for the disk."""
        self.leads.clear()

    async def propose(self, count: int, size: int) -> None:
        """Propose some entries in one iteration; note what was acknowledged."""
        proposed = [self.rng.randbytes(size) for _ in range(count)]
        outcomes: list[int | BaseException] = []
        try:
            futures = [self.log.propose(data) for data in proposed]
        except SwarmError as error:
            outcomes = [error]
        else:
            self.line += zip(futures, proposed, strict=True)
            for future in futures:
                future.add_done_callback(lambda _: self.settle())
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        good = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert good in ([], outcomes), "one record: all or none"
        if good:
            self.settle()
            assert [entry.data for entry in self.entries[-count:]] == proposed
            assert [entry.index for entry in self.entries[-count:]] == good
        elif any(type(outcome) is UnavailableError for outcome in outcomes):
            assert len(outcomes) == count
            if not self.leads.is_set():
                self.unsure = proposed
        else:
            assert all(isinstance(outcome, ResourceExhaustedError) for outcome in outcomes)

    async def until_it_leads(self) -> None:
        """Wait until the disk is written again."""
        async with asyncio.timeout(20):
            await self.leads.wait()

    async def snapshot(self, behind: int, chunk_bytes: int) -> None:
        """Take a snapshot of the list, not always of its newest state."""
        if len(self.entries) <= behind:
            return
        index = max(self.entries[-1 - behind].index, self.log.snapshot_index)
        content = [entry for entry in self.entries if entry.index <= index]

        async def chunks() -> AsyncIterator[bytes]:
            for entry in content:
                yield msgspec.msgpack.encode(entry)
                yield b"-" * chunk_bytes

        await self.log.save_snapshot(index, chunks())
        self.snapshot_index = index

    def check(self) -> None:
        """Compare what a start hands out with the list."""
        chunks, entries = self.log.restore()
        found = [msgspec.msgpack.decode(chunk, type=Entry) for chunk in list(chunks)[::2]]
        rest = list(entries)
        numbers = list(range(self.log.snapshot_index + 1, self.log.last_index + 1))
        assert [entry.index for entry in rest] == numbers
        assert self.log.applied_index == self.log.last_index
        found += [entry for entry in rest if entry.data]
        assert found[: len(self.entries)] == self.entries
        assert self.log.snapshot_index >= self.snapshot_index
        assert [entry.data for entry in found[len(self.entries) :]] in ([], self.unsure)
        self.entries = found
        self.unsure = []
        self.line = []

    async def restart(self, *, is_power_lost: bool, is_killed: bool = False) -> None:
        """Stop, cleanly or not, start, compare."""
        with contextlib.suppress(SwarmError):
            await self.log.close()
        self.settle()
        self.keys.close()
        if is_power_lost:
            self.files.lose_power()
        elif is_killed:
            self.files.kill_process()
        self.keys = self.open_keys()
        await self.open()

    async def stop(self, operations: int, *, is_only_killed: bool) -> None:
        """Go on for some operations, then lose power or be killed."""
        with self.files.stopping_at(operations):
            await self.propose(2, 300)
            if not self.unsure:
                await self.log.rotate_data_key()
                await self.snapshot(0, 1000)
                await self.propose(1, 100)
        await self.restart(is_power_lost=not is_only_killed, is_killed=is_only_killed)

    async def full_disk(self, room: int, count: int) -> None:
        """Fill the disk while working, then make room."""
        self.files.room_bytes = room
        for _ in range(count):
            await self.propose(2, 200)
        with contextlib.suppress(ResourceExhaustedError):
            await self.snapshot(0, 100)
        self.files.room_bytes = None
        await self.until_it_leads()
        assert not self.unsure, "a full disk leaves no doubt"

    async def failing_sync(self, count: int) -> None:
        """Let syncs fail while working; what is unknown is known once writing works again."""
        self.files.fail_sync = True
        await self.propose(count, 100)
        self.files.fail_sync = False
        if self.rng.random() < 0.5:
            # Writing works again: then the record that failed is surely gone.
            before = len(self.entries)
            await self.until_it_leads()
            assert len(self.entries) == before
            await self.propose(1, 10)
        else:
            await self.restart(is_power_lost=self.rng.random() < 0.5)

    async def failing_directory_sync(self, count: int) -> None:
        """Let the making of files fail half-way, then go on."""
        self.files.fail_directory_sync = True
        await self.propose(count, 900)
        with contextlib.suppress(SwarmError):
            await self.snapshot(0, 10)
        with contextlib.suppress(SwarmError):
            await self.log.rotate_data_key()
        self.files.fail_directory_sync = False
        await self.until_it_leads()
        await self.propose(count, 100)

    def rotate_kek(self, which: int) -> None:
        """Change the key of the ring: stored, or one of two for the operator."""
        new = None if which == 0 else Kek(bytes([which]) * 32)
        self.keys.rotate_kek(new)
        self.old_kek, self.kek = self.kek, new

    async def act(self, name: str, first: int, second: int) -> None:
        """Do one action."""
        match name:
            case "propose":
                await self.propose(first, second)
            case "snapshot":
                await self.snapshot(first, second)
            case "rotate data key":
                await self.log.rotate_data_key()
            case "rotate kek":
                self.rotate_kek(first)
            case "restart":
                await self.restart(is_power_lost=False)
            case "stop":
                await self.stop(first, is_only_killed=bool(second))
            case "full disk":
                await self.full_disk(first, second)
            case "failing directory sync":
                await self.failing_directory_sync(first)
            case "failing sync":
                await self.failing_sync(first)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(action, min_size=2, max_size=12))
def test_the_log_equals_a_list_whatever_the_disk_does(seed, actions):
    """Acknowledged entries are never lost or changed, others are there whole or not at all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))

    async def run() -> None:
        model = Model(seed)
        await model.open(is_new=True)
        for name, first, second in actions:
            await model.act(name, first, int(second))
        await model.restart(is_power_lost=True)
        await model.propose(1, 10)
        await model.snapshot(0, 10)
        assert not model.log.is_rotating
        await model.restart(is_power_lost=False)
        await model.log.close()

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raft.shell.RECOVERY_SECONDS_FIRST", 0.001)
            patch.setattr("raft.shell.RECOVERY_SECONDS_MAX", 0.001)
            asyncio.run(run())
    finally:
        structlog.reset_defaults()

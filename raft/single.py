"""The replicated log with one member: what is synced here is committed.

`SingleLog` is a shell: it batches proposals, drives `raft.wal` in a thread of its own and snapshots
in another, and turns errors of the disk into those of the contract. It fits
`manager.store.log.ReplicatedLog`. Limits are named below.

Batching: while one record is being synced, proposals gather; the next record takes them all. A
single caller therefore waits for one sync, and many share one.

When a write fails, every proposal not yet durable fails, also those that were only waiting: a later
one may build on an earlier one. The index falls back to the last durable entry, and until all
waiters have been told, new proposals are refused.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog

from proto.errors import (
    InvalidError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from raft import snapshot as snapshots
from raft.entry import Entry
from raft.files import Files, Lock, RealFiles, disk_error
from raft.format import ENTRY_OVERHEAD_BYTES
from raft.keys import KeyRing, RandomBytes
from raft.lane import Lane
from raft.listener import Listener
from raft.wal import SEGMENT_BYTES, UncertainError, Wal

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# A store transaction is at most 1.5 MiB of changes; the rest is for its envelope.
ENTRY_BYTES_MAX = (3 << 19) + (64 << 10)
IN_FLIGHT_BYTES_MAX = 64 << 20
BATCH_BYTES_MAX = 4 << 20
# Chunks of a snapshot are handed to the thread in portions of this size.
SNAPSHOT_PORTION_BYTES = 256 << 10

LOCK_NAME = "log.lock"
WAL_NAME = "wal"
SNAPSHOTS_NAME = "snapshots"


class _Proposal:
    """An entry on its way."""

    __slots__ = ("data", "future")

    def __init__(self, data: bytes, future: asyncio.Future[int]) -> None:
        self.data = data
        self.future = future


class SingleLog:
    """An ordered, durable, encrypted list of entries with snapshots.

    All methods belong to one event loop, except `open`, which blocks and may run anywhere.
    """

    def __init__(
        self,
        directory: Path,
        keys: KeyRing,
        wal: Wal,
        snapshot: snapshots.Snapshot | None,
        *,
        files: Files,
        rng_bytes: RandomBytes,
        lock: Lock,
        in_flight_bytes_max: int,
    ) -> None:
        """Use `open`."""
        self._directory = directory
        self._keys = keys
        self._wal = wal
        self._snapshot = snapshot
        self._files = files
        self._rng_bytes = rng_bytes
        self._lock = lock
        self._in_flight_bytes_max = in_flight_bytes_max
        self._last_index = wal.last_index
        self._durable_index = wal.last_index
        self._pending: deque[_Proposal] = deque()
        self._writing: list[_Proposal] = []
        self._in_flight_bytes = 0
        self._is_start_scheduled = False
        self._refusal: SwarmError | None = None
        self._is_broken = False
        self._is_closed = False
        self._snapshot_mutex = asyncio.Lock()
        self._lanes: tuple[Lane, Lane] | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        keys: KeyRing,
        *,
        files: Files | None = None,
        rng_bytes: RandomBytes = os.urandom,
        segment_bytes: int = SEGMENT_BYTES,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
    ) -> SingleLog:
        """Open or make the log in a directory; reads and checks everything in it.

        Args:
            directory: the log's own; made if missing. The ring may lie in the same one.
            keys: the open ring; stays the caller's.
            files: the disk.
            rng_bytes: for salts.
            segment_bytes: a new segment starts before one grows larger.
            in_flight_bytes_max: proposals that are not durable yet may take so much memory.

        Raises:
            InUseError: another daemon has the directory.
            CorruptError: something stored is damaged or missing; nothing was applied.
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        files = files or RealFiles()
        try:
            files.make_directory(directory)
            lock = files.lock(directory / LOCK_NAME)
        except OSError as error:
            raise disk_error(directory, error) from error
        try:
            snapshot = snapshots.find_newest(files, directory / SNAPSHOTS_NAME, keys)
            wal = Wal.open(
                directory / WAL_NAME,
                keys,
                files=files,
                rng_bytes=rng_bytes,
                snapshot_index=snapshot.index if snapshot else 0,
                segment_bytes=segment_bytes,
            )
            opened = cls(
                directory,
                keys,
                wal,
                snapshot,
                files=files,
                rng_bytes=rng_bytes,
                lock=lock,
                in_flight_bytes_max=in_flight_bytes_max,
            )
            opened._tidy()
        except OSError as error:
            lock.close()
            raise disk_error(directory, error) from error
        except BaseException:
            lock.close()
            raise
        log.info(
            "log_opened",
            directory=str(directory),
            last_index=opened.last_index,
            snapshot_index=opened.snapshot_index,
        )
        return opened

    @property
    def last_index(self) -> int:
        """The index of the newest entry, committed or not."""
        return self._last_index

    @property
    def durable_index(self) -> int:
        """The index of the newest committed entry."""
        return self._durable_index

    @property
    def snapshot_index(self) -> int:
        """The last entry that the newest durable snapshot contains; 0 without one."""
        return self._snapshot.index if self._snapshot else 0

    @property
    def is_rotating(self) -> bool:
        """Whether files under an older data key are left: a snapshot of now would end that."""
        return len(self._keys.ids) > 1

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Append an entry; never blocks.

        Returns:
            A future with its index, once it is durable; fails with `ResourceExhaustedError` if
            surely nothing of it was kept, with `UnavailableError` if that is not known.

        Raises:
            InvalidError: the entry is larger than 1.5 MiB and its envelope.
            ResourceExhaustedError: too many bytes are in flight, or a write has just failed.
            UnavailableError: the log is closed or broken.
        """
        if len(data) > ENTRY_BYTES_MAX:
            raise InvalidError(
                f"the change has {len(data)} bytes; one change may have {ENTRY_BYTES_MAX}"
            )
        if self._is_closed or self._is_broken:
            state = "closed" if self._is_closed else "stopped after a fault"
            raise UnavailableError(f"the log in {self._directory} is {state}")
        if self._refusal is not None:
            raise self._refusal
        cost = len(data) + ENTRY_OVERHEAD_BYTES
        if self._in_flight_bytes + cost > self._in_flight_bytes_max:
            raise ResourceExhaustedError(
                f"{self._in_flight_bytes} bytes are waiting to be written to {self._directory}; "
                "repeat when some of them are"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._pending.append(_Proposal(data, future))
        self._in_flight_bytes += cost
        self._last_index += 1
        if not self._writing:
            self._schedule_start(loop)
        return future

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Return the newest snapshot's chunks, if any, and the entries after it; once, at start.

        Both stream. `open` has checked everything; a `CorruptError` from them means that the disk
        changed since, and what was read is to be thrown away.
        """
        snapshot = self._snapshot
        chunks: Iterator[bytes] = iter(())
        if snapshot is not None:
            chunks = snapshots.read_snapshot(self._files, snapshot.path, self._keys)
        entries = self._wal.entries(self.snapshot_index)
        return chunks, (Entry(index, data) for index, data in entries)

    def attach(self, listener: Listener) -> None:
        """Tell a listener that this member leads; nobody else ever does."""
        listener.lead(1)

    def refusal(self) -> SwarmError:
        """Return why nothing can be proposed now."""
        return UnavailableError(f"the log in {self._directory} is closed")

    async def read_barrier(self) -> int:
        """Return at once: what is committed is known here."""
        return self._durable_index

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a snapshot of the state at `index`, durable on return; then drop older segments.

        Appends go on meanwhile. Chunks come back from `restore` as they were cut here.

        Args:
            index: a durable entry, not below the newest snapshot's.
            chunks: at most 64 MiB each.

        Raises:
            InvalidError: a chunk is too large.
            ResourceExhaustedError, UnavailableError: the disk failed; the older snapshot stays.
        """
        async with self._snapshot_mutex:
            if self._is_closed:
                raise UnavailableError(f"the log in {self._directory} is closed")
            assert max(1, self.snapshot_index) <= index <= self._durable_index
            wal_lane, snapshot_lane = self._open_lanes()
            try:
                # Entries from now on go to a new segment, so that the present one can be dropped.
                await wal_lane.run(self._wal.roll)
                await self._write_snapshot(snapshot_lane, index, chunks)
                await self._drop_older(wal_lane, snapshot_lane)
            except OSError as error:
                raise disk_error(self._directory, error) from error
        log.info("snapshot_saved", directory=str(self._directory), index=index)

    async def rotate_data_key(self) -> int:
        """Write from now on under a new data key; several steps, each may crash.

        A snapshot at or after the returned index ends the rotation: it drops the files under older
        keys and then those keys. Until then `is_rotating` holds, also after a restart.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; repeat.
        """
        if self._is_closed:
            raise UnavailableError(f"the log in {self._directory} is closed")

        def rotate() -> int:
            self._keys.add_data_key()
            self._wal.roll()
            return self._wal.last_index

        wal_lane, _ = self._open_lanes()
        try:
            index = await wal_lane.run(rotate)
        except OSError as error:
            raise disk_error(self._directory, error) from error
        log.info("data_key_rotated", directory=str(self._directory), key_id=self._keys.current_id)
        return index

    async def close(self) -> None:
        """Finish what was proposed and close the files; a snapshot under way is finished too."""
        if self._is_closed:
            return
        self._is_closed = True
        async with self._snapshot_mutex:
            lanes = self._open_lanes()
            while self._writing or self._pending:
                await lanes[0].run(lambda: None)
            try:
                await lanes[0].run(self._wal.close)
            except OSError as error:
                raise disk_error(self._directory, error) from error
            finally:
                for lane in lanes:
                    await lane.close()
                self._lock.close()

    def _open_lanes(self) -> tuple[Lane, Lane]:
        """Return the threads for the log and for snapshots."""
        if self._lanes is None:
            loop = asyncio.get_running_loop()
            self._lanes = Lane("swarm-log", loop), Lane("swarm-snapshot", loop)
        return self._lanes

    def _schedule_start(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once, so that all proposals of this iteration of the loop share one record.
        if not self._is_start_scheduled:
            self._is_start_scheduled = True
            loop.call_soon(self._start_batch)

    def _start_batch(self) -> None:
        """Hand the waiting proposals to the thread, as many as fit into one record."""
        self._is_start_scheduled = False
        assert not self._writing
        batch_bytes = 0
        while self._pending and batch_bytes <= BATCH_BYTES_MAX:
            proposal = self._pending.popleft()
            batch_bytes += len(proposal.data) + ENTRY_OVERHEAD_BYTES
            self._writing.append(proposal)
        if self._writing:
            entries = [proposal.data for proposal in self._writing]
            lane = self._open_lanes()[0]
            lane.submit(lambda: self._wal.append(entries), self._report_batch)

    def _report_batch(self, error: BaseException | None) -> None:
        """Tell the waiters how it went, and go on."""
        batch, self._writing = self._writing, []
        if error is not None:
            self._fail(batch, error)
            return
        for proposal in batch:
            self._durable_index += 1
            self._in_flight_bytes -= len(proposal.data) + ENTRY_OVERHEAD_BYTES
            if not proposal.future.done():
                proposal.future.set_result(self._durable_index)
        if self._pending:
            self._schedule_start(asyncio.get_running_loop())

    def _fail(self, batch: list[_Proposal], error: BaseException) -> None:
        """Fail all that is not durable, and refuse more until the waiters know."""
        waiting = list(self._pending)
        self._pending.clear()
        self._in_flight_bytes = 0
        self._last_index = self._durable_index
        log.error(
            "log_write_failed",
            directory=str(self._directory),
            error=repr(error),
            proposals=len(batch) + len(waiting),
            durable_index=self._durable_index,
        )
        refusal: SwarmError
        if isinstance(error, OSError):
            refusal = disk_error(self._directory, error)
        else:
            self._is_broken = True
            refusal = UnavailableError(f"the log in {self._directory} stopped after a fault")
        unknown = UnavailableError(
            f"writing to {self._directory} failed, and so did taking it back: "
            "it is not known whether the change was kept"
        )
        is_known = isinstance(error, OSError) and not isinstance(error, UncertainError)
        for proposal in batch:
            if not proposal.future.done():
                proposal.future.set_exception(refusal if is_known else unknown)
        for proposal in waiting:
            if not proposal.future.done():
                proposal.future.set_exception(refusal)
        # Callbacks of the futures were queued just now; this runs after them.
        self._refusal = refusal
        asyncio.get_running_loop().call_soon(self._accept_again)

    def _accept_again(self) -> None:
        self._refusal = None

    async def _write_snapshot(self, lane: Lane, index: int, chunks: AsyncIterator[bytes]) -> None:
        writer = snapshots.SnapshotWriter(
            self._directory / SNAPSHOTS_NAME,
            index,
            self._keys,
            files=self._files,
            rng_bytes=self._rng_bytes,
        )
        portion: list[bytes] = []
        portion_bytes = 0
        try:
            await lane.run(writer.start)
            async for chunk in chunks:
                portion.append(chunk)
                portion_bytes += len(chunk)
                if portion_bytes >= SNAPSHOT_PORTION_BYTES:
                    full, portion, portion_bytes = portion, [], 0
                    await lane.run(functools.partial(writer.write, full))
            await lane.run(functools.partial(writer.write, portion))
            await lane.run(writer.finish)
        finally:
            # After a cancellation this waits for the job under way: one lane, one order.
            await lane.run(writer.abandon)
            self._snapshot = writer.snapshot or self._snapshot

    async def _drop_older(self, wal_lane: Lane, snapshot_lane: Lane) -> None:
        """Remove what the durable snapshot made needless: segments, snapshots, data keys."""
        newest = self._snapshot
        assert newest is not None
        paths = await wal_lane.run(lambda: self._wal.take_droppable(newest.index))

        def remove() -> None:
            snapshots.remove_older(self._files, self._directory / SNAPSHOTS_NAME, newest)
            for path in paths:
                self._files.remove(path)
            self._files.sync_directory(self._directory / WAL_NAME)

        await snapshot_lane.run(remove)
        key_ids = await wal_lane.run(lambda: self._wal.key_ids)
        if set(self._keys.ids) != key_ids | {newest.key_id}:
            await wal_lane.run(self._drop_keys)

    def _drop_keys(self) -> None:
        """Drop the data keys that no file needs; in the log's thread, which makes new files."""
        snapshot_ids = {self._snapshot.key_id} if self._snapshot else set()
        self._keys.retain_data_keys(self._wal.key_ids | snapshot_ids)

    def _tidy(self) -> None:
        """Finish, at start, what a crash interrupted after a snapshot was durable."""
        if self._snapshot is not None:
            snapshots.remove_older(self._files, self._directory / SNAPSHOTS_NAME, self._snapshot)
        try:
            self._drop_keys()
        except SwarmError as error:
            # A full disk is no reason not to start; the next snapshot tries again.
            log.warning("data_keys_not_dropped", directory=str(self._directory), error=str(error))

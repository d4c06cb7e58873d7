"""One member of the replicated log: what the store, the managers and `swarm node` call.

    node = await RaftNode.create(directory, keys, node_id=..., address=..., clock=..., rng=...)
    node = await RaftNode.open(directory, keys, node_id=..., address=..., clock=..., rng=...)
    chunks, entries = node.restore(); node.attach(listener)
    node.connect(transport)                  # when there is somebody to talk to
    index = await node.propose(data)         # or NotLeaderError, or UnavailableError: unknown
    await node.read_barrier()                # then what was applied is linearizable
    member_id = await node.add_learner(...)  # and `promote`, `demote`, `remove`, `change_address`
    await node.close()

A lone member is a cluster of one: the same class, without transport, timer or grpc. Layers:
`shell` is the loop, `shipping` moves snapshots, `members` changes the group, this one is the public
face. Belongs to one event loop; time and randomness come in as arguments.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import structlog

from proto.clock import Clock
from proto.errors import (
    InvalidError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
    reason_of,
)
from raft.core import (
    Entries,
    HardState,
    Member,
    Membership,
    RaftID,
    bootstrap,
)
from raft.directory import (
    check_new,
    closed_on_error,
    existing,
    force_cluster_of_one,
    open_storage,
    write_first,
)
from raft.entry import Entry
from raft.files import Files, disk_error
from raft.keys import KeyRing
from raft.listener import Listener
from raft.members import Members, MemberStatus, new_id
from raft.settings import NodeName, Settings, Transport
from raft.storage import Storage, newest_membership
from raft.wal import SEGMENT_BYTES

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

__all__ = ["MemberStatus", "RaftNode", "Settings", "Transport", "force_cluster_of_one"]

# A store transaction is at most 1.5 MiB of changes; the rest is for its envelope.
ENTRY_BYTES_MAX = (3 << 19) + (64 << 10)
# A follower asks again for a read's index after so many ticks, since a question may be lost.
READ_TICKS = 5
READ_SECONDS_MAX = 10.0


class RaftNode(Members):
    """See the module.

    Attributes:
        has_forgotten: this member lacks what it had confirmed, and takes no part any more.
    """

    # Life.

    @classmethod
    async def create(
        cls,
        directory: Path,
        keys: KeyRing,
        *,
        node_id: NodeName,
        address: str,
        clock: Clock,
        rng: random.Random,
        settings: Settings = Settings(),  # noqa: B008 -- frozen
        files: Files | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Begin a cluster of one in an empty directory, and lead it.

        Raises:
            ConflictError: there is a log already.
            InUseError, ResourceExhaustedError, UnavailableError: as `open`.
        """
        storage = await open_storage(directory, keys, files, rng, segment_bytes)
        async with closed_on_error(storage):
            check_new(storage)
            me = Member(new_id(rng), True, node_id, address)
            await write_first(storage, me.id, bootstrap(Membership((me,))))
        return await cls._begin(storage, me, settings=settings, clock=clock, rng=rng)

    @classmethod
    async def open(
        cls,
        directory: Path,
        keys: KeyRing,
        *,
        node_id: NodeName = "",
        address: str = "",
        peers: Sequence[Member] = (),
        clock: Clock,
        rng: random.Random,
        settings: Settings = Settings(),  # noqa: B008 -- frozen
        files: Files | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Take up a log after a restart; a lone member leads on return.

        Args:
            directory: the log's.
            keys: the open ring; stays the caller's.
            node_id: the node's, in case nothing of the log had come that names it.
            address: the same.
            peers: as for `join`, in case nothing of the log had come before the restart.
            clock: for ticks and durations.
            rng: for time-outs, numbers and salts.
            settings: the numbers.
            files: the disk.
            segment_bytes: a new segment starts before one grows larger.

        Raises:
            InUseError: another daemon has the directory.
            NotFoundError: there is no log.
            CorruptError: something stored is damaged or missing; nothing was applied.
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        storage = await open_storage(directory, keys, files, rng, segment_bytes)
        async with closed_on_error(storage):
            stored = existing(storage)
            found = newest_membership(stored).find(stored.member_id)
            me = found or Member(stored.member_id, False, node_id, address)
        return await cls._begin(storage, me, settings=settings, clock=clock, rng=rng, peers=peers)

    @classmethod
    async def join(
        cls,
        directory: Path,
        keys: KeyRing,
        *,
        member_id: RaftID,
        node_id: NodeName,
        address: str,
        peers: Sequence[Member],
        clock: Clock,
        rng: random.Random,
        settings: Settings = Settings(),  # noqa: B008 -- frozen
        files: Files | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Begin as the learner that a leader's `add_learner` made, in an empty directory.

        Args:
            directory: the log's.
            keys: the open ring.
            member_id: what `add_learner` returned.
            node_id: the node's.
            address: the one given to `add_learner`.
            peers: who was a member then; the log tells the rest.
            clock: for ticks and durations.
            rng: for time-outs and salts.
            settings: the numbers.
            files: the disk.
            segment_bytes: a new segment starts before one grows larger.

        Raises:
            ConflictError: there is a log already.
            InUseError, ResourceExhaustedError, UnavailableError: as `open`.
        """
        storage = await open_storage(directory, keys, files, rng, segment_bytes)
        async with closed_on_error(storage):
            check_new(storage)
            await write_first(storage, member_id, (HardState(), None))
        me = Member(member_id, False, node_id, address)
        return await cls._begin(storage, me, settings=settings, clock=clock, rng=rng, peers=peers)

    @classmethod
    async def _begin(
        cls,
        storage: Storage,
        me: Member,
        *,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        peers: Sequence[Member] = (),
    ) -> Self:
        storage.member_id = me.id
        node = cls(storage, me=me, settings=settings, clock=clock, rng=rng)
        node._known |= {peer.id: peer for peer in peers}
        try:
            await node._open()
        except BaseException:
            try:
                await node.close()
            except SwarmError as error:
                log.warning(
                    "log_not_closed", directory=str(storage.directory), error=reason_of(error)
                )
            raise
        log.info(
            "log_opened",
            directory=str(storage.directory),
            last_index=node.last_index,
            snapshot_index=node.snapshot_index,
            member_id=me.id,
        )
        return node

    async def _open(self) -> None:
        """Start, and if alone wait until we lead.

        A lone member needs its disk for nothing but its first entry; if that fails it opens all
        the same, and says why it takes no changes. What it holds must be readable, though.
        """
        if self._storage.has_forgotten:
            self._failure = self._forgotten()
        self._guarded(self._start)
        while self._is_alone and not self._has_opened:
            self._raise_failure()
            if self._disk_fault is not None:
                if self._is_unreadable:
                    raise self._disk_fault
                if self._recovery is None:
                    return
            await self._next_change()

    @property
    def _has_opened(self) -> bool:
        """Whether the core leads and has committed an entry of its term."""
        core = self._core
        return core.is_leader and core.log.commit >= self._opening[1] > 0

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise UnavailableError(self._failure.message)

    def connect(self, transport: Transport) -> None:
        """Use this transport from now on; it is closed with the node."""
        assert self._transport is None
        self._transport = transport
        for member in self._known.values():
            if member.node_id not in ("", self._me.node_id):
                self._link(member)
        self._guarded(self._pump)

    async def close(self) -> None:
        """Hand over if there is somebody to, finish what was proposed, and close the files."""
        if self._is_closed:
            return
        if self._core.is_leader and not self._is_alone and self._failure is None:
            try:
                await self.transfer_leadership()
            except SwarmError as error:
                log.info("leadership_not_handed_over", reason=error.message)
        while self._is_alone and not self._proposals.is_idle and self._recovery is None:
            await self._next_change()
        self._is_closed = True
        self._wake()
        refusal = self._refusal
        self._proposals.fail_queued(refusal)
        self._fail_placed(
            lambda: UnavailableError("this manager stops: it is not known whether it was kept")
        )
        for context in list(self._reads):
            self._fail_read(context, refusal())
        if self._timer is not None:
            self._timer.cancel()
        if self._hold_timer is not None:
            self._hold_timer.cancel()
        async with self._save_mutex:
            await self._end_tasks()
            if self._transport is not None:
                await self._transport.close()
            await self._close_files()

    async def _end_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _close_files(self) -> None:
        try:
            await self._wal_lane.run(self._storage.close)
        except OSError as error:
            raise disk_error(self._storage.directory, error) from error
        finally:
            await self._wal_lane.close()
            if self._snapshot_lane is not None:
                await self._snapshot_lane.close()

    # The log.

    @property
    def last_index(self) -> int:
        """The index of the newest entry, committed or not."""
        return self._core.log.last

    @property
    def applied_index(self) -> int:
        """The newest entry that the listener was told, or whose future is done."""
        return self._applied

    @property
    def term(self) -> int:
        """The newest term seen."""
        return self._core.term

    @property
    def is_leader(self) -> bool:
        """Whether this member leads and everything from former leaders was told."""
        return self._leading != 0

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Return the newest snapshot's chunks, if any, and the committed entries after it.

        Once, at start, before `attach`, and both read before anything is awaited. Entries that
        are not the store's come with no data.
        """
        assert self._listener is None
        backlog, self._backlog = self._backlog, []
        if backlog:
            self._applied = backlog[-1].last
        return self._storage.read_snapshot(), _flat(backlog)

    def attach(self, listener: Listener) -> None:
        """Tell this one everything from now on; at once that it leads, if so."""
        assert self._listener is None
        self._listener = listener
        if self._installing is None:
            self._drain_backlog()
        self._guarded(self._pump)
        if self._failure is not None:
            listener.fail(self._failure)

    @property
    def failure(self) -> str:
        """Why this member stopped for good, in a sentence; "" while it works."""
        return "" if self._failure is None else self._failure.message

    def refusal(self) -> SwarmError:
        """Return the error that `propose` would raise now, when it cannot propose."""
        return self._refusal()

    def propose(self, data: bytes) -> asyncio.Future[int]:
        """Append an entry; never blocks.

        Returns:
            A future with its index, once it is committed, applied in order. It fails with
            `NotLeaderError` or `ResourceExhaustedError` if it is surely not in the log, with
            `UnavailableError` if that is not known.

        Raises:
            InvalidError: the entry is empty, or larger than 1.5 MiB and its envelope.
            NotLeaderError: another member leads, or none; nothing was done.
            ResourceExhaustedError: too many bytes are in flight, or the disk is full.
            UnavailableError: the log is closed or broken; nothing was done.
        """
        size = len(data)
        if not 0 < size <= ENTRY_BYTES_MAX:
            raise InvalidError(f"the change has {size} bytes; one may have {ENTRY_BYTES_MAX}")
        if not self._leading or self._is_closed:
            raise self._refusal()
        if self._proposals.size + size > self._settings.in_flight_bytes_max:
            raise ResourceExhaustedError(
                f"{self._proposals.size} bytes are waiting to be committed; "
                "repeat when some of them are"
            )
        future: asyncio.Future[int] = self._loop.create_future()
        self._proposals.add(data, future)
        self._schedule_flush()
        return future

    async def read_barrier(self) -> int:
        """Wait until what is applied here holds everything committed before this call.

        The leader asks a majority whether it still leads, once for all who wait; if `Settings` give
        it leases it need not while it has one. Others ask the leader. A lone member asks nobody.

        Returns:
            An index that is applied.

        Raises:
            NotLeaderError: no leader is known, or it was lost meanwhile; nothing was read.
            UnavailableError: no answer came in time.
        """
        deadline = self._clock.monotonic() + READ_SECONDS_MAX
        while True:
            if self._failure is not None or self._is_closed or self._recovery is not None:
                raise self._refusal()
            context, future = self._ask_read()
            try:
                async with asyncio.timeout(READ_TICKS * self._settings.tick_seconds):
                    return await future
            except TimeoutError:
                if self._clock.monotonic() >= deadline:
                    raise UnavailableError(
                        "no majority of the managers answers: reads cannot be served"
                    ) from None
            finally:
                self._reads.pop(context, None)


def _flat(backlog: Sequence[Entries]) -> Iterator[Entry]:
    """Yield each entry once: after a fault of the disk at the start all of them come again."""
    last = 0
    for entries in backlog:
        changes = frozenset(entries.changes)
        for index, data in enumerate(entries.data, entries.first):
            if index > last:
                yield Entry(index, b"" if index in changes else data)
                last = index

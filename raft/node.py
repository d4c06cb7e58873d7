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
`shell` is the loop, `shipping` moves snapshots, this one is the public face. Belongs to one event
loop; time and randomness come in as arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec
import structlog

from proto.clock import Clock
from proto.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from raft.core import (
    NOBODY,
    Accepted,
    AddLearner,
    Change,
    Demote,
    Entries,
    HardState,
    InFavour,
    Member,
    Membership,
    NotLeader,
    Promote,
    RaftID,
    Readdress,
    RefusalCode,
    Refused,
    Remove,
    Role,
    bootstrap,
    encode_membership,
    force_new_cluster,
)
from raft.core.messages import Append
from raft.entry import Entry
from raft.files import Files, disk_error
from raft.keys import KeyRing, RandomBytes
from raft.listener import Listener
from raft.shell import NodeName, Settings, Transport
from raft.shipping import Shipping
from raft.storage import Storage, Stored, Write, newest_membership
from raft.wal import SEGMENT_BYTES

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

__all__ = ["MemberStatus", "RaftNode", "Settings", "Transport", "force_cluster_of_one"]

# A store transaction is at most 1.5 MiB of changes; the rest is for its envelope.
ENTRY_BYTES_MAX = (3 << 19) + (64 << 10)
# How long a change of the membership waits for its turn.
CHANGE_SECONDS_MAX = 5.0
# A follower asks again for a read's index after so many ticks, since a question may be lost.
READ_TICKS = 5
READ_SECONDS_MAX = 10.0
_ID_BITS = 48
_REPEATED = frozenset(
    (RefusalCode.CHANGE_PENDING, RefusalCode.NOT_READY, RefusalCode.HANDING_OVER, RefusalCode.BUSY)
)


class MemberStatus(msgspec.Struct, frozen=True):
    """What `node ls` shows of a member.

    Attributes:
        member_id: its number in the log's group.
        node_id: the node's.
        address: where its peers reach it.
        is_voter: counts for quorums; a learner otherwise.
        is_leader: leads, as far as this member knows.
        is_reachable: answered this member lately; only the leader hears from all.
    """

    member_id: RaftID
    node_id: NodeName
    address: str
    is_voter: bool
    is_leader: bool
    is_reachable: bool


class RaftNode(Shipping):
    """See the module."""

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
        storage = await _open_storage(directory, keys, files, rng, segment_bytes)
        async with _closed_on_error(storage):
            _check_new(storage)
            me = Member(_new_id(rng), True, node_id, address)
            await _write_first(storage, me.id, bootstrap(Membership((me,))))
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
            node_id: the node's, for a directory of the one-member log, which names nobody.
            address: the same, for its peers.
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
        storage = await _open_storage(directory, keys, files, rng, segment_bytes)
        async with _closed_on_error(storage):
            stored = _existing(storage)
            if stored.member_id == NOBODY:
                me = Member(_new_id(rng), True, node_id, address)
                await _write_first(storage, me.id, _adopted(stored, me))
            else:
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
        storage = await _open_storage(directory, keys, files, rng, segment_bytes)
        async with _closed_on_error(storage):
            _check_new(storage)
            await _write_first(storage, member_id, (HardState(), None))
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
                log.warning("log_not_closed", directory=str(storage.directory), error=str(error))
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

        A leader with a lease answers at once, one without asks a majority; others ask the leader.

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

    # Members.

    @property
    def member_id(self) -> RaftID:
        """This member's number."""
        return self._me.id

    @property
    def membership(self) -> Membership:
        """The newest membership in the log."""
        return self._core.membership

    @property
    def term(self) -> int:
        """The newest term seen."""
        return self._core.term

    @property
    def is_leader(self) -> bool:
        """Whether this member leads and everything from former leaders was told."""
        return self._leading != 0

    @property
    def is_removed(self) -> bool:
        """Whether this member was removed from the group, as far as it knows."""
        return self._me.id in self._core.membership.removed

    @property
    def leader_address(self) -> str:
        """Where the leader is reached; "" if it is not known, or is this member."""
        return self._leader_address()

    def status(self) -> list[MemberStatus]:
        """Return what is known about all members."""
        core = self._core
        horizon = (
            self._clock.monotonic() - self._settings.election_ticks * self._settings.tick_seconds
        )
        return [
            MemberStatus(
                member_id=member.id,
                node_id=member.node_id,
                address=member.address,
                is_voter=member.is_voter,
                is_leader=member.id == core.leader,
                is_reachable=member.id == self._me.id
                or self._heard.get(member.id, horizon) > horizon,
            )
            for member in core.membership.members
        ]

    async def add_learner(self, node_id: NodeName, address: str) -> RaftID:
        """Let a node join: it gets the log, and is promoted when it has caught up.

        Asked again for the same node and address, it returns the same number, so whoever lost the
        answer asks again. The promotion is this leader's affair: if it is lost meanwhile, the
        next one is to be asked again too.

        Returns:
            The number with which the node has to `join`.

        Raises:
            NotLeaderError: another member leads.
            ConflictError: the node is a member under another address; `change_address` it.
            UnavailableError: the membership cannot be changed now, or that is not known.
        """
        found = self._member_of(node_id)
        if found is None:
            member_id = _new_id(self._rng)
            await self._change(lambda: AddLearner(member_id, node_id, address), f"add {node_id}")
            log.info("raft_member_added", member_id=member_id, peer_id=node_id, address=address)
        elif found.address != address:
            raise ConflictError(f"node {node_id} is a manager already, at {found.address}")
        else:
            member_id = found.id
        member = self._core.membership.find(member_id)
        if member is not None and not member.is_voter:
            self._spawn_soon(self._promote_soon(member_id, self._leading))
        return member_id

    async def promote(self, node_id: NodeName) -> None:
        """Make a learner a voter, now.

        Raises:
            NotFoundError: it is no member.
            ConflictError: it has not caught up, or quorum would be lost; the sentence says so.
            NotLeaderError, UnavailableError: as `add_learner`.
        """
        member = self._required(node_id)
        if not member.is_voter:
            await self._change(lambda: Promote(member.id), f"promote {node_id}")

    async def demote(self, node_id: NodeName) -> None:
        """Take a member's vote; the leader hands over first if it is the one.

        Raises:
            NotFoundError: it is no member.
            ConflictError: the others would have no quorum; the sentence says why.
            NotLeaderError, UnavailableError: as `add_learner`.
        """
        member = self._required(node_id)
        if member.is_voter:
            await self._leave_to_successor(member)
            await self._change(lambda: Demote(member.id), f"demote {node_id}")

    async def remove(self, node_id: NodeName) -> None:
        """Remove a member for ever; the node may join again under a new number.

        Raises:
            ConflictError: the others would have no quorum; the sentence says why.
            NotLeaderError: another member leads; so too when this one is to be removed and has
                just handed over.
            UnavailableError: as `add_learner`.
        """
        member = self._member_of(node_id)
        if member is None:
            return
        await self._leave_to_successor(member)
        matched = dict(self._core.matched()).get(member.id, 0)
        await self._change(lambda: Remove(member.id), f"remove {node_id}")
        self._say_farewell(member.id, matched)
        log.info("raft_member_removed", member_id=member.id, peer_id=node_id)

    def _say_farewell(self, member_id: RaftID, matched: int) -> None:
        """Let a member know that it is none any more.

        The core forgets whom it removed, so this is a last append beside it; if it is lost, the
        member finds out when nobody talks to it.
        """
        raft_log = self._core.log
        previous_term = raft_log.term(matched)
        if not self._core.is_leader or previous_term < 0 or matched >= raft_log.last:
            return
        last = raft_log.limit(matched + 1, self._config.entries_bytes_max, raft_log.last)
        if last < self._core.membership_index:
            return
        entries = raft_log.entries(matched + 1, last)
        self._post(
            [
                Append(
                    self._me.id,
                    member_id,
                    self._core.term,
                    matched,
                    previous_term,
                    raft_log.commit,
                    entries,
                )
            ]
        )

    async def change_address(self, node_id: NodeName, address: str) -> None:
        """Tell everybody that a member is reached elsewhere now.

        Raises:
            NotFoundError: it is no member.
            NotLeaderError, UnavailableError: as `add_learner`.
        """
        member = self._required(node_id)
        if member.address != address:
            await self._change(lambda: Readdress(member.id, address), f"move {node_id}")

    async def transfer_leadership(self, node_id: NodeName = "") -> None:
        """Hand over to a voter, the one that has most of the log if none is named.

        Raises:
            NotLeaderError: this member does not lead.
            NotFoundError: it is no member.
            ConflictError: there is nobody to hand over to, or it cannot take over.
            UnavailableError: it did not take over in time; this member goes on.
        """
        if not self._core.is_leader:
            raise self._refusal()
        to = self._required(node_id).id if node_id else self._successor()
        self._catch_up()
        outcome = self._core.transfer_leader(to)
        if isinstance(outcome, Refused):
            raise ConflictError(f"leadership cannot be handed over: {outcome.reason}")
        assert isinstance(outcome, InFavour)
        self._guarded(self._pump)
        seconds = (self._settings.election_ticks + 1) * self._settings.tick_seconds
        try:
            async with asyncio.timeout(seconds):
                while self._core.is_handing_over or self._core.leader == NOBODY:
                    await self._next_change()
        except TimeoutError:
            if not self._core.is_leader:
                return
        if self._core.is_leader:
            raise UnavailableError("the successor did not take over in time")

    def _successor(self) -> RaftID:
        """Choose who has most of the log among the voters that answered lately."""
        matched = dict(self._core.matched())
        able = [
            status
            for status in self.status()
            if status.is_voter and status.is_reachable and status.member_id != self._me.id
        ]
        if not able:
            raise ConflictError("no other voter can be reached")
        return max(able, key=lambda status: matched.get(status.member_id, 0)).member_id

    async def _leave_to_successor(self, member: Member) -> None:
        """If it is us who are to lose our vote, let another lead first and do it."""
        if member.id == self._me.id and len(self._core.membership.voters) > 1:
            await self.transfer_leadership()
            raise NotLeaderError(self._leader_address())

    async def _promote_soon(self, member_id: RaftID, term: int) -> None:
        """Promote a learner as soon as it has caught up, while we lead."""
        while self._leading == term and not self._is_closed:
            member = self._core.membership.find(member_id)
            if member is None or member.is_voter:
                return
            try:
                await self._change(lambda: Promote(member_id), f"promote {member.node_id}")
            except ConflictError:
                await self._next_change()
            except SwarmError as error:
                log.warning("raft_member_not_promoted", peer_id=member.node_id, error=str(error))
                await asyncio.sleep(self._settings.tick_seconds)
            else:
                log.info("raft_member_promoted", member_id=member_id, peer_id=member.node_id)

    def _member_of(self, node_id: NodeName) -> Member | None:
        members = self._core.membership.members
        return next((member for member in members if member.node_id == node_id), None)

    def _required(self, node_id: NodeName) -> Member:
        if self._core.role is not Role.LEADER:
            raise self._refusal()
        member = self._member_of(node_id)
        if member is None:
            raise NotFoundError("manager", node_id)
        return member

    async def _change(self, change: Callable[[], Change], what: str) -> int:
        """Propose a change of the membership and wait for its commitment."""
        deadline = self._clock.monotonic() + CHANGE_SECONDS_MAX
        while True:
            if not self._leading or self._is_closed or self._failure is not None:
                raise self._refusal()
            if self._catch_up():
                # Only then: this wakes all others that wait, which would else wake us in turn.
                self._guarded(self._pump)
                continue
            outcome = self._core.propose_change(change())
            if isinstance(outcome, Accepted):
                future: asyncio.Future[int] = self._loop.create_future()
                self._changes[outcome.last] = future
                self._guarded(self._pump)
                return await future
            if isinstance(outcome, NotLeader):
                raise NotLeaderError(self._leader_address())
            if outcome.code not in _REPEATED:
                raise _refused(outcome, what)
            if self._clock.monotonic() >= deadline:
                raise UnavailableError(f"cannot {what}: {outcome.reason}")
            await self._next_change()


def _refused(outcome: Refused, what: str) -> SwarmError:
    sentence = f"cannot {what}: {outcome.reason}"
    if outcome.code is RefusalCode.INVALID:
        return InvalidError(sentence)
    return ConflictError(sentence)


def _new_id(rng: random.Random) -> RaftID:
    """Draw a member's number; it is never given twice, for there are enough of them."""
    return RaftID(rng.getrandbits(_ID_BITS) + 1)


def _flat(backlog: Sequence[Entries]) -> Iterator[Entry]:
    """Yield each entry once: after a fault of the disk at the start all of them come again."""
    last = 0
    for entries in backlog:
        changes = frozenset(entries.changes)
        for index, data in enumerate(entries.data, entries.first):
            if index > last:
                yield Entry(index, b"" if index in changes else data)
                last = index


def _adopted(stored: Stored, me: Member) -> tuple[HardState, Entries]:
    """Return what makes a one-member log a member's: an entry that says who the group is."""
    index = stored.last_index + 1
    term = stored.hard_state.term or 1
    data = [encode_membership(Membership((me,)))]
    return HardState(term, NOBODY, index), Entries(index, data, ((index, term),), (index,))


def _check_new(storage: Storage) -> None:
    if not storage.stored.is_empty:
        raise ConflictError(f"{storage.directory} holds a log already")


def _existing(storage: Storage) -> Stored:
    if storage.stored.is_empty:
        raise NotFoundError("replicated log", str(storage.directory))
    return storage.stored


@contextlib.asynccontextmanager
async def _closed_on_error(storage: Storage) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await asyncio.to_thread(storage.close)
        raise


async def _open_storage(
    directory: Path,
    keys: KeyRing,
    files: Files | None,
    rng: random.Random,
    segment_bytes: int,
) -> Storage:
    return await asyncio.to_thread(
        Storage.open,
        directory,
        keys,
        files=files,
        rng_bytes=rng.randbytes,
        segment_bytes=segment_bytes,
    )


async def _write_first(
    storage: Storage, member_id: RaftID, first: tuple[HardState, Entries | None]
) -> None:
    """Store what a member begins with, and read it back as any start would."""
    await asyncio.to_thread(_write_and_read, storage, member_id, first)


def _write_and_read(
    storage: Storage, member_id: RaftID, first: tuple[HardState, Entries | None]
) -> None:
    storage.member_id = member_id
    try:
        storage.write([Write(*first)])
    except OSError as error:
        raise disk_error(storage.directory, error) from error
    storage.add_to_stored(*first)


def force_cluster_of_one(
    directory: Path,
    keys: KeyRing,
    *,
    node_id: NodeName,
    address: str,
    rng: random.Random,
    files: Files | None = None,
    rng_bytes: RandomBytes = os.urandom,
) -> RaftID:
    """Make a cluster of one from what a survivor has stored; blocks. Then `open` it.

    Everything in its log counts as committed. What others acknowledged and it never received is
    lost: nobody else is left to say otherwise, which is what the operator asked for. The survivor
    gets a new number, and the old ones are never listened to again.

    Raises:
        InUseError: its daemon runs.
        NotFoundError: there is no log.
        CorruptError: something stored is damaged or missing.
        ResourceExhaustedError, UnavailableError: the disk failed; nothing is changed, repeat.
    """
    storage = Storage.open(directory, keys, files=files, rng_bytes=rng_bytes)
    try:
        stored = _existing(storage)
        me = Member(_new_id(rng), True, node_id, address)
        hard_state, entries = force_new_cluster(
            stored.hard_state, stored.last_index, newest_membership(stored), me
        )
        storage.member_id = me.id
        try:
            storage.write([Write(hard_state, entries)])
        except OSError as error:
            raise disk_error(directory, error) from error
        log.warning(
            "cluster_of_one_forced",
            directory=str(directory),
            last_index=entries.last,
            member_id=me.id,
        )
        return me.id
    finally:
        storage.close()

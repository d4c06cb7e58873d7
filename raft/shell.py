"""The shell around one member's core.

It turns time, messages, proposals and the disk's answers into calls of the core, and what the core
wants into awaits.

`raft.node.RaftNode` is the whole; this layer is its loop. After each input `_pump` takes what the
core has to do, in the order of duties that `raft.core.Ready` states:

* messages go to the transport at once, gathered by peer and lane;
* what is to be stored goes to a thread, all that waits as one record with one sync;
* when that is durable the core is told, and the messages that promise it go out;
* committed entries complete own proposals or go to the listener.

While a sync is under way proposals gather, so a batch is as large as the load demands: one record,
one message to each peer, one commit. A commit index with no news beside it is held back for a
moment, since the next batch carries it along.

When the disk fails, the member starts anew from what is on it, as after a crash, within the
process: nothing that was not synced counts.

Time is counted in ticks, and passes before anything else is looked at: after a pause of the
process a leader first learns how late it is. A lone member has no use for time: its loop sleeps.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Protocol

import msgspec
import structlog

from proto.clock import Clock
from proto.errors import (
    DeniedError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from raft import lane as lanes
from raft import snapshot as snapshots
from raft.core import (
    NOBODY,
    Accepted,
    Config,
    Core,
    Entries,
    Member,
    Membership,
    Message,
    NotLeader,
    RaftID,
    ReadState,
    Ready,
    RefusalCode,
    Refused,
    Role,
    Snapshot,
    decode,
    encode,
)
from raft.core.messages import Append, Heartbeat, Install
from raft.files import disk_error
from raft.listener import Listener
from raft.proposals import Failure, Proposals, Run
from raft.storage import Storage, Stored, Write, newest_membership
from raft.transport.limits import Lane as Way
from raft.wal import UncertainError

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

NodeName = str

# A commit index alone waits so long for a batch that takes it along.
HOLD_SECONDS = 0.002
EARLY_SECONDS = 1e-6
# A removed peer stays connected so long, to learn of its removal.
FAREWELL_SECONDS = 2.0
# After a fault of the disk: the first and the longest wait before it is tried again.
RECOVERY_SECONDS_FIRST = 0.1
RECOVERY_SECONDS_MAX = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a member that are not the cluster's.

    Attributes:
        tick_seconds: what a tick of the core is.
        election_ticks: see `raft.core.Config`.
        heartbeat_ticks: the same.
        in_flight_bytes_max: proposals that are not committed yet may take so much memory.
        batch_bytes_max: proposals go into the log in batches of about this.
        entries_kept: how many entries a snapshot leaves for slow followers.
        kept_bytes_max: unless they have more bytes than this.
    """

    tick_seconds: float = 0.1
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    in_flight_bytes_max: int = 64 << 20
    batch_bytes_max: int = 1 << 20
    entries_kept: int = 500
    kept_bytes_max: int = 16 << 20


class Transport(Protocol):
    """What carries messages; `raft.transport.transport.Transport` does."""

    def set_peer(self, node_id: str, address: str, /) -> None:
        """Keep connections to a peer at this address."""

    def remove_peer(self, node_id: str, /) -> None:
        """End them."""

    def send(self, node_id: str, messages: Sequence[bytes], /, *, lane: Way = ...) -> None:
        """Queue messages; some may be lost, but those of one lane keep their order."""

    async def send_snapshot(
        self, node_id: str, header: bytes, chunks: AsyncIterator[bytes], /
    ) -> None:
        """Send a snapshot; return when the peer has taken it."""

    async def close(self) -> None:
        """End all connections."""


class _Waiting(msgspec.Struct, gc=False):
    """A step on its way to the disk, with what is said once it is there."""

    number: int
    write: Write | None
    after: list[Message]


class Shell(ABC):
    """See the module."""

    def __init__(
        self,
        storage: Storage,
        *,
        me: Member,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Use `RaftNode.open` and its like."""
        self._storage = storage
        self._me = me
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._wal_lane = self._new_lane("swarm-log")
        self._snapshot_lane: lanes.Lane | None = None
        self._transport: Transport | None = None
        self._config = Config(
            id=me.id,
            election_ticks=settings.election_ticks,
            heartbeat_ticks=settings.heartbeat_ticks,
        )
        self._listener: Listener | None = None
        self._proposals = Proposals()
        # Own changes of the membership in the log, by index.
        self._changes: dict[int, asyncio.Future[int]] = {}
        self._is_flush_due = False
        self._is_busy = False
        # Steps for the disk, in their order; `_writing` are in the thread's hands.
        self._unstored: list[_Waiting] = []
        self._writing: list[_Waiting] = []
        # Committed entries that the listener cannot take yet.
        self._backlog: list[Entries] = []
        self._installing: asyncio.Task[None] | None = None
        self._install_index = 0
        self._received: dict[tuple[int, int], snapshots.SnapshotWriter] = {}
        self._applied = storage.stored.snapshot.index
        # Leadership as the listener knows it: the term, or 0.
        self._leading = 0
        self._opening = (0, 0)
        self._hint: RaftID = NOBODY
        # Reads: by context, and those whose index is known but not applied yet.
        self._reads: dict[int, asyncio.Future[int]] = {}
        self._read_states: list[ReadState] = []
        self._read_context = 0
        # Peers.
        self._membership = Membership()
        self._is_alone = False
        self._known: dict[RaftID, Member] = {}
        self._linked: dict[NodeName, str] = {}
        self._held: dict[RaftID, Heartbeat] = {}
        self._hold_timer: asyncio.TimerHandle | None = None
        self._heard: dict[RaftID, float] = {}
        # Time.
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        # Faults.
        self._disk_fault: SwarmError | None = None
        self._recovery_seconds = RECOVERY_SECONDS_FIRST
        self._recovery: asyncio.Task[None] | None = None
        self._is_unreadable = False
        self._failure: SwarmError | None = None
        self._is_closed = False
        self._save_mutex = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: set[asyncio.Future[None]] = set()
        self._core = self._new_core(storage.stored)
        storage.release()

    def _new_core(self, stored: Stored) -> Core:
        hard_state = stored.hard_state
        membership = newest_membership(stored)
        if [member.id for member in membership.members] == [self._me.id]:
            # A lone member's log is a majority's: what is durable in it is committed.
            hard_state = msgspec.structs.replace(hard_state, commit=stored.last_index)
        core = Core(
            self._config,
            self._rng,
            hard_state=hard_state,
            snapshot=stored.snapshot,
            entries=stored.entries,
        )
        self._tick_at = self._clock.monotonic() + self._settings.tick_seconds
        return core

    # Input.

    def _start(self) -> None:
        """Begin: a lone voter leads at once, others wait for time and messages."""
        self._campaign_if_alone()
        self._pump()

    def _campaign_if_alone(self) -> None:
        self._members_changed()
        if self._is_alone:
            self._core.campaign()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something with the core; a broken invariant stops this member for good."""
        if self._failure is not None or self._recovery is not None:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 -- a bug: everybody is told and nothing goes on
            self._break(error)

    def _on_timer(self) -> None:
        self._timer = None
        self._guarded(self._tick)

    def _tick(self) -> None:
        self._catch_up()
        self._pump()

    def _catch_up(self) -> bool:
        """Let the ticks pass that are due; tell whether there were any."""
        # A timer may come a moment early.
        now = self._clock.monotonic() + EARLY_SECONDS
        if now < self._tick_at:
            return False
        seconds = self._settings.tick_seconds
        if self._is_alone:
            self._tick_at = now + seconds
            return False
        due = int((now - self._tick_at) / seconds) + 1
        self._tick_at += due * seconds
        core = self._core
        # A leader must know how late it is. For a follower being late is harmless, and what its
        # leader said meanwhile is still to be read.
        due = min(due, 2 * self._config.election_ticks) if core.is_leader else 1
        for _ in range(due):
            core.tick()
        return True

    def _arm_timer(self) -> None:
        """Keep the ticks going while there is anybody to keep them for."""
        if self._timer is None and not self._is_alone and not self._is_closed:
            delay = max(0.0, self._tick_at - self._clock.monotonic())
            self._timer = self._loop.call_later(delay, self._on_timer)

    def on_messages(self, node_id: NodeName, messages: Sequence[bytes]) -> None:
        """Take messages of a peer whose node ID is proven.

        Raises:
            DeniedError: one of them claims another sender or cannot be read.
        """
        decoded: list[Message] = []
        for data in messages:
            try:
                decoded += decode(data)
            except msgspec.DecodeError as error:
                raise DeniedError(f"a message of node {node_id} cannot be read") from error
        for message in decoded:
            self._check_sender(node_id, message)

        def work() -> None:
            self._catch_up()
            core = self._core
            me = self._me.id
            for message in decoded:
                if message.to == me:
                    core.step(message)
            self._pump()

        if decoded:
            self._heard[decoded[-1].sender] = self._clock.monotonic()
        self._guarded(work)

    def _check_sender(self, node_id: NodeName, message: Message) -> None:
        member = self._known.get(message.sender)
        if (member is not None and member.node_id != node_id) or message.sender == self._me.id:
            raise DeniedError(f"node {node_id} speaks for member {message.sender}, not its own")

    def is_allowed(self, node_id: NodeName) -> bool:
        """Tell whether a manager's messages are listened to.

        A member's are; and any manager's while we wait to be told who the members are.
        """
        if not self._core.membership.members:
            return True
        return any(member.node_id == node_id for member in self._known.values())

    def on_unreachable(self, node_id: NodeName) -> None:
        """Messages to a peer were lost, or may have been."""

        def work() -> None:
            for member_id, member in self._known.items():
                if member.node_id == node_id:
                    self._core.unreachable(member_id)
            self._pump()

        self._guarded(work)

    # Proposals.

    def _refusal(self) -> SwarmError:
        """Return why nothing can be proposed here now."""
        if self._failure is not None:
            return UnavailableError(self._failure.message)
        if self._is_closed:
            return UnavailableError("the log is closed: this manager is stopping")
        address = self._leader_address()
        if address or self._disk_fault is None:
            return NotLeaderError(address)
        if isinstance(self._disk_fault, ResourceExhaustedError):
            return ResourceExhaustedError(self._disk_fault.message)
        return UnavailableError(self._disk_fault.message)

    def _leader_address(self) -> str:
        leader = self._known.get(self._core.leader)
        return leader.address if leader is not None and leader.id != self._me.id else ""

    def _schedule_flush(self) -> None:
        # Not at once, so that all proposals of this turn of the loop share one batch.
        if not (self._is_flush_due or self._writing or self._is_busy):
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._proposals and not self._writing:
            self._guarded(self._propose_batch)

    def _propose_batch(self) -> None:
        """Give the waiting proposals a place in the log, as many as one batch holds."""
        self._catch_up()
        if not self._core.is_leader:
            self._pump()
            return
        data, futures, size = self._proposals.take(self._settings.batch_bytes_max)
        outcome = self._core.propose(data)
        match outcome:
            case Accepted():
                self._proposals.placed(Run(outcome, futures, size))
            case Refused(code=RefusalCode.BUSY):
                # They go on when something was committed.
                self._proposals.put_back(data, futures, size)
                self._is_busy = True
            case Refused():
                self._proposals.put_back(data, futures, size)
                self._proposals.fail_queued(lambda: NotLeaderError(""))
            case NotLeader():
                self._proposals.put_back(data, futures, size)
        self._pump()

    # Output.

    def _pump(self) -> None:
        """Do what the core wants, until it wants nothing."""
        core = self._core
        while (ready := core.ready()) is not None:
            if ready.messages:
                self._post(ready.messages)
            self._keep(ready)
            if ready.committed is not None:
                self._commit(ready.committed)
            self._read_states += ready.reads
            for context in ready.reads_failed:
                self._fail_read(context, self._read_refusal())
        self._follow_up()

    def _follow_up(self) -> None:
        """Draw the consequences for reads, roles, members, the disk and those who wait."""
        core = self._core
        if self._read_states:
            self._serve_reads()
        self._note_leader()
        if core.membership is not self._membership:
            self._members_changed()
        self._start_write()
        if self._proposals and not self._writing:
            self._schedule_flush()
        if self._timer is None:
            self._arm_timer()
        if self._changed:
            self._wake()

    def _keep(self, ready: Ready) -> None:
        """Put a step in line for the disk, or what only has to wait for those before it."""
        if ready.has_to_store:
            install = None
            if ready.snapshot is not None:
                install = self._take_received(ready.snapshot)
            write = Write(ready.hard_state, ready.entries, install)
            self._unstored.append(_Waiting(ready.number, write, ready.messages_after))
        elif ready.messages_after:
            if self._unstored or self._writing:
                self._unstored.append(_Waiting(ready.number, None, ready.messages_after))
            else:
                self._post(ready.messages_after)

    def _take_received(self, snapshot: Snapshot) -> snapshots.SnapshotWriter:
        """Fetch the content that came before an `Install`; the state is void until it is in."""
        writer = self._received.pop((snapshot.index, snapshot.term))
        self._backlog.clear()
        self._install_index = snapshot.index
        if self._installing is None:
            self._installing = self._spawn(self._install())
        return writer

    def _start_write(self) -> None:
        """Give the thread what waits, as one record with one sync."""
        if self._writing or not self._unstored:
            return
        batch, self._unstored = self._unstored, []
        self._writing = batch
        writes = [waiting.write for waiting in batch if waiting.write is not None]
        storage = self._storage
        self._wal_lane.submit(lambda: storage.write(writes), self._report_write)

    def _report_write(self, error: BaseException | None) -> None:
        """What was written is durable: say so to the core, and to those who wait for it."""
        batch, self._writing = self._writing, []
        if error is not None:
            self._on_write_error(error)
            return
        self._guarded(lambda: self._note_stored(batch))

    def _note_stored(self, batch: list[_Waiting]) -> None:
        self._catch_up()
        self._core.persisted(batch[-1].number)
        for waiting in batch:
            if waiting.after:
                self._post(waiting.after)
        if self._disk_fault is not None and len(self._core.membership.voters) > 1:
            self._disk_works()
        self._pump()

    def _post(self, messages: list[Message]) -> None:
        """Send messages, gathered by peer; a bare commit index waits a moment."""
        if self._transport is None:
            return
        urgent: dict[RaftID, list[Message]] = {}
        for message in messages:
            if isinstance(message, Append):
                self._held.pop(message.to, None)
                self._send(message.to, encode([message]), Way.ENTRIES)
            elif isinstance(message, Heartbeat) and message.round == 0:
                self._hold(message.to, message)
            elif isinstance(message, Install):
                self._offer(message)
            else:
                urgent.setdefault(message.to, []).append(message)
        for to, gathered in urgent.items():
            self._send(to, encode(gathered), Way.CONTROL)

    def _send(self, to: RaftID, data: bytes, way: Way) -> None:
        member = self._known.get(to)
        if member is not None and self._transport is not None:
            self._transport.send(member.node_id, (data,), lane=way)

    def _hold(self, to: RaftID, heartbeat: Heartbeat) -> None:
        self._held[to] = heartbeat
        if self._hold_timer is None:
            self._hold_timer = self._loop.call_later(HOLD_SECONDS, self._release_held)

    def _release_held(self) -> None:
        self._hold_timer = None
        held, self._held = self._held, {}
        if self._core.is_leader:
            for to, heartbeat in held.items():
                self._send(to, encode([heartbeat]), Way.CONTROL)

    @abstractmethod
    def _offer(self, install: Install) -> None:
        """Send a snapshot; `shipping.py` knows how."""

    # Committed entries.

    def _commit(self, entries: Entries) -> None:
        """Complete own proposals, and hand the listener what is nobody's, in the log's order."""
        if entries.last <= self._applied:
            return
        if self._listener is None or self._installing is not None:
            self._backlog.append(entries)
            return
        index = max(entries.first, self._applied + 1)
        last = entries.last
        self._is_busy = False
        if self._leading and entries.terms[-1][1] != self._leading:
            # Somebody else's entries are committed: ours at their places are not.
            self._lose()
        while index <= last:
            waiting = self._proposals.first_waiting()
            if waiting == index:
                index = self._proposals.committed(last) + 1
            else:
                until = last if waiting < index else min(last, waiting - 1)
                self._hand_over(entries, index, until)
                index = until + 1
        self._applied = last

    def _hand_over(self, entries: Entries, first: int, last: int) -> None:
        data = entries.data[first - entries.first : last - entries.first + 1]
        for index in entries.changes:
            if first <= index <= last:
                data[index - first] = b""
        assert self._listener is not None
        self._listener.apply(first, data)
        for index in entries.changes:
            change = self._changes.pop(index, None)
            if change is not None and not change.done():
                change.set_result(index)

    def _drain_backlog(self) -> None:
        backlog, self._backlog = self._backlog, []
        for entries in backlog:
            self._commit(entries)

    async def _install(self) -> None:
        """Let the listener take the installed snapshot, then go on with what came meanwhile."""
        while self._applied < self._install_index:
            index = self._install_index
            while self._storage.snapshot_index < index:
                await self._next_change()
            try:
                if self._listener is not None:
                    await self._listener.install(index, self._storage.read_snapshot())
            except Exception as error:  # noqa: BLE001 -- whatever it is, the state is not there
                if index == self._install_index:
                    self._break(error)
                    return
            else:
                self._applied = index
                log.info("snapshot_installed", index=index)
        self._installing = None

        def work() -> None:
            if self._listener is not None:
                self._drain_backlog()
            self._pump()

        self._guarded(work)

    # Reads.

    def _ask_read(self) -> tuple[int, asyncio.Future[int]]:
        """Ask for an index that makes a read linearizable; the future is done once it is applied.

        Raises:
            NotLeaderError, ResourceExhaustedError, UnavailableError: there is nobody to ask.
        """
        self._read_context += 1
        context = self._read_context
        future: asyncio.Future[int] = self._loop.create_future()
        self._catch_up()
        if not self._core.read_index(context):
            raise self._refusal()
        self._reads[context] = future
        self._guarded(self._pump)
        return context, future

    def _read_refusal(self) -> SwarmError:
        if self._core.is_leader:
            return UnavailableError("too many reads wait for the other managers; try again")
        return NotLeaderError(self._leader_address())

    def _serve_reads(self) -> None:
        waiting = []
        for state in self._read_states:
            if state.index > self._applied:
                waiting.append(state)
                continue
            future = self._reads.pop(state.context, None)
            if future is not None and not future.done():
                future.set_result(state.index)
        self._read_states = waiting

    def _fail_read(self, context: int, error: SwarmError) -> None:
        future = self._reads.pop(context, None)
        if future is not None and not future.done():
            future.set_exception(error)

    # Roles.

    def _note_leader(self) -> None:
        """Follow what the core thinks about who leads; the listener is told once it matters."""
        core = self._core
        if self._leading and (core.role is not Role.LEADER or core.term != self._leading):
            self._lose()
        if core.role is Role.LEADER:
            if self._opening[0] != core.term:
                self._opening = (core.term, core.log.last)
            if not self._leading and self._applied >= self._opening[1] and self._listener:
                self._gain(core.term)
        if core.leader != self._hint:
            self._hint = core.leader
            leader = self._known.get(core.leader)
            log.info(
                "raft_leader_changed",
                term=core.term,
                leader=leader.node_id if leader else "",
                is_self=core.leader == self._me.id and core.leader != NOBODY,
            )

    def _gain(self, term: int) -> None:
        self._leading = term
        self._disk_works()
        assert self._listener is not None
        self._listener.lead(term)

    def _lose(self) -> None:
        """Tell everybody who waits that it is over: what is in the log may yet be committed."""
        term, self._leading = self._leading, 0
        address = self._leader_address()
        queued = self._proposals.fail_queued(lambda: NotLeaderError(address))
        placed = self._fail_placed(
            lambda: UnavailableError(
                "leadership was lost meanwhile: it is not known whether the change was kept"
            )
        )
        self._held.clear()
        log.warning("raft_leadership_lost", term=term, refused=queued, unknown=placed)
        if self._listener is not None:
            self._listener.follow()

    # Members.

    def _members_changed(self) -> None:
        """Connect to whom we have to; those who left stay connected for a moment."""
        self._membership = membership = self._core.membership
        self._is_alone = [member.id for member in membership.members] == [self._me.id]
        self._known |= {member.id: member for member in membership.members}
        for member in membership.members:
            # By name: an older membership may still have us under a number from a former life.
            if member.node_id not in ("", self._me.node_id):
                self._link(member)
        members = {member.node_id for member in membership.members}
        gone = [node_id for node_id in self._linked if node_id not in members]
        if gone and membership.members:
            self._loop.call_later(FAREWELL_SECONDS, self._part, gone)

    def _link(self, member: Member) -> None:
        if self._transport is not None and self._linked.get(member.node_id) != member.address:
            self._linked[member.node_id] = member.address
            self._transport.set_peer(member.node_id, member.address)

    def _part(self, node_ids: list[NodeName]) -> None:
        """End the connections with those who are still no members."""
        if self._is_closed or self._transport is None:
            return
        membership = self._core.membership
        members = {member.node_id for member in membership.members}
        for node_id in node_ids:
            if node_id not in members and self._linked.pop(node_id, None) is not None:
                self._transport.remove_peer(node_id)
        kept = {member.id for member in membership.members}
        self._known = {key: member for key, member in self._known.items() if key in kept}

    # Faults.

    def _on_write_error(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            self._on_disk_fault(error)
        else:
            self._break(error)

    def _fail_placed(self, error: Failure) -> int:
        """Fail what is in the log and not known to be committed; return how many."""
        changes, self._changes = self._changes, {}
        for change in changes.values():
            if not change.done():
                change.set_exception(error())
        return self._proposals.fail_placed(error) + len(changes)

    def _on_disk_fault(self, error: OSError) -> None:
        """Forget what is not durable, and start anew from the disk."""
        directory = self._storage.directory
        fault = self._disk_fault = disk_error(directory, error)
        is_known = self._is_alone and not isinstance(error, UncertainError)
        log.error("log_write_failed", directory=str(directory), error=repr(error))

        def unknown() -> SwarmError:
            return UnavailableError(
                f"writing to {directory} failed: it is not known whether the change was kept"
            )

        self._fail_placed(self._refusal if is_known else unknown)
        self._proposals.fail_queued(self._refusal)
        for context in list(self._reads):
            self._fail_read(context, UnavailableError(fault.message))
        self._read_states.clear()
        self._unstored.clear()
        self._held.clear()
        # What was to be told is told again after the directory was read.
        self._backlog.clear()
        if self._installing is not None:
            self._installing.cancel()
            self._installing = None
        if self._leading:
            self._leading = 0
            if self._listener is not None:
                self._listener.follow()
        self._recovery = self._spawn(self._reopen())

    async def _reopen(self) -> None:
        """Read the disk as after a crash and go on from there; try again until it can be read."""
        while not self._is_closed:
            seconds = self._recovery_seconds
            self._recovery_seconds = min(2 * seconds, RECOVERY_SECONDS_MAX)
            await asyncio.sleep(seconds)
            try:
                storage = await self._wal_lane.run(self._storage.reopen)
            except (SwarmError, OSError) as error:
                self._disk_fault = error if isinstance(error, SwarmError) else self._disk_fault
                log.error("log_not_reopened", error=str(error))  # noqa: TRY400 -- one line
                # Whoever waits for what was under way waits in vain: it may take for ever.
                self._is_unreadable = True
                self._wake()
                continue
            self._is_unreadable = False
            storage.member_id = self._me.id
            self._storage = storage
            self._core = self._new_core(storage.stored)
            storage.release()
            self._opening = (0, 0)
            break
        self._recovery = None
        if self._storage.snapshot_index > self._applied and self._listener is not None:
            # It was in place when the disk failed, or its installation was not finished.
            self._install_index = self._storage.snapshot_index
            self._installing = self._spawn(self._install())
        self._guarded(self._start)

    def _disk_works(self) -> None:
        self._disk_fault = None
        self._recovery_seconds = RECOVERY_SECONDS_FIRST

    def _break(self, error: BaseException) -> None:
        """Stop for good: a bug, or a disk whose content changed under us."""
        if self._failure is not None:
            return
        log.error("raft_member_stopped", error=repr(error), exc_info=error)
        failure = self._failure = UnavailableError(f"this manager's log stopped: {error}")

        def unknown() -> SwarmError:
            return UnavailableError(
                f"this manager's log stopped ({error}): it is not known whether the change was kept"
            )

        self._fail_placed(unknown)
        self._proposals.fail_queued(unknown)
        for context in list(self._reads):
            self._fail_read(context, unknown())
        self._leading = 0
        if self._listener is not None:
            self._listener.fail(failure)
        self._wake()

    # Tasks and waiting.

    def _new_lane(self, name: str) -> lanes.Lane:
        return lanes.Lane(name, self._loop)

    def _spawn_soon(self, work: Coroutine[None, None, None]) -> None:
        """Start a task that nobody waits for until the end."""
        self._tasks.add(self._spawn(work))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _next_change(self) -> None:
        """Wait until something happened that may be what one waits for."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._changed.add(future)
        try:
            await future
        finally:
            self._changed.discard(future)

    def _wake(self) -> None:
        changed, self._changed = self._changed, set()
        for future in changed:
            if not future.done():
                future.set_result(None)

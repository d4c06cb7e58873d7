"""What a member consists of, and what all layers of its shell need: time, tasks, waiting.

The layers are one class, as those of the core are, because the state is one thing:
`State` < `Peers` < `Applying` < `Shell` < `Shipping` < `Members` < `RaftNode`.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine

import msgspec

from proto.clock import Clock, counting_suspension
from proto.errors import (
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from raft import lane as lanes
from raft import snapshot as snapshots
from raft.core import (
    NOBODY,
    Config,
    Core,
    Entries,
    Member,
    Membership,
    Message,
    RaftID,
    ReadState,
)
from raft.core.messages import Heartbeat
from raft.listener import Listener
from raft.proposals import Proposals
from raft.settings import NodeName, Settings, Transport
from raft.storage import Storage, Stored, Write, newest_membership

EARLY_SECONDS = 1e-6


class Waiting(msgspec.Struct, gc=False):
    """A step on its way to the disk, with what is said once it is there."""

    number: int
    write: Write | None
    after: list[Message]

    @property
    def size(self) -> int:
        """How many bytes of entries it holds."""
        entries = None if self.write is None else self.write.entries
        return 0 if entries is None else sum(map(len, entries.data))


class State(ABC):
    """See the module."""

    # Since when no leader is known although this member asks for votes, or had to step down.
    _leaderless_since: float | None = None
    has_forgotten = False

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
        # Leases and elections count at the peers while this machine is suspended.
        self._clock = counting_suspension(clock)
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._wal_lane = self._new_lane("swarm-log")
        self._snapshot_lane: lanes.Lane | None = None
        self._transport: Transport | None = None
        self._config = Config(
            id=me.id,
            election_ticks=settings.election_ticks,
            heartbeat_ticks=settings.heartbeat_ticks,
            has_lease_reads=settings.has_lease_reads,
        )
        self._listener: Listener | None = None
        self._proposals = Proposals()
        # Own changes of the membership in the log, by index.
        self._changes: dict[int, asyncio.Future[int]] = {}
        self._is_flush_due = False
        self._is_busy = False
        # Steps for the disk, in their order; `_writing` are in the thread's hands.
        self._unstored: list[Waiting] = []
        self._writing: list[Waiting] = []
        # Committed entries that the listener cannot take yet.
        self._backlog: list[Entries] = []
        self._installing: asyncio.Task[None] | None = None
        self._install_index = 0
        # By peer: how many snapshots in a row could not be sent to it.
        self._ship_failures: dict[RaftID, int] = {}
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
        self._reopenings = 0
        self._recovery: asyncio.Task[None] | None = None
        self._is_unreadable = False
        self._failure: SwarmError | None = None
        self._is_closed = False
        # One snapshot is saved at a time; while one gets its place the directory is not read anew.
        self._save_mutex, self._publish_mutex = asyncio.Lock(), asyncio.Lock()
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

    @abstractmethod
    def _pump(self) -> None:
        """Do what the core wants, until it wants nothing."""

    @abstractmethod
    def _break(self, error: BaseException) -> None:
        """Stop for good."""

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something with the core; a broken invariant stops this member for good."""
        if self._failure is not None or self._recovery is not None:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 -- a bug: everybody is told and nothing goes on
            self._break(error)

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

    # Tasks and waiting.

    def _new_lane(self, name: str) -> lanes.Lane:
        return lanes.Lane(name, self._loop)

    def _spawn_soon(self, work: Coroutine[None, None, None]) -> None:
        """Start a task that nobody waits for until the end."""
        task = self._spawn(work)
        assert task in self._tasks

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Look at how a task ended, since nobody waits for it; only a bug ends one by an error."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

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

"""The shell around one member's core.

It turns time, messages, proposals and the disk's answers into calls of the core, and what the core
wants into awaits.

`raft.node.RaftNode` is the whole; this layer is its loop, on top of `state`, `peers` and
`applying`. After each input `_pump` takes what the
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
import itertools
from collections.abc import Awaitable, Sequence

import msgspec
import structlog
from typing_extensions import override

from proto.errors import (
    CorruptError,
    DeniedError,
    ForgottenEntriesError,
    NotLeaderError,
    SwarmError,
    UnavailableError,
    reason_of,
)
from raft import snapshot as snapshots
from raft.applying import Applying
from raft.core import (
    Accepted,
    Message,
    NotLeader,
    Ready,
    RefusalCode,
    Refused,
    Snapshot,
    decode,
)
from raft.core.messages import Append, Install
from raft.files import disk_error
from raft.promises import newest
from raft.proposals import Run
from raft.settings import NodeName
from raft.state import Waiting
from raft.storage import Write
from raft.wal import UncertainError

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# After a fault of the disk: the first and the longest wait before it is tried again.
RECOVERY_SECONDS_FIRST = 0.1
RECOVERY_SECONDS_MAX = 1.0


class Shell(Applying):
    """See the module."""

    def _start(self) -> None:
        """Begin: a lone voter leads at once, others wait for time and messages."""
        self._campaign_if_alone()
        self._pump()

    def _campaign_if_alone(self) -> None:
        self._members_changed()
        if self._is_alone:
            self._core.campaign()

    # Time and messages.

    def _on_timer(self) -> None:
        self._timer = None
        self._guarded(self._tick)

    def _tick(self) -> None:
        self._catch_up()
        self._pump()

    def _arm_timer(self) -> None:
        """Keep the ticks going while there is anybody to keep them for."""
        if self._timer is None and not self._is_alone and not self._is_closed:
            delay = max(0.0, self._tick_at - self._clock.monotonic())
            self._timer = self._loop.call_later(delay, self._on_timer)

    def on_messages(self, node_id: NodeName, messages: Sequence[bytes]) -> Awaitable[None] | None:
        """Take messages of a peer whose node ID is proven.

        Returns:
            What to wait for before more of a leader's entries are read; None if nothing.

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
            if isinstance(message, Install):
                raise DeniedError(f"node {node_id} sent a snapshot's header without its content")

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
        # Heartbeats come on a lane of their own, and never wait.
        is_crowded = bool(self._writing) and any(isinstance(each, Append) for each in decoded)
        return self._until_stored() if is_crowded and self._is_crowded() else None

    def _is_crowded(self) -> bool:
        """Whether so much waits for the disk that no more may be taken in."""
        waiting = itertools.chain(self._writing, self._unstored)
        return sum(each.size for each in waiting) > self._settings.unstored_bytes_max

    async def _until_stored(self) -> None:
        while self._is_crowded() and not self._is_closed and self._failure is None:
            await self._next_change()

    # Proposals.

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

    @override
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
            self._unstored.append(Waiting(ready.number, write, ready.messages_after))
        elif ready.messages_after:
            if self._unstored and self._unstored[-1].write is None:
                # However long the disk takes: of what is promised to somebody the newest counts.
                last = self._unstored[-1]
                last.number, last.after = ready.number, newest(last.after, ready.messages_after)
            elif self._unstored or self._writing:
                self._unstored.append(Waiting(ready.number, None, ready.messages_after))
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
            try:
                self._on_write_error(error)
            except Exception as bug:  # noqa: BLE001 -- as `_guarded`, which a fault of the disk is beyond
                self._break(bug)
            return
        self._guarded(lambda: self._note_stored(batch))

    def _note_stored(self, batch: list[Waiting]) -> None:
        self._catch_up()
        self._core.persisted(batch[-1].number)
        for waiting in batch:
            if waiting.after:
                self._post(waiting.after)
        if self._disk_fault is not None and len(self._core.membership.voters) > 1:
            self._disk_works()
        self._pump()

    # Faults.

    def _on_write_error(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            self._on_disk_fault(error)
        else:
            self._break(error)

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
            seconds = RECOVERY_SECONDS_FIRST * 2 ** min(self._reopenings, 10)
            self._reopenings += 1
            await asyncio.sleep(min(seconds, RECOVERY_SECONDS_MAX))
            try:
                async with self._publish_mutex:
                    await self._read_anew()
            except CorruptError as error:
                self._break(error)
                break
            except (SwarmError, OSError) as error:
                self._disk_fault = error if isinstance(error, SwarmError) else self._disk_fault
                log.error("log_not_reopened", error=reason_of(error))  # noqa: TRY400 -- one line
                # Whoever waits for what was under way waits in vain: it may take for ever.
                self._is_unreadable = True
                self._wake()
            except Exception as error:  # noqa: BLE001 -- no fault of the disk: waiting mends nothing
                self._break(error)
                break
            else:
                break
        self._recovery = None
        if self._failure is not None:
            return
        if self._storage.snapshot_index > self._applied and self._listener is not None:
            # It was in place when the disk failed, or its installation was not finished.
            self._install_index = self._storage.snapshot_index
            self._installing = self._spawn(self._install())
        self._guarded(self._start)

    async def _read_anew(self) -> None:
        storage = await self._wal_lane.run(self._storage.reopen)
        self._is_unreadable = False
        storage.member_id = self._me.id
        self._storage = storage
        self._core = self._new_core(storage.stored)
        storage.release()
        self._opening = (0, 0)

    @override
    def _break(self, error: BaseException) -> None:
        """Stop for good: a bug, or a disk whose content changed under us."""
        if self._failure is not None:
            return
        if isinstance(error, ForgottenEntriesError):
            log.error("raft_member_forgot", error=reason_of(error), remedy="demote and promote it")
            failure = self._failure = self._forgotten()
            self._wal_lane.submit(self._storage.mark_forgotten, self._report_mark)
        else:
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

    def _forgotten(self) -> SwarmError:
        """Say that this member takes no part any more, and what to do."""
        self.has_forgotten = True
        node_id = self._me.node_id
        return UnavailableError(
            "this manager's log ends before what it had confirmed to the others: its disk was put "
            "back to an older state, or lost what it held. It takes no part any more, since it "
            "could undo what was promised. On another manager: "
            f"swarm node demote {node_id} && swarm node promote {node_id}"
        )

    @staticmethod
    def _report_mark(error: BaseException | None) -> None:
        if error is not None:
            # The next life finds out by itself, unless another leads by then.
            log.error("raft_member_not_marked", error=repr(error))

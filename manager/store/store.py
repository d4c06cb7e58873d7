"""The store: tables, transactions and watches upon a replicated log. The shell of this package.

Two references are the whole state: *committed*, which readers and watchers see, and *head*, the
state after all that was proposed. A transaction runs on the head at once, becomes one entry and
waits in line until the log says that it is durable. If the log refuses one, the head falls back to
committed and all behind it in the line fail too, since they were computed on a state that will
never be.

What a transaction saw may therefore never come true, and a manager that was cut off sees what is no
longer true. A change is safe all the same: it is durable only upon what it saw. A transaction that
changes nothing, or refuses, has no entry that would tell; its answer waits in `update` until what
it saw is committed and this manager is proven to have led (`manager.store.confirming`).

On a manager that does not lead the line is empty, `head` is `committed`, and what the leader's
store committed is applied as it comes; transactions are refused with the leader's address. When
leadership is lost the line fails: its transactions are refused, or their outcome is unknown, as the
log says for each. When it is gained, everything from former leaders has been applied before.

Invariants: the line's first transaction ran on `committed`, each later one on the one before it,
and `head` is the last one's result; watchers get each committed transaction once, in order.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from manager.store.applying import apply_entry
from manager.store.batching import batch
from manager.store.codec import decode_entry
from manager.store.confirming import Confirmations, copy_of
from manager.store.log import ReplicatedLog
from manager.store.saving import Saver
from manager.store.snapshot import Restorer
from manager.store.tables import View
from manager.store.transaction import TRANSACTION_BYTES_MAX, Transaction
from manager.store.watch import Change, Watch
from proto.clock import Clock
from proto.errors import (
    CorruptError,
    InvalidError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
    reason_of,
)
from proto.objects import Object

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741 -- an item

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class _Proposed(msgspec.Struct):
    """A transaction in line."""

    view: View
    changes: tuple[Change, ...]
    byte_count: int
    result: Any
    caller: asyncio.Future[Any]
    proposal: asyncio.Future[int]
    # Those whose answer rests on this one; each is told the error, or None.
    observers: tuple[asyncio.Future[BaseException | None], ...] = ()

    def end(self, error: BaseException | None) -> None:
        """Tell who waits; a caller that was cancelled does not undo the transaction."""
        if self.caller.done():
            pass
        elif error is None:
            self.caller.set_result(self.result)
        else:
            self.caller.set_exception(copy_of(error))
        for observer in self.observers:
            if not observer.done():
                observer.set_result(error)


class Store:
    """The replicated state of the cluster; used from one event loop only."""

    def __init__(self, log: ReplicatedLog, clock: Clock, view: View, applied_index: int) -> None:
        """Start from a restored state; use `open`."""
        self._log = log
        self._clock = clock
        self._committed = view
        self._head = view
        self._applied_index = applied_index
        self._line: deque[_Proposed] = deque()
        self._watches: list[Watch] = []
        self._saver = Saver(log, clock, lambda: (self._committed, self._applied_index))
        self._confirmations = Confirmations(log)
        self._refusal: UnavailableError | None = None
        # Set when only opening the log anew can tell what is stored; see `_fall_back`.
        self.broken = asyncio.Event()
        self._is_in_transaction = False
        self._is_closed = False
        # The term in which this manager leads; 0 if it does not.
        self._term = 0
        self._role_waiters: list[asyncio.Future[None]] = []

    @classmethod
    def open(cls, log: ReplicatedLog, clock: Clock) -> Store:
        """Restore the state from the log's snapshot and the entries after it.

        Raises:
            CorruptError: what the log holds cannot be read, or has a gap.
        """
        was_enabled = gc.isenabled()
        gc.disable()  # a million live objects and no garbage: collections would only cost time
        try:
            view, applied_index, byte_count = _restore(log)
        finally:
            if was_enabled:
                gc.enable()
        store = cls(log, clock, view, applied_index)
        store._saver.grew(byte_count)
        log.attach(store)
        return store

    def view(self) -> View:
        """Return the committed state as far as it is known here: stale on a follower."""
        return self._committed

    async def read_barrier(self) -> View:
        """Return a state that holds everything committed before this call, on any manager.

        Raises:
            NotLeaderError: no leader is known.
            UnavailableError: no majority of the managers answers.
        """
        await self._log.read_barrier()
        return self._committed

    @property
    def term(self) -> int:
        """The term in which this manager leads; 0 if it does not."""
        return self._term

    async def role_changed(self, known: int) -> int:
        """Wait until `term` is another than the known one; return it.

        A leadership that was lost and gained again is a new term, so no change is missed; only
        what lay between may be.
        """
        while self._term == known:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._role_waiters.append(waiter)
            try:
                await waiter
            finally:
                self._role_waiters.remove(waiter)
        return self._term

    def head(self) -> View:
        """Return the state after everything proposed, which may yet be refused.

        For deciding what to propose next; nothing of it may leave the manager.
        """
        return self._head

    async def newest(self) -> View:
        """Return a state that holds everything committed before this call, where this one leads.

        What was in line here is in it as well.

        Raises:
            NotLeaderError: another manager leads, or leadership was lost meanwhile.
            UnavailableError: as `update`.
        """
        await self.update(lambda _: None)
        return self._committed

    def refusal(self) -> SwarmError | None:
        """Return why no transaction is taken here now; None if one is."""
        if self._refusal is not None:
            return copy_of(self._refusal)
        return None if self._term else self._log.refusal()

    @property
    def applied_index(self) -> int:
        """The index in the log of the last committed transaction."""
        return self._applied_index

    def update(self, fn: Callable[[Transaction], R]) -> asyncio.Future[R]:
        """Run a transaction on the head, now, and answer when what it says is true for good.

        `fn` must be a plain function that neither awaits nor starts another transaction. If it
        raises, nothing is changed. Answers that leave the manager come from here: a change is
        committed, and where nothing was changed, or `fn` raised, what it saw is committed and was
        the newest state at some moment since the call.

        Returns:
            A future of what `fn` returned; it fails with what `fn` raised, or as follows, and then
            nothing was done, but for `UnavailableError`, where that is not known.

        Raises:
            InvalidError: the transaction is larger than `TRANSACTION_BYTES_MAX`.
            ResourceExhaustedError: the log takes no more at this moment.
            NotLeaderError: another manager leads.
            UnavailableError: the store is closed, or cannot tell what became of an earlier entry,
                or of this one, or no majority answers.
        """
        caller: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._refusal is not None or not self._term:
            caller.set_exception(self.refusal() or NotLeaderError(""))
            return caller
        try:
            tx, result, entry = self._run(fn)
        except SwarmError as error:
            self._confirm(caller, None, error)
            return caller
        if not entry:
            self._confirm(caller, result, None)
            return caller
        try:
            self._propose(tx, result, entry, caller)
        except SwarmError as error:
            caller.set_exception(error)
        return caller

    def update_without_barrier(self, fn: Callable[[Transaction], R]) -> asyncio.Future[R]:
        """Run a transaction as `update` does, for a loop of this manager's own.

        It waits for nothing where nothing was changed, and what `fn` raised is raised from here at
        once; so either may rest on what is never committed. That does no harm to a loop that looks
        again when its leadership ends, and must not be told to anybody else.

        Raises:
            SwarmError: as the future of `update`.
        """
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        tx, result, entry = self._run(fn)
        caller: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if entry:
            self._propose(tx, result, entry, caller)
        else:
            caller.set_result(result)
        return caller

    def _run(self, fn: Callable[[Transaction], R]) -> tuple[Transaction, R, bytes]:
        """Run a transaction; return its entry with it, b"" if it changed nothing."""
        assert not self._is_in_transaction, "a transaction may not start another one"
        tx = Transaction(self._head, self._clock.wall())
        self._is_in_transaction = True
        try:
            result = fn(tx)
        finally:
            self._is_in_transaction = False
        if tx.change_count == 0:
            return tx, result, b""
        entry = tx.to_entry()
        if len(entry) > TRANSACTION_BYTES_MAX:
            raise InvalidError(
                f"the change takes {len(entry)} bytes in the log, "
                f"the limit is {TRANSACTION_BYTES_MAX}; make it smaller"
            )
        return tx, result, entry

    def _propose(self, tx: Transaction, result: R, entry: bytes, caller: asyncio.Future[R]) -> None:
        """Put a transaction in line."""
        proposal = self._log.propose(entry)
        self._head = tx.to_view()
        self._line.append(
            _Proposed(self._head, tx.to_changes(), len(entry), result, caller, proposal)
        )
        proposal.add_done_callback(self._on_proposal_done)

    def _confirm(
        self, caller: asyncio.Future[R], result: R | None, error: SwarmError | None
    ) -> None:
        """Answer a transaction without an entry when what it saw is known to be true."""
        seen: asyncio.Future[BaseException | None] | None = None
        if self._line:
            seen = asyncio.get_running_loop().create_future()
            self._line[-1].observers += (seen,)
        term = self._term

        def lost() -> SwarmError | None:
            return None if self._term == term else self.refusal() or NotLeaderError("")

        self._confirmations.begin(caller, result, error, seen=seen, lost=lost)

    async def batch(self, items: Iterable[I], apply: Callable[[Transaction, I], object]) -> int:
        """Apply a function to each item in few transactions; see `manager.store.batching`."""
        return await batch(self, items, apply)

    def watch(self, *kinds: type[Object] | str) -> Watch:
        """Watch the committed objects of these types (none: all); enter it with `async with`."""
        return Watch(
            kinds,
            committed=self.view,
            enter=self._enter_watch,
            leave=self._watches.remove,
        )

    def _enter_watch(self, watch: Watch) -> None:
        self._watches.append(watch)
        if self._is_closed:
            watch.close()

    def check(self) -> None:
        """Verify all tables, indexes and the line; for tests and the simulator."""
        self._committed.check()
        self._head.check()
        version = self._committed.version
        for proposed in self._line:
            version += 1
            assert version == proposed.view.version, "the line has a gap"
        assert version == self._head.version, "the head is not the end of the line"

    async def close(self) -> None:
        """Refuse further transactions, wait for those in line, end watches and snapshots.

        The log is not closed: it belongs to whoever opened it, and must outlive this call.
        """
        self._is_closed = True
        if self._refusal is None:
            self._refusal = UnavailableError("the store is closed: this manager is stopping")
        while self._line:
            await asyncio.wait([proposed.proposal for proposed in self._line])
            await asyncio.sleep(0)  # the futures' callbacks empty the line
        await self._confirmations.close(copy_of(self._refusal))
        await self._saver.close()
        for watch in tuple(self._watches):
            watch.close()

    # What the log tells: see `raft.listener.Listener`.

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Apply committed entries of other leaders; empty ones are the log's own."""
        self._settle()
        assert first > self._applied_index, "the log committed out of order"
        index = first
        for index, data in enumerate(entries, first):
            if data:
                self._apply_one(index, data)
        self._applied_index = index
        self._saver.save_if_due()

    def _apply_one(self, index: int, data: bytes) -> None:
        assert not self._line, "another leader's entry while this manager leads"
        self._saver.grew(len(data))
        applied = apply_entry(self._committed, decode_entry(data, index))
        if applied is None:
            log.warning("void_entries_skipped", count=1, index=index)
            return
        self._committed, changes = applied
        self._head = self._committed
        for watch in self._watches:
            watch.publish(changes)

    async def install(self, index: int, chunks: Iterator[bytes]) -> None:
        """Take the whole state from a snapshot; watchers start again from it."""
        self._settle()
        assert not self._line, "a snapshot of another leader while this manager leads"
        self._committed = self._head = await asyncio.to_thread(_load, chunks)
        self._applied_index = index
        self._saver.replaced()
        for watch in self._watches:
            watch.resync()

    def lead(self, term: int) -> None:
        """Take transactions from now on."""
        self._settle()
        assert not self._line, "transactions of an earlier leadership are left"
        self._head = self._committed
        self._term = term
        self._tell_role()

    def follow(self) -> None:
        """Take no more transactions; those in line end as the log says."""
        self._term = 0
        self._drop_line()
        self._tell_role()

    def fail(self, error: SwarmError) -> None:
        """The log is broken: only opening it anew can tell what is stored."""
        self._term = 0
        self._drop_line()
        self._refusal = UnavailableError(error.message)
        self.broken.set()
        self._tell_role()

    def _drop_line(self) -> None:
        """Commit what the log committed of the line, and end the rest."""
        while self._line and _error_of(self._line[0].proposal) is None:
            self._commit(self._line.popleft())
        failed = list(self._line)
        self._line.clear()
        self._head = self._committed
        if failed:
            first = _error_of(failed[0].proposal)
            reason = "it ran on what is void" if first is None else reason_of(first)
            log.warning("transactions_failed", count=len(failed), error=reason)
        for proposed in failed:
            error = _error_of(proposed.proposal)
            if error is None:
                # It is in the log, but ran on what is not: it is void.
                error = NotLeaderError("")
            proposed.end(error)

    def _tell_role(self) -> None:
        for waiter in self._role_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _on_proposal_done(self, proposal: asyncio.Future[int]) -> None:
        """Commit the line's beginning as far as it is durable, in order."""
        if not proposal.cancelled():
            proposal.exception()  # marks it as seen, also for those that already left the line
        self._settle()

    def _settle(self) -> None:
        while self._line and self._line[0].proposal.done():
            proposed = self._line.popleft()
            error = _error_of(proposed.proposal)
            if error is not None:
                self._fall_back(proposed, error)
                return
            self._commit(proposed)

    def _commit(self, proposed: _Proposed) -> None:
        index = proposed.proposal.result()
        assert index > self._applied_index, "the log committed out of order"
        self._applied_index = index
        self._committed = proposed.view
        for watch in self._watches:
            watch.publish(proposed.changes)
        proposed.end(None)
        self._saver.grew(proposed.byte_count)
        self._saver.save_if_due()

    def _fall_back(self, first: _Proposed, error: BaseException) -> None:
        """Drop the whole line: what was computed on a refused transaction is void."""
        failed = [first, *self._line]
        self._line.clear()
        self._head = self._committed
        log.warning("transactions_failed", count=len(failed), error=reason_of(error))
        if not isinstance(error, NotLeaderError | ResourceExhaustedError):
            # Whether the entry is in the log is unknown, so the next version number may be taken.
            self._refusal = UnavailableError(
                "this manager cannot tell whether its last change was stored "
                f"({error}); it takes no more until it is restarted"
            )
            self.broken.set()
        for proposed in failed:
            proposed.end(error)

    async def save_snapshot(self) -> None:
        """Save a snapshot that holds everything committed now, durable on return.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; the older snapshot stays.
        """
        await self._saver.save()


def _restore(replicated_log: ReplicatedLog) -> tuple[View, int, int]:
    """Return the state, the index it stands for, and the bytes of the entries after the snapshot.

    Raises:
        CorruptError: an index is missing.
    """
    chunks, entries = replicated_log.restore()
    restorer = Restorer()
    restorer.load_snapshot(chunks)
    index = replicated_log.snapshot_index
    byte_count = 0
    void_count = 0
    for entry in entries:
        if entry.index != index + 1:
            raise CorruptError("log", 0, f"entry {entry.index} follows entry {index}")
        index = entry.index
        byte_count += len(entry.data)
        if entry.data and not restorer.apply(decode_entry(entry.data, index)):
            void_count += 1
    if void_count:
        log.warning("void_entries_skipped", count=void_count)
    return restorer.to_view(), index, byte_count


def _load(chunks: Iterator[bytes]) -> View:
    restorer = Restorer()
    restorer.load_snapshot(chunks)
    return restorer.to_view()


def _error_of(proposal: asyncio.Future[int]) -> BaseException | None:
    if proposal.cancelled():
        return UnavailableError("the log gave up the proposal")
    return proposal.exception()

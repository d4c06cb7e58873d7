"""What is committed comes to the listener, and to those who wait for it: proposals, reads, roles.

One order: own futures are completed and others' entries told in index order, in one turn of the
loop. What was proposed in a leadership ends with it at the latest, as unknown.
"""

from __future__ import annotations

import asyncio

import structlog

from proto.errors import (
    NotLeaderError,
    SwarmError,
    UnavailableError,
)
from raft.core import (
    NOBODY,
    Entries,
    Role,
)
from raft.peers import Peers
from raft.proposals import Failure

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Applying(Peers):
    """The layer of committed entries; see the module."""

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

    def _fail_placed(self, error: Failure) -> int:
        """Fail what is in the log and not known to be committed; return how many."""
        changes, self._changes = self._changes, {}
        for change in changes.values():
            if not change.done():
                change.set_exception(error())
        return self._proposals.fail_placed(error) + len(changes)

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
        self._note_leaderless()
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

    def _note_leaderless(self) -> None:
        """Note when the search for a leader began; a leader without a majority has it behind it."""
        core = self._core
        if core.role is Role.LEADER or core.leader != NOBODY:
            self._leaderless_since = None
        elif self._leaderless_since is None and (self._leading or core.role is not Role.FOLLOWER):
            now = self._clock.monotonic()
            self._leaderless_since = now - (self._answer_seconds if self._leading else 0.0)

    @property
    def _answer_seconds(self) -> float:
        """How long a peer that is there takes to answer, at most; half the shortest election."""
        return self._settings.election_ticks * self._settings.tick_seconds / 2

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

    def _disk_works(self) -> None:
        self._disk_fault = None
        self._reopenings = 0

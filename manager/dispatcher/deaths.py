"""Who is alive: nodes that fall silent are written down, and their tasks orphaned in the end.

The shell around `liveness`: it keeps the time that is told, and writes what follows from it. One
wait serves all: the nearest bucket of the wheel of heartbeats and the next orphaning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import structlog

from manager.dispatcher.liveness import Beat, Grace, Liveness
from manager.dispatcher.statuses import orphan
from manager.dispatcher.writer import Writer
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.clock import Clock
from proto.errors import SwarmError, reason_of
from proto.ids import NodeID, TaskID
from proto.objects import Node, NodeRole, NodeState

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

ORPHAN_SECONDS = 24 * 3600.0
"""Source: swarmkit manager/dispatcher/dispatcher.go (defaultNodeDownPeriod)."""

RETRY_SECONDS = 1.0


class Deaths:
    """The nodes' lives during one leadership. Belongs to one event loop.

    Attributes:
        sooner: set when `next_at` may be earlier than it was.
    """

    def __init__(
        self,
        view: View,
        beat: Beat,
        *,
        clock: Clock,
        writer: Writer,
        is_here: Callable[[NodeID], bool],
        silence: Callable[[NodeID], None],
        is_unheard: Callable[[NodeID], bool],
        leads: Callable[[], bool],
    ) -> None:
        """Expect every node that was not down to come back.

        Args:
            view: the cluster as this leadership found it.
            beat: the rhythm of heartbeats.
            clock: monotonic for silence, wall for what is stored.
            writer: writes.
            is_here: whether a node has a session, or is being let in.
            silence: ends the session of a node that was silent for too long.
            is_unheard: whether a node is a manager that the log does not hear from either.
            leads: whether this leadership lasts.
        """
        now = clock.monotonic()
        self.sooner = asyncio.Event()
        self._clock = clock
        self._writer = writer
        self._is_here = is_here
        self._silence = silence
        self._is_unheard = is_unheard
        self._leads = leads
        self._dead_seconds = beat.dead_seconds
        self._liveness = Liveness(beat.dead_seconds)
        self._grace = Grace(now, beat.dead_seconds)
        self._returning = {n.id for n in view.nodes if n.status.state is not NodeState.DOWN}
        for node in view.nodes:
            if node.id in self._returning:
                # A manager, perhaps the leader before this one, is asked for sooner: see `bury`.
                is_manager = node.role is NodeRole.MANAGER
                until = now + beat.dead_seconds if is_manager else self._grace.until
                self._liveness.expect(node.id, until)
        self._down_since = {
            n.id: n.down_since for n in view.nodes if n.status.state is NodeState.DOWN
        }

    def check(self) -> None:
        """Check the invariants of the wheel."""
        self._liveness.check()

    def set_beat(self, beat: Beat) -> None:
        """Take another rhythm."""
        self._dead_seconds = beat.dead_seconds
        self._liveness.set_dead_seconds(beat.dead_seconds)

    def came(self, node_id: NodeID, *, is_local: bool) -> None:
        """Note that a node opened a session; one in this process needs no heartbeats."""
        now = self._clock.monotonic()
        self._down_since.pop(node_id, None)
        if node_id in self._returning:
            self._returning.remove(node_id)
            self._grace.returned(now)
        if is_local:
            self._liveness.forget(node_id)
        else:
            self._liveness.heard(node_id, now)
            self.sooner.set()

    def heard(self, node_id: NodeID) -> None:
        """Note a sign of life."""
        self._liveness.heard(node_id, self._clock.monotonic())

    def lost_touch(self, node_id: NodeID) -> None:
        """Note that a session in this process ended: its node has as long as others now."""
        self.heard(node_id)
        self.sooner.set()

    def said_goodbye(self, node_id: NodeID) -> None:
        """Put a node down that left on purpose."""
        self._liveness.forget(node_id)
        self._put_down([node_id], "the node said goodbye")

    def node_changed(self, node: Node) -> None:
        """Follow the row of a node."""
        if node.status.state is NodeState.DOWN:
            if node.id not in self._down_since:
                self._down_since[node.id] = node.down_since
                self.sooner.set()
        else:
            self._down_since.pop(node.id, None)

    def node_removed(self, node_id: NodeID) -> None:
        """Forget a node."""
        self._liveness.forget(node_id)
        self._down_since.pop(node_id, None)
        self._returning.discard(node_id)

    def keep_only(self, view: View) -> None:
        """Forget all nodes that are not there."""
        for node_id in [n for n in self._down_since if n not in view.nodes]:
            del self._down_since[node_id]

    def wait_seconds(self, later: Iterable[float] = ()) -> float | None:
        """Return how long nothing is due, also at none of the given times; None for ever."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        times = [now + since + ORPHAN_SECONDS - wall for since in self._down_since.values()]
        beat = self._liveness.next_at()
        if beat is not None:
            times.append(beat)
        times.extend(later)
        return max(0.0, min(times) - now) if times else None

    def bury(self) -> None:
        """Put down the nodes whose time is up."""
        now = self._clock.monotonic()
        dead = self._liveness.due(now)
        if not dead:
            return
        if now < self._grace.until:
            # Either it was made longer since they were told how long they have, or they are
            # managers: those that the log does not hear from have been silent long enough.
            early = {
                node_id
                for node_id in dead
                if node_id in self._returning and not self._is_unheard(node_id)
            }
            for node_id in early:
                self._liveness.expect(node_id, self._grace.until)
            dead = [node_id for node_id in dead if node_id not in early]
        late = [node_id for node_id in dead if node_id in self._returning]
        self._returning.difference_update(late)
        lost = frozenset(late)
        gone = [node_id for node_id in dead if node_id not in lost]
        for node_id in gone:
            self._silence(node_id)
        self._put_down(late, "the node did not come back after a change of the leader")
        self._put_down(gone, f"no heartbeat for {self._dead_seconds:g} s")

    def _put_down(self, node_ids: Sequence[NodeID], message: str) -> None:
        for node_id in node_ids:
            log.warning("node_down", node_id=node_id, reason=message)
        if node_ids:
            written = self._writer.put([self._death(node_id, message) for node_id in node_ids])
            written.add_done_callback(lambda done: self._death_written(done, node_ids))

    def _death(self, node_id: NodeID, message: str) -> Callable[[Transaction], None]:
        def write(tx: Transaction) -> None:
            node = tx.nodes.get(node_id)
            if node is None or self._is_here(node_id):
                return
            if node.status.state is NodeState.DOWN:
                return
            status = msgspec.structs.replace(node.status, state=NodeState.DOWN, message=message)
            tx.update(msgspec.structs.replace(node, status=status, down_since=tx.now))

        return write

    def _death_written(self, done: asyncio.Future[Any], node_ids: Sequence[NodeID]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            return
        log.warning("nodes_down_not_stored", count=len(node_ids), error=reason_of(error))
        if self._leads():
            # A full disk, perhaps. It is tried again for as long as this manager leads.
            until = self._clock.monotonic() + RETRY_SECONDS
            for node_id in node_ids:
                if not self._is_here(node_id):
                    self._liveness.expect(node_id, until)
            self.sooner.set()

    async def orphan_due(self, view: Callable[[], View]) -> None:
        """Give up the tasks of nodes that have been down for a day."""
        wall = self._clock.wall()
        due = [n for n, since in self._down_since.items() if wall >= since + ORPHAN_SECONDS]
        if not due:
            return
        now = view()
        tasks = [(t.id, n) for n in sorted(due) for t in now.tasks.find("node_id", n)]
        try:
            results = await self._writer.put([_orphaning(*task) for task in tasks])
        except SwarmError as error:
            log.warning("tasks_not_orphaned", count=len(tasks), error=error.message)
            await asyncio.sleep(RETRY_SECONDS)
            return
        for node_id in due:
            self._down_since.pop(node_id, None)
        log.warning("tasks_orphaned", nodes=len(due), tasks=sum(results))


def _orphaning(task_id: TaskID, node_id: NodeID) -> Callable[[Transaction], bool]:
    return lambda tx: orphan(tx, task_id, node_id)

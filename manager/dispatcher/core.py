"""The leader's dispatcher: sessions, who is alive, and what nodes report.

One watch on the store serves all sessions: its events are sorted by node, and only sessions with
news are woken, together, while changes come thick. What nodes write (registrations, statuses) is
gathered into few transactions. One wait serves all: what `deaths` waits for, and the look once a
second at what each node should know.

It works while `run` does, which is while the store leads. Sessions end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from manager.dispatcher.assignments import flush_at, touched_nodes
from manager.dispatcher.deaths import Deaths
from manager.dispatcher.descriptions import accepted, redescription, registration
from manager.dispatcher.liveness import Beat, RegistrationLimit, spread_seconds
from manager.dispatcher.session import OpenSession, Session
from manager.dispatcher.statuses import Ignored, IgnoredStatuses, cost, write_status
from manager.dispatcher.wishes import LogWishes
from manager.dispatcher.writer import Writer
from manager.nodeport.allowance import Allowance, Rate
from manager.nodeport.claims import checked_instance
from manager.nodeport.remotes import ManagerPeer
from manager.nodeport.streams import until_first
from manager.store.store import Store
from manager.store.tables import View
from manager.store.transaction import Transaction
from manager.store.watch import Event, Resync
from proto.assignments import StatusUpdate
from proto.clock import Clock
from proto.errors import (
    DeniedError,
    DuplicateNodeError,
    InvalidError,
    RemovedError,
    SwarmError,
    UnavailableError,
)
from proto.ids import NodeID, new_id
from proto.objects import (
    Cluster,
    Node,
    NodeDescription,
    Task,
    root_certificates_pem,
)

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

LOOK_SECONDS = 1.0
"""How often it is looked whether a node should know something else than it does."""

START_SECONDS_MAX = 2.0
"""What a new leader may take to begin, before it refuses sessions."""

CALM_SESSIONS_MIN = 100
CALM_THRESHOLDS = (20_000, 20, 100)
"""What the garbage collector is set to when there are so many sessions.

Each session is some fifty objects that live long. At the interpreter's own setting the collector
walks all of them again and again while nodes come in, and stops the loop for up to half a second:
long enough that nodes take the manager for dead, and come again.
"""

UPDATES_MAX = 10_000
"""Statuses in one report."""

STATUSES_RATE = Rate(burst=2 * UPDATES_MAX, per_second=1_000)
"""What a node may have written of its tasks, by their `cost`. A hundred tasks that begin at once
write 500."""

TURN_SECONDS_MIN = 0.001
"""A wait that is all but over is not cut into ever smaller ones."""

DESCRIPTIONS_RATE = Rate(burst=5, per_second=0.5)
"""How often a node may change what it says of itself; it does so when its labels change."""


class _Surroundings(msgspec.Struct, frozen=True):
    """What all nodes are told alike."""

    managers: tuple[ManagerPeer, ...]
    roots_pem: bytes
    spread_seconds: float


class DispatcherCore:
    """See the module. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        rng: random.Random,
        managers: Callable[[], Sequence[ManagerPeer]],
        must_renew: Callable[[Node], bool],
        is_unheard: Callable[[NodeID], bool] = lambda _node_id: False,
    ) -> None:
        """Do nothing yet.

        Args:
            store: the cluster's state.
            clock: monotonic for silence, wall for what is stored.
            rng: spreads heartbeats; draws session IDs.
            managers: the managers as nodes are to know them; quick.
            must_renew: whether a node has to renew its certificate now; quick.
            is_unheard: whether a node is a manager that the log does not hear from; quick.
        """
        self._store = store
        self._clock = clock
        self._rng = rng
        self._managers = managers
        self._must_renew = must_renew
        self._is_unheard = is_unheard
        self._writer = Writer(store)
        self._limit = RegistrationLimit()
        self._statuses = Allowance(STATUSES_RATE)
        self._descriptions = Allowance(DESCRIPTIONS_RATE)
        self._ignored = IgnoredStatuses()
        self._sessions: dict[NodeID, OpenSession] = {}
        self._wishes = LogWishes(store.view, self._session_of)
        self._arriving: dict[NodeID, int] = {}
        self._term = 0
        self._started = asyncio.Event()
        self._next_look = 0.0
        self._beat = Beat(1.0, 3.0)
        self._deaths = self._new_deaths(View.empty())

    # --- leadership ---

    async def run(self) -> None:
        """Work for as long as this leadership lasts; end all sessions with it.

        Raises:
            NotLeaderError: the store does not lead.
        """
        self._check_leader()
        self._term = self._store.term
        async with self._store.watch(Task, Node, Cluster) as watch:
            self._begin(watch.view)
            self._started.set()
            try:
                await until_first(
                    self._store.role_changed(self._term),
                    self._follow_store(watch),
                    self._keep_time(),
                )
            finally:
                self._started.clear()
                self._end_all()
        log.info("dispatcher_ended", term=self._term)

    def _begin(self, view: View) -> None:
        self._beat = _beat_of(view)
        self._deaths = self._new_deaths(view)
        self._next_look = self._clock.monotonic() + LOOK_SECONDS
        self._wishes = LogWishes(self._store.view, self._session_of)
        log.info("dispatcher_began", term=self._term, nodes=len(view.nodes))

    def _new_deaths(self, view: View) -> Deaths:
        return Deaths(
            view,
            self._beat,
            clock=self._clock,
            writer=self._writer,
            is_here=lambda node_id: node_id in self._sessions or node_id in self._arriving,
            silence=self._silence,
            is_unheard=self._is_unheard,
            leads=self._started.is_set,
        )

    def _silence(self, node_id: NodeID) -> None:
        """End the session of a node that was not heard for too long."""
        session = self._sessions.pop(node_id, None)
        if session is not None:
            session.close(UnavailableError(f"node {node_id} was silent for too long"))
            self._wishes.session_changed(node_id)

    def _end_all(self) -> None:
        self._wishes.end()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.close(self._not_leading())

    def _check_leader(self) -> None:
        if not self._store.term:
            raise self._not_leading()

    def _not_leading(self) -> SwarmError:
        """Return the store's own refusal, which names the leader if there is one."""
        return self._store.refusal() or UnavailableError("this manager's dispatcher begins anew")

    # --- sessions ---

    async def register(
        self,
        node_id: NodeID,
        description: NodeDescription,
        *,
        address: str = "",
        is_local: bool = False,
        certificate_role: str = "",
        certificate_until: float = float("inf"),
        instance: str = "",
    ) -> OpenSession:
        """Open a session: the node becomes READY; an older session of the same program ends.

        Args:
            node_id: as the caller proved.
            description: what it says of itself.
            address: its IP address; "" leaves what is known.
            is_local: it runs in this process.
            certificate_role: the role in its certificate.
            certificate_until: when that ends.
            instance: what the program drew at its start; "" if it does not say.

        Raises:
            DuplicateNodeError: another program is this node, and is alive.
            NotLeaderError: another manager leads.
            RemovedError: the node is not in the cluster, or no longer.
            UnavailableError: it registers too often, or the change could not be stored.
        """
        await self._wait_started()
        if not is_local and not self._limit.is_allowed(node_id, self._clock.monotonic()):
            raise UnavailableError(
                f"node {node_id} registers too often; it is let in again in a few seconds"
            )
        self._refuse_duplicate(node_id, instance)
        description = accepted(node_id, description)
        checked_instance(instance)
        term = self._term
        self._arriving[node_id] = self._arriving.get(node_id, 0) + 1
        try:
            (node,) = await self._writer.put([registration(node_id, description, address)])
        finally:
            self._arriving[node_id] -= 1
            if not self._arriving[node_id]:
                del self._arriving[node_id]
        if term != self._term or not self._started.is_set():
            raise self._not_leading()
        session = OpenSession(
            Session(
                session_id=new_id(self._rng),
                node=node,
                heartbeat_seconds=self._beat.drawn(self._rng),
            ),
            self._store.view,
            is_local=is_local,
            certificate_role=certificate_role,
            certificate_until=certificate_until,
            instance=instance,
        )
        session.told = self._news_for(session, node, self._surroundings())
        older = self._sessions.get(node_id)
        if older is not None:
            older.close(UnavailableError(f"a newer session of node {node_id} took its place"))
        self._sessions[node_id] = session
        if len(self._sessions) == CALM_SESSIONS_MIN:
            gc.set_threshold(*CALM_THRESHOLDS)
        self._deaths.came(node_id, is_local=is_local)
        self._wishes.session_changed(node_id)
        log.info("node_registered", node_id=node_id, session_id=session.told.session_id)
        return session

    def _refuse_duplicate(self, node_id: NodeID, instance: str) -> None:
        """Refuse a second program; one that died is forgotten when its heartbeats fail."""
        older = self._sessions.get(node_id)
        if older is None or older.end is not None or older.is_local:
            return
        if instance and older.instance and instance != older.instance:
            raise DuplicateNodeError(node_id, older.told.node.status.addr)

    async def _wait_started(self) -> None:
        self._check_leader()
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await self._started.wait()
        except TimeoutError:
            self._check_leader()
            raise UnavailableError("this manager's dispatcher has not begun yet") from None

    def heartbeat(self, session: OpenSession) -> None:
        """Note a sign of life."""
        if session.end is None:
            self._deaths.heard(session.node_id)

    async def describe(self, session: OpenSession, description: NodeDescription) -> None:
        """Store what a node says of itself, durably on return.

        Raises:
            SwarmError: the session has ended, or the change could not be stored.
        """
        session.check_open()
        description = accepted(session.node_id, description)
        await self._wait_for_turn(self._descriptions, session, 1)
        await self._writer.put([redescription(session.node_id, description)])

    async def update_statuses(self, session: OpenSession, updates: Sequence[StatusUpdate]) -> None:
        """Write the reported statuses, durably on return.

        Raises:
            SwarmError: the session has ended, or the changes could not be stored.
        """
        session.check_open()
        if len(updates) > UPDATES_MAX:
            raise InvalidError(f"a report has at most {UPDATES_MAX} statuses")
        if not session.is_local:
            self._deaths.heard(session.node_id)
        await self._wait_for_turn(self._statuses, session, sum(map(cost, updates)))
        writes = [_status(session.node_id, update) for update in updates]
        results = await self._writer.put(writes)
        ignored = self._ignored.note(session.node_id, results, self._clock.monotonic())
        if ignored is not None:
            log.warning(
                "statuses_ignored",
                node_id=session.node_id,
                count=ignored.count,
                task_id=ignored.first.task_id,
                reason=ignored.first.reason,
            )

    async def _wait_for_turn(self, allowance: Allowance, session: OpenSession, count: int) -> None:
        """Let a node that writes more than nodes do wait, so that others are not held up by it.

        Raises:
            SwarmError: the session ended meanwhile.
        """
        if session.is_local:
            return
        while seconds := allowance.take(session.node_id, self._clock.monotonic(), count):
            # It is this manager that does not read on: no heartbeat can come meanwhile.
            self._deaths.heard(session.node_id)
            await asyncio.sleep(min(max(seconds, TURN_SECONDS_MIN), LOOK_SECONDS))
            session.check_open()

    def end(self, session: OpenSession, *, is_goodbye: bool = False) -> None:
        """A session is over. The node is not down yet, unless it said goodbye."""
        node_id = session.node_id
        session.close(UnavailableError("the session is over"))
        if self._sessions.get(node_id) is not session:
            return
        del self._sessions[node_id]
        self._wishes.session_changed(node_id)
        log.info("session_ended", node_id=node_id, session_id=session.told.session_id)
        if is_goodbye:
            self._deaths.said_goodbye(node_id)
        elif session.is_local:
            self._deaths.lost_touch(node_id)

    async def wishes(self) -> LogWishes:
        """Return whose output is wished for; they end with this leadership.

        Raises:
            NotLeaderError: another manager leads.
            UnavailableError: the dispatcher has not begun yet.
        """
        await self._wait_started()
        return self._wishes

    def _session_of(self, node_id: NodeID) -> OpenSession | None:
        return self._sessions.get(node_id)

    # --- what nodes are told ---

    async def _follow_store(self, watch: Any) -> None:
        last_flush, told = 0.0, 0
        dirty: dict[NodeID, None] = {}
        async for first in watch:
            events: Sequence[Event] = (*first, *watch.drain())
            waiting = self._sort(events, dirty)
            while dirty:
                now = self._clock.monotonic()
                due = flush_at(now, last_flush, told, waiting)
                if due > now:
                    await asyncio.sleep(due - now)
                    waiting += self._sort(watch.drain(), dirty)
                last_flush, told = self._clock.monotonic(), len(dirty)
                self._wake(dirty)
                dirty.clear()

    def _sort(self, events: Sequence[Event], dirty: dict[NodeID, None]) -> int:
        """Note for each session what its node has to be told; return how many changes these are."""
        count = 0
        sessions = self._sessions
        for event in events:
            match event:
                case Resync(view=view):
                    self._resync(view)
                    continue
                case _:
                    row = event.old if event.new is None else event.new
            if isinstance(row, Task):
                self._wishes.task_changed(_node_of(event.old), _node_of(event.new), row.id)
                for node_id, task_id in touched_nodes(event):
                    session = sessions.get(node_id)
                    if session is not None:
                        session.touch(task_id)
                        dirty[node_id] = None
                        count += 1
            elif isinstance(row, Node):
                self._node_changed(row.id, event.new)
            else:
                self._cluster_changed()
        return count

    def _wake(self, dirty: dict[NodeID, None]) -> None:
        for node_id in dirty:
            session = self._sessions.get(node_id)
            if session is not None:
                session.release()

    def _resync(self, view: View) -> None:
        """Events were lost: everybody starts again from the present state."""
        self._wishes.tell_all()
        self._cluster_changed()
        for node_id, session in list(self._sessions.items()):
            self._node_changed(node_id, view.nodes.get(node_id))
            session.start_again()
        for node in view.nodes:
            self._node_changed(node.id, node)
        self._deaths.keep_only(view)

    def _node_changed(self, node_id: NodeID, node: object) -> None:
        session = self._sessions.get(node_id)
        if node is None:
            self._deaths.node_removed(node_id)
            if session is not None:
                del self._sessions[node_id]
                session.close(RemovedError(node_id, is_known=True))
            return
        assert isinstance(node, Node)
        self._deaths.node_changed(node)
        if session is not None:
            self._tell(session, node, self._surroundings())

    def _cluster_changed(self) -> None:
        beat = _beat_of(self._store.view())
        if beat != self._beat:
            self._beat = beat
            self._deaths.set_beat(beat)
            for session in self._sessions.values():
                told = msgspec.structs.replace(
                    session.told, heartbeat_seconds=beat.drawn(self._rng)
                )
                session.tell(told)
        self._look()

    def _surroundings(self) -> _Surroundings:
        """Return what all nodes are told alike."""
        view = self._store.view()
        roots = "".join(root_certificates_pem(cluster) for cluster in view.clusters).encode()
        return _Surroundings(tuple(self._managers()), roots, spread_seconds(len(view.nodes)))

    def _news_for(self, session: OpenSession, node: Node, around: _Surroundings) -> Session:
        told = session.told
        return Session(
            session_id=told.session_id,
            node=node,
            managers=around.managers,
            heartbeat_seconds=told.heartbeat_seconds,
            roots_pem=around.roots_pem,
            spread_seconds=around.spread_seconds,
            renew_certificate=self._must_renew(node) or session.shows_other_role(node),
        )

    def _tell(self, session: OpenSession, node: Node, around: _Surroundings) -> None:
        news = self._news_for(session, node, around)
        if not news.says_the_same(session.told):
            session.tell(news)

    def _look(self) -> None:
        """Tell each node what it should know and does not; end sessions that have expired."""
        if not self._sessions:
            return
        view = self._store.view()
        around = self._surroundings()
        wall = self._clock.wall()
        for node_id, session in list(self._sessions.items()):
            if wall >= session.certificate_until:
                del self._sessions[node_id]
                session.close(DeniedError(f"the certificate of node {node_id} has expired"))
                self._wishes.session_changed(node_id)
                continue
            node = view.nodes.get(node_id)
            if node is not None:
                self._tell(session, node, around)

    # --- time ---

    async def _keep_time(self) -> None:
        deaths = self._deaths
        while True:
            deaths.sooner.clear()
            deaths.bury()
            now = self._clock.monotonic()
            if now >= self._next_look:
                self._look()
                self._next_look = now + LOOK_SECONDS
            await deaths.orphan_due(self._store.view)
            looks = (self._next_look,) if self._needs_looks() else ()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deaths.wait_seconds(looks)):
                    await deaths.sooner.wait()

    def _needs_looks(self) -> bool:
        """Tell whether something may change that no event tells of.

        A lone manager with its own agent is left in peace.
        """
        if any(not session.is_local for session in self._sessions.values()):
            return True
        return bool(self._sessions) and any(
            cluster.root_rotation is not None for cluster in self._store.view().clusters
        )


def _beat_of(view: View) -> Beat:
    for cluster in view.clusters:
        return Beat.of(cluster.spec)
    return Beat(1.0, 3.0)


def _node_of(row: object) -> NodeID | None:
    return row.node_id if isinstance(row, Task) else None


def _status(node_id: NodeID, update: StatusUpdate) -> Callable[[Transaction], Ignored | None]:
    return lambda tx: write_status(tx, node_id, update)

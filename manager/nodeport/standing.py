"""What a caller is in the cluster now, by its row, and the calls under way that depend on it.

A certificate says what its holder was when it was issued. What the holder is now stands in the
cluster's state: a node that was removed or demoted keeps its certificate until that ends, and must
not be served by it. So every call is checked against the row when it begins, and a call that
lasts (a stream) again whenever the row changes, and when its certificate ends.

`check_row` is pure. `OpenCalls` keeps the streams of one server and belongs to one event loop. The
module needs no grpc: the API port, which a lone manager has too, uses it as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import structlog

from manager.store.tables import View
from manager.store.watch import Event, Resync, Watch
from proto.clock import Clock
from proto.errors import DeniedError, RemovedError, SwarmError, UnavailableError
from proto.ids import NodeID
from proto.objects import Node, NodeRole
from raft.transport.identity import Identity

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

LOOK_SECONDS_MAX = 5.0
"""How long a certificate may have ended before a stream that was opened with it is ended."""


def check_row(view: View, node_id: NodeID, *, as_manager: bool, is_newest: bool) -> None:
    """Refuse a node that is not in the cluster, or that is no manager where only managers may call.

    Only who has the newest state, the leader, knows that a node without a row is not in the
    cluster: another manager may not have been told of it yet, or of its promotion.

    Args:
        view: the cluster's state.
        node_id: the caller, as its certificate says.
        as_manager: whether only managers may make this call.
        is_newest: whether `view` has all that was committed before the call.

    Raises:
        RemovedError: it is not in the cluster, or no longer.
        DeniedError: it is no manager, or no longer.
        UnavailableError: it is no manager as far as this manager knows; the leader knows better.
    """
    node = view.nodes.get(node_id)
    if node is None:
        for cluster in view.clusters:
            if any(removed.id == node_id for removed in cluster.removed_nodes):
                raise RemovedError(node_id, is_known=True)
        if is_newest:
            # Its certificate is the cluster's, so it was in it once.
            raise RemovedError(node_id)
        return
    if as_manager and node.role is not NodeRole.MANAGER:
        sentence = f"node {node_id} is no manager of this cluster, or no longer one"
        if not is_newest:
            raise UnavailableError(f"{sentence}, as far as this manager was told")
        raise DeniedError(
            f"{sentence}: its certificate of a manager does not count; it gets another when it "
            "renews it"
        )


def check_candidate(view: View, node_id: NodeID) -> None:
    """Refuse a node that is not to be a manager; for whoever lets one into the managers' group.

    Unlike `check_row` it looks at the wanted role too: a manager that is being demoted counts as
    one until it has left the group, but it must not come in again.

    Raises:
        RemovedError: it is not in the cluster, or no longer.
        DeniedError: it is no manager, or is to be none.
    """
    check_row(view, node_id, as_manager=True, is_newest=True)
    node = view.nodes.get(node_id)
    if node is not None and node.spec.role is not NodeRole.MANAGER:
        raise DeniedError(f"node {node_id} is being demoted: it cannot join the managers again")


class OpenCall:
    """A call under way; `refusal` says why it was ended, if it was."""

    def __init__(self, identity: Identity, check: Callable[[], None]) -> None:
        """Be served by the current task."""
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.identity = identity
        self.check = check
        self.refusal: SwarmError | None = None


class OpenCalls:
    """The streams of a server, each ended when its caller may not make it any more."""

    def __init__(self, clock: Clock) -> None:
        """Have none; `clock` is for the dates of certificates."""
        self._clock = clock
        self._calls: dict[NodeID, list[OpenCall]] = {}

    @contextlib.contextmanager
    def opened(self, identity: Identity, check: Callable[[], None]) -> Iterator[OpenCall]:
        """Keep the call that the current task serves, for as long as the block lasts.

        Args:
            identity: the caller.
            check: raises the `SwarmError` why the caller may not call now. Must be quick.

        Raises:
            SwarmError: from the end of the block, when the call was ended: what `check` raised.
        """
        call = OpenCall(identity, check)
        calls = self._calls.setdefault(identity.node_id, [])
        calls.append(call)
        try:
            yield call
        except asyncio.CancelledError:
            if call.refusal is None:
                raise
            call.task.uncancel()
            raise call.refusal from None
        finally:
            calls.remove(call)
            if not calls and self._calls.get(identity.node_id) is calls:
                del self._calls[identity.node_id]

    @property
    def count(self) -> int:
        """How many calls are under way."""
        return sum(len(calls) for calls in self._calls.values())

    async def follow(self, watch: Watch) -> None:
        """Look at the calls again when a row changes or a certificate ends; until cancelled.

        Args:
            watch: of the nodes, not entered yet.
        """
        async with watch:
            looked_at = self._clock.monotonic()
            while True:
                try:
                    async with asyncio.timeout(LOOK_SECONDS_MAX):
                        self._sort((*await anext(watch), *watch.drain()))
                except TimeoutError:
                    pass
                except StopAsyncIteration:
                    return
                if self._clock.monotonic() - looked_at >= LOOK_SECONDS_MAX:
                    self.look_at_dates()
                    looked_at = self._clock.monotonic()

    def _sort(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if isinstance(event, Resync):
                self.look()
                return
            row = event.old if event.new is None else event.new
            if not isinstance(row, Node):
                continue
            if event.new is None:
                for call in list(self._calls.get(row.id, ())):
                    _end(call, RemovedError(row.id, is_known=True))
            else:
                self.look(row.id)

    def look(self, node_id: NodeID | None = None) -> None:
        """End the calls of a node, of all if none is named, that may not be made any more."""
        named = list(self._calls) if node_id is None else [node_id]
        for name in named:
            for call in list(self._calls.get(name, ())):
                _look_at(call)

    def look_at_dates(self) -> None:
        """End the calls of those whose certificate has ended."""
        now = self._clock.wall()
        for calls in list(self._calls.values()):
            for call in list(calls):
                if now >= call.identity.valid_until:
                    _look_at(call)


def _look_at(call: OpenCall) -> None:
    try:
        call.check()
    except SwarmError as error:
        _end(call, error)


def _end(call: OpenCall, reason: SwarmError) -> None:
    if call.refusal is None:
        call.refusal = reason
        call.task.cancel()
        log.warning("call_ended", peer_id=call.identity.node_id, reason=reason.message)

"""Reads the output of tasks on other nodes, for the clients of this manager.

A reading is a wish that the leader tells the task's node, and a stream that the node opens in
return. Streams break, nodes and leaders go: a reading that follows then wishes again, from where
it was; one that does not says what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Iterator

import structlog

from manager.logbroker.asker import Asker
from manager.logbroker.position import Position
from manager.store.tables import View
from proto.errors import DeniedError, NotFoundError, UnavailableError
from proto.ids import NodeID, TaskID, new_id
from proto.logs import LogOptions, LogRecord, LogRequest
from proto.objects import Task

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

BATCHES_AHEAD_MAX = 4
"""Messages of a task that wait for the client; more are not read from the node."""

START_SECONDS_MAX = 5.0
"""What a node that was told may take to open its stream."""

LEADER_SECONDS_MAX = 10.0
"""What the leader may take to answer a reading that does not follow; an election has room in it."""

RETRY_SECONDS = 0.5
LOOK_SECONDS = 1.0


class Wish:
    """One attempt to read: what was asked for, and what came.

    Attributes:
        request: as the leader and the node were told.
        over: set when either end has given up, or is done.
        changed: set when one of the next two did.
        obstacle: why nobody can fulfil it; "" if a node was told, None if nobody answered yet.
        answered_at: the loop's time when that changed last.
        is_open: whether the node has begun.
        is_complete: whether all lines have come.
    """

    def __init__(self, request: LogRequest) -> None:
        """Have nothing yet."""
        self.request = request
        self.over = asyncio.Event()
        self.changed = asyncio.Event()
        self.obstacle: str | None = None
        self.answered_at = asyncio.get_running_loop().time()
        self.is_open = False
        self.is_complete = False
        self._batches: asyncio.Queue[list[LogRecord] | None] = asyncio.Queue(BATCHES_AHEAD_MAX)

    @property
    def was_told(self) -> bool:
        """Whether the leader told a node."""
        return self.obstacle is not None and not self.obstacle

    def answer(self, obstacle: str) -> None:
        """Note why nobody can fulfil it now; "" if a node was told."""
        self.obstacle = obstacle
        self.answered_at = asyncio.get_running_loop().time()
        self.changed.set()

    def open(self) -> None:
        """Note that the node has begun."""
        self.is_open = True
        self.changed.set()

    async def put(self, records: list[LogRecord] | None) -> None:
        """Pass on lines, or None at the end; waits while the client does not read."""
        await self._batches.put(records)
        self.is_complete = records is None

    async def next(self) -> list[LogRecord] | None:
        """Return the next lines; None at the end.

        Raises:
            UnavailableError: the stream broke.
        """
        getter = asyncio.ensure_future(self._batches.get())
        broken = asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait((getter, broken), return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
        finally:
            getter.cancel()
            broken.cancel()
        if not self._batches.empty():
            return self._batches.get_nowait()
        raise UnavailableError("the stream of its output broke")


class Collector:
    """See the module. Belongs to one event loop.

    Attributes:
        address: of this manager's node port, for nodes.
    """

    def __init__(
        self,
        node_id: NodeID,
        address: str,
        view: Callable[[], View],
        rng: random.Random,
        asker: Asker,
    ) -> None:
        """Wish for nothing yet.

        Args:
            node_id: this manager's.
            address: of its node port.
            view: the cluster's state, as far as this manager knows it.
            rng: draws the IDs of wishes, which are not to be guessed.
            asker: lets the leader know of wishes.
        """
        self._node_id = node_id
        self.address = address
        self._view = view
        self._rng = rng
        self._asker = asker
        self._wishes: dict[str, Wish] = {}

    async def run(self) -> None:
        """Keep the leader told of what is wished for, until cancelled."""
        await self._asker.run()

    def begin(self, request_id: str, node_id: NodeID) -> Wish:
        """Let a node begin to send what was wished for.

        Raises:
            NotFoundError: nobody wishes for it any more.
            DeniedError: it is another node's task, or the lines come already.
        """
        wish = self._wishes.get(request_id)
        if wish is None:
            raise NotFoundError("log request", request_id)
        task = self._view().tasks.get(wish.request.task_id)
        if task is None or task.node_id != node_id:
            raise DeniedError(f"task {wish.request.task_id} is not one of node {node_id}")
        if wish.is_open:
            raise DeniedError(f"the output of task {wish.request.task_id} comes already")
        wish.open()
        return wish

    async def read(self, task_id: TaskID, options: LogOptions) -> AsyncGenerator[LogRecord]:
        """Yield the output of a task of another node, oldest first.

        With `follow` it waits for a task that is on no node yet and for a node that is away, and
        ends with the task's container or the task.

        Raises:
            UnavailableError: lines are missing, and why.
        """
        position = Position(options)
        while True:
            is_following = options.follow and self._is_alive(task_id)
            try:
                async with contextlib.aclosing(self._attempt(task_id, position.begin())) as attempt:
                    async for records in attempt:
                        for record in position.fresh(records):
                            yield record
            except UnavailableError as error:
                if not is_following:
                    raise
                log.info("logs_interrupted", task_id=task_id, reason=error.message)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _attempt(
        self, task_id: TaskID, options: LogOptions
    ) -> AsyncGenerator[list[LogRecord]]:
        with self._wishing(task_id, options) as wish:
            if not await self._has_begun(wish):
                return
            while (records := await wish.next()) is not None:
                yield records

    @contextlib.contextmanager
    def _wishing(self, task_id: TaskID, options: LogOptions) -> Iterator[Wish]:
        request = LogRequest(
            id=new_id(self._rng),
            task_id=task_id,
            options=options,
            manager_id=self._node_id,
            address=self.address,
        )
        wish = self._wishes[request.id] = Wish(request)
        self._asker.ask(request, wish.answer)
        try:
            yield wish
        finally:
            del self._wishes[request.id]
            wish.over.set()
            self._asker.forget(request.id)

    async def _has_begun(self, wish: Wish) -> bool:
        """Wait for the node's stream; return False if there will be nothing to read.

        Raises:
            UnavailableError: there is something, and it cannot be had.
        """
        while not wish.is_open:
            task = self._view().tasks.get(wish.request.task_id)
            if task is None:
                return False
            if wish.request.options.follow and not _is_over(task):
                _check_node(wish, task)
            elif task.node_id:
                _check_answer(wish)
                _check_node(wish, task)
            else:
                return False  # it never ran
            wish.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await wish.changed.wait()
        return True

    def _is_alive(self, task_id: TaskID) -> bool:
        task = self._view().tasks.get(task_id)
        return task is not None and not _is_over(task)


def _is_over(task: Task) -> bool:
    return task.status.state.is_terminal


def _check_answer(wish: Wish) -> None:
    """Raise `UnavailableError` if nobody can fulfil a wish that does not wait for better times."""
    if wish.obstacle:
        raise UnavailableError(wish.obstacle)
    if wish.obstacle is None and _waited_seconds(wish) > LEADER_SECONDS_MAX:
        raise UnavailableError("no manager leads, so that its node cannot be asked")


def _check_node(wish: Wish, task: Task) -> None:
    """Raise `UnavailableError` if the node was told long ago; a new wish is worth a try."""
    if wish.was_told and _waited_seconds(wish) > START_SECONDS_MAX:
        raise UnavailableError(f"node {task.node_id} was asked and sent nothing")


def _waited_seconds(wish: Wish) -> float:
    return asyncio.get_running_loop().time() - wish.answered_at

"""The worker's shell: sessions with a manager, the database, timers, and the runner.

    dispatcher --messages--> TaskTable --instructions--> Runner --outcomes--> TaskTable
                                 |  reports
                                 +---------> WorkerDB, then Reporter --> dispatcher

Everything runs in one event loop, and an event is handled where it happens: the table never waits.
Containers need neither this program nor a manager: after `close` or a crash they go on, and the
next `run` adopts them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from overlay.api import NodeNetwork
from proto.clock import Clock
from proto.errors import (
    DeniedError,
    DuplicateNodeError,
    NotFoundError,
    RemovedError,
    SwarmError,
    UnavailableError,
)
from proto.ids import ContainerID, ImageID, NodeID, TaskID, container_id_of
from proto.logs import LogOptions, LogRecord
from proto.objects import Node, NodeDescription
from proto.text import time_of_day
from worker.api import AssignmentMessage, CompleteAssignments, Dispatcher, StatusUpdate
from worker.backoff import Backoff
from worker.container import (
    PREPARED_LABEL,
    NodeFacts,
    Templates,
    named_volumes,
    prepared_from,
)
from worker.db import WorkerDB
from worker.reporter import Reporter
from worker.runner import Images, Runner
from worker.runtime.api import Runtime
from worker.task.events import Event, Forget, Instruction, Report, ReportBug
from worker.task.phases import Phase
from worker.task.table import Remains, TaskTable
from worker.volumes import NOBODY, VolumeStore
from worker.waits import SHOWN_SECONDS

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

DATABASE = "worker.db"
REMOVALS_MAX = 4
LOGS_POLL_SECONDS = 0.1
SAVE_RETRY_SECONDS = 5.0
# For all managers together; the dispatcher's client has a limit for each.
REGISTER_SECONDS_MAX = 90.0
# A new leader believes a node alive for twice three seconds: the node must try again before.
SESSION_PAUSE_SECONDS_MAX = 5.0

T = TypeVar("T")


class Agent:
    """This node's worker.

    `runtime`, `images`, `network` and `dispatcher` belong to the caller, who closes them after
    `close`. Its state is in `<state_dir>/worker.db` and `<state_dir>/volumes`.

    Attributes:
        volumes: the node's volumes.
        node: this node as the manager last described it; None before the first session.
        refusal: why the managers will not let this node in again; "" while they may.
    """

    def __init__(
        self,
        state_dir: Path,
        node_id: NodeID,
        description: NodeDescription,
        *,
        runtime: Runtime,
        images: Images,
        network: NodeNetwork,
        dispatcher: Dispatcher,
        clock: Clock,
        rng: random.Random,
        removed: Callable[[], None] = lambda: None,
    ) -> None:
        """Touch nothing yet; `run` does.

        `removed` is called after a container is gone and its image no longer counts as used by it.
        """
        self._removed = removed
        self._state_dir = state_dir
        self._node_id = node_id
        self._description = description
        self._runtime = runtime
        self._network = network
        self._dispatcher = dispatcher
        self._clock = clock
        self._rng = rng
        self.volumes = VolumeStore(state_dir)
        self.node: Node | None = None
        self.refusal = ""
        self._table = TaskTable()
        self._reporter = Reporter(node_id, dispatcher, rng, clock)
        self._without_session_since = 0.0
        self._session_reason = "none was asked yet"
        self._facts = NodeFacts(
            id=node_id, hostname=description.hostname, platform=description.platform
        )
        self._runner = Runner(
            runtime=runtime,
            images=images,
            network=network,
            volumes=self.volumes,
            node=self._facts,
            clock=clock,
            emit=self._take,
        )
        self._db: WorkerDB | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.TimerHandle | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._ended: asyncio.Future[None] | None = None
        self._is_closing = False
        self._is_leaving = False
        self._halting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Adopt what runs, then work until `close`; once only.

        Raises:
            RuntimeFailedError: the network or the runtime cannot be used at all.
            InvariantViolationError: a bug beyond a single task.
        """
        assert self._ended is None
        self._ended = asyncio.get_running_loop().create_future()
        try:
            await self._adopt()
            self._loops = [
                asyncio.create_task(self._keep_session()),
                asyncio.create_task(self._reporter.run()),
            ]
            for loop in self._loops:
                loop.add_done_callback(self._loop_ended)
            await self._ended
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop working. Containers go on."""
        await self._halt()
        if self._is_leaving:
            return  # `leave` brings it to an end.
        if self._db is not None:
            self._db.close()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def leave(self) -> None:
        """Stop working and remove every container of ours: the node leaves its cluster.

        `run` returns only afterwards, so that its caller does not close the network too early.

        Raises:
            RuntimeFailedError: some containers could not be removed; it may be called again.
        """
        is_running = self._ended is not None and not self._ended.done()
        self._is_leaving = True
        await self._halt()
        try:
            if self._db is None or not is_running:
                self._db = WorkerDB(self._state_dir / DATABASE, wall=self._clock.wall())
                await self._network.start(frozenset())
            await self._network.publish(())
            removed = await self._remove_containers()
            self._db.clear()
            log.info("node_left", node_id=self._node_id, containers_removed=removed)
        finally:
            self._is_leaving = False
            await self.close()

    async def _halt(self) -> None:
        """Stop all loops and timers once, and let work under way end."""
        if self._halting is None:
            self._is_closing = True
            self._halting = asyncio.create_task(self._halted())
        await asyncio.shield(self._halting)

    async def _halted(self) -> None:
        for timer in (self._timer, self._saving):
            if timer is not None:
                timer.cancel()
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._runner.close()
        log.info("agent_halted", node_id=self._node_id)

    async def _remove_containers(self) -> int:
        containers = [
            c for c in await self._runtime.list_containers() if PREPARED_LABEL in c.labels
        ]
        room = asyncio.Semaphore(REMOVALS_MAX)

        async def remove(container_id: ContainerID) -> None:
            async with room:
                await self._runner.purge(container_id)

        results = await asyncio.gather(
            *(remove(container.id) for container in containers), return_exceptions=True
        )
        for error in results:
            if isinstance(error, BaseException):
                raise error
        return len(containers)

    async def logs(self, task_id: TaskID, options: LogOptions) -> AsyncGenerator[LogRecord]:
        """Yield the output of a task's container; nothing if it never had one.

        With `follow` it waits for a container that is still being made.

        Raises:
            NotFoundError: the task is not on this node.
        """
        if task_id not in self._table.machines:
            raise NotFoundError("task", task_id)
        while not self._has_container(task_id):
            if not options.follow or self._is_over(task_id):
                return
            await asyncio.sleep(LOGS_POLL_SECONDS)
        async with _closed_after(self._runtime.logs(container_id_of(task_id), options)) as records:
            async for record in records:
                yield record

    def has_task(self, task_id: TaskID) -> bool:
        """Tell whether a task is on this node."""
        return task_id in self._table.machines

    def _has_container(self, task_id: TaskID) -> bool:
        machine = self._table.machines.get(task_id)
        return machine is not None and machine.prepared is not None

    def _is_over(self, task_id: TaskID) -> bool:
        machine = self._table.machines.get(task_id)
        return self._is_closing or machine is None or machine.status.state.is_terminal

    def container_counts(self) -> tuple[int, int]:
        """Return how many containers run, and how many have ended and are kept."""
        machines = [m for m in self._table.machines.values() if m.prepared is not None]
        running = sum(machine.has_process for machine in machines)
        ended = sum(machine.phase is Phase.ENDED for machine in machines)
        return running, ended

    def running_containers(self) -> frozenset[ContainerID]:
        """Return the containers that have a living process."""
        machines = self._table.machines.values()
        return frozenset(container_id_of(m.task_id) for m in machines if m.has_process)

    def images_in_use(self) -> Mapping[ImageID, tuple[ContainerID, ...]]:
        """Return the images of all containers, those being made included."""
        uses: dict[ImageID, list[ContainerID]] = {}
        held = self._runner.images_held
        for machine in self._table.machines.values():
            container_id = container_id_of(machine.task_id)
            if machine.prepared is not None and machine.prepared.image_id:
                held[container_id] = machine.prepared.image_id
        for container_id, image_id in sorted(held.items()):
            uses.setdefault(image_id, []).append(container_id)
        return {image_id: tuple(ids) for image_id, ids in uses.items()}

    def volumes_in_use(self) -> Mapping[str, tuple[ContainerID, ...]]:
        """Return the volumes of all containers, those being made and those kept included."""
        uses: dict[str, list[ContainerID]] = {}
        for machine in self._table.machines.values():
            if machine.prepared is None and machine.status.state.is_terminal:
                continue
            templates = Templates(machine.assignment, self._facts)
            for name in sorted(named_volumes(machine.assignment, templates)):
                uses.setdefault(name, []).append(container_id_of(machine.task_id))
        for volume in self.volumes.all():
            if volume.owner != NOBODY:
                uses.setdefault(volume.name, []).append(volume.owner)
        return {name: tuple(ids) for name, ids in uses.items()}

    # --- beginning ---

    async def _adopt(self) -> None:
        self._db = WorkerDB(self._state_dir / DATABASE, wall=self._clock.wall())
        containers = await self._runtime.list_containers()
        await self._remove_orphaned_volumes({container.id for container in containers})
        live = frozenset(c.id for c in containers if c.state in {"created", "running"})
        attachments = await self._network.start(live)
        remains: dict[ContainerID, Remains] = {}
        for container in containers:
            if PREPARED_LABEL in container.labels:
                attachment = attachments.get(container.id)
                address = "" if attachment is None else attachment.address
                prepared = prepared_from(container.labels, address)
                remains[container.id] = Remains(container=container, prepared=prepared)
        stored = self._db.load()
        log.info("agent_started", node_id=self._node_id, tasks=len(stored), containers=len(remains))
        self._plan_saving()
        self._follow(self._table.adopt(stored, remains, self._clock.monotonic()))

    async def _remove_orphaned_volumes(self, existing: Collection[ContainerID]) -> None:
        """Remove anonymous volumes whose container a killed daemon removed, or never made.

        Before anything is made anew: its volumes would have the same owner.
        """
        if self.volumes.has_rests():
            # Deleting files may take long.
            await asyncio.to_thread(self.volumes.sweep)
        for volume in self.volumes.all():
            if volume.owner == NOBODY or volume.owner in existing:
                continue
            try:
                await asyncio.to_thread(self.volumes.remove, volume.name)
            except SwarmError as error:
                log.warning("volume_not_removed", volume=volume.name, error=error.message)
            else:
                log.info("orphaned_volume_removed", volume=volume.name)

    # --- sessions ---

    async def _keep_session(self) -> None:
        backoff = Backoff(self._rng, seconds_max=SESSION_PAUSE_SECONDS_MAX)
        while True:
            self._without_session_since = self._without_session_since or self._clock.wall()
            try:
                await self._one_session(backoff)
            except DuplicateNodeError as error:
                self.refusal = error.message
                log.error("node_is_elsewhere", node_id=self._node_id, error=error.message)  # noqa: TRY400 -- as below
            except UnavailableError as error:
                self._session_reason = error.message
                log.warning("session_lost", node_id=self._node_id, error=error.message)
            except TimeoutError:
                self._session_reason = "no manager answered"
                log.warning("session_lost", node_id=self._node_id, error="no manager answered")
            except RemovedError as error:
                backoff.slow_down()
                self.refusal = error.message
                log.error("node_removed", node_id=self._node_id, error=error.message)  # noqa: TRY400 -- as below
                # Others run its tasks by now, and nobody will ever tell it to stop them.
                self._obey(CompleteAssignments(()))
            except DeniedError as error:
                backoff.slow_down()
                self._session_reason = error.message
                log.error("session_denied", node_id=self._node_id, error=error.message)  # noqa: TRY400 -- the manager's answer, no trace needed
            except SwarmError as error:
                self._session_reason = error.message
                log.error("session_refused", node_id=self._node_id, error=error.message)  # noqa: TRY400 -- the manager's answer, no trace needed
            except Exception:
                log.exception("session_crashed", node_id=self._node_id)
            else:
                log.info("session_ended", node_id=self._node_id)
            self._reporter.pause()
            await asyncio.sleep(backoff.next_seconds())

    async def _one_session(self, backoff: Backoff) -> None:
        async with asyncio.timeout(REGISTER_SECONDS_MAX):
            self.node = await self._dispatcher.register(self._node_id, self._description)
        self.refusal = ""
        self._without_session_since = 0.0
        log.info("session_opened", node_id=self._node_id)
        self._reporter.open()
        async with _closed_after(self._dispatcher.assignments(self._node_id)) as messages:
            async for message in messages:
                backoff.reset()
                self._obey(message)

    def _obey(self, message: AssignmentMessage) -> None:
        self._store(message)
        self._take(message)

    def _store(self, message: AssignmentMessage) -> None:
        assert self._db is not None
        match message:
            case CompleteAssignments(assignments=assignments):
                log.info("assignments_completed", tasks=len(assignments))
                self._db.replace(assignments)
            case _:
                log.info(
                    "assignments_changed",
                    updated=len(message.updated),
                    removed=len(message.removed),
                )
                self._db.update(message.updated, message.removed)
        self._plan_saving()

    def _plan_saving(self) -> None:
        """Try again, until it is so, to store what the disk does not take now."""
        assert self._db is not None
        if self._db.fault and self._saving is None:
            loop = asyncio.get_running_loop()
            self._saving = loop.call_later(SAVE_RETRY_SECONDS, self._save_again)

    def _save_again(self) -> None:
        assert self._db is not None
        self._saving = None
        if not self._is_closing:
            self._db.retry()
            self._plan_saving()

    def troubles(self) -> tuple[str, ...]:
        """Return what is wrong with this node's work, as sentences; its tasks run all the same."""
        fault = self._db.fault if self._db is not None else ""
        found = (fault, self._session_trouble(), self._reporter.trouble, *self._runner.awaited())
        return tuple(sentence for sentence in found if sentence)

    def _session_trouble(self) -> str:
        """Say that no manager lets this node in, since when and why; "" if one does."""
        since = self._without_session_since
        if not since or self._clock.wall() - since < SHOWN_SECONDS:
            return ""
        return (
            f"waiting for a manager to let this node in since {time_of_day(since)} "
            f"({self._session_reason})"
        )

    # --- events and instructions ---

    def _take(self, event: Event) -> None:
        """Let the table decide on an event, and begin what it says."""
        if self._is_closing:
            return  # The next daemon will see for itself.
        try:
            self._follow(self._table.handle(event, self._clock.monotonic()))
        except Exception as bug:  # noqa: BLE001 -- `run` raises it
            self._crashed(bug)

    def _tick(self) -> None:
        self._timer = None
        try:
            self._follow(self._table.tick(self._clock.monotonic()))
        except Exception as bug:  # noqa: BLE001 -- `run` raises it
            self._crashed(bug)

    def _crashed(self, bug: Exception) -> None:
        assert self._ended is not None
        if self._ended.done():
            log.error("agent_crashed_again", exc_info=bug)
        else:
            self._ended.set_exception(bug)

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        """See that a bug in a loop does not go unnoticed."""
        bug = None if loop.cancelled() else loop.exception()
        if isinstance(bug, Exception):
            self._crashed(bug)

    def _follow(self, instructions: list[Instruction]) -> None:
        """Store the reports first, then begin the rest in its order."""
        self._report([i for i in instructions if isinstance(i, Report)])
        for instruction in instructions:
            match instruction:
                case Report():
                    pass
                case Forget(task_id=task_id):
                    self._reporter.forget(task_id)
                    self._removed()
                    log.info("task_forgotten", task_id=task_id)
                case ReportBug(task_id=task_id, story=story):
                    log.error("task_abandoned", task_id=task_id, story=story)
                case _:
                    self._runner.carry_out(instruction)
        self._plan_tick()

    def _report(self, reports: Iterable[Report]) -> None:
        assert self._db is not None
        newest: dict[TaskID, StatusUpdate] = {}
        for report in reports:
            log.info(
                "task_state_changed",
                task_id=report.task_id,
                state=report.status.state.name,
                err=report.status.err,
            )
            status = self._table.stamp(report, self._clock.wall())
            newest[report.task_id] = StatusUpdate(report.task_id, status)
        if newest:
            self._db.put_statuses(newest.values())
            self._plan_saving()
        for update in newest.values():
            self._reporter.add(update.task_id, update.status)

    def _plan_tick(self) -> None:
        due = self._table.next_timer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            delay = max(0.0, due - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)


@asynccontextmanager
async def _closed_after(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close the stream, if it is an async generator, at once and not when it is collected."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()

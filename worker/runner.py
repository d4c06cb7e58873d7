"""Carries out what the task table decides: each instruction an asyncio task, its outcome an event.

No rule about tasks lives here. Whatever goes wrong becomes the instruction's failure event with a
sentence, also a bug in this code: one task's work never stops another's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, TypeVar, assert_never
from weakref import WeakValueDictionary

import structlog

from overlay.api import NodeNetwork, PublishedPort
from proto.clock import Clock
from proto.errors import NotFoundError, ResourceExhaustedError, SwarmError
from proto.ids import ContainerID, ImageID, TaskID, container_id_of
from worker.api import Assignment
from worker.container import (
    NodeFacts,
    PlannedMount,
    Templates,
    container_config,
    container_mount,
    planned_mounts,
    prepared_of,
)
from worker.images.api import Image, Progress
from worker.pulls import SharedPulls
from worker.room import Room
from worker.runtime.api import ContainerMount, Runtime
from worker.task.events import (
    CancelPrepare,
    Detach,
    Detached,
    Event,
    Exited,
    Forget,
    HealthcheckDone,
    Instruction,
    Kill,
    PortsApplied,
    PortsFailed,
    Prepare,
    PrepareCancelled,
    Prepared,
    PrepareDone,
    PrepareFailed,
    PublishPorts,
    Remove,
    Removed,
    RemoveFailed,
    RemoveStray,
    Report,
    ReportBug,
    RunHealthcheck,
    Start,
    Started,
    StartFailed,
    StrayKept,
    Wait,
    WaitFailed,
    Waiting,
)
from worker.volumes import VolumeStore
from worker.waits import NO_TASK, Waits

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# Making a container is mostly waiting for the runtime's processes: a few more than there are cores.
PREPARATIONS_MAX = max(4, 2 * (os.cpu_count() or 1))
PUBLISH_ATTEMPTS_MAX = 3
PUBLISH_PAUSE_SECONDS = 0.1
HEALTHCHECK_OUTPUT_CHARACTERS_MAX = 4096
HEALTHCHECK_NOT_RUN = -1

T = TypeVar("T")


class Images(Protocol):
    """What the worker needs of the image store."""

    def resolve(self, ref: str) -> Image:
        """Return the image.

        Raises:
            NotFoundError: this node does not have it.
        """

    def pull(self, ref: str, *, progress: Callable[[Progress], None]) -> Awaitable[Image]:
        """Fetch the image from its registry."""


class Runner:
    """The instructions under way.

    Args:
        emit: takes each outcome; never blocks.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        images: Images,
        network: NodeNetwork,
        volumes: VolumeStore,
        node: NodeFacts,
        clock: Clock,
        emit: Callable[[Event], None],
    ) -> None:
        """Begin with nothing under way."""
        self._runtime = runtime
        self._images = images
        self._pulls = SharedPulls(lambda ref, note: images.pull(ref, progress=note))
        self._network = network
        self._volumes = volumes
        self._node = node
        self._clock = clock
        self._emit = emit
        self._waits = Waits(clock, self._note_wait)
        self._room = Room(PREPARATIONS_MAX)
        self._working: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._pulling: dict[TaskID, asyncio.Future[Image]] = {}
        self._cancelled: set[TaskID] = set()
        self._locks: WeakValueDictionary[ContainerID, asyncio.Lock] = WeakValueDictionary()
        self._images_held: dict[TaskID, ImageID] = {}

    def awaited(self) -> tuple[str, ...]:
        """Return what is waited for on behalf of the node, as sentences."""
        return self._waits.sentences()

    def _note_wait(self, task_id: TaskID, sentence: str) -> None:
        self._emit(Waiting(task_id, sentence))

    @property
    def images_held(self) -> dict[ContainerID, ImageID]:
        """Return the images of containers that are being made."""
        return {container_id_of(task_id): image for task_id, image in self._images_held.items()}

    def carry_out(self, instruction: Instruction) -> None:  # noqa: C901 -- a table
        """Begin one instruction. `Report` and `Forget` are the agent's own."""
        match instruction:
            case Prepare():
                self._work(self._prepare(instruction))
            case CancelPrepare(task_id=task_id):
                self._cancel_preparation(task_id)
            case Start():
                self._work(self._start(instruction))
            case Wait():
                self._watch(self._wait(instruction))
            case Kill():
                self._work(self._kill(instruction))
            case RunHealthcheck():
                self._watch(self._check_health(instruction))
            case Detach():
                self._work(self._detach(instruction))
            case Remove():
                self._work(self._remove(instruction))
            case RemoveStray():
                self._work(self._remove_stray(instruction))
            case PublishPorts():
                self._work(self._publish(instruction.ports))
            case Report() | Forget() | ReportBug():
                raise AssertionError(instruction)
            case _:
                assert_never(instruction)

    async def close(self) -> None:
        """Give up waiting, finish what changes the machine: it takes moments."""
        for task_id in list(self._pulling):
            self._cancel_preparation(task_id)
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, *self._working, return_exceptions=True)

    async def purge(self, container_id: ContainerID) -> None:
        """Remove a container, its network attachment and its anonymous volumes.

        Raises:
            SwarmError: something is left; it may be called again.
        """
        what = f"container {container_id[:12]} to be removed"
        with self._waits.on(NO_TASK, what):
            await self._purge(container_id)

    async def _purge(self, container_id: ContainerID) -> None:
        async with self._lock(container_id):
            await self._runtime.remove(container_id)
            await self._network.detach(container_id)
            if self._volumes.owned_by(container_id):
                # Deleting files may take long.
                await asyncio.to_thread(self._volumes.remove_owned, container_id)

    def _lock(self, container_id: ContainerID) -> asyncio.Lock:
        """Keep the making of a container apart from the removal of its former self."""
        lock = self._locks.get(container_id)
        if lock is None:
            lock = self._locks[container_id] = asyncio.Lock()
        return lock

    # --- preparing ---

    async def _prepare(self, instruction: Prepare) -> None:
        task_id = instruction.task_id
        try:
            prepared = await _attempt(self._prepared(instruction), "preparing it")
        except _WorkFailedError as failure:
            self._emit(PrepareFailed(task_id, failure.sentence))
        except asyncio.CancelledError:
            if task_id not in self._cancelled:
                raise
            self._emit(PrepareCancelled(task_id))
        else:
            self._emit(PrepareDone(task_id, prepared))
        finally:
            self._cancelled.discard(task_id)
            self._images_held.pop(task_id, None)

    async def _prepared(self, instruction: Prepare) -> Prepared:
        assignment = instruction.assignment
        task_id, container = assignment.task.id, assignment.spec.task.container
        image = await self._resolved(task_id, container.image)
        self._images_held[task_id] = image.id
        async with self._entered(task_id):
            if task_id in self._cancelled:
                raise asyncio.CancelledError
            if instruction.is_anew:
                with self._waits.on(task_id, "what is left of its container to be removed"):
                    await self.purge(container_id_of(task_id))
            with self._waits.on(task_id, "its former container to be removed"):
                lock = self._lock(container_id_of(task_id))
                await lock.acquire()
            try:
                return await self._made(assignment, image)
            finally:
                lock.release()

    @asynccontextmanager
    async def _entered(self, task_id: TaskID) -> AsyncIterator[None]:
        """Wait for room to make a container."""
        async with AsyncExitStack() as stack:
            with self._waits.on(task_id, f"{PREPARATIONS_MAX} other containers to be made"):
                await stack.enter_async_context(self._room.entered())
            yield

    async def _resolved(self, task_id: TaskID, reference: str) -> Image:
        """Find or pull the image; the one step that may take long and can be cancelled."""
        if task_id in self._cancelled:
            raise asyncio.CancelledError
        try:
            return self._images.resolve(reference)
        except NotFoundError:
            log.info("image_pull_began", task_id=task_id, image=reference)
        pulling = asyncio.ensure_future(self._pulls.pull(reference))
        self._pulling[task_id] = pulling
        try:
            with self._waits.on(task_id, lambda: self._pulls.awaited(reference)):
                return await pulling
        except SwarmError as error:
            if reference in error.message:
                raise
            raise NotFoundError(
                "image", reference, f"No such image: {reference} ({error.message})"
            ) from error
        finally:
            pulling.cancel()
            del self._pulling[task_id]

    async def _made(self, assignment: Assignment, image: Image) -> Prepared:
        container_id = container_id_of(assignment.task.id)
        templates = Templates(assignment, self._node)
        planned = planned_mounts(assignment, image.config, templates)
        task_id = assignment.task.id
        with self._waits.on(task_id, "its network to be made"):
            attachment = await self._network.attach(container_id)
        prepared = prepared_of(
            assignment.spec.task.container,
            image.config,
            image_id=image.id,
            address=attachment.address,
        )
        config = container_config(
            assignment,
            image,
            self._node,
            prepared,
            netns_path=attachment.netns_path,
            mounts=tuple(self._mounted(one, container_id) for one in planned),
        )
        with self._waits.on(task_id, "the container runtime, or the disk, to make its container"):
            await self._runtime.create(config)
        return prepared

    def _mounted(self, planned: PlannedMount, container_id: ContainerID) -> ContainerMount:
        path = None
        if planned.volume is not None:
            path = self._volumes.resolve(planned.volume, container_id, self._clock.wall())
        return self._volumes.kept_inside(container_mount(planned, path))

    def _cancel_preparation(self, task_id: TaskID) -> None:
        self._cancelled.add(task_id)
        pulling = self._pulling.get(task_id)
        if pulling is not None:
            pulling.cancel()

    # --- the process ---

    async def _start(self, instruction: Start) -> None:
        task_id = instruction.task_id
        try:
            with self._waits.on(task_id, "the container runtime to start its process"):
                pid = await _attempt(self._runtime.start(container_id_of(task_id)), "starting it")
        except _WorkFailedError as failure:
            self._emit(StartFailed(task_id, failure.sentence))
        else:
            self._emit(Started(task_id, pid))

    async def _wait(self, instruction: Wait) -> None:
        task_id = instruction.task_id
        try:
            status = await _attempt(self._runtime.wait(container_id_of(task_id)), "watching it")
        except _WorkFailedError as failure:
            self._emit(WaitFailed(task_id, failure.sentence))
        else:
            self._emit(Exited(task_id, status))

    async def _kill(self, instruction: Kill) -> None:
        container_id = container_id_of(instruction.task_id)
        try:
            await _attempt(self._runtime.kill(container_id, instruction.signal), "signalling it")
        except _WorkFailedError as failure:
            # The machine's timer sends the next signal.
            log.warning(
                "signal_failed",
                task_id=instruction.task_id,
                signal=instruction.signal,
                error=failure.sentence,
            )

    async def _check_health(self, instruction: RunHealthcheck) -> None:
        task_id = instruction.task_id
        try:
            code, output = await _attempt(
                self._runtime.exec(
                    container_id_of(task_id), instruction.argv, timeout=instruction.timeout
                ),
                "checking its health",
            )
        except _WorkFailedError as failure:
            is_made = not isinstance(failure.__cause__, ResourceExhaustedError)
            if not is_made:
                log.warning("healthcheck_not_made", task_id=task_id, error=failure.sentence)
            self._emit(
                HealthcheckDone(task_id, HEALTHCHECK_NOT_RUN, failure.sentence, is_made=is_made)
            )
        else:
            text = output.decode(errors="replace")[-HEALTHCHECK_OUTPUT_CHARACTERS_MAX:]
            self._emit(HealthcheckDone(task_id, code, text))

    # --- the rest ---

    async def _detach(self, instruction: Detach) -> None:
        task_id = instruction.task_id
        try:
            await _attempt(self._network.detach(container_id_of(task_id)), "freeing its address")
        except _WorkFailedError as failure:
            log.warning("detach_failed", task_id=task_id, error=failure.sentence)
        self._emit(Detached(task_id))

    async def _remove(self, instruction: Remove) -> None:
        task_id = instruction.task_id
        try:
            await _attempt(self.purge(container_id_of(task_id)), "removing it")
        except _WorkFailedError as failure:
            log.warning("remove_failed", task_id=task_id, error=failure.sentence)
            self._emit(RemoveFailed(task_id, failure.sentence))
        else:
            self._emit(Removed(task_id))

    async def _remove_stray(self, instruction: RemoveStray) -> None:
        container_id = instruction.container_id
        try:
            await _attempt(self.purge(container_id), "removing it")
        except _WorkFailedError as failure:
            log.warning("stray_not_removed", container_id=container_id, error=failure.sentence)
            self._emit(StrayKept(container_id, failure.sentence))
        else:
            log.info("stray_removed", container_id=container_id)

    async def _publish(self, ports: tuple[PublishedPort, ...]) -> None:
        for attempt in range(1, PUBLISH_ATTEMPTS_MAX + 1):
            try:
                with self._waits.on(NO_TASK, "the kernel to publish ports"):
                    await _attempt(self._network.publish(ports), "publishing ports")
            except _WorkFailedError as failure:
                log.warning("publish_failed", attempt=attempt, error=failure.sentence)
                if attempt == PUBLISH_ATTEMPTS_MAX:
                    self._emit(PortsFailed(failure.sentence))
                    return
                await asyncio.sleep(PUBLISH_PAUSE_SECONDS)
            else:
                self._emit(PortsApplied())
                return

    def _work(self, work: Coroutine[None, None, None]) -> None:
        """Run something that `close` lets finish."""
        self._keep(work, self._working)

    def _watch(self, work: Coroutine[None, None, None]) -> None:
        """Run something that `close` gives up."""
        self._keep(work, self._watching)

    @staticmethod
    def _keep(work: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(_log_crash)


def _log_crash(task: asyncio.Task[None]) -> None:
    """Say so if an instruction's task ended without its outcome: a bug in this module."""
    if not task.cancelled() and task.exception() is not None:
        log.error("instruction_crashed", exc_info=task.exception())


async def _attempt(work: Awaitable[T], doing: str) -> T:
    """Await `work`; whatever it raises becomes a sentence. This is each task's supervisor."""
    try:
        return await work
    except SwarmError as error:
        raise _WorkFailedError(error.message) from error
    except TimeoutError as error:
        raise _WorkFailedError(f"{doing} took too long") from error
    except Exception as error:
        log.exception("task_work_crashed", doing=doing)
        sentence = f"internal error while {doing}: {type(error).__name__}; see this node's log"
        raise _WorkFailedError(sentence) from error


class _WorkFailedError(Exception):
    """An instruction failed; `sentence` says how."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

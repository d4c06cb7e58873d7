"""What this node has of its own: containers, images and volumes, whatever swarm it is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import structlog

from manager.daemon.config import DaemonConfig
from proto.errors import SwarmError
from proto.ids import ContainerID, ImageID, TaskID
from proto.logs import LogOptions, LogRecord
from worker.agent import Agent
from worker.diskspace import full_disk
from worker.files.tree import size_bytes
from worker.images.removal import ImageUse
from worker.images.store import ImageStore
from worker.volumes import VolumeStore

TASK_POLL_SECONDS = 0.1
TASK_POLLS_MAX = 50

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Resources:
    """The node's own, seen together. `agent` is who runs containers, while there is one."""

    def __init__(self, config: DaemonConfig, images: ImageStore) -> None:
        """Keep where things are."""
        self._config = config
        self._images = images
        self.agent: Agent | None = None
        self._releasing: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    def troubles(self) -> tuple[str, ...]:
        """Return what hampers this node's work, as sentences without numbers that change.

        Asked every few seconds; so it is tried again, too, to write what the images' disk refused.
        """
        is_saving = self._saving is not None and not self._saving.done()
        if self._images.fault and not is_saving:
            self._saving = asyncio.create_task(self._images.save_again())
        found = [full_disk(self._config.state_dir), self._images.fault]
        if self.agent is not None:
            found += self.agent.troubles()
        return tuple(sentence for sentence in found if sentence)

    async def close(self) -> None:
        """Wait for what is under way."""
        for work in (self._releasing, self._saving):
            if work is not None:
                await work

    def images_in_use(self) -> Mapping[ImageID, ImageUse]:
        """Map images to a container that needs each, a running one if there is one."""
        if self.agent is None:
            return {}
        running = self.agent.running_containers()
        uses: dict[ImageID, ImageUse] = {}
        for image_id, containers in self.agent.images_in_use().items():
            chosen = min(containers, key=lambda container: (container not in running, container))
            uses[image_id] = ImageUse(container_id=chosen, is_running=chosen in running)
        return uses

    @property
    def volumes(self) -> VolumeStore:
        """The node's volumes, which are there without a swarm too."""
        return VolumeStore(self._config.worker_dir)

    def volumes_in_use(self) -> Mapping[str, tuple[ContainerID, ...]]:
        """Map each volume that a container has to those containers."""
        return self.agent.volumes_in_use() if self.agent is not None else {}

    def container_bytes(self) -> Mapping[ContainerID, int]:
        """Measure the containers' own layers."""
        return {
            ContainerID(directory.name): size_bytes(str(directory / "upper"))
            for directory in self._config.containers_dir.glob("[!.]*")
        }

    def release_images(self) -> None:
        """Free the layers of images that were removed by force while a container had them."""
        is_busy = self._releasing is not None and not self._releasing.done()
        if self._images.has_hidden and not is_busy:
            self._releasing = asyncio.create_task(self._release_until_done())

    async def _release_until_done(self) -> None:
        """Go on while containers are removed: one of them may have been an image's last."""
        in_use = None
        while in_use != (now_in_use := self.images_in_use()):
            in_use = now_in_use
            try:
                await self._images.release(in_use)
            except SwarmError as error:
                # The next removal of a container or an image frees them.
                log.warning("images_not_released", error=error.message)

    async def lines(self, task_id: TaskID, options: LogOptions) -> AsyncGenerator[LogRecord]:
        """Yield the output of a task of this node; nothing if it is not here.

        Whoever asks may know of a task before this node does: with `follow` it is waited for.
        """
        for _ in range(TASK_POLLS_MAX if options.follow else 1):
            if self.agent is not None and self.agent.has_task(task_id):
                async with aclosing(self.agent.logs(task_id, options)) as records:
                    async for record in records:
                        yield record
                return
            await asyncio.sleep(TASK_POLL_SECONDS)

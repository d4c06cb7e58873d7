"""A daemon that creates or removes one container and is killed after a given step of it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from worker.runtime.api import ContainerConfig
from worker.runtime.conmon import Binaries
from worker.runtime.oci import OciRuntime


async def main() -> None:
    """Do it."""
    place, name, program, monitor, parent, action, step = sys.argv[1:]
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=ContainerConfig)
    root = Path(place)
    runtime = OciRuntime(
        root / "containers", root / "run", Binaries(name, program, monitor), cgroup_parent=parent
    )

    def die(done: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if action == "remove":
        await runtime.create(config)
        await runtime.start(config.id)
    runtime.after_step = die
    if step.startswith("seconds "):
        asyncio.get_running_loop().call_later(
            float(step.split()[1]), os.kill, os.getpid(), signal.SIGKILL
        )
    await (runtime.create(config) if action == "create" else runtime.remove(config.id))


asyncio.run(main())

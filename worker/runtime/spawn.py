"""Start a short-lived program and wait for it on the event loop, without a thread.

`subprocess.Popen` forks with vfork, so that the size of the daemon does not matter, and closes
all descriptors; its exit is awaited by a pidfd. asyncio's own subprocesses take a thread each
(Python 3.11) and two transports.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

import msgspec
import structlog

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

KILLED_SECONDS_MAX = 2.0
_READ_BYTES = 65536


class Finished(msgspec.Struct, frozen=True):
    """How a program ended: its return code as `Popen` has it, and the head of its output."""

    code: int
    output: bytes


async def readable(descriptor: int) -> None:
    """Return when `descriptor` can be read, or is at its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.remove_reader(descriptor)
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)


async def reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child and return its code."""
    code = process.poll()
    if code is not None:
        return code
    descriptor = os.pidfd_open(process.pid)
    try:
        await readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


async def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that has not ended, and bury it; nothing if it was buried."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGKILL)
    try:
        async with asyncio.timeout(KILLED_SECONDS_MAX):
            await reap(process)
    except TimeoutError:
        # It waits in the kernel, for a disk; its end is noticed when the next program is started.
        log.warning("program_not_ended", pid=process.pid, error="it was killed and still runs")


async def run(
    argv: Sequence[str], *, environment: Mapping[str, str], output_bytes_max: int
) -> Finished:
    """Run to the end; stdin is empty, stdout and stderr come together.

    What exceeds `output_bytes_max` is read and dropped, and so is what a grandchild writes after
    the program has ended. When cancelled, the program is killed.
    """
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 -- vfork and exec: under a millisecond
            argv,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    loop = asyncio.get_running_loop()
    kept = bytearray()

    def drain() -> None:
        if not read_available(read_end, kept, output_bytes_max):
            loop.remove_reader(read_end)

    os.set_blocking(read_end, False)
    loop.add_reader(read_end, drain)
    try:
        code = await reap(process)
        drain()
        return Finished(code, bytes(kept))
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)
        await end(process)


def read_available(descriptor: int, kept: bytearray, bytes_max: int) -> bool:
    """Read what a non-blocking pipe has now; keep up to `bytes_max` in all.

    Returns: False at the end of the pipe.
    """
    while True:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept += data[: max(0, bytes_max - len(kept))]

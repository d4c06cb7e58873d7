"""Read a container's output from its log files, across rotation, and follow it.

The files are `log` (being written) and `log.1`, `log.2`, … (older). All are opened before any is
read, so that a rotation meanwhile takes nothing away. Following waits for an inotify watch on the
container's directory and for the end of its monitor; nothing is polled. A reader holds one
block of 64 KiB and the line that is not ended yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

from proto.clock import Clock
from proto.logs import LogOptions, LogRecord
from worker.runtime import logfile
from worker.runtime.watching import Watches

_BLOCK_BYTES = 1 << 16
_NANOSECONDS = 1_000_000_000


def paths(directory: Path) -> list[Path]:
    """Return the log files that exist, oldest first."""
    numbers = sorted(
        (
            int(name[4:])
            for name in os.listdir(directory)  # noqa: PTH208 -- names, not paths
            if name.startswith("log.") and name[4:].isdecimal()
        ),
        reverse=True,
    )
    found = [directory / f"log.{number}" for number in numbers]
    current = directory / "log"
    return [*found, current] if current.exists() else found


class LogReader:
    """One reading of one container's log; iterate over it once."""

    def __init__(
        self, directory: Path, options: LogOptions, clock: Clock, watches: Watches
    ) -> None:
        self._directory = directory
        self._watches = watches
        self._options = options
        self._clock = clock
        self._files: list[int] = []
        self._merger = logfile.Merger()
        self._skip = 0
        self._carry = b""
        self._is_past_until = False

    async def records(
        self, ended: Callable[[], Awaitable[None]] | None
    ) -> AsyncGenerator[LogRecord]:
        """Yield the wanted lines, oldest first.

        Args:
            ended: waits for the end of the container, when following; None reads what is there.
        """
        over = asyncio.Event()
        changed = asyncio.Event()
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            if ended is not None:
                # Before the first read, so that nothing falls between reading and watching.
                stack.enter_context(self._watches.watching(self._directory, changed))
                task = asyncio.create_task(_wait_for_end(ended, over, changed))
                stack.callback(task.cancel)
            self._open()
            if self._options.tail >= 0:
                await self._seek_tail()
            while not self._is_past_until:
                # Looked at before reading: otherwise the last output could be missed.
                is_last = ended is None or over.is_set()
                changed.clear()
                async for record in self._read_on():
                    yield record
                if is_last:
                    for record in self._merger.flush():
                        if self._is_wanted(record):
                            yield record
                    return
                if not await self._wait(changed):
                    return

    async def _wait(self, changed: asyncio.Event) -> bool:
        """Wait for more; False when the time `until` has passed."""
        if not self._options.until_ns:
            await changed.wait()
            return True
        left = self._options.until_ns / _NANOSECONDS - self._clock.wall()
        try:
            async with asyncio.timeout(max(0.0, left)):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def _open(self) -> None:
        for path in paths(self._directory):
            # Rotated away between the listing and now: conmon is about to make a new one.
            with contextlib.suppress(FileNotFoundError):
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    async def _read_on(self) -> AsyncIterator[LogRecord]:
        """Read all that is there now; leave the newest file open for what comes."""
        while True:
            if not self._files:
                self._open()
                if not self._files:
                    return
            while data := os.read(self._files[0], _BLOCK_BYTES):
                for record in self._lines(data):
                    yield record
                # Disk reads do not suspend: let others run between the blocks.
                await asyncio.sleep(0)
            if len(self._files) == 1 and not self._open_newer():
                return
            if self._is_drained():
                os.close(self._files.pop(0))
                # Nothing is added to an old file: an unfinished line in it stays so.
                self._carry = b""

    def _is_drained(self) -> bool:
        """Return whether the first file is read to its end, also what came just before a newer."""
        current = self._files[0]
        return os.lseek(current, 0, os.SEEK_CUR) >= os.fstat(current).st_size

    def _open_newer(self) -> bool:
        """Open what is newer than the one open file, after a rotation; False if nothing is."""
        now = os.fstat(self._files[0])
        existing = paths(self._directory) if self._directory.exists() else []
        opened: list[int] = []
        for path in existing:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            opened.append(descriptor)
            if os.path.samestat(os.fstat(descriptor), now):
                # This one and all before it are known.
                while opened:
                    os.close(opened.pop())
        self._files.extend(opened)
        return bool(opened)

    def _lines(self, data: bytes) -> list[LogRecord]:
        lines = (self._carry + data).split(b"\n")
        self._carry = lines.pop()
        result = []
        for line in lines:
            piece = logfile.parse(line + b"\n")
            record = self._merger.feed(piece) if piece else None
            if record is None:
                continue
            if self._skip:
                self._skip -= 1
            elif self._is_wanted(record):
                result.append(record)
        return result

    def _is_wanted(self, record: LogRecord) -> bool:
        options = self._options
        if options.until_ns and record.time_ns > options.until_ns:
            self._is_past_until = True
            return False
        if record.time_ns < options.since_ns:
            return False
        return options.stdout if record.stream == "stdout" else options.stderr

    async def _seek_tail(self) -> None:
        """Go to a place before the last `tail` lines; `_skip` is how many lines are too many.

        The place is the start of a block, not of a line: so the parts of a line that began before
        another stream's line are found too, if they are not further back than a block.
        """
        wanted = self._options.tail
        scan = logfile.TailScan(wanted)
        for index in range(len(self._files) - 1, -1, -1):
            descriptor = self._files[index]
            position = os.fstat(descriptor).st_size
            head = b""
            while position > 0:
                start = max(0, position - _BLOCK_BYTES)
                block = os.pread(descriptor, position - start, start) + head
                position = start
                lines = block.split(b"\n")
                # The first may have begun in the block before.
                head = lines[0] if start else b""
                whole = lines[1:] if start else lines
                for line in reversed(whole):
                    scan.feed(line)
                if scan.is_done:
                    os.lseek(descriptor, start + len(head) + (1 if start else 0), os.SEEK_SET)
                    for older in self._files[:index]:
                        os.close(older)
                    del self._files[:index]
                    self._skip = scan.lines - wanted
                    return
                await asyncio.sleep(0)
        self._skip = max(0, scan.lines - wanted)


async def _wait_for_end(
    ended: Callable[[], Awaitable[None]], over: asyncio.Event, changed: asyncio.Event
) -> None:
    await ended()
    over.set()
    changed.set()

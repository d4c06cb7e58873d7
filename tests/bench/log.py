"""Measure the one-member log: `python tests/bench/log.py [DIRECTORY]` prints one line of JSON.

Commits per second of 200-byte entries (encrypted, synced) with 1 and 64 callers, the median wait of
one caller beside that of a bare sync, and the time to open and read back 100,000 entries.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog

from raft.keys import KeyRing
from raft.single import SingleLog

ENTRY = bytes(range(200))
RESTART_ENTRIES = 100_000


def bare_sync_seconds(directory: Path, rounds: int = 300) -> float:
    """Return the median of appending and syncing as many bytes as one entry takes on disk."""
    waits = []
    with (directory / "bare").open("wb", buffering=0) as file:
        for _ in range(rounds):
            start = time.perf_counter()
            file.write(bytes(243))
            os.fdatasync(file.fileno())
            waits.append(time.perf_counter() - start)
    return statistics.median(waits)


async def caller(log: SingleLog, until: float, waits: list[float]) -> None:
    """Propose one entry after the other."""
    while (start := time.perf_counter()) < until:
        await log.propose(ENTRY)
        waits.append(time.perf_counter() - start)


async def commits(log: SingleLog, callers: int, seconds: float) -> tuple[float, float]:
    """Return commits per second and the median wait."""
    waits: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(caller(log, start + seconds, waits) for _ in range(callers)))
    return len(waits) / (time.perf_counter() - start), statistics.median(waits)


def fill(log: SingleLog, entries: int) -> None:
    """Write entries in records of one: the slowest to read back."""
    for _ in range(entries):
        log._wal.append([ENTRY])
    log._last_index = log._durable_index = log._wal.last_index


def restart(directory: Path) -> dict[str, float]:
    """Open and read back in a fresh process."""
    keys = KeyRing.open(directory)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    log = SingleLog.open(directory, keys)
    opened = time.perf_counter()
    count = sum(1 for _ in log.restore()[1])
    end = time.perf_counter()
    assert count == log.last_index
    return {
        "restart_entries": count,
        "restart_open_seconds": round(opened - start, 3),
        "restart_seconds": round(end - start, 3),
        "restart_grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
    }


async def measure(directory: Path) -> dict[str, float]:
    """Run all of it."""
    keys = KeyRing.create(directory)
    log = SingleLog.open(directory, keys)
    bare = bare_sync_seconds(directory)
    c1, c1_wait = await commits(log, 1, 2)
    c64, c64_wait = await commits(log, 64, 2)
    await log.close()
    keys.close()
    return {
        "bare_sync_ms": round(bare * 1000, 3),
        "c1_commits_per_second": round(c1),
        "c1_median_ms": round(c1_wait * 1000, 3),
        "c64_commits_per_second": round(c64),
        "c64_median_ms": round(c64_wait * 1000, 3),
    }


async def prepare(directory: Path) -> None:
    """Make a log of 100,000 records."""
    keys = KeyRing.create(directory)
    log = SingleLog.open(directory, keys)
    fill(log, RESTART_ENTRIES)
    await log.close()
    keys.close()


def main() -> None:
    """Print the figures."""
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    if sys.argv[1:2] == ["--restart"]:
        print(json.dumps(restart(Path(sys.argv[2]))))
        return
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as name:
        figures = asyncio.run(measure(Path(name) / "commits"))
        asyncio.run(prepare(Path(name) / "restart"))
        command = [sys.executable, __file__, "--restart", str(Path(name) / "restart")]
        output = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
        print(json.dumps({**figures, **json.loads(output)}))


if __name__ == "__main__":
    main()

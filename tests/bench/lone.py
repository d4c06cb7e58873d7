"""Measure a lone member's log: `python tests/bench/lone.py [DIRECTORY]` prints one line of JSON.

Commits per second of 200-byte entries (encrypted, synced) with 1 and 64 callers, the median wait of
one caller beside that of a bare sync, and the time to open and read back 100,000 entries.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

from proto.clock import SystemClock
from raft.core import Entries, HardState
from raft.keys import KeyRing
from raft.listener import Deaf
from raft.node import RaftNode
from raft.storage import Storage, Write

ENTRY = bytes(range(200))
RESTART_ENTRIES = 100_000


def bare_sync_seconds(directory: Path, rounds: int = 300) -> float:
    """Return the median of appending and syncing as many bytes as one entry takes on disk."""
    waits = []
    with (directory / "bare").open("wb", buffering=0) as file:
        for _ in range(rounds):
            start = time.perf_counter()
            file.write(bytes(265))
            os.fdatasync(file.fileno())
            waits.append(time.perf_counter() - start)
    return statistics.median(waits)


def options() -> dict[str, Any]:
    """Return what a member needs beside its directory and keys."""
    return {"node_id": "n", "address": "n:1", "clock": SystemClock(), "rng": random.SystemRandom()}


async def caller(log: RaftNode, until: float, waits: list[float]) -> None:
    """Propose one entry after the other."""
    while (start := time.perf_counter()) < until:
        await log.propose(ENTRY)
        waits.append(time.perf_counter() - start)


async def commits(log: RaftNode, callers: int, seconds: float) -> tuple[float, float]:
    """Return commits per second and the median wait."""
    waits: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(caller(log, start + seconds, waits) for _ in range(callers)))
    return len(waits) / (time.perf_counter() - start), statistics.median(waits)


def fill(directory: Path, keys: KeyRing, entries: int) -> None:
    """Write entries in records of one: the slowest to read back."""
    storage = Storage.open(directory, keys)
    member_id, term = storage.member_id, storage.hard_state.term
    for index in range(storage.last_index + 1, storage.last_index + 1 + entries):
        hard_state = HardState(term, member_id, index - 1)
        storage.write([Write(hard_state, Entries(index, [ENTRY], ((index, term),)))])
    storage.close()


def peak_mib() -> float:
    """Return the most memory that this process had: `getrusage` would tell its parent's too."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text("ascii").splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) / 1024


async def restart(directory: Path) -> dict[str, float]:
    """Open and read back in a fresh process."""
    keys = KeyRing.open(directory)
    before = peak_mib()
    start = time.perf_counter()
    log = await RaftNode.open(directory, keys, **options())
    opened = time.perf_counter()
    count = sum(1 for entry in log.restore()[1] if entry.data)
    end = time.perf_counter()
    assert count == RESTART_ENTRIES
    await log.close()
    keys.close()
    return {
        "restart_entries": count,
        "restart_open_seconds": round(opened - start, 3),
        "restart_seconds": round(end - start, 3),
        "restart_grown_mib": round(peak_mib() - before),
    }


async def measure(directory: Path) -> dict[str, float]:
    """Run all of it."""
    keys = KeyRing.create(directory)
    log = await RaftNode.create(directory, keys, **options())
    list(log.restore()[1])
    log.attach(Deaf())
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
    await (await RaftNode.create(directory, keys, **options())).close()
    fill(directory, keys, RESTART_ENTRIES)
    keys.close()


def main() -> None:
    """Print the figures."""
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    if sys.argv[1:2] == ["--restart"]:
        print(json.dumps(asyncio.run(restart(Path(sys.argv[2])))))
        return
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as name:
        figures = asyncio.run(measure(Path(name) / "commits"))
        asyncio.run(prepare(Path(name) / "restart"))
        command = [sys.executable, __file__, "--restart", str(Path(name) / "restart")]
        output = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
        print(json.dumps({"name": "lone", **figures, **json.loads(output)}))


if __name__ == "__main__":
    main()

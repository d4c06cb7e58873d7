"""The daemon's log where it cannot be written."""

from __future__ import annotations

import errno
import json
import os

import pytest

from manager.daemon.logging import LossyLog


@pytest.fixture
def disk(monkeypatch):
    """A log file on a disk with so many bytes of room; returns what stands in it."""
    written = bytearray()
    room = [10**9]

    def write(_descriptor: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = data[: room[0]]
        room[0] -= len(taken)
        written.extend(taken)
        return len(taken)

    monkeypatch.setattr(os, "write", write)
    return written, room


@pytest.mark.parametrize("left", range(40))
def test_a_full_disk_costs_lines_and_says_how_many(disk, left: int) -> None:
    """Wherever it fills, writing raises nothing; afterwards the number of lost lines is told."""
    written, room = disk
    log = LossyLog(2)
    log.write('{"event": "one"}\n')
    room[0] = left
    for _ in range(5):
        log.write('{"event": "lost"}\n')
    room[0] = 10**9
    log.write('{"event": "two"}\n')
    lines = written.decode().splitlines()
    whole = left // len('{"event": "lost"}\n')
    told = [json.loads(line) for line in lines if "log_lines_dropped" in line]
    assert [one["count"] for one in told] == [5 - whole]
    assert lines[0] == '{"event": "one"}'
    assert lines[-1] == '{"event": "two"}'

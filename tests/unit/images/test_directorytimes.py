"""The times of directories come back as they were given."""

from __future__ import annotations

import os
from pathlib import Path

from worker.images.directorytimes import DirectoryTimes


def test_times_come_back_in_order(tmp_path: Path) -> None:
    """Also when they do not fit into the memory; nothing has a name on the disk."""
    kept = [(b"d" * 4000 + b"%d" % n, n * 1_000_000_007) for n in range(1000)]
    times = DirectoryTimes(tmp_path)
    for path, time_ns in [*kept, (b"\xff\n", -1)]:
        times.add(path, time_ns)
    assert list(times) == [*kept, (b"\xff\n", -1)]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 -- names
    times.close()

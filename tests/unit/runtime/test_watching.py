"""One inotify for all readers, with real directories."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from worker.runtime.watching import Watches


async def test_each_reader_hears_of_its_own_directory(tmp_path: Path):
    """Two readers of one directory hear of a write, the reader of another does not."""
    watches = Watches()
    first, second, other = (asyncio.Event() for _ in range(3))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        watches.watching(tmp_path / "a", first),
        watches.watching(tmp_path / "a", second),
        watches.watching(tmp_path / "b", other),
    ):
        (tmp_path / "a" / "log").write_text("x")
        async with asyncio.timeout(5):
            await first.wait()
            await second.wait()
        assert not other.is_set()


async def test_a_reader_that_leaves_does_not_take_the_watch_of_another(tmp_path: Path):
    """The last one that leaves closes the descriptor."""
    watches = Watches()
    stays = asyncio.Event()
    with watches.watching(tmp_path, stays):
        with watches.watching(tmp_path, asyncio.Event()):
            pass
        (tmp_path / "log").write_text("x")
        async with asyncio.timeout(5):
            await stays.wait()
        assert watches.is_open
    assert not watches.is_open


async def test_more_directories_than_the_kernel_has_descriptors(tmp_path: Path):
    """Hundreds are watched with one descriptor, and their deletion hurts nobody."""
    watches = Watches()
    directories = [tmp_path / str(number) for number in range(300)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- numbers
    with contextlib.ExitStack() as stack:
        events = []
        for directory in directories:
            directory.mkdir()
            events.append(asyncio.Event())
            stack.enter_context(watches.watching(directory, events[-1]))
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208 -- numbers
        (directories[-1] / "log").write_text("x")
        async with asyncio.timeout(5):
            await events[-1].wait()
        for directory in directories[:-1]:
            directory.rmdir()
    assert not watches.is_open


async def test_a_directory_that_is_missing_leaves_nothing_open(tmp_path: Path):
    """The error is the kernel's."""
    watches = Watches()
    with pytest.raises(FileNotFoundError), watches.watching(tmp_path / "none", asyncio.Event()):
        pass
    assert not watches.is_open

"""Logs with all their options, across rotation, and commands run beside the main process."""

import asyncio
import time

import pytest

from proto.errors import RuntimeFailedError
from proto.logs import LogOptions
from worker.runtime.api import LogConfig


async def text(records) -> bytes:
    """Everything in one."""
    return b"".join([record.data async for record in records])


async def eventually(condition, within=5.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def finished(runtime, wanted) -> None:
    """Run a container to its end."""
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    async with asyncio.timeout(20):
        await runtime.wait(wanted.id)


async def test_streams_and_times(runtime, config):
    """Each line has its stream and the time when it was written."""
    wanted = config("echo out; sleep 0.05; echo err >&2; sleep 0.05; printf unfinished")
    before = time.time_ns()
    await finished(runtime, wanted)
    records = [record async for record in runtime.logs(wanted.id, LogOptions())]
    assert [(record.stream, record.data) for record in records] == [
        ("stdout", b"out\n"),
        ("stderr", b"err\n"),
        ("stdout", b"unfinished"),
    ]
    times = [record.time_ns for record in records]
    assert before < times[0] < times[1] < times[2] < time.time_ns()
    only = LogOptions(stdout=False)
    assert await text(runtime.logs(wanted.id, only)) == b"err\n"
    between = LogOptions(since_ns=times[1], until_ns=times[1])
    assert await text(runtime.logs(wanted.id, between)) == b"err\n"


async def test_long_lines_are_whole(runtime, config):
    """A line longer than conmon's buffer is one record."""
    wanted = config("head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")
    await finished(runtime, wanted)
    records = [record async for record in runtime.logs(wanted.id, LogOptions())]
    assert [len(record.data) for record in records] == [100001, 4]
    tail = LogOptions(tail=2)
    assert [len(record.data) async for record in runtime.logs(wanted.id, tail)] == [100001, 4]


@pytest.mark.parametrize("tail", [0, 1, 3, 20000, 30000])
async def test_tail(runtime, config, tail):
    """The last lines, also when they take more than one block, and all if there are fewer."""
    wanted = config("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    await finished(runtime, wanted)
    expected = b"".join(b"line %d\n" % number for number in range(max(0, 20000 - tail), 20000))
    assert await text(runtime.logs(wanted.id, LogOptions(tail=tail))) == expected


async def test_follow_to_the_end(runtime, config):
    """Following gives lines as they come, and ends with the container."""
    wanted = config("for i in 1 2 3; do echo $i; sleep 0.1; done; printf end")
    await runtime.create(wanted)
    seen = []

    async def follow():
        records = runtime.logs(wanted.id, LogOptions(follow=True))
        async for record in records:
            seen.append(record.data)  # noqa: PERF401 -- one by one, to see them come

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.05)  # begins before there is anything
    await runtime.start(wanted.id)
    await eventually(lambda: seen == [b"1\n"])
    async with asyncio.timeout(10):
        await task
    assert seen == [b"1\n", b"2\n", b"3\n", b"end"]


async def test_follow_until_a_time(runtime, config):
    """Following ends when the wanted time has passed."""
    wanted = config("echo now; sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    options = LogOptions(follow=True, until_ns=time.time_ns() + 300_000_000)
    async with asyncio.timeout(5):
        assert await text(runtime.logs(wanted.id, options)) == b"now\n"


async def test_following_ends_with_removal(runtime, config):
    """A removed container has no more to say."""
    wanted = config("echo now; sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    task = asyncio.create_task(text(runtime.logs(wanted.id, LogOptions(follow=True))))
    await asyncio.sleep(0.1)
    await runtime.remove(wanted.id)
    async with asyncio.timeout(5):
        assert await task == b"now\n"


async def test_stopped_reading(runtime, config):
    """A reader that goes away leaves no watch; the fixture counts the descriptors."""
    wanted = config("echo now; sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    records = runtime.logs(wanted.id, LogOptions(follow=True))
    async with asyncio.timeout(5):
        assert (await anext(records)).data == b"now\n"
    await records.aclose()
    task = asyncio.create_task(text(runtime.logs(wanted.id, LogOptions(follow=True))))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_rotation_loses_nothing(runtime, config, place):
    """While the log is rotated again and again, a follower gets every line once, in order."""
    count = 3000
    wanted = config(
        f"i=0; while [ $i -lt {count} ]; do echo line $i; i=$((i+1));"
        " [ $((i % 100)) = 0 ] && sleep 0.02; done",
        log=LogConfig(max_bytes=20_000, files_max=4),
    )
    await runtime.create(wanted)
    task = asyncio.create_task(text(runtime.logs(wanted.id, LogOptions(follow=True))))
    await asyncio.sleep(0.02)
    await runtime.start(wanted.id)
    waiting = asyncio.create_task(runtime.wait(wanted.id))
    while not waiting.done():
        runtime._rotator.sweep()
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        lines = (await task).splitlines()
    assert [b"line %d" % number for number in range(count)] == lines
    names = sorted(path.name for path in (place / "containers" / wanted.id).glob("log*"))
    assert names == ["log", "log.1", "log.2", "log.3"]
    kept = (await text(runtime.logs(wanted.id, LogOptions()))).splitlines()
    assert kept == lines[-len(kept) :]
    assert len(kept) > 500
    last = await text(runtime.logs(wanted.id, LogOptions(tail=len(kept) - 1)))
    assert last.splitlines() == kept[1:]


async def test_one_file_only(runtime, config, place):
    """With one file the old content is dropped; the sweep comes by itself."""
    wanted = config(
        "head -c 50000 /dev/zero | tr '\\0' x; echo; sleep 2; echo last; sleep 60",
        log=LogConfig(max_bytes=20_000, files_max=1),
    )
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    log = place / "containers" / wanted.id / "log"
    await eventually(lambda: log.exists() and log.stat().st_size > 20_000)
    await eventually(lambda: log.exists() and log.stat().st_size < 20_000)
    await eventually(lambda: log.stat().st_size > 0)
    assert not log.with_name("log.1").exists()
    assert await text(runtime.logs(wanted.id, LogOptions())) == b"last\n"


async def test_rotation_is_adopted(make, config, place):
    """A new daemon rotates what an old one created, also one that died between two steps."""
    wanted = config(
        "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done",
        log=LogConfig(max_bytes=200, files_max=2),
    )
    first = make()
    await first.create(wanted)
    await first.start(wanted.id)
    await first.close()
    log = place / "containers" / wanted.id / "log"
    await eventually(lambda: log.exists() and log.stat().st_size > 0)
    log.rename(log.with_name("log.1"))
    second = make()
    await second.list_containers()
    second._rotator.sweep()
    await eventually(log.exists)
    await eventually(lambda: log.stat().st_size > 200)
    second._rotator.sweep()
    await eventually(lambda: log.exists() and log.stat().st_size < 200)


async def test_commands(runtime, config):
    """A command has the container's files, rights and environment, with what is asked changed."""
    wanted = config("sleep 60", env=("A=1",), user="web", working_dir="/data")
    with pytest.raises(RuntimeFailedError, match="is not running"):
        await runtime.exec(wanted.id, ("true",), timeout=5)
    await runtime.create(wanted)
    with pytest.raises(RuntimeFailedError, match="is not running"):
        await runtime.exec(wanted.id, ("true",), timeout=5)
    await runtime.start(wanted.id)
    code, output = await runtime.exec(
        wanted.id,
        ("sh", "-c", "id -u; pwd; echo $A$B; echo err >&2; exit 3"),
        env=("B=2",),
        timeout=5,
    )
    # Where the runtime passes both streams on, their order is not kept.
    assert (code, sorted(output.splitlines())) == (3, [b"/data", b"1000", b"12", b"err"])
    code, output = await runtime.exec(
        wanted.id, ("sh", "-c", "id -u; pwd"), user="root", working_dir="/", timeout=5
    )
    assert (code, output) == (0, b"0\n/\n")


async def test_output_of_commands_is_bounded(runtime, config):
    """The first 4 KiB are kept and the rest is read, so that the command can end."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    code, output = await runtime.exec(
        wanted.id, ("sh", "-c", "head -c 1000000 /dev/zero; exit 4"), timeout=5
    )
    assert (code, output) == (4, bytes(4096))


async def test_command_that_takes_too_long(runtime, config, place):
    """It is killed inside the container when its time is over."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    with pytest.raises(TimeoutError):
        await runtime.exec(wanted.id, ("sleep", "77"), timeout=0.3)
    code, output = await runtime.exec(wanted.id, ("ps",), timeout=5)
    assert code == 0
    assert b"sleep 60" in output
    assert b"sleep 77" not in output
    assert not list((place / "containers" / wanted.id).glob("exec-*"))


async def test_command_missing(runtime, config):
    """A program that is not in the container fails with a code and the runtime's words."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    code, output = await runtime.exec(wanted.id, ("nosuch",), timeout=5)
    assert code != 0
    assert b"nosuch" in output

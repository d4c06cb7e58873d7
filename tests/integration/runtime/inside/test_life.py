"""From creation to removal, with one daemon and with several after each other."""

import asyncio
import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from proto.errors import RuntimeFailedError
from proto.logs import LogOptions
from worker.runtime import procfs
from worker.runtime.directory import ContainerDirectory, ProcessRecord


async def states(runtime):
    """All containers by ID."""
    return {state.id: state for state in await runtime.list_containers()}


def record_of(place, container_id):
    """The PIDs that were written down."""
    data = (place / "containers" / container_id / "process.json").read_bytes()
    return msgspec.json.decode(data, type=ProcessRecord)


async def test_whole_life(runtime, config):
    """The states follow each other; the exit code and its time are kept until the removal."""
    wanted = config("exit 7", labels={"a": "b"})
    await runtime.create(wanted)
    created = (await states(runtime))[wanted.id]
    assert (created.state, created.name, created.labels) == ("created", wanted.name, {"a": "b"})
    before = time.time()
    pid = await runtime.start(wanted.id)
    assert created.pid == pid
    ended = await runtime.wait(wanted.id)
    assert ended.exit_code == 7
    assert not ended.oom_killed
    assert before - 1 <= ended.finished_at <= time.time() + 1
    assert (await states(runtime))[wanted.id].state == "exited"
    assert ended == await runtime.wait(wanted.id)
    await runtime.remove(wanted.id)
    assert await runtime.list_containers() == []


async def test_running_until_signalled(runtime, config):
    """A signal reaches the main process, by each of its names; the code is 128 and the signal."""
    for name, code in (("SIGTERM", 143), ("USR1", 138), ("9", 137)):
        wanted = config("trap - TERM; sleep 60", init=True)
        await runtime.create(wanted)
        await runtime.start(wanted.id)
        assert (await states(runtime))[wanted.id].state == "running"
        await asyncio.sleep(0.05)  # init installs its handlers
        await runtime.kill(wanted.id, name)
        async with asyncio.timeout(10):
            assert (await runtime.wait(wanted.id)).exit_code == code
        await runtime.kill(wanted.id, name)


async def test_every_call_may_be_repeated(runtime, config):
    """Creating, starting, killing and removing twice is as good as once."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.create(wanted)
    pid = await runtime.start(wanted.id)
    assert await runtime.start(wanted.id) == pid
    await runtime.create(wanted)
    await runtime.kill(wanted.id, "KILL")
    await runtime.wait(wanted.id)
    await runtime.kill(wanted.id, "KILL")
    assert await runtime.start(wanted.id) == pid
    await runtime.remove(wanted.id)
    await runtime.remove(wanted.id)


async def test_unknown_container(runtime, config):
    """What does not exist cannot be started or waited for; killing and removing it is nothing."""
    wanted = config("true")
    await runtime.kill(wanted.id, "TERM")
    await runtime.remove(wanted.id)
    with pytest.raises(RuntimeFailedError, match="is not created"):
        await runtime.start(wanted.id)
    with pytest.raises(RuntimeFailedError, match="does not exist"):
        await runtime.wait(wanted.id)
    with pytest.raises(RuntimeFailedError, match="invalid signal: SIGNONE"):
        await runtime.kill(wanted.id, "SIGNONE")
    with pytest.raises(RuntimeFailedError, match="does not exist"):
        [record async for record in runtime.logs(wanted.id, LogOptions())]


async def test_removed_while_running(runtime, config):
    """Removal kills; who waits is told so."""
    wanted = config("sleep 60 & sleep 60 & wait")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    waiting = asyncio.create_task(runtime.wait(wanted.id))
    await asyncio.sleep(0.05)
    await runtime.remove(wanted.id)
    async with asyncio.timeout(5):
        assert (await waiting).exit_code == 137


async def test_many_removed_while_waited_for(runtime, config):
    """Who waits does not get in the way of the removal, nor the other way round."""
    wanted = [config("sleep 60") for _ in range(16)]
    for one in wanted:
        await runtime.create(one)
        await runtime.start(one.id)
    waiting = [asyncio.create_task(runtime.wait(one.id)) for one in wanted]
    await asyncio.sleep(0)
    await asyncio.gather(*(runtime.remove(one.id) for one in wanted))
    async with asyncio.timeout(5):
        assert {ended.exit_code for ended in await asyncio.gather(*waiting)} == {137}


async def test_never_started(runtime, config):
    """A created container can be killed or removed before it was started."""
    wanted, other = config("true"), config("true")
    await runtime.create(wanted)
    await runtime.create(other)
    await runtime.kill(wanted.id, "KILL")
    assert (await runtime.wait(wanted.id)).exit_code == 137
    await runtime.remove(other.id)


async def test_adopted_by_another_daemon(make, config):
    """A daemon that starts anew finds all containers, and hears of an end it did not watch."""
    first = make()
    running, created, ended = config("sleep 0.3; exit 5"), config("exit 6"), config("exit 9")
    for wanted in (running, created, ended):
        await first.create(wanted)
    pid = await first.start(running.id)
    await first.start(ended.id)
    await first.wait(ended.id)
    await first.close()
    second = make()
    found = await states(second)
    assert (found[running.id].state, found[running.id].pid) == ("running", pid)
    assert found[created.id].state == "created"
    assert found[ended.id].exit.exit_code == 9
    async with asyncio.timeout(10):
        assert (await second.wait(running.id)).exit_code == 5
        await second.start(created.id)
        assert (await second.wait(created.id)).exit_code == 6


async def test_monitor_stands_alone(runtime, config, place):
    """The monitor has its own session and none of the daemon's descriptors."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    record = record_of(place, wanted.id)
    assert os.getsid(record.monitor_pid) != os.getsid(0)
    pipe = os.fstat(write_end)
    for pid in (record.monitor_pid, record.pid):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            # Just started, it is still closing some.
            with contextlib.suppress(FileNotFoundError):
                assert not os.path.samestat(entry.stat(), pipe)
    os.close(read_end)
    os.close(write_end)


async def test_monitor_killed(runtime, config, place):
    """Without its monitor a container is broken; waiting for it kills it and tells 137."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    record = record_of(place, wanted.id)
    waiting = asyncio.create_task(runtime.wait(wanted.id))
    await asyncio.sleep(0.05)
    os.kill(record.monitor_pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        assert (await waiting).exit_code == 137
    assert procfs.start_time(record.pid) is None
    assert (await states(runtime))[wanted.id].exit.exit_code == 137


async def test_monitor_killed_unseen(make, config, place):
    """A new daemon sees that the monitor is gone, and can remove what is left."""
    wanted = config("sleep 60")
    first = make()
    await first.create(wanted)
    await first.start(wanted.id)
    record = record_of(place, wanted.id)
    os.kill(record.monitor_pid, signal.SIGKILL)
    os.waitpid(record.monitor_pid, 0)  # noqa: ASYNC222 -- it is dead
    second = make()
    assert (await states(second))[wanted.id].state == "broken"
    await second.remove(wanted.id)


async def test_monitor_killed_by_a_full_disk(runtime, config, place, monkeypatch):
    """Where the exit code cannot be written down, waiting tells it all the same."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)

    def refuse(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ContainerDirectory, "write", refuse)
    os.kill(record_of(place, wanted.id).monitor_pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        assert (await runtime.wait(wanted.id)).exit_code == 137
    assert (await states(runtime))[wanted.id].exit.exit_code == 137


async def test_recycled_pid_is_a_stranger(runtime, config, place):
    """Another process with a container's PID is neither signalled nor taken for it."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    file = place / "containers" / wanted.id / "process.json"
    record = record_of(place, wanted.id)
    lie = msgspec.structs.replace(
        record, pid_started=record.pid_started - 1, monitor_started=record.monitor_started - 1
    )
    file.write_bytes(msgspec.json.encode(lie))
    await runtime.kill(wanted.id, "KILL")
    assert (await states(runtime))[wanted.id].exit.is_lost
    assert procfs.start_time(record.pid) == record.pid_started
    reboot = msgspec.structs.replace(record, boot_id="another")
    file.write_bytes(msgspec.json.encode(reboot))
    await runtime.kill(wanted.id, "KILL")
    assert (await states(runtime))[wanted.id].exit.is_lost
    assert procfs.start_time(record.pid) == record.pid_started
    file.write_bytes(msgspec.json.encode(record))
    assert (await states(runtime))[wanted.id].state == "running"


async def test_many_at_once(runtime, config):
    """Ten containers are created, run and removed at the same time."""
    wanted = [config(f"exit {number}") for number in range(10)]

    async def live(one):
        await runtime.create(one)
        await runtime.start(one.id)
        code = (await runtime.wait(one.id)).exit_code
        await runtime.remove(one.id)
        return code

    assert list(range(10)) == await asyncio.gather(*map(live, wanted))


async def test_cancelled_creation_leaves_nothing(runtime, config, place):
    """Cancelling at any time undoes what was done; the fixture sees that nothing is left."""
    for delay in (0.0, 0.001, 0.003, 0.006, 0.012, 0.02):
        wanted = config("sleep 60")
        task = asyncio.create_task(runtime.create(wanted))
        await asyncio.sleep(delay)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert not (place / "containers" / wanted.id).exists()
        else:
            await runtime.remove(wanted.id)


test_cancelled_creation_leaves_nothing.has_orphans = True


async def test_exit_code_outlives_reboot(make, config, place):
    """After a reboot the exit code is there; what was interrupted has ended, with its output."""
    first = make()
    ended, interrupted = config("exit 3"), config("echo last words; sleep 60")
    for wanted in (ended, interrupted):
        await first.create(wanted)
        await first.start(wanted.id)
    await first.wait(ended.id)
    file = place / "containers" / interrupted.id / "process.json"
    async with asyncio.timeout(10):
        # The machine "stops" only when the container has had its say.
        while b"last words" not in (file.parent / "log").read_bytes():  # noqa: ASYNC110 -- a file
            await asyncio.sleep(0.01)
    record = record_of(place, interrupted.id)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, boot_id="before")))
    second = make()
    found = await states(second)
    assert found[ended.id].exit.exit_code == 3
    assert (found[interrupted.id].state, found[interrupted.id].exit.is_lost) == ("exited", True)
    lines = [record.data async for record in second.logs(interrupted.id, LogOptions())]
    assert lines == [b"last words\n"]
    assert (await second.wait(interrupted.id)).exit_code == 137
    file.write_bytes(msgspec.json.encode(record))
    Path(file.parent / "exit").unlink()

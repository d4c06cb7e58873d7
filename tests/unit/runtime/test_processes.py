"""Numbers that were written down and belong to something else by now; programs that hang."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from proto.errors import RuntimeFailedError
from proto.ids import ContainerID
from worker.runtime import conmon, procfs, removal, spawn
from worker.runtime.api import ContainerConfig
from worker.runtime.conmon import Binaries
from worker.runtime.directory import ContainerDirectory, ProcessRecord

BOOT = procfs.boot_id()


@pytest.fixture
def thread_id():
    """The number of a thread that is not its process's first."""
    gate, begun, found = threading.Event(), threading.Event(), []

    def work() -> None:
        found.append(threading.get_native_id())
        begun.set()
        gate.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    yield found[0]
    gate.set()
    thread.join()


def test_a_number_that_is_a_threads_now_is_nobodys(thread_id: int) -> None:
    """The kernel has no descriptor for it, and that says that the process has ended."""
    assert procfs.open_pidfd(thread_id, 12345) is None
    assert procfs.open_pidfd(thread_id, procfs.start_time(thread_id) or 0) is None
    assert not procfs.send_signal(thread_id, 12345, signal.SIGKILL)


def test_a_container_whose_numbers_are_threads_now_is_removed(thread_id: int) -> None:
    """Nothing is killed, and nothing stands in the way of the removal."""
    record = ProcessRecord(
        boot_id=BOOT,
        pid=thread_id,
        pid_started=1,
        monitor_pid=thread_id,
        monitor_started=1,
    )
    removal.kill_recorded(record)
    removal._bury_monitor(thread_id)


@pytest.mark.parametrize("number", [0, -1])
def test_no_number_is_nobodys(number: int) -> None:
    """A record that was cut short names no process."""
    assert procfs.open_pidfd(number, 0) is None


def stopped_program(path: Path) -> str:
    """Write a program that stops itself at once; return its path."""
    path.write_text("#!/bin/sh\nkill -STOP $$\n")
    path.chmod(0o755)
    return str(path)


async def test_a_monitor_that_hangs_is_ended_and_holds_nobody(tmp_path: Path, monkeypatch) -> None:
    """A conmon that is stopped costs its own container's time only, and leaves no process."""
    program = stopped_program(tmp_path / "conmon")
    binaries = Binaries("crun", "/bin/false", program)
    config = ContainerConfig(id=ContainerID("c" * 64), name="c", layers=(), argv=("true",))
    directory = ContainerDirectory(tmp_path, tmp_path / "state")
    started: list[subprocess.Popen[bytes]] = []
    start = conmon._start
    monkeypatch.setattr(
        conmon, "_start", lambda *words: started.append(start(*words)) or started[-1]
    )
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await conmon.create(binaries, config, directory)
    ticking.cancel()
    assert ticks > 5, "the loop went on meanwhile"
    assert started[0].returncode == -signal.SIGKILL


async def test_a_runtime_that_hangs_is_ended(tmp_path: Path) -> None:
    """A program that is stopped is killed and buried when its time is over."""
    program = stopped_program(tmp_path / "crun")
    before = set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await spawn.run([program], environment={}, output_bytes_max=100)
    after = set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    assert after <= before


async def test_a_runtime_that_hangs_at_the_start_is_named(tmp_path: Path, monkeypatch) -> None:
    """`start` gives up after its time, in a sentence."""
    from worker.runtime import oci  # noqa: PLC0415 -- needs the machine's cgroups

    monkeypatch.setattr(oci, "START_SECONDS_MAX", 0.3)
    monkeypatch.setattr(
        ContainerDirectory,
        "state",
        lambda _self, container_id, _config, _boot: oci.ContainerState(
            container_id, "c", "created"
        ),
    )
    binaries = Binaries("crun", stopped_program(tmp_path / "crun"), "/bin/false")
    runtime = oci.OciRuntime(tmp_path / "c", tmp_path / "r", binaries)
    container_id = ContainerID("d" * 64)
    directory = runtime._directory(container_id)
    directory.path.mkdir()
    config = ContainerConfig(id=container_id, name="c", layers=(), argv=("true",))
    directory.write("container.json", msgspec.json.encode(config))
    record = ProcessRecord(boot_id=BOOT, pid=1, pid_started=1, monitor_pid=1, monitor_started=1)
    directory.write("process.json", msgspec.json.encode(record))
    with pytest.raises(RuntimeFailedError, match=r"did not start container d+ within 0\.3 s"):
        await runtime.start(container_id)
    await runtime.close()


async def test_a_runtime_that_hangs_in_its_trial_is_passed_over(
    tmp_path: Path, monkeypatch
) -> None:
    """The daemon's start is not held for ever: the sentence names the program and the time."""
    from worker.runtime import oci, probe  # noqa: PLC0415 -- needs the machine's cgroups

    monkeypatch.setattr(probe, "_VERSION_SECONDS_MAX", 0.3)
    monkeypatch.setattr(oci, "CREATE_SECONDS_MAX", 0.5)
    programs = tmp_path / "bin"
    programs.mkdir()
    stopped_program(programs / "crun")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    async with asyncio.timeout(60):
        with pytest.raises(RuntimeFailedError, match=r"no container can be run: crun refuses: .*"):
            await probe.probe(tmp_path / "state", candidates=("crun",), cgroup_parent="/trial")


def test_this_interpreter_is_a_process() -> None:
    """The lookup works for what does run."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        descriptor = procfs.open_pidfd(child.pid, procfs.start_time(child.pid) or 0)
        assert descriptor is not None
        os.close(descriptor)
    finally:
        child.kill()
        child.wait()

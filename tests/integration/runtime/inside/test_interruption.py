"""A daemon that dies, or a step that fails, anywhere in creation and removal.

The next daemon finds the container and can remove it, or create it as if nothing had been; that
nothing is left afterwards is checked by the fixtures.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from proto.errors import RuntimeFailedError
from worker.runtime import syscalls
from worker.runtime.api import ContainerMount

CREATION = [
    "directory", "config", "mount", "volume marked", "volume entry", "volume filled",
    "volume unmarked", "content", "binds", "files", "bundle", "created", "unpinned", "recorded",
]  # fmt: skip
REMOVAL = ["killed", "cgroup removed", "state removed", "unmounted", "renamed", "removed"]
# While conmon and the runtime are at work there is no step of ours to stop at.
MOMENTS = [f"seconds {delay}" for delay in (0.004, 0.008, 0.012, 0.018, 0.025)]
DAEMON = Path(__file__).with_name("daemon.py")


@pytest.fixture
def die(place, binaries, cgroup_parent):
    """Runs a daemon that is killed after a step; returns whether it was."""

    def run(wanted, action, step) -> bool:
        finished = subprocess.run(
            [
                sys.executable,
                str(DAEMON),
                str(place),
                binaries.name,
                binaries.runtime,
                binaries.conmon,
                cgroup_parent,
                action,
                step,
            ],
            input=msgspec.json.encode(wanted),
            timeout=20,
            check=False,
        )
        assert finished.returncode in {0, -signal.SIGKILL}
        return finished.returncode != 0

    return run


@pytest.fixture
def wanted(config, tmp_path):
    """A container with all that a creation can make."""
    volume, record = tmp_path / "volume", tmp_path / "record"
    volume.mkdir()
    record.mkdir()
    (tmp_path / "other/sub").mkdir(parents=True)
    return config(
        "cat /data/first; sleep 60",
        mounts=(
            ContainerMount(type="bind", target="/o", source=str(tmp_path / "other"), subpath="sub"),
            ContainerMount(
                type="bind", target="/data", source=str(volume), fill_record=str(record)
            ),
        ),
        working_dir="/made",
    )


@pytest.mark.parametrize("step", CREATION + MOMENTS)
async def test_killed_in_creation_then_removed(make, die, wanted, step, place):
    """Whatever was made is found, told to be broken or created, and removed.

    A directory without its config is no container: nobody would know whose it was, nor remove it.
    """
    is_killed = die(wanted, "create", step)
    assert is_killed or step in MOMENTS
    runtime = make()
    states = await runtime.list_containers()
    assert not list((place / "containers").glob(".*"))
    if step == "directory":
        assert states == []
    elif step in CREATION:
        (state,) = states
        assert state.id == wanted.id
        assert state.state == ("created" if step == "recorded" else "broken")
        assert state.name == wanted.name
    await runtime.remove(wanted.id)
    assert await runtime.list_containers() == []


@pytest.mark.parametrize("step", CREATION + MOMENTS)
async def test_killed_in_creation_then_completed(make, die, wanted, step):
    """Creating it again makes it whole, and it runs."""
    die(wanted, "create", step)
    runtime = make()
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    (state,) = await runtime.list_containers()
    assert state.state == "running"
    await runtime.kill(wanted.id, "KILL")
    async with asyncio.timeout(10):
        assert (await runtime.wait(wanted.id)).exit_code == 137


@pytest.mark.parametrize("step", REMOVAL)
async def test_killed_in_removal(make, die, wanted, step, place):
    """Removing it again completes it."""
    assert die(wanted, "remove", step)
    runtime = make()
    states = await runtime.list_containers()
    assert len(states) == (0 if step in {"renamed", "removed"} else 1)
    assert not list((place / "containers").glob(".*"))
    await runtime.remove(wanted.id)
    assert await runtime.list_containers() == []


async def test_what_cannot_be_deleted_stops_no_daemon(make, place):
    """A rest of a container with something mounted in it is left, and tried by the next daemon."""
    rest = place / "containers/.gone-x"
    (rest / "busy").mkdir(parents=True)
    syscalls.mount("small", str(rest / "busy"), "tmpfs", 0, "size=64k")
    try:
        (rest / "busy/precious").write_text("x")
        assert await make().list_containers() == []
        assert (rest / "busy/precious").exists()
    finally:
        syscalls.unmount(str(rest / "busy"))
    assert await make().list_containers() == []
    assert not rest.exists()


async def test_deep_directories_are_removed(runtime, config, place):
    """Deeper than Python's stack, in the container's own layer and in what a crash left."""
    wanted = config("sleep 60")
    await runtime.create(wanted)
    (place / "containers/.gone-x").mkdir()
    for top in (place / "containers" / wanted.id / "upper", place / "containers/.gone-x"):
        here = os.open(top, os.O_RDONLY)
        for _ in range(1600):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
    await runtime.remove(wanted.id)


@pytest.mark.parametrize("step", CREATION)
async def test_failed_step(runtime, wanted, step, place):
    """A step that fails is undone at once."""

    def fail(done: str) -> None:
        if done == step:
            raise OSError(5, "Input/output error", "/some/disk")

    runtime.after_step = fail
    with pytest.raises(RuntimeFailedError, match=r"Input/output error: /some/disk"):
        await runtime.create(wanted)
    runtime.after_step = lambda _step: None
    assert await runtime.list_containers() == []
    assert list((place / "containers").iterdir()) == []


for case in (
    test_killed_in_creation_then_removed,
    test_killed_in_creation_then_completed,
    test_killed_in_removal,
):
    case.has_orphans = True

"""A runtime on a directory of its own, with a check that each test leaves nothing behind."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from proto.ids import ContainerID
from proto.logs import LogOptions
from worker.runtime.api import ContainerConfig, LogConfig
from worker.runtime.conmon import Binaries
from worker.runtime.oci import OciRuntime

APPLETS = "sh echo sleep cat id true mount touch stat head printf ps tr test wc swapoff"


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    """The runtime that this run is about."""
    name = os.environ["SWARM_TEST_RUNTIME"]
    runtime, monitor = shutil.which(name), shutil.which("conmon")
    assert runtime is not None
    assert monitor is not None
    return Binaries(name, runtime, monitor)


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with busybox, some users, and a directory for a volume's first content."""
    directory = tmp_path_factory.mktemp("layer")
    (directory / "bin").mkdir()
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, directory / "bin/busybox")
    for name in APPLETS.split():
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc").mkdir()
    (directory / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n"
    )
    (directory / "etc/group").write_text("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n")
    (directory / "data").mkdir()
    (directory / "data/first").write_text("from the image")
    os.chown(directory / "data/first", 1000, 1000)
    (directory / "data").chmod(0o750)
    (directory / "not-executable").write_text("")
    (directory / "not-executable").chmod(0o644)
    directory.chmod(0o755)
    return directory


@pytest.fixture(scope="session")
def cgroup_parent() -> Iterator[str]:
    """A cgroup of our own; the hierarchies themselves are shared with the machine."""
    parent = f"/swarm-test-{os.getppid()}-{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}"
    yield parent
    name = parent.strip("/")
    for directory in [*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup", name)]:
        # What a failed test left is told by that test; here it would hide the report.
        with contextlib.suppress(OSError):
            directory.rmdir()


def _seen(root: Path, cgroup_parent: str) -> dict[str, object]:
    """What may not differ before and after."""
    name = cgroup_parent.strip("/")
    groups = [*Path("/sys/fs/cgroup").glob(f"*/{name}/*/")]
    groups += Path("/sys/fs/cgroup").glob(f"{name}/*/")
    processes = {
        entry.name: (entry / "cmdline").read_bytes()
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and int(entry.name) != os.getpid()
    }
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "cgroups": sorted(str(group) for group in groups),
        "processes": processes,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "directories": sorted(str(path) for path in root.rglob("*"))
        if (root / "containers").exists()
        else [],
    }


def bury_orphans() -> None:
    """Reap what was left to the first process of the PID namespace, as an init does."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture(scope="session")
def netns() -> Iterator[str]:
    """The path of a network namespace that is not our own."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    path = Path(f"/proc/{process.pid}/ns/net")
    deadline = time.monotonic() + 5
    while path.readlink() == Path("/proc/self/ns/net").readlink():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    yield str(path)
    process.kill()
    process.wait()


@pytest.fixture
def place(
    tmp_path: Path, cgroup_parent: str, netns: str, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """Where a test's containers live; fails if anything of them is left.

    A test that kills daemons in the middle says so with `has_orphans = True`: then the runtime's
    own dead children, inherited by this process as the namespace's init, are buried first.
    """
    del netns  # made before the processes are counted
    root = tmp_path / "swarm"
    before = _seen(root / "containers", cgroup_parent)
    yield root
    if getattr(request.function, "has_orphans", False):
        bury_orphans()
    after = _seen(root / "containers", cgroup_parent)
    assert before == after
    for name in ("crun", "runc"):
        assert not list((root / "run" / name).glob("[!.]*"))


@pytest.fixture
async def make(
    place: Path, binaries: Binaries, cgroup_parent: str
) -> AsyncIterator[Callable[[], OciRuntime]]:
    """Makes a runtime as a daemon does at its start; all are closed in the end."""
    made: list[OciRuntime] = []

    def build() -> OciRuntime:
        made.append(
            OciRuntime(place / "containers", place / "run", binaries, cgroup_parent=cgroup_parent)
        )
        return made[-1]

    yield build
    last = build()
    for state in await last.list_containers():
        await last.remove(state.id)
    for runtime in made:
        await runtime.close()


@pytest.fixture
def runtime(make: Callable[[], OciRuntime]) -> OciRuntime:
    """One runtime."""
    return make()


@pytest.fixture
def config(layer: Path, request: pytest.FixtureRequest) -> Callable[..., ContainerConfig]:
    """Makes configs with IDs of their own; the arguments are the shell's or a whole argv."""
    number = 0

    def build(script: str = "", argv: tuple[str, ...] = (), **fields: object) -> ContainerConfig:
        nonlocal number
        number += 1
        name = f"{request.node.name} {number}"
        values: dict[str, object] = {
            "id": ContainerID(hashlib.sha256(name.encode()).hexdigest()),
            "name": name,
            "layers": (str(layer),),
            "argv": argv or ("sh", "-c", script),
            "log": LogConfig(),
        }
        return ContainerConfig(**(values | fields))

    return build


@pytest.fixture
def run(runtime: OciRuntime) -> Callable[[ContainerConfig], object]:
    """Runs a container to its end and returns its exit code and output."""

    async def go(config: ContainerConfig) -> tuple[int, str]:
        await runtime.create(config)
        await runtime.start(config.id)
        async with asyncio.timeout(20):
            ended = await runtime.wait(config.id)
        lines = [record.data async for record in runtime.logs(config.id, LogOptions())]
        await runtime.remove(config.id)
        return ended.exit_code, b"".join(lines).decode()

    return go


@pytest.fixture
def until_said(runtime: OciRuntime) -> Callable[[ContainerID, str], object]:
    """Waits until a container has written a text."""

    async def wait(container_id: ContainerID, text: str) -> None:
        async with asyncio.timeout(20):
            async for record in runtime.logs(container_id, LogOptions(follow=True)):
                if text.encode() in record.data:
                    return

    return wait

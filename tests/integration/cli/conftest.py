"""A real node on a host of namespaces, and the real program `swarm` against its socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manager.lab.host import HOST_ADDRESS, Host
from manager.lab.image import make_rootfs_tar
from tests import needs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here runs real containers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


class Client:
    """Runs programs against the node's socket."""

    def __init__(self, socket: Path, home: Path) -> None:
        self.environment = {**os.environ, "SWARM_HOST": f"unix://{socket}", "HOME": str(home)}
        self.environment |= {"DOCKER_HOST": f"unix://{socket}", "TZ": "UTC"}

    def __call__(
        self, *arguments: str, stdin: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `swarm` to its end."""
        return self.run(
            sys.executable, "-m", "manager.cli.main", *arguments, stdin=stdin, timeout=timeout
        )

    def run(
        self, *command: str, stdin: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run any program."""
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            input=stdin,
            env=self.environment,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `swarm` and leave it running; it can be interrupted even if the tests cannot."""
        return subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "-m", "manager.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run `swarm`, which must succeed; give its output."""
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, f"swarm {arguments}: {done.stderr}{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def node() -> Iterator[Host]:
    """A host whose daemon runs, in no swarm."""
    needs.root()
    root = Path(tempfile.mkdtemp(prefix="swc-"))
    host = Host("node", root)
    try:
        host.start()
        host.start_daemon()
        yield host
    finally:
        host.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def swarm(node: Host) -> Client:
    """The program, on a node that leads a swarm and has an image."""
    client = Client(node.socket, node.root)
    archive = node.root / "rootfs.tar"
    make_rootfs_tar(archive)
    client.ok("image", "import", str(archive), "bb:1")
    client.ok("init", "--advertise-addr", HOST_ADDRESS)
    return client


@pytest.fixture
def service(swarm: Client) -> Iterator[Callable[..., str]]:
    """Create services that are removed after the test."""
    made: list[str] = []

    def create(name: str, *flags: str, command: tuple[str, ...] = ("sleep", "1000")) -> str:
        made.append(name)
        quick: tuple[str, ...] = ("--stop-grace-period", "1s", "--no-resolve-image")
        quick += ("--update-monitor", "1s", "--rollback-monitor", "1s")
        return swarm.ok("service", "create", "--name", name, *quick, *flags, "bb:1", *command)

    yield create
    for name in made:
        swarm("service", "rm", name)

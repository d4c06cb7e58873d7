"""A real swarmd on a host of namespaces, reached from outside by its socket."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import docker
import pytest

from manager.lab.host import HOST_ADDRESS, Host
from manager.lab.image import make_rootfs_tar
from tests import needs

WITHIN_SECONDS = 30.0


def pytest_collection_modifyitems(items):
    """Everything here runs real containers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


def eventually(condition, *, within=WITHIN_SECONDS, what=""):
    """Wait until a condition holds and return what it returned; fail at the deadline."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.05)


class NodeUnderTest:
    """A host with its daemon, and the ways in."""

    def __init__(self, root: Path) -> None:
        self.host = Host("node", root)
        self._client = None

    @property
    def api(self):
        """A docker-py client; a new one after the daemon was started again."""
        if self._client is None:
            self._client = docker.DockerClient(
                base_url=f"unix://{self.host.socket}", version="auto", timeout=30
            )
        return self._client

    def start_daemon(self, *options):
        """Start swarmd; the old client's connections are of no use then."""
        self.close_client()
        self.host.start_daemon(*options)

    def close_client(self):
        """Close connections that would be warned of as leaks."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def docker(self, *arguments, check=True, stdin=None, timeout=60):
        """Run the stock docker client against this node."""
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.host.socket}", *arguments],
            env={**os.environ, "DOCKER_CONFIG": str(self.host.root / "docker-config")},
            capture_output=True,
            text=True,
            input=stdin,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"docker {arguments}: {done.stderr}{done.stdout}"
        return done

    def init(self, *options):
        """Begin a swarm."""
        self.docker("swarm", "init", "--advertise-addr", HOST_ADDRESS, *options)

    def create(self, name, *options, image="bb:1", command=("sleep", "1000"), check=True):
        """Create a service without waiting for it."""
        return self.docker(
            *("service", "create", "--detach", "--name", name, "--stop-grace-period", "1s"),
            *(*options, image, *command),
            check=check,
        )

    def tasks(self, name, **filters):
        """Return the tasks of a service as the API has them."""
        return self.api.api.tasks(filters={"service": name, **filters})

    def running(self, name):
        """Map the running tasks of a service to their PIDs inside the host."""
        return {
            task["ID"]: task["Status"]["ContainerStatus"]["PID"]
            for task in self.tasks(name)
            if task["Status"]["State"] == "running" and task["DesiredState"] == "running"
        }

    def wait_running(self, name, count, *, within=WITHIN_SECONDS):
        """Wait until this many tasks run; returns them."""

        def enough():
            running = self.running(name)
            return running if len(running) == count else None

        return eventually(enough, within=within, what=f"{count} tasks of {name} run")

    def states(self, name):
        """Return (state, error) of each task of a service."""
        return [(t["Status"]["State"], t["Status"].get("Err", "")) for t in self.tasks(name)]


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory):
    """The tar of a small root file system."""
    path = tmp_path_factory.mktemp("image") / "rootfs.tar"
    make_rootfs_tar(path)
    return path


@pytest.fixture
def bare_node():
    """A host whose daemon is not started."""
    needs.program("docker")
    root = Path(tempfile.mkdtemp(prefix="swt-"))
    node = NodeUnderTest(root)
    try:
        node.host.start()
        yield node
    finally:
        node.close_client()
        node.host.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def idle_node(bare_node, rootfs):
    """A node with a daemon and an image, in no swarm."""
    bare_node.start_daemon()
    bare_node.docker("import", str(rootfs), "bb:1")
    return bare_node


@pytest.fixture
def node(idle_node):
    """A node that is the manager of a swarm of its own."""
    idle_node.init()
    return idle_node


@pytest.fixture(name="eventually")
def _eventually():
    return eventually


@pytest.fixture
def show():
    """Print JSON readably in a failure."""
    return lambda value: json.dumps(value, indent=1, default=str)

"""Several daemons on hosts of a lab, reached by their sockets."""

import os
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from manager.lab.engine import Engine, EngineRefusedError
from manager.lab.image import make_rootfs_tar
from manager.lab.lab import Lab

PORT = 2377
WITHIN_SECONDS = 30.0


def pytest_collection_modifyitems(items):
    """Everything here runs real daemons."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


class Cluster:
    """A lab and the calls that its tests make."""

    def __init__(self, name, managers, workers, *, is_formed):
        self.lab = Lab(name)
        self.lab.up(managers, workers, is_formed=is_formed)

    def host(self, name):
        """Return a host of the lab."""
        return self.lab.host(name)

    def api(self, name, method, url, body=None):
        """Make a request of a host's daemon."""
        return Engine(self.host(name).socket)(method, url, body)

    def refused(self, name, method, url, body=None):
        """Make a request that must be refused; returns the sentence."""
        with pytest.raises(EngineRefusedError) as caught:
            self.api(name, method, url, body)
        return str(caught.value)

    def init(self, name, **more):
        """Begin a cluster on a host."""
        return self.api(name, "POST", "/swarm/init", self._init_request(name, **more))

    def _init_request(self, name, **more):
        address = self.host(name).address
        return {"ListenAddr": f"0.0.0.0:{PORT}", "AdvertiseAddr": address, **more}

    def join_request(self, name, remote, token):
        """Return what the API wants for joining."""
        return {
            "ListenAddr": f"0.0.0.0:{PORT}",
            "AdvertiseAddr": self.host(name).address,
            "RemoteAddrs": [remote],
            "JoinToken": token,
        }

    def join(self, name, to, token):
        """Let a host join by another."""
        remote = f"{self.host(to).address}:{PORT}"
        self.api(name, "POST", "/swarm/join", self.join_request(name, remote, token))

    def join_refused(self, name, to, token):
        """Join in vain, by a host's name or an address; returns the sentence and the seconds."""
        remote = to if ":" in to else f"{self.host(to).address}:{PORT}"
        began = time.monotonic()
        said = self.refused(name, "POST", "/swarm/join", self.join_request(name, remote, token))
        return said, time.monotonic() - began

    def tokens(self, name):
        """Return the cluster's tokens."""
        return self.api(name, "GET", "/swarm")["JoinTokens"]

    def state(self, name):
        """Return what a host thinks of its membership."""
        return self.api(name, "GET", "/info")["Swarm"]["LocalNodeState"]

    def is_manager(self, name):
        """Tell whether a host manages its cluster."""
        return self.api(name, "GET", "/info")["Swarm"]["ControlAvailable"]

    def nodes(self, asked):
        """Map host names to nodes."""
        return {n["Description"]["Hostname"]: n for n in self.api(asked, "GET", "/nodes")}

    def set_role(self, asked, name, role):
        """Return the URL and the body that change a node's role."""
        node = self.nodes(asked)[name]
        url = f"/nodes/{node['ID']}/update?version={node['Version']['Index']}"
        return url, {**node["Spec"], "Role": role}

    def files(self, name):
        """List what a host's daemon keeps of a cluster."""
        state = self.host(name).state
        return sorted(
            str(p.relative_to(state))
            for top in ("certificates", "raft")
            for p in (state / top).rglob("*")
            if p.is_file()
        )

    def docker(self, name, *arguments, check=True):
        """Run the stock docker client against a host."""
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.host(name).socket}", *arguments],
            env={**os.environ, "DOCKER_CONFIG": str(self.lab.data / "docker-config")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"docker {arguments}: {done.stderr}{done.stdout}"
        return done

    @contextmanager
    def follow(self, name, service):
        """Follow a service whose tasks count; yield the numbers that each has printed so far."""
        seen = {}
        with subprocess.Popen(
            ["docker", "-H", f"unix://{self.host(name).socket}", "service", "logs", "-f", service],
            stdout=subprocess.PIPE,
            text=True,
        ) as client:

            def read():
                for line in client.stdout:
                    task, _, number = line.partition("|")
                    seen.setdefault(task, []).append(int(number))

            reader = threading.Thread(target=read)
            reader.start()
            try:
                yield seen
                assert client.poll() is None, "the stream has ended"
            finally:
                client.terminate()
                reader.join(10)

    def pids(self, asked):
        """Map (host ID, task ID) to the PID of each running task."""
        return {
            (t["NodeID"], t["ID"]): t["Status"]["ContainerStatus"]["PID"]
            for t in self.api(asked, "GET", "/tasks")
            if t["Status"]["State"] == "running" and t["DesiredState"] == "running"
        }


def _eventually(condition, *, within=WITHIN_SECONDS, what=""):
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="session")
def eventually():
    """Wait until a condition holds; fail at the deadline."""
    return _eventually


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory):
    """The tar of a small root file system."""
    path = tmp_path_factory.mktemp("image") / "rootfs.tar"
    make_rootfs_tar(path)
    return path


@pytest.fixture(scope="module")
def make_cluster():
    """Make labs that end with the module."""
    made = []

    def make(name, managers, workers, *, is_formed):
        cluster = Cluster(f"{name}{os.getpid()}", managers, workers, is_formed=is_formed)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        # By a handle of its own, as `swarm lab down` does: one that knows the killed switch
        # as its own may look for ports in it while it ends.
        Lab(cluster.lab.name).down()

"""A lab inside one privileged container of a Docker engine, by testcontainers.

The engine is Debian's `docker.io`: the machine's, or unpacked into a temporary directory, started
in namespaces of its own. The container's image is nothing but directories; it sees the machine's
/usr, this checkout and its virtual environment, all read-only. No registry is needed.
"""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import docker
import pytest

ROOT = Path(__file__).parents[3]
VENV = Path(sys.prefix)
IMAGE = "swarm-lab:test"
DEMO_SECONDS_MAX = 240
PACKAGES = ("docker.io", "containerd", "runc")

pytestmark = pytest.mark.skipif(
    os.environ.get("SWARM_DOCKER_TESTS") != "1",
    reason="starts a Docker engine and takes minutes; SWARM_DOCKER_TESTS=1 runs it",
)

# The engine finds a plain hierarchy of control groups, and nobody else's files in /run.
_ENGINE = """
set -e
ip link set lo up
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs tmpfs /run
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" \
  --host "unix://$1/docker.sock" --storage-driver overlay2 --cgroup-parent "$2" \
  --exec-opt native.cgroupdriver=cgroupfs --bridge none --iptables=false \
  --add-runtime "able=$1/runtime" --default-runtime able
"""

# The engine gives a privileged container every capability there is; on a machine whose root lacks
# one (a machine inside another) runc refuses. Nobody can give what he has not.
_RUNTIME = """#!{python}
import json, os, pathlib, sys
arguments = sys.argv[1:]
def confine(path):
    config = json.loads(path.read_text())
    sets = config.get("process", config)["capabilities"]
    for name, values in sets.items():
        sets[name] = [value for value in values if value not in {missing!r}]
    path.write_text(json.dumps(config))
if "--process" in arguments:
    confine(pathlib.Path(arguments[arguments.index("--process") + 1]))
elif "--bundle" in arguments:
    confine(pathlib.Path(arguments[arguments.index("--bundle") + 1], "config.json"))
os.execvp("runc", ["runc", *arguments])
"""
# Source: linux/capability.h; only one that a container of ours can do without.
_SYS_RESOURCE = 24


def missing_capabilities():
    """Name the capability that engines give and that root of this machine may lack."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (bounding,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapBnd"))
    return [] if bounding >> _SYS_RESOURCE & 1 else ["CAP_SYS_RESOURCE"]


def unpacked(folder):
    """Return the PATH of an engine that is installed, or that Debian has; else skip."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if shutil.which("dockerd", path=path):
        return path
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("there is no dockerd, and this is no Debian to get one from")
    got = subprocess.run(
        ["apt-get", "download", "-o", "APT::Sandbox::User=root", *PACKAGES],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if got.returncode:
        pytest.skip(f"Debian's docker.io cannot be had: {got.stderr.strip()[-200:]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True, timeout=60)
        package.unlink()
    engine = folder / "root"
    return f"{engine}/usr/bin:{engine}/usr/sbin:{path}"


@pytest.fixture(scope="module")
def engine():
    """Run an engine; yield its client and its address."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a Docker engine")
    # Short, because a socket's path must be.
    folder = Path(tempfile.mkdtemp(prefix="swd-"))
    cgroups = f"/swarm-docker-{os.getpid()}"
    log = folder / "log"
    try:
        path = unpacked(folder)
        runtime = folder / "runtime"
        runtime.write_text(_RUNTIME.format(python=sys.executable, missing=missing_capabilities()))
        runtime.chmod(0o755)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"),
                    *("--propagation", "private", "--mount-proc"),
                    *("sh", "-c", _ENGINE, "engine", str(folder), cgroups),
                ],
                env={**os.environ, "PATH": path},
                stdout=output,
                stderr=output,
            )
        try:
            yield from client_of(process, folder / "docker.sock", log)
        finally:
            # Everything of the engine is in its PID namespace, whose first process dockerd is.
            first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in first:
                os.kill(int(pid), signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
    finally:
        remove(cgroups)
        shutil.rmtree(folder, ignore_errors=True)


def client_of(process, address, log):
    """Yield a client when the engine answers; skip when it does not start here."""
    deadline = time.monotonic() + 60
    while True:
        if process.poll() is not None:
            pytest.skip(f"dockerd does not start here: {log.read_text()[-400:]}")
        # The client leaves sockets open when nobody answers.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(address))
            break
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)
    client = docker.DockerClient(base_url=f"unix://{address}", timeout=60)
    try:
        yield client, f"unix://{address}"
    finally:
        client.close()


def remove(cgroups):
    """Remove the engine's control groups."""
    for top in Path("/sys/fs/cgroup").glob(f"*{cgroups}"):
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)  # noqa: PTH106 -- os.walk gives strings


def image_of(client):
    """Make an image that has only the places where things are mounted."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var", "root", "opt"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
        for name in ("passwd", "group", "ld.so.cache", "os-release", "nsswitch.conf"):
            source = Path("/etc", name)
            if source.exists():
                tar.add(source.resolve(), f"etc/{name}")
    client.api.import_image_from_data(buffer.getvalue(), repository=IMAGE)


def seen_inside():
    """List the directories that the container shares with the machine."""
    places = {Path("/usr"), ROOT, VENV, Path(sys.base_prefix)}
    for link in (VENV / "bin").glob("python*"):
        places.add(link.resolve().parents[1])
    chosen = []
    for place in sorted(places):
        if not any(place.is_relative_to(other) for other in chosen):
            chosen.append(place)
    return chosen


def test_the_demo_runs_in_one_privileged_container(engine, monkeypatch):
    """Hosts, a cluster, services and every fault of the demo work inside a container, too."""
    client, address = engine
    image_of(client)
    monkeypatch.setenv("DOCKER_HOST", address)
    # The helper that ends forgotten containers comes from a registry; the engine ends with us.
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    # Read the environment when they are imported, and are not everywhere.
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415

    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    container = DockerContainer(IMAGE).with_command(["tini", "-s", "--", "sleep", "infinity"])
    container = container.with_env("PATH", f"{VENV}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    container = container.with_kwargs(
        privileged=True,
        network_mode="none",
        working_dir=str(ROOT),
    )
    # The hosts' disks are in the last: an overlay cannot lie on the container's own.
    for place in ("/run", "/tmp", "/var/lib"):
        container = container.with_tmpfs_mount(place)
    for place in seen_inside():
        container = container.with_volume_mapping(str(place), str(place), "ro")
    with contextlib.closing(container.get_docker_client().client), container:
        wrapped = container.get_wrapped_container()
        code, said = wrapped.exec_run(
            ["timeout", str(DEMO_SECONDS_MAX), str(VENV / "bin/python"), "-m", "manager.lab.demo"]
        )
        shown = said.decode(errors="replace")
        left = container.exec(["sh", "-c", "ls -A /run/swarm-lab /var/lib/swarm-lab; ip -o link"])
    assert code == 0, shown[-6000:]
    assert "ok: links, mounts, routes, rules, switches and cgroups are as before" in shown
    assert left.output.decode().count("swarm-lab': No such file") == 2

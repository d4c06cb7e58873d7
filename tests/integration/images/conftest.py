"""Real images and a real registry for the tests of the image store."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proto.clock import SystemClock
from tests import needs
from worker.images.store import ImageStore

BUSYBOX = Path("/bin/busybox")
USER, PASSWORD = "tester", "correct horse"


@pytest.fixture(autouse=True)
def needs_root_and_tools() -> None:
    """Layers have owners, and the images are the machine's busybox, copied by skopeo."""
    needs.root()
    needs.program("busybox")
    needs.program("skopeo")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of a store that does not exist yet."""
    return tmp_path / "images"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[ImageStore]:
    """An empty store."""
    opened = await ImageStore.open(root, SystemClock())
    yield opened
    await opened.close()


class Entry:
    """A member of a tar archive that a test makes."""

    def __init__(self, name: str, data: bytes = b"", **fields: Any) -> None:
        self.info = tarfile.TarInfo(name)
        self.info.mode = 0o644
        self.data = data
        self.info.size = len(data)
        for field, value in fields.items():
            setattr(self.info, field, value)


def tar(*entries: Entry) -> bytes:
    """Write a tar archive in PAX form."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(entry.info, io.BytesIO(entry.data))
    return out.getvalue()


def directory(name: str, mode: int = 0o755) -> Entry:
    """Make a directory's member."""
    return Entry(name, type=tarfile.DIRTYPE, mode=mode)


def digest(data: bytes) -> str:
    """Name a blob."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def oci_layout(path: Path, layers: Sequence[bytes], *, name: str = "", gzipped: bool = True) -> str:
    """Write an OCI layout of one image for this machine; return the image's ID."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        (blobs / digest(data)[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    suffix = "+gzip" if gzipped else ""
    descriptors = [
        put(
            gzip.compress(layer, mtime=0) if gzipped else layer,
            f"application/vnd.oci.image.layer.v1.tar{suffix}",
        )
        for layer in layers
    ]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": "2024-02-03T04:05:06.5Z",
        # Not what a program that writes it again would make of it: spaces, an unknown field.
        "vendor.field": {"kept": True},
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"tier": "web"}},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    config_descriptor = put(
        json.dumps(config, indent=1).encode(), "application/vnd.oci.image.config.v1+json"
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config_descriptor,
        "layers": descriptors,
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": name} if name else {}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (path / "index.json").write_text(json.dumps(index))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(config_descriptor["digest"])


def tar_of(directory_path: Path, target: Path) -> Path:
    """Put a directory's contents into a tar file."""
    with tarfile.open(target, "w") as archive:
        for path in sorted(directory_path.iterdir()):
            archive.add(path, path.name)
    return target


def skopeo(*arguments: str) -> str:
    """Run skopeo."""
    return subprocess.run(
        ["skopeo", *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def busybox_layer() -> bytes:
    """A small file system that can run programs."""
    return tar(
        directory("./", 0o755),
        directory("bin"),
        Entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        Entry("bin/sh", type=tarfile.LNKTYPE, linkname="bin/busybox"),
        directory("etc"),
        Entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    )


class Tools:
    """The helpers above, for test modules, which cannot import this one."""

    Entry = staticmethod(Entry)
    tar = staticmethod(tar)
    directory = staticmethod(directory)
    digest = staticmethod(digest)
    oci_layout = staticmethod(oci_layout)
    tar_of = staticmethod(tar_of)
    skopeo = staticmethod(skopeo)
    busybox_layer = staticmethod(busybox_layer)


@pytest.fixture
def tools() -> type[Tools]:
    """The helpers of this folder."""
    return Tools


@pytest.fixture
def busybox_tar(tmp_path: Path) -> Path:
    """A root file system as a plain tar file."""
    path = tmp_path / "rootfs.tar"
    path.write_bytes(busybox_layer())
    return path


class RunningRegistry:
    """Debian's docker-registry on a loopback port."""

    def __init__(self, address: str, log: Path) -> None:
        self.address = address
        self._log = log

    def requests(self) -> list[str]:
        """Return the lines `METHOD /path` that it has served."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line.split('"')[1].rsplit(" ", 1)[0] for line in lines if " HTTP/1.1" in line]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_registry(directory_path: Path, authentication: str = "") -> Iterator[RunningRegistry]:
    """Run a registry until the end of the block."""
    program = needs.program("docker-registry")
    directory_path.mkdir()
    port = _free_port()
    config = directory_path / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory_path / 'data'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n" + authentication
    )
    log = directory_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", str(config)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the registry did not answer within 10 s"
            time.sleep(0.02)
        yield RunningRegistry(f"127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    """A registry that anybody may use."""
    with running_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def locked_registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    """A registry that wants `USER` and `PASSWORD`."""
    # perl's crypt() is libxcrypt's, which has the bcrypt that the registry insists on.
    line = subprocess.run(
        ["perl", "-e", "print crypt($ARGV[0], q($2y$05$abcdefghijklmnopqrstuu))", PASSWORD],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if not line.startswith("$2y$"):
        pytest.skip("this machine's crypt(3) has no bcrypt, which the registry insists on")
    passwords = tmp_path / "htpasswd"
    passwords.write_text(f"{USER}:{line}\n")
    authentication = f"auth: {{htpasswd: {{realm: test, path: {passwords}}}}}\n"
    with running_registry(tmp_path / "locked-registry", authentication) as running:
        yield running


@pytest.fixture
def chunks() -> Callable[[bytes], AsyncIterator[bytes]]:
    """Turn bytes into a stream, as a client sends it."""

    async def stream(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    return stream

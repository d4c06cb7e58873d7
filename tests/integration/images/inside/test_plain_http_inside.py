"""What `test_plain_http.py` runs in namespaces: a registry without TLS that is not on loopback."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.clock import SystemClock
from proto.errors import UnavailableError
from worker.images.store import ImageStore

ADDRESS = os.environ.get("SWARM_TEST_REGISTRY", "")
PORT = 5000
CONFIGURATION = Path("/etc/containers/registries.conf")

pytestmark = pytest.mark.skipif(not ADDRESS, reason="runs inside, by test_plain_http.py")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry that speaks plain HTTP."""
    config = tmp_path / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'data'}}}}}\n"
        f"http: {{addr: '{ADDRESS}:{PORT}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"{ADDRESS}:{PORT}"
    process.terminate()
    process.wait(10)


async def test_the_machine_decides_about_plain_http(registry: str, tmp_path: Path) -> None:
    """Without leave it is refused with what to do; having done that, push and pull work."""
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        archive.add(__file__, "file")
    name = f"{registry}/web:1"
    store = await ImageStore.open(tmp_path / "one", SystemClock())
    image = await store.import_rootfs(layer, name)
    deadline = time.monotonic() + 30
    while True:
        with pytest.raises(UnavailableError) as caught:
            await store.push(name)
        if "does not speak TLS" in caught.value.message:
            break
        assert time.monotonic() < deadline, caught.value.message  # it has not begun to listen
    remedy = caught.value.message
    assert "/etc/containers/registries.conf" in remedy
    words = ["[[registry]]", f'location = "{registry}"', "insecure = true"]
    assert all(word in remedy for word in words)

    CONFIGURATION.write_text(CONFIGURATION.read_text() + "\n" + "\n".join(words) + "\n")
    await store.push(name)
    other = await ImageStore.open(tmp_path / "two", SystemClock())
    assert (await other.pull(name)).id == image.id
    await other.close()
    await store.close()

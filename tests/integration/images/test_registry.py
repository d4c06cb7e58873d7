"""Pull and push against a real registry on a loopback port."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from proto.clock import SystemClock
from proto.errors import DeniedError, InvalidError, NotFoundError, UnavailableError
from worker.images import skopeo as skopeo_module
from worker.images.api import Progress, RegistryAuth
from worker.images.store import ImageStore

pytestmark = pytest.mark.integration


async def other_store(tmp_path: Path) -> ImageStore:
    """Open a second store, as another node has it."""
    return await ImageStore.open(tmp_path / "other", SystemClock())


async def load_two_layers(store: ImageStore, tmp_path: Path, tools: Any, name: str) -> str:
    """Load an image of a busybox layer and a small one; return its ID."""
    layers = [tools.busybox_layer(), tools.tar(tools.Entry("etc/motd", name.encode()))]
    image_id: str = tools.oci_layout(tmp_path / "oci", layers, name=name)
    await store.load(tools.tar_of(tmp_path / "oci", tmp_path / "archive.tar"))
    return image_id


@pytest.mark.parametrize("kind", ["imported", "oci"])
async def test_push_and_pull_keep_identity(
    store: ImageStore, tmp_path: Path, tools: Any, registry: Any, kind: str
) -> None:
    """An image keeps its ID and digest on its way through a registry and back, and once more."""
    name = f"{registry.address}/team/web:1"
    if kind == "imported":
        (tmp_path / "r.tar").write_bytes(tools.busybox_layer())
        await store.import_rootfs(tmp_path / "r.tar", name, changes=["CMD sh"])
    else:
        await load_two_layers(store, tmp_path, tools, name)
    image = store.resolve(name)
    digest = await store.push(name)

    again = await other_store(tmp_path)
    pulled = await again.pull(name)
    assert pulled.id == image.id
    assert pulled.diff_ids == image.diff_ids
    assert pulled.config == image.config
    assert pulled.repo_digests == (f"{registry.address}/team/web@{digest}",)
    assert store.resolve(name).repo_digests == pulled.repo_digests
    raw = tools.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    assert tools.digest(raw.encode()) == digest

    await again.tag(name, f"{registry.address}/copy:2")
    assert await again.push(f"{registry.address}/copy:2") == digest
    by_digest = f"{registry.address}/copy@{digest}"
    assert (await store.pull(by_digest)).id == image.id
    assert store.resolve(by_digest).id == image.id
    await again.close()


async def test_only_missing_layers_are_fetched(
    store: ImageStore, tmp_path: Path, tools: Any, registry: Any
) -> None:
    """A layer that another image brought is not fetched again; a second pull fetches nothing."""
    name = f"{registry.address}/web"
    layers = [tools.busybox_layer()]
    tools.oci_layout(tmp_path / "one", layers)
    layers.append(tools.tar(tools.Entry("two", b"2")))
    tools.oci_layout(tmp_path / "two", layers)
    for tag in ("one", "two"):
        tools.skopeo(
            "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/{tag}", f"docker://{name}:{tag}"
        )
    await store.pull(f"{name}:one")
    before = len(registry.requests())
    messages: list[Progress] = []
    await store.pull(f"{name}:two", progress=messages.append)

    fetched = [line for line in registry.requests()[before:] if line.startswith("GET")]
    manifest = json.loads(
        tools.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}:two")
    )
    base, top = (layer["digest"] for layer in manifest["layers"])
    assert not [line for line in fetched if base in line]
    assert len([line for line in fetched if top in line]) == 1
    states = [(message.status, message.id) for message in messages]
    assert ("Already exists", base[7:19]) in states
    assert ("Pull complete", top[7:19]) in states
    assert states[-1] == (f"Status: Downloaded newer image for {name}:two", "")

    before = len(registry.requests())
    messages.clear()
    await store.pull(f"{name}:two", progress=messages.append)
    assert not [line for line in registry.requests()[before:] if "/blobs/" in line]
    assert messages[-1].status == f"Status: Image is up to date for {name}:two"


async def test_concurrent_pulls_fetch_once(
    store: ImageStore, tmp_path: Path, tools: Any, registry: Any
) -> None:
    """Four pulls of one image at the same time fetch each of its layers once."""
    name = f"{registry.address}/web:1"
    image_id = tools.oci_layout(tmp_path / "oci", [tools.busybox_layer()])
    tools.skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/oci", f"docker://{name}")
    images = await asyncio.gather(*(store.pull(name) for _ in range(4)))
    assert [image.id for image in images] == [image_id] * 4
    manifest = json.loads(
        tools.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    )
    (layer,) = manifest["layers"]
    requests = registry.requests()
    assert len([r for r in requests if r.startswith("GET") and layer["digest"] in r]) == 1


async def test_index_gives_this_platform(
    store: ImageStore, tmp_path: Path, tools: Any, registry: Any
) -> None:
    """Of an image for several platforms this machine's is pulled, known by the index's digest."""
    name = f"{registry.address}/multi:1"
    image_id = tools.oci_layout(tmp_path / "oci", [tools.busybox_layer()])
    index = json.loads((tmp_path / "oci/index.json").read_text())
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    (entry,) = index["manifests"]
    entry["platform"] = {"architecture": machine, "os": "linux"}
    (tmp_path / "oci/index.json").write_text(json.dumps(index))
    # An index inside the layout's own, as skopeo wants it to copy one whole.
    data = (tmp_path / "oci/index.json").read_bytes()
    (tmp_path / "oci/blobs/sha256" / tools.digest(data)[7:]).write_bytes(data)
    outer = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": tools.digest(data),
        "size": len(data),
    }
    (tmp_path / "oci/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [outer]}))
    tools.skopeo(
        "copy", "--all", "--preserve-digests", "--dest-tls-verify=false",
        f"oci:{tmp_path}/oci", f"docker://{name}",
    )  # fmt: skip
    image = await store.pull(name)
    assert image.id == image_id
    assert image.repo_digests == (f"{registry.address}/multi@{tools.digest(data)}",)
    with pytest.raises(NotFoundError, match="no matching manifest for linux/s390x"):
        await store.pull(name, platform="linux/s390x")


async def test_platform_of_a_single_image(
    store: ImageStore, tmp_path: Path, tools: Any, registry: Any
) -> None:
    """An image of another platform than the one asked for is refused."""
    name = f"{registry.address}/web:1"
    await load_two_layers(store, tmp_path, tools, name)
    await store.push(name)
    with pytest.raises(NotFoundError, match="does not match the specified platform"):
        await store.pull(name, platform="linux/s390x")


async def test_errors_are_sentences(store: ImageStore, registry: Any, root: Path) -> None:
    """What is not there, and a registry that is not, are told apart, in words."""
    name = f"{registry.address}/nothing:1"
    with pytest.raises(NotFoundError, match=f"^manifest for {name} not found: manifest unknown"):
        await store.pull(name)
    with pytest.raises(UnavailableError, match=r"^cannot reach the registry 127\.0\.0\.1:1: conn"):
        await store.pull("127.0.0.1:1/web")
    with pytest.raises(NotFoundError, match="does not exist locally with the tag: web"):
        await store.push("web")
    with pytest.raises(InvalidError, match="must be lowercase"):
        await store.pull("127.0.0.1:1/Web")
    assert list((root / "tmp").iterdir()) == []


async def test_credentials(
    store: ImageStore, tmp_path: Path, tools: Any, locked_registry: Any
) -> None:
    """A registry that wants a password takes the right one, for push and pull, and no other."""
    name = f"{locked_registry.address}/web:1"
    image_id = await load_two_layers(store, tmp_path, tools, name)
    right = RegistryAuth(username="tester", password="correct horse")
    for wrong in (None, RegistryAuth(username="tester", password="wrong")):
        with pytest.raises(DeniedError, match=r"^push access denied for .*may require 'docker log"):
            await store.push(name, auth=wrong)
    await store.push(name, auth=right)
    again = await other_store(tmp_path)
    with pytest.raises(DeniedError, match=r"^pull access denied"):
        await again.pull(name)
    assert (await again.pull(name, auth=right)).id == image_id
    await again.close()


async def test_credentials_are_not_seen(
    store: ImageStore,
    tmp_path: Path,
    tools: Any,
    locked_registry: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The password is in no argument, only in a file of root's that is gone afterwards."""
    name = f"{locked_registry.address}/web:1"
    await load_two_layers(store, tmp_path, tools, name)
    seen: list[tuple[list[str], Path, int, int]] = []
    call = skopeo_module._call

    async def spy(words: list[str], on_line: Any) -> bytes:
        authfile = Path(words[words.index("--authfile") + 1])
        modes = stat.S_IMODE(authfile.stat().st_mode), stat.S_IMODE(authfile.parent.stat().st_mode)
        seen.append((list(words), authfile, *modes))
        return await call(words, on_line)

    monkeypatch.setattr(skopeo_module, "_call", spy)
    await store.push(name, auth=RegistryAuth(username="tester", password="correct horse"))

    assert seen
    for words, authfile, file_mode, directory_mode in seen:
        assert not [word for word in words if "correct horse" in word or "tester" in word]
        assert (file_mode, directory_mode) == (0o600, 0o700)
        assert not authfile.exists()


async def test_cancelled_pull_ends_its_program(store: ImageStore, root: Path) -> None:
    """A pull that is cancelled while the registry says nothing leaves no process and no file."""
    # The kernel takes connections to it, and nobody ever answers.
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    task = asyncio.create_task(store.pull(f"127.0.0.1:{port}/web"))

    def children() -> list[str]:
        mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return [pid for pid in mine if "skopeo" in Path(f"/proc/{pid}/cmdline").read_text()]

    async with asyncio.timeout(10):
        while not children():  # noqa: ASYNC110 -- nothing tells when a process has started
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []
    assert list((root / "tmp").iterdir()) == []
    silent.close()

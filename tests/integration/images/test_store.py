"""Names, removal, recovery and full disks, on real files."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proto.clock import SystemClock
from proto.errors import (
    ConflictError,
    CorruptError,
    InvalidError,
    NotFoundError,
    RuntimeFailedError,
    SwarmError,
)
from worker.images.api import Deleted
from worker.images.removal import ImageUse
from worker.images.store import ImageStore

pytestmark = pytest.mark.integration

# Runs a coroutine `work(store)` in a fresh interpreter.
PRELUDE = """
import asyncio, sys
from pathlib import Path
from proto.clock import SystemClock
from worker.images.store import ImageStore
root, archive = Path(sys.argv[1]), Path(sys.argv[2])
"""


def tree(root: Path) -> list[str]:
    """Return blobs, layers and work in progress."""
    return sorted(
        str(path.relative_to(root))
        for folder in ("tmp", "l", "blobs/sha256")
        for path in (root / folder).iterdir()
    )


async def small(
    store: ImageStore, tmp_path: Path, tools: Any, *names: str, data: bytes = b""
) -> str:
    """Load an image with one small layer of its own and some names; return its ID."""
    folder = tmp_path / f"image-{names[0] if names else 'unnamed'}".replace(":", "-")
    layer = tools.tar(tools.Entry("name", (names or ("unnamed",))[0].encode() + data))
    image_id: str = tools.oci_layout(folder, [layer], name=names[0] if names else "")
    await store.load(tools.tar_of(folder, folder.with_suffix(".tar")))
    for name in names[1:]:
        await store.tag(names[0], name)
    return image_id


async def test_resolve(store: ImageStore, tmp_path: Path, tools: Any) -> None:
    """An image is found by each of its names and by its ID, whole or its beginning."""
    image_id = await small(store, tmp_path, tools, "web:latest")
    digits = image_id[7:]
    for text in ("web", "web:latest", "docker.io/library/web", image_id, digits, digits[:12]):
        assert store.resolve(text).id == image_id, text
    with pytest.raises(NotFoundError, match=r"^No such image: web:2$"):
        store.resolve("web:2")
    with pytest.raises(NotFoundError, match=r"^No such image: other:latest$"):
        store.resolve("other")
    with pytest.raises(NotFoundError, match=f"^No such image: sha256:{'0' * 64}$"):
        store.resolve("sha256:" + "0" * 64)
    with pytest.raises(InvalidError, match="invalid reference format"):
        store.resolve("we b")


async def test_names_survive_a_restart(root: Path, tmp_path: Path, tools: Any) -> None:
    """What was loaded and tagged is there after closing and opening, and only one may open."""
    store = await ImageStore.open(root, SystemClock())
    image_id = await small(store, tmp_path, tools, "web:1", "team/web:2")
    before = store.images()
    with pytest.raises(ConflictError, match="in use by another process"):
        await ImageStore.open(root, SystemClock())
    await store.close()
    again = await ImageStore.open(root, SystemClock())
    assert again.images() == before
    assert again.resolve("team/web:2").id == image_id
    assert before[0].repo_tags == ("team/web:2", "web:1")
    await again.close()


async def test_removal_by_name_and_id(
    store: ImageStore, root: Path, tmp_path: Path, tools: Any
) -> None:
    """A name goes alone while there are others; the last one takes the image and its layers."""
    image_id = await small(store, tmp_path, tools, "web:1", "other:1")
    image = store.resolve("web:1")
    with pytest.raises(ConflictError, match=r"must be forced.*referenced in multiple repositories"):
        await store.remove(image_id)
    assert await store.remove("web:1") == [Deleted(untagged="web:1")]
    assert await store.remove("other:1") == [
        Deleted(untagged="other:1"),
        Deleted(deleted=image_id),
        Deleted(deleted=image.diff_ids[0]),
    ]
    assert tree(root) == []
    with pytest.raises(NotFoundError, match=r"^No such image: web:1$"):
        await store.remove("web:1")


async def test_removal_of_what_containers_have(
    store: ImageStore, root: Path, tmp_path: Path, tools: Any
) -> None:
    """An image of a running container stays; of a stopped one, by force, only its layers do."""
    image_id = await small(store, tmp_path, tools, "web:1")
    (layer,) = store.resolve(image_id).layer_dirs
    running = {image_id: ImageUse(container_id="c" * 64, is_running=True)}
    stopped = {image_id: ImageUse(container_id="c" * 64, is_running=False)}
    with pytest.raises(ConflictError, match=r"\(must force\) - container cccccccccccc is using"):
        await store.remove("web:1", in_use=running)
    with pytest.raises(ConflictError, match=r"cannot be forced.*running container cccccccccccc"):
        await store.remove(image_id, force=True, in_use=running)
    with pytest.raises(ConflictError, match=r"must be forced.*stopped container cccccccccccc"):
        await store.remove(image_id, in_use=stopped)

    await store.remove(image_id, force=True, in_use=stopped)
    assert store.images() == []
    assert Path(layer).is_dir()
    await store.release({})
    assert tree(root) == []


async def test_prune(store: ImageStore, root: Path, tmp_path: Path, tools: Any) -> None:
    """A prune takes what has no tag, or all, but never what a container has."""
    nameless = await small(store, tmp_path, tools, data=bytes(5000))
    kept = await small(store, tmp_path, tools, "kept:1")
    loose = await small(store, tmp_path, tools, "loose:1")
    deleted, freed = await store.prune(in_use=[kept])
    assert Deleted(deleted=nameless) in deleted
    assert freed > 5000
    assert {image.id for image in store.images()} == {kept, loose}
    assert await store.prune(all=True, in_use=[kept], filters={"label": ["tier=db"]}) == ([], 0)
    deleted, _ = await store.prune(all=True, in_use=[kept], filters={"until": ["24h"]})
    assert deleted[:2] == [Deleted(untagged="loose:1"), Deleted(deleted=loose)]
    await store.prune(all=True)
    assert tree(root) == []


async def test_a_name_moves(store: ImageStore, tmp_path: Path, tools: Any) -> None:
    """A name leads to the image that had it last; the other one stays without it."""
    first = await small(store, tmp_path, tools, "web:1")
    second = await small(store, tmp_path, tools, "other:1")
    await store.tag("other:1", "web:1")
    assert store.resolve("web:1").id == second
    assert store.resolve(first).repo_tags == ()
    with pytest.raises(InvalidError, match="digest reference"):
        await store.tag("web:1", "web@sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "step",
    ["new_scratch", "take_blob", "take_layer", "after take_layer", "write_blob", "store",
     "after store", "unpack"],
)  # fmt: skip
async def test_killed_load_is_recovered(root: Path, tmp_path: Path, tools: Any, step: str) -> None:
    """Killed at any step of a load, the store opens again without anything half-done."""
    layers = [tools.busybox_layer(), tools.tar(tools.Entry("x", b"y"))]
    tools.oci_layout(tmp_path / "oci", layers, name="web:1")
    archive = tools.tar_of(tmp_path / "oci", tmp_path / "archive.tar")
    code = (
        PRELUDE
        + f"""
import os, signal
from worker.images import disk, unpack
step = {step!r}
owner, name = (unpack.LayerUnpacker, "_regular") if step == "unpack" else (
    disk.Disk, step.removeprefix("after "))
original = getattr(owner, name)
def dying(self, *arguments, **keywords):
    if step.startswith("after "):
        original(self, *arguments, **keywords)
    elif step == "unpack":
        os.open("half", os.O_CREAT, dir_fd=arguments[1])
    os.kill(os.getpid(), signal.SIGKILL)
async def main():
    store = await ImageStore.open(root, SystemClock())
    setattr(owner, name, dying)
    await store.load(archive)
asyncio.run(main())
"""
    )
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(root), str(archive)],
        check=False,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL

    store = await ImageStore.open(root, SystemClock())
    if step == "after store":
        assert [image.repo_tags for image in store.images()] == [("web:1",)]
    else:
        assert store.images() == []
        assert tree(root) == []
    assert await store.load(archive) == ["web:1"]
    assert len(tree(root)) == 2 + 2 + 2
    await store.close()


@pytest.mark.parametrize("step", ["store", "after store", "set_aside", "after set_aside"])
async def test_killed_removal_is_recovered(
    root: Path, tmp_path: Path, tools: Any, step: str
) -> None:
    """Killed at any step of a removal, the image is there whole, or nothing of it is."""
    store = await ImageStore.open(root, SystemClock())
    image_id = await small(store, tmp_path, tools, "web:1")
    await store.close()
    code = (
        PRELUDE
        + f"""
import os, signal
from worker.images.disk import Disk
step = {step!r}
name = step.removeprefix("after ")
original = getattr(Disk, name)
def dying(self, *arguments):
    if step.startswith("after "):
        original(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)
async def main():
    store = await ImageStore.open(root, SystemClock())
    setattr(Disk, name, dying)
    await store.remove("web:1")
asyncio.run(main())
"""
    )
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(root), "x"], check=False, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    store = await ImageStore.open(root, SystemClock())
    if step == "store":
        assert (Path(store.resolve(image_id).layer_dirs[0]) / "name").read_bytes() == b"web:1"
    else:
        assert store.images() == []
        assert tree(root) == []
    await store.close()


async def test_killed_pull_takes_its_program_along(root: Path) -> None:
    """Skopeo ends with a daemon that is killed, and does not write into the next one's store."""
    # The kernel takes connections to it, and nobody ever answers.
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    code = (
        PRELUDE
        + f"""
async def main():
    store = await ImageStore.open(root, SystemClock())
    await store.pull("127.0.0.1:{port}/web")
asyncio.run(main())
"""
    )
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(root), "x")
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    async with asyncio.timeout(20):
        while True:
            found = [pid for pid in children.read_text().split() if runs_skopeo(pid)]
            if found:
                break
            await asyncio.sleep(0.01)
        daemon.kill()
        await daemon.wait()
        while any(runs_skopeo(pid) for pid in found):  # noqa: ASYNC110 -- not our child
            await asyncio.sleep(0.01)
    store = await ImageStore.open(root, SystemClock())
    assert tree(root) == []
    await store.close()
    silent.close()


def runs_skopeo(pid: str) -> bool:
    """Whether a process is skopeo; one that has ended, reaped or not, runs nothing."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"skopeo")
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_lost_layer_is_unpacked_again(root: Path, tmp_path: Path, tools: Any) -> None:
    """A layer's directory that is gone comes back from its blob; without it the image goes."""
    store = await ImageStore.open(root, SystemClock())
    await small(store, tmp_path, tools, "web:1")
    await store.close()
    (layer,) = (root / "l").iterdir()
    shutil.rmtree(layer)
    store = await ImageStore.open(root, SystemClock())
    assert (layer / "name").read_bytes() == b"web:1"
    await store.close()

    shutil.rmtree(layer)
    for blob in (root / "blobs/sha256").iterdir():
        if not blob.read_bytes().startswith(b"{"):
            blob.unlink()
    store = await ImageStore.open(root, SystemClock())
    assert store.images() == []
    assert tree(root) == []
    await store.close()


async def test_damaged_metadata_is_not_thrown_away(root: Path) -> None:
    """A store whose metadata cannot be read says so and leaves everything as it is."""
    store = await ImageStore.open(root, SystemClock())
    await store.close()
    (root / "state.json").write_text('{"version": 1, "tags": ')
    for _ in range(2):
        with pytest.raises(CorruptError, match=r"state\.json is damaged"):
            await ImageStore.open(root, SystemClock())
    assert (root / "state.json").read_text() == '{"version": 1, "tags": '
    (root / "state.json").write_text('{"version": 99}')
    with pytest.raises(CorruptError, match="its version is 99"):
        await ImageStore.open(root, SystemClock())


def in_mount_namespace(script: str, *arguments: str) -> str:
    """Run a shell script with mounts of its own; return what it prints."""
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-euc", script, "sh", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


@pytest.mark.parametrize("size", [6_000_000, 12_000_000])
@pytest.mark.parametrize("how", ["load", "import", "pull"])
def test_full_disk(tmp_path: Path, tools: Any, registry: Any, how: str, size: int) -> None:
    """A full disk is named in the error, and what was half done is gone: the next one fits.

    The smaller size fills it while a second layer is unpacked, the larger one before.
    """
    mount = tmp_path / "disk"
    mount.mkdir()
    first = tools.tar(tools.Entry("first", b"1"))
    big = tools.tar(tools.Entry("big", os.urandom(size)))
    for name, layers in (("big", [first, big]), ("little", [first])):
        tools.oci_layout(tmp_path / name, layers, name=f"{name}:1", gzipped=False)
        archive = tools.tar_of(tmp_path / name, tmp_path / f"{name}.tar")
        if how == "import":
            archive.write_bytes(layers[-1])
        if how == "pull":
            tools.skopeo(
                "copy", "--dest-tls-verify=false", f"oci:{tmp_path / name}:{name}:1",
                f"docker://{registry.address}/{name}:1",
            )  # fmt: skip
    code = (
        PRELUDE
        + f"""
from proto.errors import ResourceExhaustedError
async def bring(store, name):
    path = archive.with_name(name + ".tar")
    if {how!r} == "load":
        await store.load(path)
    elif {how!r} == "import":
        await store.import_rootfs(path, name + ":1")
    else:
        await store.pull({registry.address!r} + "/" + name + ":1")
async def main():
    store = await ImageStore.open(root, SystemClock())
    try:
        await bring(store, "big")
    except ResourceExhaustedError as error:
        print(error.message)
    print(sorted(p.name for f in ("tmp", "l", "blobs/sha256") for p in (root / f).iterdir()))
    await bring(store, "little")
    print([tag.rpartition("/")[2] for image in store.images() for tag in image.repo_tags])
asyncio.run(main())
"""
    )
    printed = in_mount_namespace(
        'mount -t tmpfs -o size=8m tmpfs "$1"; exec "$2" -c "$3" "$1/images" "$4"',
        str(mount),
        sys.executable,
        code,
        str(tmp_path / "big.tar"),
    ).splitlines()
    # Before them there may be lines of the log.
    printed = printed[-3:]
    assert "no space left on device" in printed[0]
    assert f"{mount}/images is full" in printed[0]
    assert printed[1:] == ["[]", "['little:1']"]


def test_overlay_of_three_layers(tmp_path: Path, root: Path, tools: Any) -> None:
    """Mounted by the kernel, an image's layers show what the whiteouts left."""
    entry, directory = tools.Entry, tools.directory
    layers = [
        tools.tar(
            directory("d"), entry("d/a", b"1"), entry("d/b", b"1"),
            directory("o"), entry("o/x", b"1"), entry("gone", b"1"),
            directory("r"), entry("r/old", b"1"), directory("k"), entry("k/low", b"1"),
        ),
        tools.tar(
            directory("d"), entry("d/.wh.a"), entry("d/c", b"2"), entry(".wh.gone"),
            directory("o"), entry("o/.wh..wh..opq"), entry("o/y", b"2"),
            # The whiteout of a directory that the same layer makes anew, in both orders.
            entry(".wh.r"), directory("r"), entry("r/new", b"2"),
            directory("k"), entry("k/high", b"2"), entry(".wh.k"),
        ),
        tools.tar(
            entry("d/a", b"3"),
            entry("link", type=tarfile.SYMTYPE, linkname="d/a"),
            entry("hard", type=tarfile.LNKTYPE, linkname="d/a"),
        ),
    ]  # fmt: skip
    tools.oci_layout(tmp_path / "oci", layers, name="web:1")
    tools.tar_of(tmp_path / "oci", tmp_path / "archive.tar")

    async def load() -> tuple[str, ...]:
        store = await ImageStore.open(root, SystemClock())
        await store.load(tmp_path / "archive.tar")
        directories = store.resolve("web:1").layer_dirs
        await store.close()
        return directories

    directories = asyncio.run(load())
    mount = tmp_path / "mnt"
    mount.mkdir()
    printed = in_mount_namespace(
        'mount -t overlay overlay -o "lowerdir=$1" "$2"; cd "$2"; find . -type f -o -type l '
        '| sort | while read -r f; do echo "$f $(cat "$f")"; done',
        ":".join(reversed(directories)),
        str(mount),
    )
    assert printed.splitlines() == [
        "./d/a 3", "./d/b 1", "./d/c 2", "./hard 3", "./k/high 2", "./link 3", "./o/y 2",
        "./r/new 2",
    ]  # fmt: skip


def test_a_hundred_layers_fit_a_mount() -> None:
    """The paths of 100 layers under the usual root fit the page that mount(2) takes."""
    assert len(":".join(["/var/lib/swarm/images/l/0123456789ab"] * 100)) < 4096 - 300


def test_memory_stays_small(tmp_path: Path, root: Path, tools: Any) -> None:
    """A 60 MB image is loaded and saved in less than 24 MiB more than an open store has."""
    tools.oci_layout(
        tmp_path / "oci", [tools.tar(tools.Entry("big", bytes(60_000_000)))], name="w:1"
    )
    archive = tools.tar_of(tmp_path / "oci", tmp_path / "archive.tar")
    code = (
        PRELUDE
        + """
import json, resource
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
async def main():
    store = await ImageStore.open(root, SystemClock())
    before = peak()
    await store.load(archive)
    async for _ in store.save(["w:1"]): pass
    print(json.dumps([before, peak()]))
asyncio.run(main())
"""
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(root), str(archive)],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    before, after = json.loads(printed)
    assert after - before < 24 * 1024


def is_refusal(error: SwarmError) -> bool:
    """Tell what may happen when everybody does everything to the same images.

    Debian's registry answers 500 to who reads a tag that is just being pushed.
    """
    is_registry = isinstance(error, RuntimeFailedError) and "HTTP status: 500" in error.message
    return is_registry or isinstance(error, NotFoundError | ConflictError)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_everything_at_once(
    root: Path, tmp_path: Path, tools: Any, registry: Any, seed: int
) -> None:
    """Loads, pulls, pushes, saves, tags, removals and prunes at once never break the store.

    Whatever order they come in: each ends well or in a sentence, every image has all its layers
    at every moment, and after the last prune nothing is left.
    """
    rng = random.Random(seed)
    store = await ImageStore.open(root, SystemClock())
    base = tools.tar(tools.Entry("base", bytes(200_000)))
    archives = []
    for name in ("a", "b", "c"):
        layers = [base, tools.tar(tools.Entry("own", name.encode() * 1000))]
        tools.oci_layout(
            tmp_path / name, layers, name=f"{registry.address}/{name}:1", gzipped=False
        )
        archives.append(tools.tar_of(tmp_path / name, tmp_path / f"{name}.tar"))
        await store.load(archives[-1])
        await store.push(f"{registry.address}/{name}:1")

    async def save(name: str) -> None:
        async for _ in store.save([name]):
            pass

    actions: list[Callable[[str], Awaitable[object]]] = [
        lambda _: store.load(rng.choice(archives)),
        lambda _: store.load(rng.choice(archives)),
        store.pull,
        store.push,
        lambda name: store.tag(name, "other:1"),
        lambda name: store.remove(name, force=True),
        lambda name: store.remove(name, force=True),
        lambda _: store.prune(all=rng.random() < 0.3),
        save,
    ]
    done: Counter[bool] = Counter()

    async def one() -> None:
        try:
            await rng.choice(actions)(f"{registry.address}/{rng.choice('abc')}:1")
            done[True] += 1
        except SwarmError as error:
            if not is_refusal(error):
                raise
            done[False] += 1
        for image in store.images():
            assert all(Path(layer).is_dir() for layer in image.layer_dirs)

    async def many() -> None:
        for _ in range(12):
            await one()

    await asyncio.gather(*(many() for _ in range(6)))
    assert done[True] > 36
    before, files = store.images(), tree(root)
    await store.close()
    store = await ImageStore.open(root, SystemClock())
    # Nothing was left for the opening to clean up.
    assert (store.images(), tree(root)) == (before, files)
    await store.prune(all=True)
    assert tree(root) == []
    await store.close()

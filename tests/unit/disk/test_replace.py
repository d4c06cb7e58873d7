"""Files that are replaced whole, whatever is lost with the power, and those that nobody needs."""

import os
import stat
from pathlib import Path

import pytest

from disk.replace import replace_file
from manager.daemon.identity import Identity, read_identity, write_identity
from manager.daemon.remembered import RememberedMember, read_remembered, write_remembered
from proto.errors import ResourceExhaustedError, RuntimeFailedError
from worker.images.disk import Disk
from worker.images.state import State
from worker.volumes import VolumeStore

IDENTITY = Identity(
    node_id="n1", cluster_id="c1", role="worker", advertise_addr="a:1", listen_addr="b:1"
)
MEMBERS = [RememberedMember(node_id="n1", address="a:1")]


@pytest.fixture
def steps(monkeypatch):
    """Note what is synced and renamed, in order."""
    noted = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def sync(descriptor):
        noted.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def moved(kind):
        def move(source, target, **options):
            noted.append(("rename", Path(source).name, Path(target).name))
            kind(source, target, **options)

        return move

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    return noted


def replace_plain(folder):
    """Replace any file."""
    replace_file(folder / "file", b"content")
    return folder / "file"


def replace_identity(folder):
    """Replace who the node is."""
    write_identity(folder / "node.json", IDENTITY)
    return folder / "node.json"


def replace_managers(folder):
    """Replace the managers."""
    write_remembered(folder / "managers.json", MEMBERS)
    return folder / "managers.json"


def replace_volume(folder):
    """Replace a volume's record."""
    VolumeStore(folder).create("data", now=1.0)
    return folder / "volumes" / "data" / "volume.json"


def replace_images(folder):
    """Replace the image store's metadata."""
    disk = Disk(folder / "images")
    try:
        disk.store(State())
    finally:
        disk.close()
    return folder / "images" / "state.json"


@pytest.mark.parametrize(
    "replace",
    [replace_plain, replace_identity, replace_managers, replace_volume, replace_images],
)
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, steps, replace
):
    """A rename alone may be on the disk before the content: then the file is empty."""
    path = replace(tmp_path)
    renames = [step for step in steps if step[0] == "rename" and step[2] == path.name]
    assert len(renames) == 1
    at = steps.index(renames[0])
    assert ("sync", renames[0][1]) in steps[:at]
    assert ("sync", path.parent.name) in steps[at:]
    assert path.read_bytes()


def test_a_disk_that_refuses_leaves_the_old_content(tmp_path, monkeypatch):
    """And nothing beside it."""
    path = tmp_path / "file"
    replace_file(path, b"old", mode=0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    with pytest.raises(ResourceExhaustedError):
        write_identity(tmp_path / "node.json", IDENTITY)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert read_identity(tmp_path / "node.json") is None


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}", b'[{"node_id": 1}]'])
def test_a_damaged_list_of_managers_is_none(tmp_path, content):
    """Nothing depends on it: whoever is reached tells the rest."""
    path = tmp_path / "managers.json"
    assert read_remembered(path) == ()
    path.write_bytes(content)
    assert read_remembered(path) == ()
    write_remembered(path, MEMBERS)
    assert read_remembered(path) == tuple(MEMBERS)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[]"])
def test_a_damaged_record_harms_its_own_volume_only(tmp_path, content):
    """The others are there; it is refused with what to do, and can be removed."""
    store = VolumeStore(tmp_path)
    store.create("good", now=1.0)
    store.create("bad", now=1.0)
    (tmp_path / "volumes" / "bad" / "volume.json").write_bytes(content)
    assert [volume.name for volume in store.all()] == ["good"]
    assert not store.owned_by("container")
    with pytest.raises(RuntimeFailedError, match="swarm volume rm bad"):
        store.inspect("bad")
    with pytest.raises(RuntimeFailedError, match="put the record back"):
        store.create("bad", now=2.0)
    store.remove("bad")
    assert store.create("bad", now=3.0).created_at == 3.0

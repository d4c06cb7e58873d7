"""Volumes on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from proto.errors import ConflictError, InvalidError, NotFoundError
from proto.ids import ContainerID
from worker.container import VolumeRequest
from worker.runtime.api import ContainerMount
from worker.volumes import VolumeStore

C1, C2 = ContainerID("c" * 64), ContainerID("d" * 64)


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    """Make an empty store."""
    return VolumeStore(tmp_path)


def test_volume_is_made_once_and_kept(store: VolumeStore, tmp_path: Path) -> None:
    """The first mount makes a volume with its labels; the second finds it, with its content."""
    request = VolumeRequest(name="data", labels={"a": "b"})
    first = store.resolve(request, C1, 5.0)
    assert first.path == str(tmp_path / "volumes" / "data" / "_data")
    assert first.record == str(tmp_path / "volumes" / "data")
    (Path(first.path) / "file").write_text("x")
    assert store.resolve(VolumeRequest(name="data"), C2, 9.0) == first
    (volume,) = store.all()
    assert (volume.labels, volume.created_at, volume.owner) == ({"a": "b"}, 5.0, "")


def test_anonymous_volumes_go_with_their_container(store: VolumeStore) -> None:
    """Only the container's own volumes are removed with it."""
    name = "f" * 64
    store.resolve(VolumeRequest(name=name, is_anonymous=True), C1, 1.0)
    store.resolve(VolumeRequest(name="named"), C1, 1.0)
    store.remove_owned(C2)
    assert len(store.all()) == 2
    store.remove_owned(C1)
    assert [volume.name for volume in store.all()] == ["named"]


def test_interrupted_creation_is_completed(store: VolumeStore, tmp_path: Path) -> None:
    """A directory without its record is no volume yet, and becomes one."""
    (tmp_path / "volumes" / "data" / "_data").mkdir(parents=True)
    assert store.all() == []
    assert store.create("data", now=1.0).name == "data"


def test_a_volume_without_its_content_can_be_removed(store: VolumeStore) -> None:
    """A volume whose content went, but not its record, can be removed."""
    volume = store.create("data", now=1.0)
    Path(volume.mountpoint).rmdir()
    store.remove("data")
    assert store.all() == []
    with pytest.raises(NotFoundError, match="data"):
        store.remove("data")


def test_a_removal_takes_the_name_at_once(store: VolumeStore, tmp_path: Path) -> None:
    """While the content of a removed volume is deleted, a new one of its name is another.

    What is written to that one stays; and what a killed daemon left to delete is swept away.
    """
    old = Path(store.create("data", now=1.0).mountpoint)
    (old / "file").write_text("old")
    aside = store.set_aside("data")
    assert store.all() == []
    (Path(store.create("data", now=2.0).mountpoint) / "file").write_text("new")
    store.sweep()
    store.delete(aside)
    assert [entry.name for entry in (tmp_path / "volumes").iterdir()] == ["data"]
    assert (old / "file").read_text() == "new"


@pytest.mark.parametrize("name", ["a", "../x", "a/b", "-a", "x" * 300])
def test_bad_names(store: VolumeStore, name: str, tmp_path: Path) -> None:
    """A name that is none, or leads elsewhere, is refused and makes nothing."""
    with pytest.raises(InvalidError, match="is invalid"):
        store.create(name, now=1.0)
    assert not (tmp_path / "volumes").exists()
    with pytest.raises(NotFoundError):
        store.inspect(name)


def test_foreign_drivers_and_file_systems(store: VolumeStore, tmp_path: Path) -> None:
    """Only the local driver exists, and it mounts nothing; it can bind a directory."""
    with pytest.raises(InvalidError, match='driver "nfs" is not available'):
        store.create("data", now=1.0, driver="nfs")
    with pytest.raises(InvalidError, match="binds directories only"):
        store.create("data", now=1.0, options={"type": "nfs", "device": ":/x"})
    with pytest.raises(InvalidError, match='invalid option "size"'):
        store.create("data", now=1.0, options={"size": "1g"})
    with pytest.raises(InvalidError, match="is no directory"):
        store.create("data", now=1.0, options={"o": "bind", "device": str(tmp_path / "none")})
    device = tmp_path / "device"
    device.mkdir()
    options = {"type": "none", "o": "bind", "device": str(device)}
    request = VolumeRequest(name="data", options=options)
    assert store.resolve(request, C1, 1.0).path == str(device)
    with pytest.raises(ConflictError):
        store.create("data", now=1.0, options={"o": "bind", "device": str(tmp_path)})
    store.remove("data")
    assert device.is_dir()


def test_a_source_inside_of_a_volume_stays_inside(store: VolumeStore, tmp_path: Path) -> None:
    """Whatever names a path in a volume's content: the volume is mounted by a subpath."""
    data = store.create("data", now=1.0).mountpoint

    def kept(source: str, subpath: str = "") -> tuple[str, str]:
        mount = store.kept_inside(
            ContainerMount(type="bind", target="/t", source=source, subpath=subpath)
        )
        return mount.source, mount.subpath

    assert kept(f"{data}/sub/dir") == (data, "sub/dir")
    assert kept(f"{data}/../_data/./sub", "more") == (data, "sub/more")
    for outside in (data, str(tmp_path), "/etc/passwd", f"{tmp_path}/volumes/data/volume.json"):
        assert kept(outside) == (outside, "")


def test_sweep_removes_rests_without_content(tmp_path: Path) -> None:
    """What an interrupted creation or removal left goes; volumes and strange content stay."""
    store = VolumeStore(tmp_path)
    kept = store.create("kept", now=1.0)
    (Path(kept.mountpoint).parents[1] / "bare").mkdir()
    begun = tmp_path / "volumes" / "begun"
    (begun / "_data").mkdir(parents=True)
    (begun / "volume.json.new").write_text("{")
    strange = tmp_path / "volumes" / "strange" / "_data"
    strange.mkdir(parents=True)
    (strange / "file").write_text("precious")

    store.sweep()

    left = sorted(entry.name for entry in (tmp_path / "volumes").iterdir())
    assert left == ["kept", "strange"]
    assert (strange / "file").read_text() == "precious"
    VolumeStore(tmp_path / "none").sweep()

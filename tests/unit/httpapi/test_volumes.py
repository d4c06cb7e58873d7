"""/volumes and /system/df over HTTP, with real volumes on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from proto.ids import ContainerID, ImageID
from worker.images.api import Image
from worker.volumes import VolumeStore


@pytest.fixture
def volumes(served: Any, tmp_path: Path) -> VolumeStore:
    """The volumes that the served daemon has."""
    served.backend.volumes = VolumeStore(tmp_path)
    return served.backend.volumes


async def create(served: Any, **body: Any) -> Any:
    """Ask for a volume."""
    return await served.ask("POST", "/volumes/create", msgspec.json.encode(body))


async def test_a_volume_is_made_shown_and_removed(served: Any, volumes: VolumeStore) -> None:
    """Making it twice is as good as once; a removed one is not found."""
    made = await create(served, Name="data", Labels={"a": "b"})
    assert made.status == 201
    assert made.json()["Labels"] == {"a": "b"}
    assert (await create(served, Name="data")).json()["CreatedAt"] == made.json()["CreatedAt"]

    listed = (await served.ask("GET", "/volumes")).json()["Volumes"]
    assert listed == [made.json()]
    assert (await served.ask("GET", "/volumes/data")).json() == made.json()
    assert made.json()["Mountpoint"] == str(volumes.path_of(volumes.inspect("data")))

    assert (await served.ask("DELETE", "/volumes/data")).status == 204
    gone = await served.ask("DELETE", "/volumes/data")
    assert (gone.status, gone.json()["message"]) == (404, "get data: no such volume")
    assert (await served.ask("DELETE", "/volumes/data?force=1")).status == 204


async def test_a_volume_in_use_stays(served: Any, volumes: VolumeStore) -> None:
    """The refusal names the container; neither force nor prune takes it."""
    volumes.create("data", now=1.0)
    served.backend.volume_users = {"data": (ContainerID("c1"),)}

    refused = await served.ask("DELETE", "/volumes/data?force=1")

    assert refused.status == 409
    assert refused.json()["message"] == "remove data: volume is in use - [c1]"
    everything = "/v1.50/volumes/prune?filters=%7B%22all%22%3A%5B%22true%22%5D%7D"
    assert (await served.ask("POST", everything)).json()["VolumesDeleted"] is None


async def test_prune_takes_what_has_no_name_unless_told_to_take_all(
    served: Any, volumes: VolumeStore
) -> None:
    """From 1.42 on named volumes stay; before, and with all, they go."""
    volumes.create("named", now=1.0)
    unnamed = (await create(served)).json()["Name"]
    Path(volumes.inspect(unnamed).mountpoint, "file").write_bytes(b"x" * 5000)

    pruned = (await served.ask("POST", "/v1.50/volumes/prune")).json()

    assert pruned["VolumesDeleted"] == [unnamed]
    assert pruned["SpaceReclaimed"] >= 5000
    assert (await served.ask("POST", "/v1.41/volumes/prune")).json()["VolumesDeleted"] == ["named"]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ('{"name":["at"]}', ["data"]),
        ('{"label":["a=b"]}', ["data"]),
        ('{"label":["a=c"]}', []),
        ('{"dangling":["true"]}', ["other"]),
        ('{"dangling":["false"]}', ["data"]),
        ('{"driver":["nfs"]}', []),
    ],
)
async def test_volumes_are_filtered(
    served: Any, volumes: VolumeStore, filters: str, names: list[str]
) -> None:
    """By any part of the name, by label, by use, by driver."""
    volumes.create("data", now=1.0, labels={"a": "b"})
    volumes.create("other", now=1.0)
    served.backend.volume_users = {"data": (ContainerID("c1"),)}

    answer = await served.ask("GET", f"/volumes?filters={filters}")

    assert [one["Name"] for one in answer.json()["Volumes"]] == names


async def test_what_cannot_be_made_is_refused(served: Any, volumes: VolumeStore) -> None:
    """A bad name, an unknown driver, a body of another form."""
    assert (await create(served, Name="a/b")).status == 400
    assert (await create(served, Name="data", Driver="nfs")).status == 400
    assert (await create(served, Name=7)).status == 400
    assert volumes.all() == []


async def test_shared_layers_are_counted_once(served: Any, volumes: VolumeStore) -> None:
    """Two images of one layer: its size is the sum, and shared by each."""
    volumes.create("data", now=1.0)
    served.backend.images.layers = {"d1": 10, "d2": 5}
    served.backend.images.present = (
        Image(id=ImageID("sha256:a"), diff_ids=("d1",), size_bytes=10),
        Image(id=ImageID("sha256:b"), diff_ids=("d1", "d2"), size_bytes=15),
    )

    usage = (await served.ask("GET", "/system/df")).json()

    assert usage["LayersSize"] == 15
    assert [(i["Size"], i["SharedSize"]) for i in usage["Images"]] == [(10, 10), (15, 10)]
    assert [one["UsageData"] for one in usage["Volumes"]] == [{"Size": 0, "RefCount": 0}]
